"""The running batch against one forward from position 0 per row, for every architecture, operation and mask."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from personascope.backends import engine, generation, refill, selftest
from personascope.backends.engine import Batch, fits
from personascope.backends.generation import Completion, Prompt, Sampling, generate
from personascope.backends.hooks import Edit, Reader, blocks, editing
from personascope.backends.models import Loaded
from personascope.backends.selftest import prove
from personascope.backends.steering import Steer
from personascope.errors import BackendError
from personascope.methods.tokens import PromptTokens
from small_models import CONFIGS, model, tokenizer

# PEFT asks transformers by a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
PICK = torch.Generator().manual_seed(0)
# Longer than the sliding windows of the small models.
LENGTHS = (14, 14, 1, 9, 12, 14)
PROMPTS = [
    PromptTokens(torch.randint(7, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist(), [i % 3 != 0 for i in range(n)])
    for n in LENGTHS
]
STEPS = 4
TOKENS = torch.randint(7, 60, (len(LENGTHS), STEPS), generator=PICK)
TABLE = torch.randn(3, 32, generator=PICK) * 4
WHAT = Reader(torch.randn(3, 32, generator=PICK), torch.tensor([0.5, 0.0, -0.5]), torch.zeros(3), torch.tensor([0.2, 3.0, 1.0]))


def steers(mask: str) -> list[Steer]:
    """Several of one block in order, and of several blocks; rows 2 and 5 are left alone, row 1 differs from its twin row 0."""
    return [
        Steer(1, "add", mask, TABLE, [0, 1, -1, 2, 0, -1]),
        Steer(1, "ablate", "all", TABLE, [1, -1, -1, -1, 2, -1]),
        Steer(0, "clamp", mask, 0.3 * TABLE, [-1, -1, -1, 0, 1, -1], WHAT),
        Steer(2, "cap", "answer", 0.3 * TABLE, [2, -1, -1, 0, -1, -1], WHAT),
    ]


def network(name: str) -> nn.Module:
    """Each architecture, and a LoRA-wrapped one whose adapter is not zero."""
    if name != "peft":
        return model(name)
    return get_peft_model(model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)).eval()


@torch.no_grad()
def alone(net: nn.Module, row: int, edits: list[Steer]) -> Tensor:
    """Logits (STEPS, vocabulary) of one row, without batch, padding or cache, the masks written out."""
    prompt = PROMPTS[row]
    ids = torch.tensor([prompt.ids + TOKENS[row, : STEPS - 1].tolist()])
    place = torch.arange(ids.shape[1])
    words = torch.tensor(prompt.words + [False] * (STEPS - 1))
    last = len(prompt.ids) - 1
    where = {"all": place >= 0, "prompt": words, "last_prompt": place == last, "answer": place > last}
    applied = []
    for steer in edits:
        if steer.rows[row] >= 0:
            index = torch.tensor([steer.rows[row]])
            what = steer.reader.at(index) if steer.reader else None
            applied.append(Edit(steer.block, steer.op, steer.table[index], where[steer.mask][None], what))
    with editing(net, applied):
        return net(input_ids=ids, use_cache=False).logits[0, last:]


def together(net: nn.Module, edits: list[Steer]) -> dict[int, Tensor]:
    """The same from a batch into which rows come in two waves and out of which one falls early."""
    batch, found = Batch(net, PROMPTS, edits), {row: [] for row in range(len(PROMPTS))}
    batch.make_room(4, 24)
    batch.admit([3, 0, 1, 2])
    for step in range(STEPS + 2):
        if step == 2:
            kept = batch.keep(batch.rows != 0)
            assert kept.tolist() == [0, 3, 2]
            batch.make_room(5, 20)
            batch.admit([5, 4])
        for row, logits in zip(batch.rows.tolist(), batch.step(), strict=True):
            found[row].append(logits)
        batch.tokens = torch.stack([TOKENS[row, min(len(found[row]), STEPS) - 1] for row in batch.rows.tolist()])
    return {row: torch.stack(logits[:STEPS]) for row, logits in found.items()}


@pytest.mark.parametrize("mask", ["all", "prompt", "last_prompt", "answer"])
@pytest.mark.parametrize("name", [*CONFIGS, "peft"])
def test_every_row_says_what_it_says_alone(name: str, mask: str) -> None:
    net = network(name)
    assert fits(net)
    edits = steers(mask)
    found = together(net, edits)
    for row, logits in found.items():
        wanted = alone(net, row, edits)[: len(logits)]
        torch.testing.assert_close(logits, wanted, atol=2e-3, rtol=1e-3)
        moved = (wanted - alone(net, row, [])[: len(logits)]).abs().max()
        assert (moved > 0.05) == any(s.rows[row] >= 0 for s in edits), "an edit that changes nothing shows nothing"
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in blocks(net))


@pytest.mark.parametrize("name", [*CONFIGS, "peft"])
def test_unsteered_rows_are_those_of_the_same_batch_without_steers_to_the_bit(name: str) -> None:
    net = network(name)
    edits = steers("all")
    steered, plain = together(net, edits), together(net, [])
    for row in (2, 5):
        if name == "gpt_oss":  # rows that choose one expert share a product
            torch.testing.assert_close(steered[row], plain[row], atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(steered[row], plain[row])
    assert not torch.equal(steered[3], plain[3])


def loaded(net: nn.Module) -> Loaded:
    return Loaded(net, tokenizer())


def said(net: nn.Module, edits: list[Steer], **how: float) -> list[Completion]:
    prompts = [Prompt(tokens, f"q{i}") for i, tokens in enumerate(PROMPTS)]
    return [c for _, c in sorted(generate(loaded(net), prompts, Sampling(max_tokens=8, **how), edits), key=lambda pair: pair[0])]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_a_model_that_the_batch_cannot_hold_takes_the_plain_path_to_the_same_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(name)
    wanted = said(net, steers("prompt"), batch_tokens=60), said(net, [])
    monkeypatch.setattr(generation, "fits", lambda _net: False)
    monkeypatch.setattr(selftest, "fits", lambda _net: False)
    monkeypatch.setattr(refill, "Batch", None)
    monkeypatch.setattr(selftest, "Batch", None)
    assert (said(net, steers("prompt"), batch_tokens=60), said(net, [])) == wanted


@pytest.mark.parametrize("mask", ["all", "prompt", "last_prompt", "answer"])
@pytest.mark.parametrize("name", [*CONFIGS, "peft"])
def test_rows_that_try_what_was_said_unsteered_say_what_they_say_without(name: str, mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen strengths from nothing to much, so that drafts are kept whole, in part and not at all."""
    net = network(name)
    strengths = torch.linspace(0.001, 1, 16)
    table = (TABLE[:1] * strengths[:, None]).repeat(2, 1)
    asked = [Prompt(tokens, f"q{i}") for i, tokens in enumerate(PROMPTS) for _ in range(17)]
    rows = [n % 17 - 1 for n in range(len(asked))]
    edits = [Steer(1, "add", mask, table, rows), Steer(2, "ablate", mask, table, [row + 16 if row > 9 else -1 for row in rows])]
    sampling = Sampling(max_tokens=8, batch_tokens=22 * 30)
    kept: list[int] = []
    note = refill._Trust.note
    monkeypatch.setattr(refill._Trust, "note", lambda self, edit, count: (kept.append(count), note(self, edit, count))[1])
    drafts: generation.Drafts = {}
    tried = dict(generate(loaded(net), asked, sampling, edits, drafts))
    assert len(kept) == len(asked) - len(PROMPTS)
    assert 8 in kept
    assert len(set(kept)) > 2
    assert len(drafts) == len(PROMPTS)
    monkeypatch.setattr(generation, "DRAFTED", 10**9)
    plain = dict(generate(loaded(net), asked, sampling, edits))
    again = dict(generate(loaded(net), asked, sampling, edits, drafts))
    for found in (tried, again):
        # One draw of several thousand may lie so near an edge that rounding moves it.
        assert sum(found[row] != plain[row] for row in plain) <= 1
    assert len({tuple(c.ids) for c in plain.values()}) > 2 * len(PROMPTS)


def test_a_wrong_draft_changes_no_text() -> None:
    net, sampling = model("llama"), Sampling(max_tokens=8)
    asked = [Prompt(tokens, f"q{i}") for i, tokens in enumerate(PROMPTS) for _ in range(6)]
    edits = [Steer(1, "add", "all", TABLE, [n % 3 for n in range(len(asked))])]
    wrong = {prompt.name: Completion([7, 8, 9], "end") for prompt in asked}
    assert dict(generate(loaded(net), asked, sampling, edits, wrong)) == dict(generate(loaded(net), asked, sampling, edits))


def test_an_edit_that_keeps_little_is_offered_little() -> None:
    trust = refill._Trust()
    assert trust.offer(((0, 1),), 12) == 12
    for count in (1, 1, 4):
        trust.note(((0, 1),), count)
    assert trust.offer(((0, 1),), 12) == 6
    assert trust.offer(((0, 2),), 12) == 12
    assert trust.offer(((0, 1),), 3) == 3


def test_what_the_batch_cannot_hold_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ({"_attn_implementation": "flash_attention_2"}, {"layer_types": ["linear_attention"] * 3}):
        net = model("llama")
        for key, value in change.items():
            setattr(net.config, key, value)
        assert not engine._could(net)
    assert fits(model("llama"))
    monkeypatch.setattr(engine.Slots, "get_seq_length", lambda *_: 1 / 0)
    monkeypatch.setattr(engine.Attention, "mask", lambda _self, lengths, width: torch.ones(len(lengths), 1, 1, width, dtype=torch.bool))
    assert not fits(model("llama")), "a wrong mask is noticed"


@pytest.mark.parametrize("fitting", [True, False])
@pytest.mark.parametrize("mask", ["all", "prompt", "last_prompt", "answer"])
def test_steering_that_does_nothing_is_an_error(mask: str, fitting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("llama")
    assert fits(net)
    monkeypatch.setattr(selftest, "fits", lambda _net: fitting)
    edit = Steer(1, "add", mask, TABLE, [0, 1, -1, 2, 0, -1])
    prove(net, PROMPTS, [edit])
    monkeypatch.setattr(Edit, "__call__", lambda _self, x: x)
    with pytest.raises(BackendError, match=r"steering is not applied: the logits of steered prompt \d equal"):
        prove(net, PROMPTS, [edit])
    prove(net, PROMPTS, [Steer(1, "add", mask, 0 * TABLE, edit.rows), Steer(0, "add", mask, TABLE, [-1] * 6)])


@pytest.mark.parametrize("fitting", [True, False])
def test_steering_that_reaches_other_rows_is_an_error(fitting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("llama")
    assert fits(net)
    monkeypatch.setattr(selftest, "fits", lambda _net: fitting)
    monkeypatch.setattr(Edit, "__call__", lambda self, x: x + self.vectors.sum(0) * self.mask.any())
    with pytest.raises(BackendError, match="steering leaks"):
        prove(net, PROMPTS, [Steer(1, "add", "all", TABLE, [0, 1, -1, 2, 0, -1])])


def test_an_edit_that_ought_to_change_nothing_is_no_error() -> None:
    high = Reader.along(TABLE, torch.full((3,), 1e6))
    prove(model("llama"), PROMPTS, [Steer(1, "cap", "all", TABLE, [0] * 6, high)])
    short = PromptTokens([9, 8], [False, False])
    prove(model("llama"), [short], [Steer(2, "add", "prompt", TABLE, [0])])


def test_generation_is_proved_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("llama")
    monkeypatch.setattr(Edit, "__call__", lambda _self, x: x)
    with pytest.raises(BackendError, match="not applied"):
        said(net, steers("all"))
