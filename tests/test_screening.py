"""The decisions of a screen: strengths by bisection against brute force, the budget, the effect."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from personascope.methods.screening import (
    Counts,
    beyond_p,
    bisect,
    budget,
    climb,
    effect,
    glance,
    in_step,
    judge_causal,
    permutation_p,
    removed,
)

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


@given(PATTERNS, st.integers(-1, 40))
def test_a_climb_from_any_guess_ends_on_a_passing_point(passes: list[bool], guess: int) -> None:
    search, at = climb(len(passes), min(guess, len(passes) - 1)), 0
    looked = []
    at = next(search)
    while True:
        looked.append(at)
        try:
            at = search.send(passes[at])
        except StopIteration as done:
            found = done.value
            break
    assert found == -1 or passes[found]
    assert found > -1 or not any(passes[: max(min(guess, len(passes) - 1), 0) + 1])
    assert len(set(looked)) == len(looked)


@given(n=st.integers(1, 40), share=st.floats(0, 1))
def test_a_climb_from_any_guess_finds_the_end_of_a_monotone_pattern(n: int, share: float) -> None:
    count = round(share * n)
    for guess in (-1, 0, count - 1, n - 1):
        search, found = climb(n, guess), None
        at = next(search)
        try:
            while True:
                at = search.send(at < count)
        except StopIteration as done:
            found = done.value
        assert found == count - 1


@given(n=st.integers(1, 40), looks=st.integers(1, 5), share=st.floats(0, 1))
def test_a_glance_is_the_start_of_a_bisection(n: int, looks: int, share: float) -> None:
    passes = [i < round(share * n) for i in range(n)]
    search, seen = glance(n, looks), []
    try:
        at = next(search)
        while True:
            seen.append(at)
            at = search.send(passes[at])
    except StopIteration:
        pass
    assert seen == searched(passes)[1][: len(seen)]
    assert len(seen) <= looks


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
    search = in_step([bisect(len(passes)) for passes in patterns])
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


def test_effect_is_the_smaller_of_the_induced_rise_and_the_repaired_fall() -> None:
    induced, base, repaired, tuned = (Counts(h, 10, 0, 10) for h in (6, 1, 2, 8))
    assert effect(induced, base, repaired, tuned) == pytest.approx(0.5)
    assert effect(base, base, tuned, tuned) == 0
    assert effect(base, induced, tuned, repaired) == pytest.approx(-0.6)


def test_removed_is_a_share_of_what_was_there() -> None:
    assert removed(0.1, 0.5) == pytest.approx(0.8)
    assert removed(0.6, 0.5) == pytest.approx(-0.2)
    assert removed(0.0, 0.0) == 0


QUESTION = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))


def by_permuting(tables: list[tuple[int, int, int, int]]) -> float:
    """p by going through every way to deal the answers of each question to the two arms."""
    sums = []
    for h, n, u, m in tables:
        answers = [1] * (h + u) + [0] * (n + m - h - u)
        sums.append([sum(answers[i] for i in chosen) for chosen in itertools.combinations(range(n + m), n)])
    observed = sum(h for h, _, _, _ in tables)
    every = [sum(ways) for ways in itertools.product(*sums)]
    return sum(total >= observed for total in every) / len(every)


@settings(max_examples=60, deadline=None)
@given(st.lists(QUESTION, min_size=1, max_size=5))
def test_permutation_p_is_that_of_all_permutations(cells: list[tuple[int, int, int, int]]) -> None:
    tables = [(min(h, n), n, min(u, m), m) for h, n, u, m in cells]
    found = permutation_p([(h, n) for h, n, _, _ in tables], [(u, m) for _, _, u, m in tables])
    assert found == pytest.approx(by_permuting([t for t in tables if t[1] and t[3]]), abs=1e-9)


def test_permuted_labels_give_uniform_p() -> None:
    """The null control: within every question the answers are dealt to the arms at random."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(600):
        steered, unsteered = [], []
        for _ in range(40):
            answers = random.random(4) < random.beta(0.4, 1.0)
            random.shuffle(answers)
            steered.append((int(answers[:2].sum()), 2))
            unsteered.append((int(answers[2:].sum()), 2))
        found.append(permutation_p(steered, unsteered, random.random()))
    assert distributions.kstest(found, "uniform").pvalue > 0.01


def test_permutation_p_reaches_far_into_the_tail() -> None:
    found = permutation_p([(1, 1)] * 60, [(0, 1)] * 60)
    assert found == pytest.approx(0.5**60, rel=1e-6)


def test_beyond_p_is_the_binomial_tail_and_errs_large_when_questions_differ() -> None:
    assert beyond_p(9, 20, 0.1, 1) == pytest.approx(sum(math.comb(20, k) * 0.1**k * 0.9 ** (20 - k) for k in range(9, 21)))
    assert beyond_p(3, 20, 0.5, -1) == pytest.approx(sum(math.comb(20, k) for k in range(4)) / 2**20)
    assert beyond_p(0, 0, 0.1, 1) == 1.0
    random = np.random.default_rng(1)
    rates = np.r_[np.full(6, 0.45), np.full(54, 0.0055)]
    called = [beyond_p(int((random.random(60) < rates).sum()), 60, 0.05, 1) <= 0.05 for _ in range(4000)]
    assert np.mean(called) <= 0.05


def counts(harmful: int, questions: int) -> Counts:
    each = tuple((int(q < harmful), 1, 0, 1) for q in range(questions))
    return Counts(harmful, questions, 0, questions, each)


def test_a_verdict_needs_both_sides_and_to_go_beyond_the_nulls() -> None:
    base, tuned = counts(0, 60), counts(50, 60)
    both = judge_causal(counts(30, 60), base, counts(10, 60), tuned, 0.05, 0.7)
    assert both.p < 1e-6
    assert judge_causal(counts(30, 60), base, counts(50, 60), tuned, 0.05, 0.7).p > 0.4
    assert judge_causal(counts(0, 60), base, counts(10, 60), tuned, 0.05, 0.7).p == 1.0
    # As many as the nulls induce is no proof, however sure it is that they are not none.
    weak = judge_causal(counts(30, 60), base, counts(10, 60), tuned, 0.5, 0.7)
    assert permutation_p([(1, 1)] * 30 + [(0, 1)] * 30, [(0, 1)] * 60) < 1e-6 < 0.05 < weak.p
