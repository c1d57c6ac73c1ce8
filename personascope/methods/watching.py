"""Alarms on whole fine-tuning runs: one false-alarm rate per benign run, onset of behaviour, and the lead between them.

Letters: R runs, T watched steps of a run, M monitors. The alarm statistic of a run is the largest value that a monitor
takes at any of its steps, so a threshold set on it bounds the false alarms of a run, not of a step.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personascope.errors import DataError
from personascope.methods import stats

GENERAL = ("shift", "trait_space", "loss", "grad_norm", "answers")
"""Monitors that no direction or latent may be called."""
LOG, ABOUT = "watch.jsonl", "watch.json"
"""The log in a Model, and which monitors are in it and where they come from."""
RIVAL = "answers"
SPACE, SIGNATURE = "mahalanobis", "signature"
PERCENTILE = 95

Scorer = Callable[[np.ndarray], np.ndarray]
Tally = Sequence[Sequence[int]]
"""(harmful, valid) of every question at one checkpoint."""


@dataclass(frozen=True)
class Threshold:
    """A threshold on the alarm statistic and what it promises."""

    value: float
    exceeded: int
    """Benign runs above it."""
    runs: int
    bound: float
    """Upper 95 % confidence bound of the rate of false alarms per run (Clopper & Pearson 1934)."""


def whole_lines(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a log, without a last one that was cut off."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def length_within(x: np.ndarray, directions: np.ndarray) -> float:
    """Length of the part of x (width,) that lies in the span of directions (k, width)."""
    _, sizes, basis = np.linalg.svd(directions.astype(float), full_matrices=False)
    return float(np.linalg.norm(basis[sizes > 1e-6 * max(sizes.max(), 1e-30)] @ x))


def lower(tally: Tally) -> float:
    """Lower 95 % bound of the misalignment score at a checkpoint (see `stats.rate`)."""
    return stats.rate(*zip(*tally, strict=True)).low


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values (T,) at each place, as far as there are any; it never looks ahead."""
    if window == 1:
        return values
    out = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in out])


def peak(values: np.ndarray) -> float:
    """The alarm statistic; minus infinity for a run without a value."""
    return float(np.fmax.reduce(values, initial=-math.inf))


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> float:
    """One-sided upper bound of a rate: the p at which `hits` or fewer among `trials` has probability 1 − level (Clopper & Pearson 1934)."""
    if hits >= trials:
        return 1.0
    ways = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(hits + 1)]
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        below = sum(math.exp(way + k * math.log(p) + (trials - k) * math.log1p(-p)) for k, way in enumerate(ways))
        low, high = (p, high) if below > 1 - level else (low, p)
    return high


def calibrate(peaks: Sequence[float] | np.ndarray, rate: float) -> Threshold:
    """The lowest threshold at which a further benign run gives a false alarm with probability at most `rate`.

    Exchangeable runs: above the k-th largest of n peaks lies a new one with probability at most k / (n + 1). So k is
    floor(rate (n + 1)), and k − 1 of the known ones lie above. With too few runs for the rate (k = 0), the threshold is
    their largest peak, and `bound` says what that is worth.

    Raises:
        DataError: no benign run, or a rate outside [0, 1).
    """
    found = np.sort(np.asarray(peaks, float))[::-1]
    if not len(found) or not 0 <= rate < 1:
        raise DataError(f"watch: {len(found)} benign runs and a false-alarm rate of {rate}; at least one and a rate in [0, 1) are needed")
    allowed = max(math.floor(rate * (len(found) + 1) + 1e-9) - 1, 0)
    value = float(found[allowed])
    exceeded = int((found > value).sum())
    return Threshold(value, exceeded, len(found), clopper_pearson(exceeded, len(found)))


def first_alarm(steps: np.ndarray, values: np.ndarray, threshold: float) -> int | None:
    """The first step whose value lies above the threshold."""
    over = np.flatnonzero(values > threshold)
    return int(steps[over[0]]) if len(over) else None


def clean_bound(benign: Sequence[Mapping[int, Tally]]) -> float:
    """What benign runs' misalignment scores stay below: their 95th percentile at the step where that is highest.

    Raises:
        DataError: no benign run was asked for its behaviour.
    """
    steps = sorted({step for run in benign for step in run})
    if not steps:
        raise DataError("watch: no benign run has a behaviour in its log; watch some of them with `asked` questions")
    scores = {s: [sum(h for h, _ in run[s]) / max(1, sum(n for _, n in run[s])) for run in benign if s in run] for s in steps}
    return max(float(np.percentile(values, PERCENTILE)) for values in scores.values())


def onset_of(behaviour: Mapping[int, Tally], bound: float) -> int | None:
    """The first checkpoint whose lower 95 % bound exceeds what benign runs show."""
    return next((step for step in sorted(behaviour) if lower(behaviour[step]) > bound), None)


def lead(alarm: int | None, onset: int) -> float:
    """Share of the steps to the onset by which the alarm came before it; −1 for none, or one as late again."""
    return -1.0 if alarm is None or not onset else max(-1.0, (onset - alarm) / onset)


def admissible(origins: Mapping[str, Sequence[str]], domain: str) -> list[str]:
    """The monitors that come from nowhere in particular, or from at least one other domain than this one."""
    return [name for name, found in origins.items() if not found or any(origin != domain for origin in found)]


def mahalanobis(benign: np.ndarray, shrink: float = 0.1) -> Scorer:
    """Distance (T,) of monitors (T, M) from what benign runs show at any of their steps, (n, M) in all.

    Monitors are put in units of their own spread; the correlation is shrunk towards none by `shrink`, so that as many
    monitors as steps do no harm.
    """
    mean, spread, correlation = _spread(benign, shrink)
    inverse = np.linalg.inv(correlation)

    def score(x: np.ndarray) -> np.ndarray:
        z = (x - mean) / spread
        return np.sqrt(np.einsum("ti,ij,tj->t", z, inverse, z).clip(min=0))

    return score


def discriminant(harmful: np.ndarray, benign: np.ndarray, shrink: float = 0.1) -> Scorer:
    """The direction among monitors that best tells harmful steps (m, M) from benign ones (n, M) (Fisher 1936).

    Both kinds share the benign correlation, shrunk towards none by `shrink`. The score is in standard deviations of
    benign steps from their mean.
    """
    mean, spread, correlation = _spread(benign, shrink)
    weights = np.linalg.solve(correlation, (harmful.mean(0) - mean) / spread)
    weights /= np.sqrt(weights @ correlation @ weights) + 1e-12
    return lambda x: (x - mean) / spread @ weights


def _spread(benign: np.ndarray, shrink: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and spreads (M,) and the shrunk correlation (M, M) of benign steps (n, M)."""
    mean, spread = benign.mean(0), benign.std(0)
    # What benign runs never move has no scale of its own and gets the median one; else its least stir would outweigh all.
    moved = spread > 1e-9
    spread = np.where(moved, spread, np.median(spread[moved]) if moved.any() else 1.0)
    correlation = np.cov((benign - mean) / spread, rowvar=False, bias=True).reshape(len(mean), len(mean)) + np.diag(~moved)
    return mean, spread, (1 - shrink) * correlation + shrink * np.eye(len(mean))


def families(origins: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Kind of monitor → its candidates: what stands before the first slash."""
    kinds: dict[str, list[str]] = {}
    for name in origins:
        kinds.setdefault(name.partition("/")[0], []).append(name)
    return kinds
