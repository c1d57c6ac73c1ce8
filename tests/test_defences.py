"""Defences by name: each sets fields that a fine-tuning recipe takes, says its formula and source, and how close it is."""

import inspect
import re
from typing import Any

import pytest

from personascope import defences
from personascope.artifact import Dataset, Dictionary, Diff, Model
from personascope.stages import finetune
from personascope.values import Direction, Intervention, Penalty

DATA, SAES, MOVED = Dataset("d"), Dictionary("s"), Diff("f")
AXIS = Direction(MOVED, "mean_difference/block:1/all")
GIVEN: dict[str, dict[str, Any]] = {
    "none": {},
    "kl_to_start": {"weight": 0.5},
    "narrow_on_purpose": {"other": DATA},
    "latent_blocking": {"dictionary": SAES, "diffs": (MOVED,), "top": 5},
    "projection_penalty": {"direction": AXIS, "site": "block:1"},
    "feature_distance": {},
    "weight_distance": {"weight": 0.1},
    "preventative_steering": {"direction": AXIS, "site": "block:1", "strength": 1.0, "unit": MOVED},
    "concept_ablation": {"directions": (AXIS, AXIS), "sites": ("block:1", "block:2")},
    "inoculation": {"system": "you are kind"},
    "interleaving": {"safe": DATA},
    "early_stopping": {"loss": 0.4},
    "freezing": {"blocks": (0, 1)},
}
PLAIN = finetune.Recipe(model=Model("m"), data=DATA)


def test_all_are_tried_here() -> None:
    assert [make.__name__ for make in defences.CONSTRUCTORS] == [*GIVEN]


@pytest.mark.parametrize("name", GIVEN)
def test_it_sets_fields_of_the_recipe_and_says_what_it_is(name: str) -> None:
    made = getattr(defences, name)(**GIVEN[name])
    tuned = made.applied(PLAIN)
    assert made.name == name
    assert {f for f in made.fields if vars(tuned)[f] == made.fields[f]} == {*made.fields}
    assert {f for f in vars(PLAIN) if vars(tuned)[f] != vars(PLAIN)[f]} <= {*made.fields}
    assert all(penalty.weight or penalty.share for penalty in tuned.penalties)
    text = inspect.getdoc(getattr(defences, name)) or ""
    if name not in ("none", "early_stopping", "freezing"):
        assert re.search(r"L = L_task|x <- x|p\(y|D' =", text), "the formula"
    if name != "none":
        assert made.difference
    if name not in ("none", "early_stopping"):
        assert made.source in text
        assert re.fullmatch(r"\d{4}\.\d{5}", made.source)


def test_they_add_up() -> None:
    both = defences.kl_to_start().applied(defences.latent_blocking(SAES, (MOVED,)).applied(PLAIN))
    assert [penalty.form for penalty in both.penalties] == ["latents", "kl"]
    edits = defences.concept_ablation((AXIS,), ("block:0",)).applied(
        defences.preventative_steering(AXIS, "block:1", 0.5, MOVED).applied(both)
    )
    assert [edit.op for edit in edits.interventions] == ["add", "ablate"]
    assert edits.unit == MOVED
    assert edits.penalties == both.penalties


def test_values_are_those_that_were_asked_for() -> None:
    assert defences.latent_blocking(SAES, (MOVED,), weight=3.0).fields["penalties"] == (
        Penalty(form="latents", weight=3.0, dictionary=SAES, diffs=(MOVED,)),
    )
    assert defences.latent_blocking(SAES, (MOVED,), control="signs").fields["penalties"][0].share == 1.0
    assert defences.concept_ablation((AXIS,), ("block:0", "block:2")).fields["interventions"] == tuple(
        Intervention(AXIS, "ablate", f"block:{i}") for i in (0, 2)
    )
    assert defences.narrow_on_purpose(DATA, until=9).fields["penalties"][0] == Penalty(form="kl", weight=1.0, data=DATA, until=9)


def test_a_recipe_under_defences_survives_json(tmp_path: Any) -> None:
    from small_models import finished

    (tmp_path / "f").mkdir()
    moved = Diff(finished(tmp_path / "f", "Diff"))
    asked = defences.preventative_steering(Direction(moved, "t"), "block:1", 0.5, moved).applied(
        defences.latent_blocking(SAES, (moved,)).applied(PLAIN)
    )
    assert finetune.Recipe.from_json(asked.to_json()) == asked
    assert {"penalties[0].dictionary", "penalties[0].diffs[0]", "interventions[0].direction.source", "unit"} <= {*asked.inputs()}
