"""Measures of models over training runs and shared questions: their combinations and ratios, with intervals.

Two things vary: the questions (or items), which all models share, and the training runs. Questions are drawn together for
all models, runs for each model alone, and of both one fewer than there are, which makes the variance of a mean unbiased
(Rao & Wu 1988). Letters: R runs, Q questions, B replicates.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from personascope.errors import DataError
from personascope.methods.stats import LEVEL, REPLICATES, Estimate, t_quantile

Run = Mapping[str, tuple[float, float]]
"""One run's answers: question → (safe answers, valid answers), or item → (sum of values in -1..1, how many)."""
BOUND = 0.1
"""A denominator smaller than this is refused."""
FEW = 2
"""With so few questions that show the rarer outcome, a rate's variance is at least that of the plus-four rate."""


@dataclass(frozen=True)
class Arm:
    """One measure of one model over its R runs, under B drawings of the questions that all arms share."""

    values: np.ndarray
    """[R] the measure of each run."""
    draws: np.ndarray
    """[R, B] the same on drawn questions; column b of every arm is on the same drawn questions."""
    n: int
    units: int
    """Questions or items behind it."""
    model: str = ""
    """Arms of the same model have the same runs in the same order, and runs are drawn together."""
    floor: float = 0.0
    """The variance that the choice of questions has at least, however alike the answers are."""


Terms = Sequence[tuple[float, Arm]]
"""A linear combination of arms."""


@dataclass(frozen=True)
class Quantity:
    """A number with its 95 % interval and its [B] replicates, so that it can be compared with others."""

    value: float
    low: float
    high: float
    draws: np.ndarray
    sd: float
    df: int
    n: int
    clusters: int
    """Runs if each model has several, else questions."""

    @property
    def estimate(self) -> Estimate:
        """The number and its interval."""
        return Estimate(self.value, self.low, self.high, self.n, self.clusters)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return self.estimate.to_dict()


@dataclass(frozen=True)
class Refused:
    """A ratio that is not given, and why."""

    reason: str
    value: None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, without a value."""
        return {"refused": self.reason}


def resampled(models: Mapping[str, Sequence[Run]], seed: int = 0, replicates: int = REPLICATES) -> dict[str, Arm]:
    """One arm per model on jointly drawn questions; `NAME@PART` names a part of what model NAME was asked.

    Raises:
        DataError: a model without runs, a run without a valid answer, or a sum larger than its count.
    """
    names = sorted({question for runs in models.values() for run in runs for question in run})
    many = len(names)
    if not many:
        raise DataError(f"projectability: {', '.join(models) or 'no model'} needs runs with valid answers each; none is given")
    weights = np.random.default_rng(seed).multinomial(max(1, many - 1), np.full(many, 1 / many), replicates).astype(float)
    arms = {}
    for model, runs in models.items():
        table = np.array([[run.get(question, (0, 0)) for question in names] for run in runs], float).reshape(len(runs), many, 2)
        x, n = table[..., 0], table[..., 1]
        if not len(runs) or (n.sum(1) <= 0).any() or (np.abs(x) > n).any():
            raise DataError(f"projectability: {model} needs runs with valid answers each, and no sum may exceed its count")
        values, trials = x.sum(1) / n.sum(1), weights @ n.T
        drawn = np.where(trials > 0, (weights @ x.T) / np.where(trials > 0, trials, 1), values)
        arms[model] = Arm(values, drawn.T, int(n.sum()), int((n.sum(0) > 0).sum()), model.partition("@")[0], _floor(x.sum(0), n.sum(0)))
    return arms


def combined(terms: Terms, seed: int = 0, span: tuple[float, float] = (-math.inf, math.inf)) -> Quantity:
    """The linear combination of the arms' means over runs, with its interval kept inside `span`.

    The interval is the wider, on each side, of the replicates' percentiles and Student's with Satterthwaite's degrees of
    freedom from runs and questions. With one run per model it speaks of that run alone.

    Raises:
        DataError: arms of one model with different runs.
    """
    value = sum(c * float(arm.values.mean()) for c, arm in terms)
    groups = [_model([(c, arm) for c, arm in terms if arm.model == model], seed) for model in sorted({arm.model for _, arm in terms})]
    asked = np.sum([one.asked for one in groups], axis=0)
    draws = asked + np.sum([one.trained for one in groups], axis=0)
    units, missing = min(arm.units for _, arm in terms), _missing(terms)
    variance = float(draws.var()) + missing
    spread = (float(asked.var()) + missing) ** 2 / max(units - 1, 1) + sum(one.between**2 / one.freedom for one in groups)
    least = min([one.freedom for one in groups if one.between > 0], default=max(units - 1, 1))
    df = max(least, math.floor(variance**2 / spread)) if spread > 0 else max(units - 1, 1)
    fewest = min(len(arm.values) for _, arm in terms)
    quantity = Quantity(
        value, value, value, draws, math.sqrt(variance), df, sum(arm.n for _, arm in terms), fewest if fewest > 1 else units
    )
    low, high = interval(quantity)
    return replace(quantity, low=max(span[0], low), high=min(span[1], high))


class _Drawn(NamedTuple):
    """One model's share of a combination."""

    asked: np.ndarray
    """[B] as the questions drawn make it."""
    trained: np.ndarray
    """[B] what drawn runs add to it; no spread with one run."""
    between: float
    freedom: int


def _model(terms: Terms, seed: int) -> _Drawn:
    """The run part without what one run answers differently from another by chance, which the question part holds already.

    Runs x questions with one cell each: Var(mean) = V + B - I, with V the variance over drawn questions of the mean of the
    runs, B that of the runs' means and I = (mean of each run's own V - V) / (R - 1).
    """
    if len({arm.draws.shape for _, arm in terms}) > 1:
        raise DataError(f"projectability: model {terms[0][1].model!r} has other runs in its parts; give the same runs in the same order")
    values, draws = (
        np.sum([c * part for c, part in column], axis=0) for column in zip(*(((c, a.values), (c, a.draws)) for c, a in terms), strict=True)
    )
    runs, replicates = draws.shape
    asked = draws.mean(0)
    if runs == 1:
        return _Drawn(asked, np.zeros(replicates), 0.0, 1)
    between = float(values.var(ddof=1)) / runs
    chance = max(float(draws.var(1).mean() - asked.var()), 0.0) / (runs - 1)
    random = np.random.default_rng([seed, zlib.crc32(terms[0][1].model.encode()), runs])
    picks = random.multinomial(runs - 1, np.full(runs, 1 / runs), replicates)
    kept = math.sqrt(max(between - chance, 0.0) / between) if between > 0 else 0.0
    return _Drawn(asked, kept * (picks @ (values - values.mean())) / (runs - 1), between, runs - 1)


def interval(quantity: Quantity, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the interval at a level: percentiles of the replicates or Student's, whichever is wider."""
    low, high = np.quantile(quantity.draws, [(1 - level) / 2, (1 + level) / 2])
    half = t_quantile((1 + level) / 2, quantity.df) * quantity.sd
    return min(float(low), quantity.value - half), max(float(high), quantity.value + half)


def ratio(top: Terms, bottom: Terms, bound: float = BOUND, seed: int = 0, name: str = "the denominator") -> Quantity | Refused:
    """The ratio of two linear combinations, refused where the lower one is small or may be zero.

    Interval: Fieller's (1954), which follows a ratio's skew, or the percentiles of the replicates' ratios where they are
    wider. The replicates kept are the linearised ones, which have a variance.
    """
    over, under = combined(top, seed), combined(bottom, seed)
    said = f"{name} is {under.value:.3f} ({under.low:.3f} to {under.high:.3f})"
    if under.low <= 0 <= under.high:
        return Refused(f"{said}, which may be zero")
    if abs(under.value) < bound:
        return Refused(f"{said}, smaller than {bound:g}")
    value = over.value / under.value
    rest = combined([*top, *times(-value, bottom)], seed)
    both = (combined([*top, *bottom], seed).sd ** 2 - over.sd**2 - under.sd**2) / 2
    t2 = t_quantile((1 + LEVEL) / 2, rest.df) ** 2
    a, b, c = (
        under.value**2 - t2 * under.sd**2,
        over.value * under.value - t2 * both,
        over.value**2 - t2 * over.sd**2,
    )
    if a <= 0:
        return Refused(f"{said}, too uncertain to divide by")
    root = math.sqrt(max(b * b - a * c, 0.0))
    low, high = np.nanquantile(over.draws / np.where(under.draws == 0, np.nan, under.draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = min(float(low), (b - root) / a, value), max(float(high), (b + root) / a, value)
    clusters = min(over.clusters, under.clusters)
    return Quantity(value, *ends, value + rest.draws / under.value, rest.sd / abs(under.value), rest.df, over.n, clusters)


def times(factor: float, terms: Terms) -> list[tuple[float, Arm]]:
    """The combination with every coefficient multiplied."""
    return [(factor * c, arm) for c, arm in terms]


def _missing(terms: Terms) -> float:
    """The variance that floors add: an arm that stands more than once counts with its whole coefficient."""
    whole: dict[int, tuple[float, Arm]] = {}
    for c, arm in terms:
        whole[id(arm)] = (whole.get(id(arm), (0.0, arm))[0] + c, arm)
    return sum(c * c * max(arm.floor - float(arm.draws.mean(0).var()), 0.0) for c, arm in whole.values())


def _floor(x: np.ndarray, n: np.ndarray) -> float:
    """[Q] sums and counts -> least variance of their mean: the plus-four rate's (Agresti & Coull 1998) where all but agree."""
    scale = 2.0 if (x < 0).any() else 1.0
    hits = (x + n) / 2 if scale == 2 else x
    asked = n > 0
    many = int(asked.sum())
    if min(int((hits[asked] > 0).sum()), int((hits[asked] < n[asked]).sum())) > FEW:
        return 0.0
    plus = (hits.sum() / n.sum() * many + 2) / (many + 4)
    return scale**2 * float(plus * (1 - plus)) / (many + 4)
