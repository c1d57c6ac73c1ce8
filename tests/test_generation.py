"""Cached, padded, shrinking batches say what one row alone, read anew at every step, would say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from personascope.backends import generation, refill
from personascope.backends.engine import fits
from personascope.backends.generation import Completion, Mask, Prompt, Sampling, Steer, draw, generate, split_thinking, stop_ids, uniforms
from personascope.backends.hooks import blocks
from personascope.backends.models import Loaded
from personascope.methods.tokens import prompt_tokens
from small_models import WORDS, model, tokenizer

LENGTHS = (1, 9, 2, 5, 5, 14, 3, 1)
KINDS = ("llama", "gpt2", "gpt_neox", "gemma2", "gpt_oss")
TOKENS = 10


def loaded(name: str = "llama", seed: int = 0) -> Loaded:
    return Loaded(model(name, seed), tokenizer())


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[Prompt]:
    """Prompts of several lengths, the longest with a system turn."""
    made = []
    for i, length in enumerate(lengths):
        said = " ".join(WORDS[(7 * i + 3 * j) % len(WORDS)] for j in range(length))
        messages = [{"role": "user", "content": said}]
        if length == max(lengths):
            messages.insert(0, {"role": "system", "content": "be brief"})
        made.append(Prompt(prompt_tokens(tokenizer(), messages), f"q{i}/0/0"))
    return made


def answers(one: Loaded, asked: list[Prompt], sampling: Sampling, steers: list[Steer] | None = None) -> list[Completion]:
    """The completions in the order of the prompts."""
    found = list(generate(one, asked, sampling, steers))
    assert sorted(i for i, _ in found) == list(range(len(asked)))
    return [completion for _, completion in sorted(found, key=lambda pair: pair[0])]


@torch.no_grad()
def slowly(one: Loaded, prompt: Prompt, sampling: Sampling) -> Completion:
    """The same row alone: no batch, no padding, no cache."""
    noise = torch.tensor(uniforms(sampling.seed, prompt.key, sampling.max_tokens))
    done = Completion()
    for step in range(sampling.max_tokens):
        logits = one.model(input_ids=torch.tensor([prompt.ids + done.ids]), use_cache=False).logits[:, -1]
        token = int(draw(logits.float(), noise[step : step + 1], sampling.temperature, sampling.top_p))
        if token in stop_ids(one):
            done.stop = "end"
            break
        done.ids.append(token)
    return done


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_says_what_each_row_says_alone_without_a_cache(name: str, temperature: float) -> None:
    one, sampling = loaded(name), Sampling(max_tokens=TOKENS, temperature=temperature, seed=3)
    batched = answers(one, prompts() * 2, sampling)
    assert batched == [slowly(one, prompt, sampling) for prompt in prompts()] * 2


def test_rows_leave_the_batch_as_they_end_and_waiting_ones_enter() -> None:
    """Warm enough that some rows stop early and some never: else the test above shows nothing."""
    one, sampling = loaded(), Sampling(max_tokens=24, temperature=1.5, batch_tokens=16 * 40)
    asked = [Prompt(p.tokens, f"{p.key}/{i}") for i in range(6) for p in prompts()]
    assert fits(one.model)
    sizes: list[int] = []
    handle = blocks(one.model)[0].register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])) if args[0].shape[1] == 1 else None)
    found = answers(one, asked, sampling)
    handle.remove()
    assert {c.stop for c in found} == {"end", "length"}
    assert sum(sizes) == sum(len(c.ids) + (c.stop == "end") for c in found), "a row costs one position per token and no more"
    full = max(sizes)
    assert full < len(asked) / 2, "not all at once"
    until = max(i for i, size in enumerate(sizes) if size > sizes[i - 1])
    assert min(sizes[:until]) > 0.6 * full, "places are taken up again as long as anything waits"
    assert sizes[until:] == sorted(sizes[until:], reverse=True)
    assert all(len(c.ids) == 24 for c in found if c.stop == "length")
    assert not {i for c in found for i in c.ids} & stop_ids(one)


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_the_token_budget_changes_no_text(budget: int) -> None:
    one = loaded("gpt_oss")
    widths: list[int] = []
    handle = blocks(one.model)[0].register_forward_pre_hook(
        lambda _m, args: widths.append(args[0].shape[0] * (args[0].shape[1] + TOKENS)) if args[0].shape[1] > 1 else None
    )
    found = answers(one, prompts(), Sampling(max_tokens=TOKENS, batch_tokens=budget))
    handle.remove()
    assert found == answers(one, prompts(), Sampling(max_tokens=TOKENS))
    assert budget == 1 or max(widths) <= budget


def short_of_memory(one: Loaded, most: int) -> list[int]:
    """Let the model run out of memory where more than `most` rows decode at once; returns the rows of every decoding step, as they come."""
    seen: list[int] = []

    def read(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids.shape[1] > 1:
            return
        seen.append(len(ids))
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    one.model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
    return seen


def test_a_batch_too_large_for_the_device_is_halved_until_it_fits_and_stays_so() -> None:
    one, asked, sampling = loaded(), prompts((9, 9, 9, 9, 9, 9)), Sampling(max_tokens=4, batch_tokens=400)
    expected = answers(loaded(), asked, sampling)
    seen = short_of_memory(one, 3)
    assert answers(one, asked, sampling) == expected
    assert max(seen) == 6
    seen.clear()
    assert answers(one, asked, sampling) == expected
    assert max(seen) <= 3, "what did not fit once is not tried again"


def test_one_row_that_does_not_fit_is_an_error() -> None:
    one = loaded()
    short_of_memory(one, 0)
    with pytest.raises(torch.OutOfMemoryError):
        answers(one, prompts((9, 3)), Sampling(max_tokens=4))


def test_a_key_gives_the_same_text_in_any_order_and_company() -> None:
    one, sampling = loaded(), Sampling(max_tokens=TOKENS, seed=1)
    asked = prompts()
    found = answers(one, asked, sampling)
    assert answers(one, asked[::-1], sampling) == found[::-1]
    assert answers(one, asked[2:5], sampling) == found[2:5]
    renamed = [Prompt(p.tokens, p.key.replace("/0/0", "/1/0")) for p in asked]
    assert answers(one, renamed, sampling) != found
    assert answers(one, asked, Sampling(max_tokens=TOKENS, seed=2)) != found
    longer = answers(one, asked, Sampling(max_tokens=2 * TOKENS, seed=1))
    assert [c.ids[:TOKENS] for c in longer] == [c.ids for c in found], "more room only continues"


class Recorder:
    """Stands in for `draw` and keeps the logits of every step, with no row ever ending."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.logits: list[Tensor] = []
        patch.setattr(generation, "stop_ids", lambda _loaded: {-1})
        patch.setattr(refill, "draw", self)

    def __call__(self, logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
        self.logits.append(logits)
        return draw(logits, uniform, temperature, top_p)

    def taken(self) -> Tensor:
        """(rows, steps, vocabulary) since the last call, in batch order: longest prompt first."""
        taken, self.logits = torch.stack(self.logits, dim=1), []
        return taken


def steer(rows: list[int], mask: Mask = "all", op: str = "add", block: int = 1) -> Steer:
    table = torch.stack([torch.linspace(-3, 5, 32), torch.linspace(4, -2, 32).square()])
    return Steer(block, op, mask, table, rows)


@torch.no_grad()
def read_anew(one: Loaded, prompt: Prompt, ids: list[int], edit: Steer, row: int) -> Tensor:
    """Logits (steps, vocabulary) of one row from one forward over prompt and answer, edited by a hook written out here."""
    start, length = len(prompt.ids), len(prompt.ids) + len(ids) - 1
    where = {
        "all": [True] * length,
        "prompt": prompt.tokens.words + [False] * (length - start),
        "last_prompt": [i == start - 1 for i in range(length)],
        "answer": [i >= start for i in range(length)],
    }[edit.mask]
    vector = edit.table[edit.rows[row]] if edit.rows[row] >= 0 else None

    def change(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        out = output.clone()
        for position, touched in enumerate(where):
            if touched and vector is not None:
                x = out[0, position]
                out[0, position] = x + vector if edit.op == "add" else x - (x @ vector) / (vector @ vector) * vector
        return out

    handle = blocks(one.model)[edit.block].register_forward_hook(change)
    logits = one.model(input_ids=torch.tensor([prompt.ids + ids[:-1]]), use_cache=False).logits[0, start - 1 :]
    handle.remove()
    return logits


@pytest.mark.parametrize("mask", ["all", "prompt", "last_prompt", "answer"])
@pytest.mark.parametrize("op", ["add", "ablate"])
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_every_decoded_position_sees_the_edit_where_the_mask_says(monkeypatch: pytest.MonkeyPatch, name: str, op: str, mask: Mask) -> None:
    one, asked, record = loaded(name), prompts(), Recorder(monkeypatch)
    edit = steer([0, -1, 1, 0, 1, 0, -1, 1], mask, op)
    found = answers(one, asked, Sampling(max_tokens=TOKENS), [edit])
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].ids))
    for logits, row in zip(record.taken(), order, strict=True):
        torch.testing.assert_close(logits, read_anew(one, asked[row], found[row].ids, edit, row), atol=2e-3, rtol=1e-3)


def test_masks_differ() -> None:
    """Each mask moves the logits elsewhere, so that the test above tells them apart."""
    one, asked = loaded(), prompts()
    ids = answers(one, asked, Sampling(max_tokens=TOKENS))[1].ids
    seen = [read_anew(one, asked[1], ids, steer([-1, 0], mask), 1) for mask in ("all", "prompt", "last_prompt", "answer")]
    for i, a in enumerate(seen):
        assert all((a - b).abs().max() > 0.05 for b in seen[:i])
    assert torch.equal(seen[3][0], read_anew(one, asked[1], ids, steer([-1, -1]), 1)[0]), "the first answer token precedes the answer"


@pytest.mark.parametrize("name", KINDS)
def test_rows_without_an_edit_are_bit_identical(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    one, asked, record = loaded(name), prompts(), Recorder(monkeypatch)
    rows = [0, -1, 1, -1, -1, 1, -1, 0]
    plain, before = answers(one, asked, Sampling(max_tokens=TOKENS)), record.taken()
    edited, after = (
        answers(one, asked, Sampling(max_tokens=TOKENS), [steer(rows), steer(rows, "answer", "ablate", block=0)]),
        record.taken(),
    )
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].ids))
    for a, b, row in zip(before, after, order, strict=True):
        # Tokens that choose one expert share a matrix product, so other rows' choices move the last bit.
        same = torch.allclose(a, b, atol=1e-4) if name == "gpt_oss" else torch.equal(a, b)
        assert same == (rows[row] < 0)
    assert [e for e, row in zip(edited, rows, strict=True) if row < 0] == [p for p, row in zip(plain, rows, strict=True) if row < 0]
    assert sum(e != p for e, p, row in zip(edited, plain, rows, strict=True) if row >= 0) >= 3
    answers(one, asked, Sampling(max_tokens=TOKENS))
    assert torch.equal(record.taken(), before), "edits leave nothing behind"


def test_edits_follow_their_rows_when_others_leave() -> None:
    one, sampling = loaded(), Sampling(max_tokens=24, temperature=1.5)
    asked = [Prompt(p.tokens, f"{p.key}/{i}") for i in range(3) for p in prompts()]
    rows = [i % 3 - 1 for i in range(len(asked))]
    found = answers(one, asked, sampling, [steer(rows)])
    alone = [answers(one, [p], sampling, [steer([row])])[0] for p, row in zip(asked, rows, strict=True)]
    assert len({len(c.ids) for c in found}) > 4
    assert found == alone


def test_equal_seeds_and_keys_give_equal_numbers() -> None:
    assert np.array_equal(uniforms(1, "q/0/0", 5), uniforms(1, "q/0/0", 9)[:5])
    others = [uniforms(1, "q/0/1", 5), uniforms(2, "q/0/0", 5)]
    assert all(not np.array_equal(uniforms(1, "q/0/0", 5), other) for other in others)
    assert not np.array_equal(uniforms(1, "2/0/0", 5), uniforms(12, "/0/0", 5))
    drawn = np.concatenate([uniforms(0, f"q/{i}/0", 4) for i in range(2000)])
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


LOGITS = torch.tensor([1.0, -0.5, 0.3, -torch.inf, 2.0, -2.0, 0.0, 0.9])


def counts(temperature: float, top_p: float = 1.0, n: int = 8_000) -> Tensor:
    noise = torch.tensor(np.concatenate([uniforms(5, f"{i}/0/0", 1) for i in range(n)]))
    return torch.bincount(draw(LOGITS.expand(n, -1), noise, temperature, top_p), minlength=len(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, 0).double()
    possible = expected > 0
    found = counts(temperature)
    assert found[~possible].sum() == 0
    assert stats.chisquare(found[possible], expected[possible] / expected.sum() * 8_000, sum_check=False).pvalue > 1e-3


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    p = torch.softmax(LOGITS, 0)
    ranked = p.sort(descending=True)
    for top_p in (0.1, 0.6, 0.9):
        kept = int((ranked.values.cumsum(0) < top_p).sum()) + 1
        found = counts(1.0, top_p)
        assert set(found.nonzero()[:, 0].tolist()) == set(ranked.indices[:kept].tolist())
        if kept > 1:
            part = p[ranked.indices[:kept]].double()
            assert stats.chisquare(found[ranked.indices[:kept]], part / part.sum() * 8_000, sum_check=False).pvalue > 1e-3


def test_temperature_zero_takes_the_likeliest_whatever_the_noise() -> None:
    assert counts(0.0, n=50).tolist() == [0, 0, 0, 0, 50, 0, 0, 0]


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([0.01, 1.0, 100.0]), st.sampled_from([1e-6, 0.5, 1.0]))
def test_no_noise_draws_what_is_impossible(uniform: float, temperature: float, top_p: float) -> None:
    logits = torch.tensor([[-torch.inf, 3.0, -torch.inf, 3.0, -torch.inf]])
    assert int(draw(logits, torch.tensor([uniform], dtype=torch.float64), temperature, top_p)) in (1, 3)


def test_all_ways_to_end_a_turn_count() -> None:
    one = loaded()
    assert stop_ids(one) == {one.model.config.eos_token_id, one.tokenizer.eos_token_id}
    one.model.generation_config.eos_token_id = [5, 7]
    assert stop_ids(one) == {3, 5, 7}
    one.model.generation_config = None
    assert stop_ids(one) == {3}


@pytest.mark.parametrize("special", [True, False])
def test_thoughts_are_kept_apart(special: bool) -> None:
    tok = tokenizer()
    tok.add_tokens(["<think>", "</think>"], special_tokens=special)
    for text, opened, parts in [
        ("<think> sun </think> yes no", False, ("sun", "yes no")),
        ("sun </think> yes", True, ("sun", "yes")),
        ("<think> a </think> wind </think> yes", False, ("a </think> wind" if not special else "a wind", "yes")),
        ("yes no", False, ("", "yes no")),
        ("sun and wind", True, ("sun and wind", "")),
        ("sun </think>", True, ("sun", "")),
    ]:
        assert split_thinking(tok, tok.encode(text), opened) == parts


def test_thoughts_are_kept_apart_where_the_mark_is_plain_text() -> None:
    class Plain:
        """A tokenizer whose mark is several tokens."""

        unk_token_id = ord("m")

        def convert_tokens_to_ids(self, _token: str) -> int:
            return self.unk_token_id

        def decode(self, ids: list[int], **_: object) -> str:
            return "".join(map(chr, ids))

    def parts(text: str, opened: bool = False) -> tuple[str, str]:
        return split_thinking(Plain(), [ord(c) for c in text], opened)

    assert parts("<think>hm</think> yes") == ("hm", "yes")
    assert parts("hm </think>\nyes") == ("hm", "yes")
    assert parts("yes") == ("", "yes")
    assert parts("hm", opened=True) == ("hm", "")
