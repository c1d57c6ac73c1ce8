"""Our statistics against scipy's."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from personascope.methods.stats import auroc, benjamini_hochberg, difference, rate, t_quantile, wilson


@pytest.mark.parametrize("q", [0.001, 0.025, 0.3, 0.5, 0.9, 0.95, 0.975, 0.999])
def test_t_quantile(q: float) -> None:
    for df in (1, 2, 3, 4, 5, 8, 9, 43, 44, 149, 150, 1000, 5001):
        assert t_quantile(q, df) == pytest.approx(scipy_stats.t.ppf(q, df), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("k", "n"), [(0, 44), (1, 44), (22, 44), (150, 150), (3, 1000)])
def test_wilson_at_the_normal_quantile(k: int, n: int) -> None:
    ours, theirs = wilson(k / n, n, scipy_stats.norm.ppf(0.975)), scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-9), pytest.approx(theirs.high, abs=1e-9))


@pytest.mark.parametrize(("k", "n"), [(0, 44), (1, 44), (22, 44), (150, 150)])
def test_one_answer_a_question_is_wilsons_interval(k: int, n: int) -> None:
    theirs = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
    ours = rate([1] * k + [0] * (n - k), np.ones(n, int))
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-9), pytest.approx(theirs.high, abs=1e-9))


def test_questions_no_more_unlike_than_chance_are_wilsons_interval_of_all_answers() -> None:
    theirs = scipy_stats.binomtest(66, 400).proportion_ci(method="wilson")
    ours = rate([1, 2, 1, 2, 2] * 7 + [2, 2, 2, 2, 2], np.full(40, 10))
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-9), pytest.approx(theirs.high, abs=1e-9))


def test_benjamini_hochberg() -> None:
    p = np.random.default_rng(0).uniform(size=200) ** 3
    assert benjamini_hochberg(p) == pytest.approx(scipy_stats.false_discovery_control(p))


def test_auroc_is_mann_whitney_with_ties() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 6, (80, 7)), random.integers(0, 2, 80).astype(bool)
    theirs = scipy_stats.mannwhitneyu(scores[labels], scores[~labels], axis=0).statistic / (labels.sum() * (~labels).sum())
    assert auroc(scores, labels) == pytest.approx(theirs)


def test_exact_sign_flips() -> None:
    random = np.random.default_rng(3)
    a, b = random.uniform(size=(2, 9))
    theirs = scipy_stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    assert difference(a, b).p == pytest.approx(theirs.pvalue)


def test_random_sign_flips() -> None:
    random = np.random.default_rng(4)
    a = random.uniform(size=30)
    b = np.clip(a - random.normal(0.05, 0.15, 30), 0, 1)
    theirs = scipy_stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9999, rng=0)
    assert difference(a, b).p == pytest.approx(theirs.pvalue, abs=0.02)
