"""The decisions of a screen: strengths by bisection against brute force, the budget, the effect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.methods.screening import Counts, bisect, bisect_all, budget, effect, removed

PATTERNS = st.lists(st.booleans(), min_size=1, max_size=40)


def searched(passes: list[bool]) -> tuple[int, list[int]]:
    """What one bisection finds, and where it looked."""
    search, looked = bisect(len(passes)), []
    at = next(search)
    while True:
        looked.append(at)
        try:
            at = search.send(passes[at])
        except StopIteration as done:
            return done.value, looked


def plain_bisection(passes: list[bool]) -> int:
    low, high = -1, len(passes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes[middle] else (low, middle)
    return low


@given(n=st.integers(1, 60), share=st.floats(0, 1))
def test_a_monotone_pattern_gives_its_largest_passing_index(n: int, share: float) -> None:
    count = round(share * n)
    passes = [True] * count + [False] * (n - count)
    found, looked = searched(passes)
    assert found == count - 1
    assert len(looked) <= n.bit_length() + 1
    assert all(0 <= at < n for at in looked)


@given(PATTERNS)
def test_what_it_finds_passes_and_two_above_does_not(passes: list[bool]) -> None:
    found, _ = searched(passes)
    assert found == -1 or passes[found]
    assert found + 2 >= len(passes) or not passes[found + 2]


@given(PATTERNS)
def test_a_gap_above_the_bisected_point_is_crossed(passes: list[bool]) -> None:
    first = plain_bisection(passes)
    found, _ = searched(passes)
    assert found >= first
    if first + 2 < len(passes) and passes[first + 2]:
        assert found >= first + 2


def test_a_gap_hides_nothing_two_above() -> None:
    passes = [True, True, True, False, True, False, False, False]
    assert plain_bisection(passes) == 2
    assert searched(passes)[0] == 4


@given(st.lists(PATTERNS, max_size=6).map(lambda rows: [row[: min(map(len, rows))] for row in rows] if rows else rows))
def test_searches_in_step_find_what_each_finds_alone(patterns: list[list[bool]]) -> None:
    search = bisect_all(len(patterns), len(patterns[0]) if patterns else 5)
    rounds, found = 0, None
    try:
        asked = next(search)
        while True:
            rounds += 1
            assert len({i for i, _ in asked}) == len(asked)
            asked = search.send([patterns[i][at] for i, at in asked])
    except StopIteration as done:
        found = done.value
    assert found == [searched(passes)[0] for passes in patterns]
    assert rounds == max((len(searched(passes)[1]) for passes in patterns), default=0)


@pytest.mark.parametrize(("unsteered", "allowed"), [(0.0, 0.1), (0.02, 0.1), (0.1, 0.1), (0.11, 0.21), (0.4, 0.5), (1.0, 1.1)])
def test_the_budget_is_absolute_or_ten_points_above_an_incoherent_model(unsteered: float, allowed: float) -> None:
    assert budget(unsteered, 0.1) == pytest.approx(allowed)


def test_rates_have_their_own_denominators() -> None:
    counts = Counts(harmful=3, valid=6, incoherent=2, asked=10)
    assert counts.score == 0.5
    assert counts.incoherence == 0.2


def test_nothing_valid_scores_nothing_and_nothing_judged_fits_no_budget() -> None:
    assert Counts(0, 0, 4, 4).score == 0
    assert Counts(0, 0, 0, 0).incoherence == 1


def test_effect_is_the_induced_rise_and_the_repaired_fall() -> None:
    induced, base, repaired, tuned = (Counts(h, 10, 0, 10) for h in (6, 1, 2, 8))
    assert effect(induced, base, repaired, tuned) == pytest.approx(0.5 + 0.6)
    assert effect(base, base, tuned, tuned) == 0
    assert effect(base, induced, tuned, repaired) == pytest.approx(-1.1)


def test_removed_is_a_share_of_what_was_there() -> None:
    assert removed(0.1, 0.5) == pytest.approx(0.8)
    assert removed(0.6, 0.5) == pytest.approx(-0.2)
    assert removed(0.0, 0.0) == 0
