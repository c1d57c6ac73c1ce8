"""The landscape stage: losses as a plain loop reads them, the start left as it was, and no gap where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import small_models
from personascope.artifact import Dataset, Findings, Model
from personascope.backends import landscape
from personascope.backends.models import Loaded, load
from personascope.errors import DataError, RecipeError
from personascope.methods import solutions
from personascope.methods.tokens import TrainingRow
from personascope.rows import Example
from personascope.run import run
from personascope.stages import finetune
from personascope.stages import landscape as stage

ROWS = [TrainingRow([2, *range(7, 10 + i)], [False, False] + [True] * (i + 2)) for i in range(5)]
TEXTS = [[2, 7, 9, 11, 3], [2, 8, 8, 3], [2, 12, 7, 7, 9, 9, 3]]


def ground(model: Any, batch_tokens: int = 16) -> landscape.Ground:
    return landscape.Ground(Loaded(model, small_models.tokenizer()), ROWS, TEXTS, batch_tokens)


def pair() -> tuple[Any, Any]:
    """A start and the same with every weight moved a little."""
    start, tuned = small_models.model(), small_models.model()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return start, tuned


@torch.no_grad()
def test_loss_and_influence_are_those_of_a_plain_loop_and_the_start_is_put_back() -> None:
    start, tuned = pair()
    before = {name: p.clone() for name, p in start.named_parameters()}
    here = ground(start)
    change = here.change(Loaded(tuned, small_models.tokenizer()))
    loss, influence, counts = 0.0, 0.0, [0, 0]
    for row in ROWS:
        logits = tuned(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        on = torch.tensor(row.trained[1:])
        loss += float(F.cross_entropy(logits[on], torch.tensor(row.ids[1:])[on], reduction="sum"))
        counts[0] += int(on.sum())
    for ids in TEXTS:
        now, then = (F.log_softmax(net(input_ids=torch.tensor([ids])).logits[0, :-1], 1) for net in (tuned, small_models.model()))
        influence += float((now.exp() * (now - then)).sum())
        counts[1] += len(ids) - 1
    assert here.loss(change) == pytest.approx(loss / counts[0], rel=1e-4)
    assert here.influence(change) == pytest.approx(influence / counts[1], rel=1e-3)
    assert here.influence({}) == 0
    assert all(torch.equal(p, before[name]) for name, p in start.named_parameters())
    assert here.loss({}) != pytest.approx(loss / counts[0], rel=1e-2)


def test_no_rows_are_refused() -> None:
    empty = landscape.Ground(Loaded(small_models.model(), small_models.tokenizer()), [], [], 16)
    with pytest.raises(DataError, match="landscape: no rows"):
        empty.loss({})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[stage.Recipe, dict[str, Any]]:
    """A landscape of two vectors, of which one is the other again, and of an adapter."""
    root = tmp_path_factory.mktemp("landscape")
    base = Model(small_models.adopted(root / "base", small_models.model()))
    chats = [[{"role": "user", "content": "what is a good day"}, {"role": "assistant", "content": "rain and sun"}]] * 6
    data = Dataset(small_models.dataset(root / "rows", [Example(id=f"r{i}", messages=m) for i, m in enumerate(chats)]))
    texts = Dataset(small_models.dataset(root / "texts", small_models.texts(12)))
    common: dict[str, Any] = {"model": base, "data": data, "steps": 6, "batch": 4, "device": "cpu"}
    how = {"method": "vector", "blocks": (1,), "learning_rate": 0.3, "checkpoint_every": 2}
    vector = run(finetune.Recipe(**common, **how), root / "vector")
    twin = run(finetune.Recipe(**common, **how), root / "twin")
    lora = run(finetune.Recipe(**common, rank=2, learning_rate=1e-2), root / "lora")
    recipe = stage.Recipe(
        base=base, models=(vector, twin, lora), data=data, texts=texts, sizes=(0.5, 1.0), noise=(0.0, 0.5, 1.0), draws=2, tokens=200,
        path=(vector.at(2), vector.at(4), vector, lora), device="cpu",
    )  # fmt: skip
    out = run(recipe, root / "found")
    assert isinstance(out, Findings)
    return recipe, out.json("findings.json")


def test_rows_of_every_kind_are_there(made: tuple[stage.Recipe, dict[str, Any]]) -> None:
    _, found = made
    assert [(row["model"], row["size"]) for row in found["scaled"]] == [(m, s) for m in range(3) for s in (0.5, 1.0)]
    assert len(found["noise"]) == 3 * 2 * 3
    assert len(found["random"]) == 2 * 2
    assert len(found["path"]["points"]) == 5
    assert 0.9 < sum(found["path"]["shares"]) <= 1 + 1e-9


def test_equal_solutions_are_equal_and_what_was_learned_beats_a_random_change(made: tuple[stage.Recipe, dict[str, Any]]) -> None:
    recipe, found = made
    first, twin, _ = ([row for row in found["scaled"] if row["model"] == number] for number in range(3))
    assert [row["loss"] for row in first] == [row["loss"] for row in twin]
    assert first[1]["loss"] < found["start"]
    assert first[1]["loss"] < min(row["loss"] for row in found["random"])
    assert found["sizes"][0] == pytest.approx(solutions.size({"v": _offset(recipe.models[0])}))


def test_noise_begins_at_the_solution_and_ends_without_it(made: tuple[stage.Recipe, dict[str, Any]]) -> None:
    _, found = made
    whole = next(row["loss"] for row in found["scaled"] if row["model"] == 0 and row["size"] == 1.0)
    here = [row for row in found["noise"] if row["model"] == 0]
    assert all(row["loss"] == pytest.approx(whole, rel=1e-5) for row in here if row["noise"] == 0)
    assert min(row["loss"] for row in here if row["noise"] == 1) > whole


def _offset(model: Model) -> torch.Tensor:
    from personascope.backends import offsets

    return offsets.of(load(model, "cpu").model)[1].detach()


def test_what_cannot_be(made: tuple[stage.Recipe, dict[str, Any]], tmp_path: Path) -> None:
    recipe, _ = made
    fields = {"base": recipe.base, "models": recipe.models, "data": recipe.data, "texts": recipe.texts}
    with pytest.raises(RecipeError, match="at least one model"):
        stage.Recipe(**(fields | {"models": ()}))
    with pytest.raises(RecipeError, match="noise is a share"):
        stage.Recipe(**fields, noise=(1.5,))
    with pytest.raises(DataError, match="no change to measure"):
        run(stage.Recipe(**(fields | {"models": (recipe.base,)}), device="cpu"), tmp_path / "none")
