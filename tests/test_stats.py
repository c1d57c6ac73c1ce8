"""Intervals cover what they promise, paired tests see only pairs, and nothing invents certainty."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personascope.errors import DataError
from personascope.methods.stats import (
    Estimate,
    auroc,
    benjamini_hochberg,
    bootstrap_mean,
    difference,
    mean_of,
    over_runs,
    pooled,
    prediction_bound,
    rate,
    rate_bounds,
    t_quantile,
    threshold_at_fpr,
)


def _clustered(true: float, questions: int, icc: float, draws: int, simulations: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[S, Q] harmful and valid answers whose questions have beta-distributed rates and unequal valid answers."""
    random = np.random.default_rng(seed)
    rates = random.beta(true * (1 / icc - 1), (1 - true) * (1 / icc - 1), (simulations, questions))
    valid = random.binomial(draws, 0.8, (simulations, questions))
    return random.binomial(valid, rates), valid


@pytest.mark.parametrize("questions", [44, 150])
@pytest.mark.parametrize("true", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("icc", [0.05, 0.3, 0.6])
def test_nominal_95_percent_covers_at_least_92(true: float, questions: int, icc: float) -> None:
    bounds = rate_bounds(*_clustered(true, questions, icc, draws=10, simulations=3000))
    covered = ((bounds.low <= true) & (true <= bounds.high)).mean()
    assert covered >= 0.92, f"covers {covered:.3f}"
    assert covered <= 0.995, f"covers {covered:.3f}: too wide to be called 95 %"


def test_percentile_bootstrap_over_questions_would_not_cover() -> None:
    """Why `rate` is not a bootstrap: at 1 % over 44 questions it misses far too often."""
    true, random = 0.01, np.random.default_rng(1)
    x, n = _clustered(true, 44, icc=0.3, draws=10, simulations=200)
    picks = random.integers(0, 44, (500, 44))
    drawn = x[:, picks].sum(-1) / n[:, picks].sum(-1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert ((low <= true) & (true <= high)).mean() < 0.85


def test_all_or_none_rests_on_questions_not_answers() -> None:
    nothing, many = rate(np.zeros(150), np.full(150, 3)), rate(np.zeros(150), np.full(150, 300))
    assert (nothing.value, nothing.low) == (0, 0)
    assert 0.02 < nothing.high < 0.03
    assert nothing.high == pytest.approx(many.high), "more answers to the same questions must not narrow 0 %"
    everything = rate(np.full(150, 3), np.full(150, 3))
    assert everything.high == 1
    assert everything.low == pytest.approx(1 - nothing.high)


def test_effective_n_is_the_definition() -> None:
    """Equal n: Wilson at p(1-p) / (variance of question rates / Q), worked by hand."""
    x, n = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 3), np.full(30, 10)
    found, p = rate(x, n), 0.45
    effective = p * (1 - p) / (np.var(x / 10, ddof=1) / 30)
    t = t_quantile(0.975, 29)
    centre, half = (p + t**2 / (2 * effective)) / (1 + t**2 / effective), t * math.sqrt(p * (1 - p) / effective + (t / effective) ** 2 / 4)
    assert found.value == pytest.approx(p)
    assert found.low == pytest.approx(centre - half / (1 + t**2 / effective))
    assert found.high == pytest.approx(centre + half / (1 + t**2 / effective))
    assert (found.n, found.clusters) == (300, 30)


def test_clustered_answers_are_worth_less_than_scattered_ones() -> None:
    n = np.full(40, 10)
    clustered, scattered = rate([10] * 4 + [0] * 36, n), rate([1] * 40, n)
    assert clustered.value == scattered.value
    assert clustered.high - clustered.low > 2 * (rate([1, 0, 2, 1] * 10, n).high - rate([1, 0, 2, 1] * 10, n).low)


def test_never_as_if_there_were_more_answers_than_there_are() -> None:
    """Questions more alike than chance: the binomial interval of all answers is the floor."""
    found = rate([5] * 39 + [6], np.full(40, 10))
    assert found.high - found.low > 2 * 1.9 * math.sqrt(0.25 / 400) * 0.95


def test_one_dominant_question_counts_as_about_one() -> None:
    assert rate([0] * 20, [1000] + [1] * 19).high > 0.7
    assert rate([0] * 20, [50] * 20).high < 0.2


def test_questions_without_valid_answers_are_left_out_and_none_at_all_says_nothing() -> None:
    assert rate([1, 2, 0], [4, 4, 0]) == rate([1, 2], [4, 4])
    empty = rate([0, 0], [0, 0])
    assert math.isnan(empty.value)
    assert empty.to_dict() == {"value": None, "low": 0.0, "high": 1.0, "n": 0, "clusters": 0}
    assert json.loads(json.dumps(rate([1], [4]).to_dict(), allow_nan=False))["clusters"] == 1
    with pytest.raises(DataError, match="between 0 and the trials"):
        rate([3], [2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_a_rate_lies_in_its_interval_and_mirrors(pairs: list[tuple[int, int]]) -> None:
    n = np.array([a + b for a, b in pairs])
    x = np.array([a for a, _ in pairs])
    found, mirrored = rate(x, n), rate(n - x, n)
    assert 0 <= found.low <= found.high <= 1
    if n.sum():
        assert found.low <= found.value <= found.high
        assert (mirrored.low, mirrored.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))


def test_difference_pairs_over_questions() -> None:
    random = np.random.default_rng(0)
    hard = random.beta(0.3, 0.3, 60)
    a, b = np.clip(hard + 0.1, 0, 1), np.clip(hard + random.normal(0, 0.02, 60), 0, 1)
    paired, broken = difference(a, b), difference(a, random.permutation(b))
    assert paired.p < 0.001
    assert paired.estimate.low > 0.03
    assert broken.p > 0.01, "without the pairing the spread between questions hides the difference"
    assert difference(b, a).estimate.value == pytest.approx(-paired.estimate.value)
    assert difference(a, b) == paired, "seeded"


def test_equal_models_differ_by_nothing_but_not_for_certain() -> None:
    same = difference(np.zeros(150), np.zeros(150))
    assert (same.estimate.value, same.p) == (0, 1)
    assert 0.02 < same.estimate.high < 0.03
    assert same.estimate.low == -same.estimate.high


def test_sign_flips_are_exact_for_few_questions() -> None:
    assert difference([0.5] * 6 + [0.1], [0.0] * 6 + [0.1]).p == pytest.approx(2 / 2**6)
    assert difference([0.5] * 20, [0.1] * 10 + [0.2] * 10).p == pytest.approx(1e-4)


def test_sign_flip_p_is_uniform_under_the_null() -> None:
    random = np.random.default_rng(5)
    p = [difference(*random.uniform(size=(2, 20)), seed=s, replicates=10).p for s in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.11


def test_difference_refuses_what_it_cannot_pair() -> None:
    nan = float("nan")
    assert difference([0.5, nan, 0.2, 0.1], [0.1, 0.3, 0.2, 0.0]).estimate.n == 3
    with pytest.raises(DataError, match="one rate per question"):
        difference([0.1], [0.1, 0.2])
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        difference([2.0, 0], [0, 0])
    with pytest.raises(DataError, match="at least two"):
        difference([0.1, nan], [nan, 0.2])


def _run(random: np.random.Generator, true: float, questions: int = 150) -> dict[str, tuple[int, int]]:
    harmful = random.binomial(4, random.beta(true * 4, (1 - true) * 4, questions))
    return {f"q{i}": (int(k), 4) for i, k in enumerate(harmful)}


def test_pooled_is_as_wide_as_runs_differ() -> None:
    random = np.random.default_rng(0)
    alike, unlike = ([_run(random, t) for t in rates] for rates in ((0.4,) * 6, (0.1, 0.2, 0.3, 0.5, 0.6, 0.7)))
    a, u = pooled(alike), pooled(unlike)
    assert u.high - u.low > 3 * (a.high - a.low)
    assert (a.clusters, a.n) == (6, 6 * 600)
    assert a.value == pytest.approx(np.mean([rate(*zip(*r.values(), strict=True)).value for r in alike]))
    assert pooled(alike) == a, "seeded"


def test_pooled_covers() -> None:
    random, hits = np.random.default_rng(2), 0
    for s in range(150):
        found = pooled([_run(random, t, 60) for t in random.beta(0.3 * 20, 0.7 * 20, 5)], seed=s, replicates=200)
        hits += found.low <= 0.3 <= found.high
    assert hits >= 0.92 * 150 - 3, f"covers {hits / 150:.3f}"


def test_pooled_at_zero_rests_on_questions() -> None:
    runs = [{f"q{i}": (0, 5) for i in range(150)}] * 9
    assert pooled(runs).high == pytest.approx(rate([0] * 150, [5] * 150).high)
    alone = pooled(runs[:1])
    assert (alone.clusters, alone.high) == (1, rate([0] * 150, [5] * 150).high)
    assert pooled([*runs, {"q0": (0, 0)}]).clusters == 9, "a run without a valid answer is left out"
    with pytest.raises(DataError, match="no run"):
        pooled([])


def test_mean_of_averages_the_ends() -> None:
    parts = [Estimate(0.2, 0.1, 0.4, 10, 5), Estimate(0.6, 0.5, 0.8, 20, 5)]
    assert mean_of(parts, clusters=10) == Estimate(pytest.approx(0.4), pytest.approx(0.3), pytest.approx(0.6), 30, 10)


def test_bootstrap_mean_is_never_narrower_than_students() -> None:
    few = bootstrap_mean([1.0, 2.0, 3.0])
    assert few.high - few.value >= 4.302 * 1 / math.sqrt(3)
    skewed = bootstrap_mean(np.random.default_rng(0).lognormal(0, 1.5, 100))
    assert skewed.high - skewed.value >= skewed.value - skewed.low
    for bad in ([1.0], [1.0, float("nan")]):
        with pytest.raises(DataError, match="at least two finite"):
            bootstrap_mean(bad)


def test_runs_that_agree_keep_the_doubt_of_each() -> None:
    same = [Estimate(1.0, 0.97, 1.0, 100, 50)] * 3
    assert over_runs(same) == Estimate(1.0, pytest.approx(0.97), 1.0, 300, 3)
    assert over_runs(same[:1]) == same[0]
    apart = [Estimate(x, x - 0.01, x + 0.01, 10, 5) for x in (0.1, 0.5, 0.9)]
    alone = bootstrap_mean([0.1, 0.5, 0.9])
    assert (over_runs(apart).low, over_runs(apart).high) == (alone.low, alone.high)
    assert (over_runs(apart, within=(0, 1)).low, over_runs(apart, within=(0, 1)).high) == (0, 1)
    with pytest.raises(DataError, match="no estimate"):
        over_runs([])


def test_one_new_run_exceeds_its_prediction_bound_as_often_as_said() -> None:
    random = np.random.default_rng(0)
    exceeded = [random.normal() > prediction_bound(random.normal(size=5)) for _ in range(4000)]
    assert 0.04 < np.mean(exceeded) < 0.06
    with pytest.raises(DataError, match="at least two"):
        prediction_bound([1.0])


def test_benjamini_hochberg_holds_the_false_discovery_rate() -> None:
    assert benjamini_hochberg([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.04, 0.04, 0.04, 0.04])
    assert benjamini_hochberg([0.9, 0.001]) == pytest.approx([0.9, 0.002])
    with pytest.raises(DataError, match="p-values"):
        benjamini_hochberg([0.1, float("nan")])


def test_auroc_counts_ties_as_half() -> None:
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0
    assert auroc([5, 5, 5, 5], [0, 1, 0, 1]) == 0.5
    assert auroc([1, 2, 2, 3], [0, 0, 1, 1]) == pytest.approx(3.5 / 4)
    columns = auroc(np.array([[1, 4], [2, 3], [3, 2], [4, 1]]), [0, 0, 1, 1])
    assert columns == pytest.approx([1, 0])
    for labels in ([1, 1], [0, 0], [0, 1, 1]):
        with pytest.raises(DataError, match="auroc"):
            auroc([1, 2], labels)


def test_threshold_keeps_the_false_positive_rate() -> None:
    benign = np.arange(10.0)
    assert threshold_at_fpr(benign, 0.0) == 9
    assert threshold_at_fpr(benign, 0.1) == 8
    assert threshold_at_fpr([1, 1, 1, 2], 0.25) == 1
    assert (benign > threshold_at_fpr(benign, 0.3)).mean() == pytest.approx(0.3)
    for negatives, fpr in (([], 0.1), ([1.0], 1.0)):
        with pytest.raises(DataError, match="threshold"):
            threshold_at_fpr(negatives, fpr)


def test_t_quantile_refuses_nonsense() -> None:
    assert t_quantile(0.5, 7) == pytest.approx(0, abs=1e-9)
    assert t_quantile(0.025, 7) == -t_quantile(0.975, 7)
    for q, df in ((0.0, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(DataError, match="t quantile"):
            t_quantile(q, df)
