"""Intervals for rates over questions, paired and pooled comparisons, multiplicity, ROC. Numpy only.

Answers to one question resemble each other, so questions are the unit of evidence, never answers: every interval here
is as wide as the spread between questions (or runs) makes it. Letters: Q questions, R runs, B bootstrap replicates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from personascope.errors import DataError

LEVEL = 0.95
REPLICATES = 2000
EXACT_FLIPS = 13


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and what it rests on."""

    value: float
    """NaN where nothing was valid; stored as null, with the interval that says nothing."""
    low: float
    high: float
    n: int
    """Valid answers, or values, behind it."""
    clusters: int
    """Independent units behind it: questions or runs."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        value = None if math.isnan(self.value) else self.value
        return {"value": value, "low": self.low, "high": self.high, "n": self.n, "clusters": self.clusters}


class Bounds(NamedTuple):
    """Rates with their intervals, arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b and the two-sided p of the hypothesis that the sign is chance in every question."""

    estimate: Estimate
    p: float


@lru_cache(maxsize=4096)
def t_quantile(q: float, df: int) -> float:
    """The q quantile of Student's t with `df` (whole, at least 1) degrees of freedom.

    Bisects the closed form of the distribution function for whole df (Abramowitz & Stegun 26.7.3 and 26.7.4) in the
    angle arctan(t / sqrt(df)); relative error below 1e-9 for q in [0.001, 0.999].

    Raises:
        DataError: q outside (0, 1) or df below 1.
    """
    if not 0 < q < 1 or df < 1:
        raise DataError(f"t quantile: q {q} must lie in (0, 1) and df {df} must be at least 1")
    if q < 0.5:
        return -t_quantile(1 - q, df)
    # Terms of the finite series: ratios (m-1)/m with m = 2, 4, ... (even df) or 3, 5, ... (odd df).
    m = np.arange(2 + df % 2, df - 1, 2, dtype=float)
    weights = np.concatenate([[1.0], np.cumprod((m - 1) / m)])
    powers = 2.0 * np.arange(len(weights)) + df % 2

    def inside(theta: float) -> float:
        """P(|T| < t) at t = sqrt(df) tan(theta)."""
        series = math.sin(theta) * float(weights @ np.cos(theta) ** powers)
        if df % 2 == 0:
            return series
        return 2 / math.pi * (theta + (series if df > 1 else 0.0))

    low, high = 0.0, math.pi / 2
    for _ in range(70):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 2 * q - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def wilson(p: ArrayLike, n: ArrayLike, t: ArrayLike) -> Bounds:
    """Wilson's score interval (1927) for rates `p` on `n` trials at quantile `t`; n may be fractional."""
    p, n, t2 = np.asarray(p, float), np.asarray(n, float), np.asarray(t, float) ** 2
    centre = (p + t2 / (2 * n)) / (1 + t2 / n)
    half = np.sqrt(t2 * (p * (1 - p) / n + t2 / (4 * n * n))) / (1 + t2 / n)
    return Bounds(p, np.minimum(np.clip(centre - half, 0, 1), p), np.maximum(np.clip(centre + half, 0, 1), p))


def rate_bounds(successes: ArrayLike, trials: ArrayLike, level: float = LEVEL) -> Bounds:
    """`rate` for many sets of questions at once: [..., Q] and [..., Q] -> [...].

    Effective n = p(1-p) / v, where v is the between-question variance of the pooled rate in its ratio form
    Q/(Q-1) sum (x - p n)^2 / (sum n)^2, which is right for unequal n. Where v is 0 it is the number of questions, or
    Kish's (sum n)^2 / sum n^2 where they weigh unequally. Quantile: t with Q-1 degrees of freedom (after Korn &
    Graubard 1998, with Wilson's interval in place of the exact one), but with at most two more than there are questions
    that show the rarer outcome: at a rate of 1 % v is the work of a handful of them, and Q-1 then covers only 87-91 %
    of strongly clustered answers. Where there is one answer a question, or questions differ no more than independent
    answers would, nothing is estimated but p: effective n is the number of answers and the quantile is the normal one.
    """
    x, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(trials, float))
    if np.any(x < 0) or np.any(x > n):
        raise DataError("rate: successes must lie between 0 and the trials of their question")
    total, questions = n.sum(-1), (n > 0).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = x.sum(-1) / total
        spread = ((x - p[..., None] * n) ** 2).sum(-1) / total**2
        variance = np.where(questions > 1, spread * questions / np.maximum(questions - 1, 1), 0.0)
        kish = total**2 / (n**2).sum(-1)
        effective = np.where(variance > 1e-15, p * (1 - p) / variance, kish)
    independent = (n.max(-1, initial=0) <= 1) | (effective >= total)
    telling = np.minimum((x > 0).sum(-1), (x < n).sum(-1))
    df = np.where(telling > 0, np.minimum(questions - 1, telling + 2), questions - 1)
    t = np.where(independent, NormalDist().inv_cdf((1 + level) / 2), _t_of(np.maximum(df, 1), level))
    value, low, high = wilson(p, np.where(total > 0, np.where(independent, total, effective), 1), t)
    return Bounds(value, np.where(total > 0, low, 0.0), np.where(total > 0, high, 1.0))


def rate(successes: ArrayLike, trials: ArrayLike, level: float = LEVEL) -> Estimate:
    """The pooled rate of [Q] successes in [Q] trials, with Wilson's interval on the effective n (see `rate_bounds`).

    Questions without a trial say nothing and are left out; with no trial at all the value is NaN in [0, 1].

    Raises:
        DataError: more successes than trials, or fewer than none.
    """
    value, low, high = (float(v) for v in rate_bounds(successes, trials, level))
    n = np.asarray(trials)
    return Estimate(value, low, high, int(n.sum()), int((n > 0).sum()))


def difference(a: ArrayLike, b: ArrayLike, seed: int = 0, replicates: int = REPLICATES) -> Difference:
    """Mean over questions of a - b, for [Q] rates of two models on the same questions (NaN: nothing valid there).

    Interval: percentile bootstrap over questions, never narrower than Student's; where no question differs from
    another, the bound that Q equal questions give a rate. p: sign flips per question (Fisher 1935), all of them up to
    13 differing questions, else 9,999 random ones counted with the observed.

    Raises:
        DataError: lengths differ, a rate outside [0, 1], or fewer than two questions valid in both.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(f"difference: the two models have {a.shape} and {b.shape} questions; give one rate per question to each")
    d = (a - b)[~np.isnan(a - b)]
    if np.nanmin(np.r_[a, b, 0]) < 0 or np.nanmax(np.r_[a, b, 0]) > 1:
        raise DataError("difference: a rate lies outside [0, 1]")
    estimate = bootstrap_mean(d, seed, replicates)
    if np.ptp(d) < 1e-12:
        slack = float(wilson(0.0, len(d), t_quantile((1 + LEVEL) / 2, len(d) - 1)).high)
        estimate = Estimate(estimate.value, max(-1.0, estimate.value - slack), min(1.0, estimate.value + slack), len(d), len(d))
    return Difference(estimate, _sign_flip_p(d, seed))


def pooled(runs: Sequence[Mapping[str, tuple[int, int]]], seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean over R runs of each run's rate; a run is question id -> (successes, valid answers). clusters = runs.

    Two-level bootstrap: runs are drawn, then questions, the same draw of questions for all runs because runs share
    them (pigeonhole bootstrap, Owen 2007, arXiv 0712.1111; it errs on the wide side). Its variance, with the run part
    made unbiased, gives the effective n of a Wilson interval; the t quantile has Satterthwaite's degrees of freedom.
    Runs without a valid answer are left out; one run alone gives its own `rate`, with clusters = 1.

    Raises:
        DataError: no run given.
    """
    if not runs:
        raise DataError("pooled: no run given")
    names = sorted({name for run in runs for name in run})
    table = np.array([[run.get(name, (0, 0)) for name in names] for run in runs], float).reshape(len(runs), len(names), 2)
    table = table[table[..., 1].sum(1) > 0]
    x, n = table[..., 0], table[..., 1]
    answers, questions = int(n.sum()), int((n.sum(0) > 0).sum())
    if len(table) < 2:
        alone = rate(x.sum(0), n.sum(0))
        return Estimate(alone.value, alone.low, alone.high, alone.n, len(table))
    rates = x.sum(1) / n.sum(1)
    p, between = float(rates.mean()), float(rates.var(ddof=1)) / len(rates)
    drawn = _pigeonhole(x, n, seed, replicates)
    within = max(float(np.nanvar(drawn)) - between * (len(rates) - 1) / len(rates), 0.0)
    variance = between + within
    if variance < 1e-15:
        effective, df = float(n.sum(1).min() ** 2 / (n[n.sum(1).argmin()] ** 2).sum()), questions - 1
    else:
        effective = min(p * (1 - p) / variance, answers)
        df = math.floor(variance**2 / (between**2 / (len(rates) - 1) + within**2 / max(questions - 1, 1)))
    bounds = wilson(p, effective, t_quantile((1 + LEVEL) / 2, max(df, 1)))
    return Estimate(p, float(bounds.low), float(bounds.high), answers, len(rates))


def mean_of(estimates: Sequence[Estimate], clusters: int) -> Estimate:
    """Mean of estimates whose errors may go together, such as two question sets put to one model.

    The ends are the means of the ends, which holds whatever the correlation and is widest where there is none.
    `clusters` is said by the caller: questions of different sets add up, runs that all parts share do not.

    Raises:
        DataError: no estimate given.
    """
    if not estimates:
        raise DataError("mean_of: no estimate given")
    value, low, high = (sum(ends) / len(estimates) for ends in zip(*((e.value, e.low, e.high) for e in estimates), strict=True))
    return Estimate(value, low, high, sum(e.n for e in estimates), clusters)


def bootstrap_mean(values: ArrayLike, seed: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean of [n] independent values with a percentile bootstrap interval, never narrower than Student's t.

    The percentile interval follows skew but is too narrow for few values (Hesterberg 2015, arXiv 1411.5279, section 4);
    the t interval is the other way round: each side takes the wider one.

    Raises:
        DataError: fewer than two values, or one that is not finite.
    """
    v = np.asarray(values, float)
    if v.ndim != 1 or len(v) < 2 or not np.isfinite(v).all():
        raise DataError(f"an interval for a mean needs at least two finite values, got shape {v.shape}; add runs or questions")
    means = v[np.random.default_rng(seed).integers(0, len(v), (replicates, len(v)))].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    half = t_quantile((1 + LEVEL) / 2, len(v) - 1) * float(v.std(ddof=1)) / math.sqrt(len(v))
    mean = float(v.mean())
    return Estimate(mean, min(float(low), mean - half), max(float(high), mean + half), len(v), len(v))


def over_runs(runs: Sequence[Estimate], within: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Mean over runs asked the same questions: the interval over runs or, where they all but agree, the mean of each run's own.

    One run keeps its own interval; ends are cut at `within`, [0, 1] for rates.

    Raises:
        DataError: no run given.
    """
    own = mean_of(runs, len(runs))
    if len(runs) == 1:
        return runs[0]
    over = bootstrap_mean([one.value for one in runs])
    low, high = max(within[0], min(own.low, over.low)), min(within[1], max(own.high, over.high))
    return Estimate(own.value, low, high, own.n, own.clusters)


def prediction_bound(values: ArrayLike, level: float = LEVEL) -> float:
    """Upper one-sided bound that one new run exceeds with chance 1 - level: mean + t s sqrt(1 + 1/n), for [n] runs.

    Raises:
        DataError: fewer than two values, or one that is not finite.
    """
    v = np.asarray(values, float)
    if v.ndim != 1 or len(v) < 2 or not np.isfinite(v).all():
        raise DataError(f"a prediction bound needs at least two finite values, got shape {v.shape}; add runs")
    return float(v.mean() + t_quantile(level, len(v) - 1) * v.std(ddof=1) * math.sqrt(1 + 1 / len(v)))


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """[n] p-values -> [n] q-values, in the given order (Benjamini & Hochberg 1995, step up).

    Raises:
        DataError: a value outside [0, 1] or NaN.
    """
    p = np.asarray(p, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("benjamini_hochberg: p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def auroc(scores: ArrayLike, labels: ArrayLike) -> np.ndarray | float:
    """Chance that a positive scores above a negative, ties one half: [n] or [n, k] scores, [n] labels -> float or [k].

    Mid-ranks (Mann & Whitney 1947), all k columns at once.

    Raises:
        DataError: a class is missing, a score is NaN, or lengths differ.
    """
    s, positive = np.asarray(scores, float), np.asarray(labels, bool)
    if len(s) != len(positive) or np.isnan(s).any() or not 0 < positive.sum() < len(positive):
        raise DataError(
            f"auroc: {len(s)} scores, {len(positive)} labels, {int(positive.sum())} positive; both classes and finite scores are needed"
        )
    flat = s.reshape(len(s), -1)
    order = np.argsort(flat, axis=0, kind="stable")
    ordered, place = np.take_along_axis(flat, order, 0), np.arange(len(s))[:, None]
    new = np.vstack([np.ones((1, flat.shape[1]), bool), ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(new, place, 0), axis=0)
    ends = np.vstack([new[1:], np.ones((1, flat.shape[1]), bool)])
    last = np.minimum.accumulate(np.where(ends, place, len(s))[::-1], axis=0)[::-1]
    ranks = (first + last) / 2 + 1
    n = int(positive.sum())
    area = ((ranks * positive[order]).sum(0) - n * (n + 1) / 2) / (n * (len(s) - n))
    return float(area[0]) if s.ndim == 1 else area


def threshold_at_fpr(negatives: ArrayLike, fpr: float) -> float:
    """The lowest threshold above which (strictly) at most a share `fpr` of the [n] negatives lie.

    Raises:
        DataError: no negatives, or fpr outside [0, 1).
    """
    s = np.sort(np.asarray(negatives, float))
    if not len(s) or np.isnan(s).any() or not 0 <= fpr < 1:
        raise DataError(
            f"threshold: {len(s)} negatives and a false-positive rate of {fpr}; finite negatives and a rate in [0, 1) are needed"
        )
    return float(s[len(s) - 1 - math.floor(fpr * len(s) + 1e-9)])


def _t_of(df: np.ndarray, level: float) -> np.ndarray:
    found, where = np.unique(df, return_inverse=True)
    return np.array([t_quantile((1 + level) / 2, int(k)) for k in found])[where].reshape(df.shape)


def _pigeonhole(x: np.ndarray, n: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """[R, Q] successes and trials -> [B] means over drawn runs of their rates on drawn questions."""
    random = np.random.default_rng(seed)
    runs, questions = x.shape
    weights = random.multinomial(questions, np.full(questions, 1 / questions), replicates).astype(float)
    picks = random.multinomial(runs, np.full(runs, 1 / runs), replicates)
    trials = weights @ n.T
    # A run none of whose questions was drawn has no rate in this replicate and leaves its mean.
    rates = np.divide(weights @ x.T, trials, out=np.zeros_like(trials), where=trials > 0)
    picks = picks * (trials > 0)
    kept = picks.sum(1) > 0
    return (picks * rates).sum(1)[kept] / picks.sum(1)[kept]


def _sign_flip_p(d: np.ndarray, seed: int) -> float:
    """Two-sided p of |sum of d| under random signs; exact for few differing questions."""
    d = d[np.abs(d) > 1e-12]
    observed = abs(d.sum()) * (1 - 1e-9)
    if len(d) <= EXACT_FLIPS:
        bits = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        return float((np.abs((1 - 2 * bits) @ d) >= observed).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (9999, len(d)), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ d) >= observed).sum()) / 10000)
