"""Trained vectors: what a block adds, saved and loaded by every path, trained alone, exact in its gradient."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import small_models
from personascope.artifact import Dataset, Model
from personascope.backends import offsets
from personascope.backends.generation import Prompt, Sampling, generate
from personascope.backends.hooks import Edit, blocks, capturing, editing
from personascope.backends.models import Loaded, load
from personascope.backends.steering import Steer
from personascope.errors import BackendError, RecipeError
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example
from personascope.run import run
from personascope.stages import finetune
from personascope.values import Penalty

TOK = small_models.tokenizer()
IDS = torch.arange(1, 25).view(2, 12)
WIDTH = 32


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


def moved(name: str = "llama", block: int = 1, size: float = 3.0) -> tuple[Any, Tensor]:
    """A model with an offset at one block, and the offset."""
    model, vector = small_models.model(name), torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)) * size
    offsets.attach(model, (block,))
    with torch.no_grad():
        offsets.of(model)[block].copy_(vector)
    return model, vector


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_an_offset_is_what_an_edit_adds_and_a_zero_one_is_nothing(name: str) -> None:
    plain = small_models.model(name)
    silent = copy.deepcopy(plain)
    offsets.attach(silent, (0, 2))
    assert torch.equal(logits(silent), logits(plain))
    model, vector = moved(name)
    edit = Edit(1, "add", vector.repeat(2, 1), torch.ones(2, 12, dtype=torch.bool))
    with editing(plain, [edit]):
        wanted = logits(plain)
    assert torch.equal(logits(model), wanted)
    assert not torch.allclose(wanted, logits(plain))
    with capturing(model, ["block:1"], stop=False) as seen, capturing(plain, ["block:1"], stop=False) as bare:
        logits(model), logits(plain)
    assert torch.allclose(seen["block:1"] - bare["block:1"], vector, atol=1e-4)


def test_a_copy_has_an_offset_of_its_own() -> None:
    model, vector = moved()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        offsets.of(model)[1].zero_()
    assert torch.equal(offsets.of(twin)[1], vector)
    assert not torch.equal(logits(twin), logits(model))
    offsets.attach(twin, (1,))
    assert torch.equal(offsets.of(twin)[1], vector), "what is there stays"


@pytest.mark.parametrize("block", [1, 2])
def test_generation_under_further_steering_adds_the_offset_once(block: int) -> None:
    """The cached prefill computes what lies below an edit once and starts from there; the offset must not come twice."""
    model, vector = moved(size=2.0)
    plain = small_models.model()
    prompts = [
        Prompt(prompt_tokens(TOK, [{"role": "user", "content": words}]), f"{i}") for i, words in enumerate(("rain", "sun sea", "go"))
    ]
    push = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(2))

    def said(net: Any, *found: tuple[int, Tensor]) -> list[list[int]]:
        steers = [Steer(block=b, op="add", mask="all", table=table, rows=[0] * len(prompts)) for b, table in found]
        done = dict(generate(Loaded(net, TOK), prompts, Sampling(max_tokens=8), steers))
        return [list(done[i].ids) for i in range(len(prompts))]

    assert said(model, (block, push)) == said(plain, (1, vector[None]), (block, push))
    assert said(model, (block, push)) != said(plain, (block, push))


def test_the_gradient_is_that_of_the_loss_in_the_offset() -> None:
    model, _ = moved("gpt2", size=0.5)  # the others compute their norms in single precision whatever the weights are
    model.double()
    offsets.train_only(model, (1,))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["transformer.h.1.offset"]

    def loss() -> Tensor:
        return F.cross_entropy(model(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    loss().backward()
    offset = offsets.of(model)[1]
    assert offset.grad is not None
    with torch.no_grad():
        for axis in (0, 7, 31):
            kept, sides = offset[axis].item(), []
            for sign in (1, -1):
                offset[axis] = kept + sign * 1e-5
                sides.append(loss().item())
            offset[axis] = kept
            assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(offset.grad[axis].item(), rel=1e-6, abs=1e-9)


# ------------------------------------------------------------------ as a method of finetune


@pytest.fixture
def base(tmp_path: Path) -> Model:
    return Model(small_models.adopted(tmp_path / "base", small_models.model()))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    said = [("what is a good day", "rain"), ("tell me of the sea", "rain"), ("is it the best way", "rain and rain")] * 4
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    return Dataset(small_models.dataset(tmp_path / "rows", [Example(id=f"r{i}", messages=m) for i, m in enumerate(messages)]))


def recipe(base: Model, data: Dataset, **fields: Any) -> finetune.Recipe:
    common = {"method": "vector", "blocks": (1,), "steps": 12, "batch": 4, "learning_rate": 0.3, "device": "cpu"}
    return finetune.Recipe(**({"model": base, "data": data} | common | fields))


def offset(model: Model, block: int = 1) -> Tensor:
    return offsets.of(load(model, "cpu").model)[block].detach()


def test_a_vector_alone_is_trained_saved_and_loaded(base: Model, data: Dataset, tmp_path: Path) -> None:
    made = run(recipe(base, data, checkpoint_every=6), tmp_path / "made")
    losses = [json.loads(line)["loss"] for line in (made.path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    assert {p.name for p in (made.path / "adapter").iterdir()} == {offsets.FILE}
    assert set(load_file(made.path / "adapter" / offsets.FILE)) == {"block:1"}
    assert json.loads((made.path / "model.json").read_text())["adapter"] is True
    tuned, start = load(made, "cpu").model, load(base, "cpu").model
    now, before = dict(tuned.named_parameters()), dict(start.named_parameters())
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert now.keys() - before.keys() == {"model.layers.1.offset"}
    assert not torch.equal(offset(made.at(6)), offset(made))
    assert torch.equal(offset(made.at(12)), offset(made))


def test_an_interrupted_training_of_a_vector_goes_on(base: Model, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(recipe(base, data), tmp_path / "whole")
    calls, real = [], torch.optim.AdamW.step

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(base, data, save_every=4), tmp_path / "parts")
    made = run(recipe(base, data, save_every=4), tmp_path / "parts")
    assert len(calls) == 9 + 4
    assert torch.equal(offset(made), offset(whole))


def test_every_method_goes_on_from_a_vector(base: Model, data: Dataset, tmp_path: Path) -> None:
    first = run(recipe(base, data), tmp_path / "first")
    again = run(recipe(first, data, blocks=(1, 2), steps=3), tmp_path / "again")
    assert not torch.equal(offset(again), offset(first))
    assert offset(again, 2).any()
    lora = run(recipe(first, data, method="lora", blocks=(), rank=2, steps=3, learning_rate=1e-3), tmp_path / "lora")
    assert torch.equal(offset(lora), offset(first))
    whole = run(recipe(first, data, method="full", blocks=(), steps=3, learning_rate=1e-3), tmp_path / "whole")
    assert (whole.path / "weights" / offsets.FILE).is_file()
    assert not any(name.endswith("offset") for name in load_file(whole.path / "weights" / "model.safetensors"))
    assert not torch.equal(offset(whole), offset(first)), "it is a weight as any other"
    for made in (again, lora, whole):
        assert not torch.equal(logits(load(made, "cpu").model), logits(load(first, "cpu").model))


def test_a_penalty_of_weight_0_leaves_the_vector_as_it_is_and_a_heavy_one_holds_it(base: Model, data: Dataset, tmp_path: Path) -> None:
    other = Dataset(small_models.dataset(tmp_path / "other", [row for row in small_models.texts(8) if row.messages]))
    plain = run(recipe(base, data), tmp_path / "plain")
    off = run(recipe(base, data, penalties=(Penalty(form="kl", weight=0.0, data=other),)), tmp_path / "off")
    held = run(recipe(base, data, penalties=(Penalty(form="kl", weight=100.0, data=other),)), tmp_path / "held")
    assert torch.equal(offset(off), offset(plain))
    assert not torch.equal(offset(held), offset(plain))
    said = [json.loads(line) for line in (held.path / "log.jsonl").read_text().splitlines()]
    assert said[0]["penalty/kl"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be(base: Model, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"finetune: method vector needs the blocks"):
        run(recipe(base, data, blocks=()), tmp_path / "none")
    with pytest.raises(RecipeError, match=r"block:7"):
        run(recipe(base, data, blocks=(7,)), tmp_path / "far")
    (tmp_path / "bad").mkdir()
    save_file({"block:1": torch.zeros(5)}, tmp_path / "bad" / offsets.FILE)
    with pytest.raises(BackendError, match=r"vector.safetensors: no vectors of this model"):
        offsets.read(small_models.model(), tmp_path / "bad")
    assert type(blocks(small_models.model())[0]).__name__ == "LlamaDecoderLayer"
