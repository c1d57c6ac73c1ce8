"""How far what narrow training taught carries over: raw changes, transfer, retention, specificity, rank stability.

Projectability of constitutions follows the idea of 2606.09475, whose authors' formula is not known to us. Letters: R runs,
B replicates, K constitutions.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from personascope.errors import DataError
from personascope.methods.arms import BOUND, Arm, Quantity, Refused, Run, combined, interval, ratio, resampled, times
from personascope.methods.stats import LEVEL, REPLICATES, Estimate, benjamini_hochberg

EXACT_ORDERS = 8


@dataclass(frozen=True)
class Transfer:
    """Changes against the source, and what share of the broad change narrow training reaches."""

    narrow: Quantity
    """S_narrow - S_source."""
    broad: Quantity
    """S_broad - S_source."""
    gap: Quantity
    """S_narrow - S_broad."""
    ratio: Quantity | Refused
    """(S_narrow - S_source) / (S_broad - S_source)."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"narrow": self.narrow.to_dict(), "broad": self.broad.to_dict(), "gap": self.gap.to_dict(), "transfer": self.ratio.to_dict()}


@dataclass(frozen=True)
class Ranking:
    """How two orders of the same names agree."""

    tau: Estimate
    """Kendall's tau-b; its interval is over the replicates, whose extra noise pulls it towards 0."""
    p: float
    """Chance that a random order agrees as well."""
    order: tuple[str, ...]
    """Names by the second order, lowest first."""
    left_out: tuple[str, ...] = ()
    """Names whose number was refused or is missing in one order."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"tau": self.tau.to_dict(), "p": self.p, "order": list(self.order), "left_out": list(self.left_out)}


def transfer(
    source: Sequence[Run], broad: Sequence[Run], narrow: Mapping[str, Sequence[Run]], bound: float = BOUND, seed: int = 0
) -> Transfer:
    """Changes and transfer over the narrow conditions, each compared with source and broad on the questions it was asked.

    With one question set for all conditions this is the transfer on the general set; with each condition's own strict
    hold-out it is T_holdout. Conditions weigh alike.

    Raises:
        DataError: a model without runs, a run without a valid answer, or a count that is none.
    """
    if not narrow:
        raise DataError("transfer: no narrow condition; give at least one with its runs")
    models: dict[str, Sequence[Run]] = {}
    for name, runs in narrow.items():
        asked = {question for run in runs for question in run}
        models[f"narrow {name}"] = runs
        for other, theirs in (("source", source), ("broad", broad)):
            models[f"{other}@{name}"] = [{question: run[question] for question in asked if question in run} for run in theirs]
    arms, share = resampled(models, seed), 1 / len(narrow)
    narrows, broads, sources = (
        [(share, arms[form.format(n=name)]) for name in narrow] for form in ("narrow {n}", "broad@{n}", "source@{n}")
    )
    up, down = [*narrows, *times(-1, sources)], [*broads, *times(-1, sources)]
    changes = [combined(terms, seed, span=(-1.0, 1.0)) for terms in (up, down, [*narrows, *times(-1, broads)])]
    return Transfer(*changes, ratio=ratio(up, down, bound, seed, "the broad change"))


def matched(values: ArrayLike, draws: ArrayLike | None = None, items: int = 0, model: str = "") -> Arm:
    """An arm of [R] match values made elsewhere, with their [R, B] replicates over drawn items if there are any.

    Raises:
        DataError: values that are not finite, replicates of another number of runs, or one run without replicates.
    """
    v = np.atleast_1d(np.asarray(values, float))
    d = np.repeat(v[:, None], REPLICATES, 1) if draws is None else np.atleast_2d(np.asarray(draws, float))
    if v.ndim != 1 or not len(v) or not np.isfinite(v).all() or not np.isfinite(d).all() or len(d) != len(v):
        raise DataError(f"matches: {v.shape} values with {d.shape} replicates; give finite values and one row of replicates per run")
    if len(v) == 1 and draws is None:
        raise DataError("matches: one run without replicates over items has no interval; give replicates or more runs")
    return Arm(v, d, max(items, 1) * len(v), max(items, 1), model)


def beyond(own: Arm, others: Sequence[Arm]) -> Arm:
    """Specificity as an arm: the match with the own expected signature minus the best match with another's, run by run."""
    if not others or any(other.draws.shape != own.draws.shape for other in others):
        raise DataError("specificity: give the matches of the same runs and replicates with at least one other signature")
    values = own.values - np.max([other.values for other in others], axis=0)
    return Arm(values, own.draws - np.max([other.draws for other in others], axis=0), own.n, own.units, own.model)


def retention(narrow: Arm, broad: Arm, bound: float = BOUND, seed: int = 0) -> Quantity | Refused:
    """Persona match after narrow over that after broad training."""
    return ratio([(1.0, narrow)], [(1.0, broad)], bound, seed, "the broad match")


def kendall(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Kendall's tau-b of [..., K] and [..., K] -> [...]; 0 where one order is all ties (Kendall 1945)."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    i, j = np.triu_indices(a.shape[-1], 1)
    one, other = np.sign(a[..., i] - a[..., j]), np.sign(b[..., i] - b[..., j])
    size = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return np.where(size > 0, (one * other).sum(-1) / np.where(size > 0, size, 1), 0.0)


def ranking(first: Mapping[str, float | Quantity | Refused], second: Mapping[str, Quantity | Refused], seed: int = 0) -> Ranking:
    """Agreement of two orders; `first` may be a planted one, plain numbers in which ties are allowed.

    p is one-sided, from all K! orders up to 8 names and 9,999 random ones beyond: with three names tau = 1 has p = 1/6.

    Raises:
        DataError: fewer than three names with a number on both sides.
    """
    names = [name for name in first if not isinstance(first[name], Refused) and isinstance(second.get(name), Quantity)]
    if len(names) < 3:
        raise DataError(f"ranking: {len(names)} names have a number on both sides; an order needs three")
    (one, ones), (other, others) = _columns([first[name] for name in names]), _columns([second[name] for name in names])
    value = float(kendall(one, other))
    low, high = np.quantile(kendall(*np.broadcast_arrays(ones, others)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    estimate = Estimate(value, min(float(low), value), max(float(high), value), len(names), len(names))
    left = tuple(name for name in dict.fromkeys([*first, *second]) if name not in names)
    return Ranking(estimate, _chance(one, other, value, seed), tuple(names[i] for i in np.argsort(other, kind="stable")), left)


def compared(found: Mapping[str, Quantity | Refused]) -> list[dict[str, Any]]:
    """All pairs of names: {a, b, difference, p, q} with Student's p and Benjamini-Hochberg's q over the pairs."""
    given = {name: one for name, one in found.items() if isinstance(one, Quantity)}
    rows = []
    for (a, one), (b, other) in itertools.combinations(given.items(), 2):
        draws, value = one.draws - other.draws, one.value - other.value
        # What the replicates of each do not show, which is where a rate is near 0 or 1, adds up.
        hidden = sum(max(side.sd**2 - float(side.draws.var()), 0.0) for side in (one, other))
        sd, df = math.sqrt(float(draws.var()) + hidden), min(one.df, other.df)
        quantity = Quantity(value, value, value, draws, sd, df, one.n + other.n, min(one.clusters, other.clusters))
        estimate = Estimate(value, *interval(quantity), quantity.n, quantity.clusters)
        p = float(2 * distributions.t.sf(abs(value) / sd, df)) if sd > 0 else 1.0
        rows.append({"a": a, "b": b, "difference": estimate.to_dict(), "p": p})
    q = benjamini_hochberg([row["p"] for row in rows]) if rows else []
    return [row | {"q": float(value)} for row, value in zip(rows, q, strict=True)]


def equivalent(quantity: Quantity, bound: float = BOUND) -> dict[str, Any]:
    """Whether a change is shown to be nothing: its 90 % interval lies inside ± bound, two one-sided tests at 5 % (Schuirmann 1987)."""
    low, high = interval(quantity, 0.9)
    return {"value": quantity.value, "low": low, "high": high, "n": quantity.n, "clusters": quantity.clusters} | {
        "level": 0.9,
        "bound": bound,
        "inside": bool(-bound < low and high < bound),
    }


def _columns(found: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """[K] values and [B, K] replicates; plain numbers are their own."""
    values = np.array([one.value if isinstance(one, Quantity) else float(one) for one in found])
    if all(isinstance(one, Quantity) for one in found):
        return values, np.stack([one.draws for one in found], axis=1)
    return values, values[None]


def _chance(one: np.ndarray, other: np.ndarray, value: float, seed: int) -> float:
    many = len(one)
    if many <= EXACT_ORDERS:
        orders = np.array(list(itertools.permutations(range(many))))
        return float((kendall(np.broadcast_to(one, orders.shape), other[orders]) >= value - 1e-9).mean())
    random = np.random.default_rng(seed)
    orders = np.array([random.permutation(many) for _ in range(9999)])
    return float((1 + (kendall(np.broadcast_to(one, orders.shape), other[orders]) >= value - 1e-9).sum()) / 10000)
