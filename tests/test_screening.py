"""The decisions of a screen: strengths from above against the full grid, the budget, the effect."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from personascope.methods.screening import (
    FIRST,
    Counts,
    Descent,
    Outcome,
    beyond_p,
    blunt,
    budget,
    descend,
    effect,
    glance,
    in_step,
    judge_causal,
    permutation_p,
    removed,
    settled,
    two_looks,
    undecided,
)

PATTERNS = st.lists(st.booleans(), min_size=1, max_size=40)


BLOCKS, EACH = 6, 10
"""Blocks of questions and answers in each."""


def coarse(passes: list[bool]) -> tuple[int, list[tuple[int, int]]]:
    """What a descent finds where a strength leaves all answers coherent or none, and what it asked."""
    return descended(lambda index, _: 0 if passes[index] else EACH, len(passes))


def descended(incoherent: Callable[[int, int], int], n: int, most: float = 0.1) -> tuple[int, list[tuple[int, int]]]:
    def counts(at: tuple[int, int]) -> Counts:
        bad = incoherent(*at)
        return Counts(0, EACH - bad, bad, EACH)

    return run(descend(n, BLOCKS, BLOCKS * EACH, most), counts)


def run(search: Descent, tell: Callable[[tuple[int, int]], Counts]) -> tuple[int, list[tuple[int, int]]]:
    """The result of a search, and all it asked."""
    asked = []
    try:
        at = next(search)
        while True:
            asked.append(at)
            at = search.send(tell(at))
    except StopIteration as done:
        return done.value, asked


@given(PATTERNS)
def test_it_finds_the_largest_passing_strength_whatever_lies_between(passes: list[bool]) -> None:
    found, asked = coarse(passes)
    assert found == max((i for i, ok in enumerate(passes) if ok), default=-1)
    # One block is enough to see that nothing is coherent.
    assert [at for at in asked if not passes[at[0]]] == [(i, 0) for i in range(len(passes) - 1, found, -1)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15), st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.3]))
def test_the_strength_found_keeps_the_budget_on_what_was_asked_and_those_above_do_not(rates: list[float], seed: int, most: float) -> None:
    drawn = np.random.default_rng(seed).binomial(EACH, np.array(rates)[:, None], (len(rates), BLOCKS))
    found, asked = descended(lambda index, block: int(drawn[index, block]), len(rates), most)
    seen = {index: sum(1 for at, _ in asked if at == index) for index in range(len(rates))}
    shares = {index: drawn[index, :blocks].sum() / (EACH * blocks) for index, blocks in seen.items() if blocks}
    assert all(share > most for index, share in shares.items() if index > found)
    if found >= 0:
        assert shares[found] <= most
    assert min(shares) == max(found, 0)
    assert asked == sorted(asked, key=lambda at: (-at[0], at[1]))


@given(st.integers(1, 120), st.integers(0, 120), st.sampled_from([0.05, 0.1, 0.25]))
def test_a_verdict_before_the_end_is_certain_or_errs_as_rarely_as_stated(asked: int, bad: int, most: float) -> None:
    bad, whole = min(bad, asked), 120
    verdict = settled(Counts(0, asked - bad, bad, asked), whole, most)
    never, surely = bad > most * whole, bad + whole - asked <= most * whole
    many = sum(math.comb(asked, k) * most**k * (1 - most) ** (asked - k) for k in range(bad, asked + 1))
    few = sum(math.comb(asked, k) * most**k * (1 - most) ** (asked - k) for k in range(bad + 1))
    if never or surely or asked == whole:
        assert verdict is (bad / asked <= most)
    elif verdict is not None:
        assert (few if verdict else many) < (0.03 if verdict else 0.05) + 1e-9
    else:
        assert many >= 0.05 - 1e-9
        assert few >= 0.03 - 1e-9


def test_nothing_scored_is_nothing_passed() -> None:
    found, asked = run(descend(2, 3, 30, 0.1), lambda _: Counts(0, 0, 0, 0))
    assert found == -1
    assert asked == [(index, block) for index in (1, 0) for block in range(3)]


def test_it_agrees_with_the_full_grid_as_two_full_grids_agree_at_a_fraction_of_the_answers() -> None:
    """Incoherence as logistic curves in the strength: the same strength within one of fifteen, in the mean none higher."""
    random = np.random.default_rng(0)
    strengths = np.arange(15)
    found, spent = [], 0
    for _ in range(300):
        rates = 0.03 + 0.97 / (1 + np.exp(-(strengths - random.uniform(2, 14)) * random.uniform(0.4, 1.5)))
        grids = random.binomial(EACH * BLOCKS, rates, (2, 15)) / (EACH * BLOCKS)
        drawn = random.binomial(EACH, rates[:, None], (15, BLOCKS))
        mine, asked = descended(lambda index, block, drawn=drawn: int(drawn[index, block]), 15)
        found.append([mine, *(max(np.flatnonzero(grid <= 0.1), default=-1) for grid in grids)])
        spent += len(asked) * EACH
    mine, one, two = np.array(found).T
    assert np.abs(mine - one).mean() < 1.25 * np.abs(one - two).mean()
    assert abs((mine - one).mean()) < 0.25
    assert spent / (300 * 15 * BLOCKS * EACH) < 0.3


@given(n=st.integers(1, 40), looks=st.integers(1, 5), share=st.floats(0, 1))
def test_a_glance_is_the_start_of_a_bisection(n: int, looks: int, share: float) -> None:
    count = round(share * n)
    search, seen, found = glance(n, looks), [], -1
    low, high = -1, n
    try:
        at = next(search)
        while True:
            assert at == (low + high) // 2
            seen.append(at)
            low, high = (at, high) if at < count else (low, at)
            at = search.send(at < count)
    except StopIteration as done:
        found = done.value
    assert len(seen) <= looks
    assert found == low == max((at for at in seen if at < count), default=-1)
    assert found == count - 1 or high - low > 1


@given(st.lists(PATTERNS, max_size=6).map(lambda rows: [row[: min(map(len, rows))] for row in rows] if rows else rows))
def test_searches_in_step_find_what_each_finds_alone(patterns: list[list[bool]]) -> None:
    together = in_step([descend(len(passes), BLOCKS, BLOCKS * EACH, 0.1) for passes in patterns])
    rounds, found = 0, None
    try:
        asked = next(together)
        while True:
            rounds += 1
            assert len({i for i, _ in asked}) == len(asked)
            bad = [0 if patterns[i][index] else EACH for i, (index, _) in asked]
            asked = together.send([Counts(0, EACH - n, n, EACH) for n in bad])
    except StopIteration as done:
        found = done.value
    assert found == [coarse(passes)[0] for passes in patterns]
    assert rounds == max((len(coarse(passes)[1]) for passes in patterns), default=0)


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


@pytest.mark.parametrize(("rate", "most"), [(0.05, 0.055), (0.02, 0.05)])
def test_two_looks_call_no_more_null_directions_than_one(rate: float, most: float) -> None:
    """Chance induces `rate`; at every level p is that small at most so often, though who looks again is chosen by the first look."""
    random, tuned, repaired = np.random.default_rng(2), counts(50, 60), counts(0, 60)
    base = counts(0, 60)
    found, stopped = [], 0
    for _ in range(1500):
        first = counts(int(random.binomial(60, rate)), 60)
        one = judge_causal(first, base, repaired, tuned, 0.05, 0.7)
        both = None
        if undecided(one, 0.05, 20):
            second = first.again(counts(int(random.binomial(60, rate)), 60)).again(counts(int(random.binomial(60, rate)), 60))
            both = judge_causal(second, base.again(base).again(base), repaired, tuned, 0.05, 0.7)
        stopped += both is None
        found.append(two_looks(one, both).p)
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(found) <= level) <= level * most / 0.05 + 2 * math.sqrt(level / 1500)
    assert 0.2 < stopped / 1500 < 1


def test_what_is_clear_or_hopeless_at_first_is_not_looked_at_again() -> None:
    assert not undecided(Outcome(1e-9, 1e-12), 0.05, 50)
    assert not undecided(Outcome(0.4, 1e-12), 0.05, 50)
    assert undecided(Outcome(0.01, 1e-12), 0.05, 50)
    # Clear is what the strictest correction would let pass at the first look's share of the error.
    edge = 0.05 / 50 * FIRST
    assert undecided(Outcome(edge * 1.01, 0.0), 0.05, 50)
    assert not undecided(Outcome(edge * 0.99, 0.0), 0.05, 50)


def test_the_look_that_says_more_counts_at_its_share_and_each_side_on_its_own() -> None:
    assert two_looks(Outcome(0.001, 0.2), None) == Outcome(pytest.approx(0.02), 1.0)
    found = two_looks(Outcome(0.001, 0.2), Outcome(0.1, 0.019))
    assert found == Outcome(pytest.approx(0.02), pytest.approx(0.02))
    assert found.p == pytest.approx(0.02)


def test_asked_again_the_same_questions_have_more_answers() -> None:
    first, second = counts(3, 5), counts(1, 5)
    both = first.again(second)
    assert both == Counts(4, 10, 0, 10, ((2, 2, 0, 2), *(((1, 2, 0, 2),) * 2), *(((0, 2, 0, 2),) * 2)))
    assert len((first + second).by_question) == 10


@pytest.mark.parametrize(
    ("left", "unsteered", "said"),
    [
        ([0.0, 0.0, 0.1, 0.6], 0.8, True),
        ([0.5, 0.6, 0.7, 0.8], 0.8, False),
        ([0.41, 0.41, 0.41], 0.8, False),
        ([0.39, 0.39, 0.41], 0.8, True),
        ([], 0.8, False),
        ([0.0, 0.0], 0.0, False),
    ],
)
def test_a_judge_that_lets_random_pushes_pass_is_named(left: list[float], unsteered: float, said: bool) -> None:
    caveat = blunt(left, unsteered)
    assert bool(caveat) is said
    assert not said or f"half of {len(left)} random pushes" in caveat
