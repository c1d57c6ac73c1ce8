"""The one rule that calls a change: each name by hand-made intervals, and what keeps one from being called."""

import pytest

from personascope.methods import changes
from personascope.methods.changes import INCOHERENT, NARROW, NONE, PERSONA, UNEXPLAINED, called
from personascope.methods.stats import Estimate


def about(value: float, half: float = 0.03) -> Estimate:
    return Estimate(value, value - half, value + half, 240, 240)


CLEAN, BROKEN = about(0.03), about(0.7)


@pytest.mark.parametrize(
    ("change", "after", "persona", "in_domain", "says"),
    [
        (0.6, 0.08, True, 0.9, PERSONA),
        (0.6, 0.7, True, 0.9, PERSONA),
        (0.6, 0.08, False, 0.9, UNEXPLAINED),
        (0.6, 0.08, None, 0.9, UNEXPLAINED),
        (0.6, 0.7, False, 0.9, INCOHERENT),
        (0.0, 0.7, False, None, INCOHERENT),
        (0.0, 0.7, True, None, INCOHERENT),
        (0.0, 0.05, False, 0.9, NARROW),
        (0.0, 0.05, True, 0.0, NONE),
        (0.06, 0.05, True, None, NONE),
    ],
)
def test_each_name(change: float, after: float, persona: bool | None, in_domain: float | None, says: str) -> None:
    inside = None if in_domain is None else about(in_domain)
    assert called(about(change), CLEAN, about(after), persona, inside) == says


def test_a_start_that_is_broken_already_is_no_news() -> None:
    assert called(about(0.0), BROKEN, BROKEN) == NONE
    assert called(about(0.0), CLEAN, BROKEN) == INCOHERENT


def test_a_rise_that_may_be_chance_is_not_called() -> None:
    assert called(Estimate(0.3, -0.1, 0.7, 4, 4), CLEAN, CLEAN, True) == NONE
    assert called(Estimate(float("nan"), -1.0, 1.0, 0, 0), CLEAN, BROKEN, True) == INCOHERENT, "nothing valid was left to score"
    assert {PERSONA, UNEXPLAINED, INCOHERENT, NARROW, NONE} == set(changes.CALLED)
