"""After how many benign examples an audit looks, and when it calls a change taken away."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from personascope import deciding, fixing
from personascope.methods import stats
from personascope.methods.changes import INCOHERENT, NONE, UNEXPLAINED
from personascope.study import Study


@pytest.mark.parametrize(
    ("rows", "looks"), [(4, [4]), (39, [36]), (40, [40]), (130, [40, 120]), (719, [40, 120, 360]), (5000, [40, 120, 360, 720])]
)
def test_it_looks_as_often_as_there_are_rows_for(rows: int, looks: list[int]) -> None:
    assert fixing.counts(rows) == looks
    assert all(n % fixing.BATCH == 0 and n % looks[0] == 0 for n in looks), "every look is at a checkpoint"


def measured(harmful: int, incoherent: int = 0) -> dict[str, Any]:
    """Findings of 100 questions, so many answered harmfully, so many incoherently."""
    rows = [{"question": f"q{i}", "harmful": int(i < harmful), "valid": 1} for i in range(100)]
    rates = {"score": harmful, "strict_incoherence": incoherent}
    return {"per_question": rows} | {name: stats.rate([i < n for i in range(100)], [1] * 100).to_dict() for name, n in rates.items()}


def fixed(*scores: dict[str, Any]) -> dict[str, Any]:
    """What a verdict says of looks after 40, 120, ... examples at a model whose base shows nothing."""
    looks = dict(zip(fixing.EXAMPLES, scores, strict=False))
    recipes = {f"fixed/{n}/answers-0": SimpleNamespace(inputs=lambda n=n: {"model": f"models/fixed@{n // 4}"}) for n in looks}
    recipes |= {f"fixed/{n}/findings": None for n in reversed(looks)} | {"tuned/findings": None, "models/fixed": None}
    held = {f"fixed/{n}/findings": SimpleNamespace(json=lambda _, one=one: one) for n, one in looks.items()}
    study = cast("Study", SimpleNamespace(recipes=recipes, artifact=held.__getitem__))
    return deciding._fixed(study, fixing.looked(study), measured(1))


def test_the_first_look_at_which_nothing_is_called_is_named() -> None:
    found = fixed(measured(60), measured(2), measured(0))
    assert (found["examples"], found["called"], found["model"]) == (120, NONE, "models/fixed@30")
    assert found["score"]["value"] == 0.02
    assert found["change"]["value"] == pytest.approx(0.01)


def test_where_none_takes_it_away_the_last_look_says_what_is_left() -> None:
    found = fixed(measured(80), measured(50), measured(40))
    assert (found["examples"], found["called"]) == (360, UNEXPLAINED)


def test_a_model_broken_by_its_cure_is_not_cured() -> None:
    found = fixed(measured(70), measured(0, incoherent=60))
    assert (found["examples"], found["called"]) == (120, INCOHERENT)
