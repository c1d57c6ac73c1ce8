"""From what moved inside to how a model behaves: a map from signatures to profiles, tested on runs unlike those it learnt from.

A *signature* is a run's vector of latents' Δ, a *profile* its rates by category (2506.19823, section on misalignment profiles).
Letters: M runs, L features of a signature, C categories of a profile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personascope.errors import DataError
from personascope.methods.detectors import Run

HOLD_OUTS: dict[str, Callable[[Run, Run], bool]] = {
    "domain": lambda run, tested: run.domain != tested.domain,
    "seed": lambda run, tested: run.seed != tested.seed,
    "domain and seed": lambda run, tested: run.domain != tested.domain and run.seed != tested.seed,
    "kind": lambda run, tested: run.group != tested.group,
}
"""Name → whether a run may be learnt from when another is predicted."""
PENALTIES = tuple(10.0**e for e in np.arange(-4, 2.5, 0.5))
"""Ridge penalties tried, in units of the signatures' mean squared length."""
SHUFFLES, REPLICATES = 199, 1000


@dataclass(frozen=True)
class _Fold:
    """The runs learnt from (A,) and those predicted (T,), and the ridge regression between them."""

    learnt: np.ndarray
    tested: np.ndarray
    hats: np.ndarray
    """[P, T, A]: under every penalty, what a centred profile of a run learnt from adds to each prediction."""
    inner: tuple["_Fold", ...] = ()
    """Such folds within the runs learnt from, by which the penalty is chosen."""

    def predictions(self, profiles: np.ndarray) -> np.ndarray:
        """[P, T, C] under every penalty."""
        known = profiles[self.learnt]
        return known.mean(0) + self.hats @ (known - known.mean(0))


def held_out(runs: Sequence[Run], signatures: np.ndarray, profiles: np.ndarray, allowed: Callable[[Run, Run], bool]) -> np.ndarray:
    """Every run's profile [M, C] as ridge regression on other runs' signatures [M, L] predicts it, clipped to [0, 1].

    The penalty is chosen within the runs learnt from, by leaving one of their domains (or, of one domain, seeds) out at a time.

    Raises:
        DataError: a run for which fewer than two others may be learnt from.
    """
    return _predict(_folds(runs, allowed, _kernel(signatures)), np.asarray(profiles, float))[0]


def report(
    runs: Sequence[Run], sources: Mapping[str, np.ndarray], categories: Sequence[str], profiles: np.ndarray, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Hold-out → source of signatures → how well profiles [M, C] are predicted; hold-outs that leave too little are left out.

    `r2` compares squared errors, summed over categories, with those of predicting the mean of the runs learnt from, so 0 is
    no better and below 0 worse; its interval is a bootstrap over (domain, seed). `null_r2` is the 95th percentile with profiles dealt to
    the runs at random, `p` the share that reach the true one. `categories` holds each one's `r2`, Spearman's `rank` correlation over
    runs, and `within`, the correlation after taking every kind's mean off both sides.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, allowed in HOLD_OUTS.items():
        if min(len(_learnt(runs, allowed, run)) for run in runs) < 2:
            continue
        folds = {source: _folds(runs, allowed, _kernel(values)) for source, values in sources.items()}
        found[name] = {source: _judged(runs, one, categories, profiles, seed) for source, one in folds.items()}
    return found


def _judged(runs: Sequence[Run], folds: Sequence[_Fold], categories: Sequence[str], profiles: np.ndarray, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    predicted, means = _predict(folds, profiles)
    errors, spread = (predicted - profiles) ** 2, (means - profiles) ** 2
    nulls = []
    for _ in range(SHUFFLES):
        dealt = profiles[random.permutation(len(runs))]
        guessed, centre = _predict(folds, dealt)
        nulls.append(_r2((guessed - dealt) ** 2, (centre - dealt) ** 2))
    value = _r2(errors, spread)
    low, high = _interval(runs, errors, spread, random)
    return {
        "r2": {"value": value, "low": low, "high": high, "n": len(runs), "clusters": len({(run.domain, run.seed) for run in runs})},
        "null_r2": float(np.percentile(nulls, 95)),
        "p": (1 + sum(null >= value for null in nulls)) / (1 + SHUFFLES),
        "categories": {
            name: {
                "r2": _r2(errors[:, i], spread[:, i]),
                "rank": _correlation(_ranks(predicted[:, i]), _ranks(profiles[:, i])),
                "within": _within(runs, predicted[:, i], profiles[:, i]),
            }
            for i, name in enumerate(categories)
        },
        "predicted": predicted,
    }


def _learnt(runs: Sequence[Run], allowed: Callable[[Run, Run], bool], tested: Run) -> tuple[int, ...]:
    return tuple(j for j, run in enumerate(runs) if allowed(run, tested))


def _folds(runs: Sequence[Run], allowed: Callable[[Run, Run], bool], kernel: np.ndarray) -> list[_Fold]:
    """Runs that are predicted from the same others, together."""
    kept: dict[tuple[int, ...], list[int]] = {}
    for i, tested in enumerate(runs):
        learnt = _learnt(runs, allowed, tested)
        if len(learnt) < 2:
            raise DataError(f"profiles: {len(learnt)} runs are left to predict {tested.name} from; add runs of other domains and seeds")
        kept.setdefault(learnt, []).append(i)
    return [_fold(kernel, learnt, tested, _inner(runs, learnt, kernel)) for learnt, tested in kept.items()]


def _inner(runs: Sequence[Run], learnt: Sequence[int], kernel: np.ndarray) -> tuple[_Fold, ...]:
    domains = len({runs[j].domain for j in learnt}) > 1
    parts: dict[str, list[int]] = {}
    for j in learnt:
        parts.setdefault(runs[j].domain if domains else runs[j].seed, []).append(j)
    rest = {name: [j for j in learnt if j not in part] for name, part in parts.items()}
    return tuple(_fold(kernel, rest[name], part) for name, part in parts.items() if rest[name])


def _fold(kernel: np.ndarray, learnt: Sequence[int], tested: Sequence[int], inner: tuple[_Fold, ...] = ()) -> _Fold:
    """Kernel ridge regression; signatures are centred on the runs learnt from."""
    a, b = np.array(learnt), np.array(tested)
    inside, across = kernel[np.ix_(a, a)], kernel[np.ix_(b, a)]
    column, whole = inside.mean(0), inside.mean()
    across = across - across.mean(1, keepdims=True) - column[None] + whole
    inside = inside - column[None] - column[:, None] + whole
    values, vectors = np.linalg.eigh(inside)
    unit = max(float(np.trace(inside)) / len(a), 1e-12)
    shrunk = [vectors / (np.maximum(values, 0) + penalty * unit) for penalty in PENALTIES]
    return _Fold(a, b, np.stack([across @ (one @ vectors.T) for one in shrunk]), inner)


def _kernel(signatures: np.ndarray) -> np.ndarray:
    """Inner products [M, M]; features keep their size, because Δ has one unit and silent latents should stay silent."""
    x = np.asarray(signatures, float)
    return x @ x.T


def _predict(folds: Sequence[_Fold], profiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, means of the runs learnt from), both [M, C]."""
    predicted, means = np.zeros_like(profiles), np.zeros_like(profiles)
    for fold in folds:
        costs = sum(((f.predictions(profiles) - profiles[f.tested]) ** 2).sum((1, 2)) for f in fold.inner)
        best = int(np.argmin(costs)) if fold.inner else len(PENALTIES) // 2
        predicted[fold.tested] = fold.predictions(profiles)[best]
        means[fold.tested] = profiles[fold.learnt].mean(0)
    return np.clip(predicted, 0, 1), means


def _r2(errors: np.ndarray, spread: np.ndarray) -> float:
    return float(1 - errors.sum() / spread.sum()) if spread.sum() > 0 else 0.0


def _interval(runs: Sequence[Run], errors: np.ndarray, spread: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of R² over the clusters (domain, seed); the predictions stay as they are."""
    names = sorted({(run.domain, run.seed) for run in runs})
    places = [[i for i, run in enumerate(runs) if (run.domain, run.seed) == name] for name in names]
    sums = np.array([(errors[place].sum(), spread[place].sum()) for place in places])
    drawn = sums[random.integers(0, len(names), (REPLICATES, len(names)))].sum(1)
    low, high = np.percentile(1 - drawn[:, 0] / np.maximum(drawn[:, 1], 1e-12), [2.5, 97.5])
    return float(low), float(high)


def _within(runs: Sequence[Run], predicted: np.ndarray, true: np.ndarray) -> float | None:
    groups = np.array([run.group for run in runs])
    if all((groups == group).sum() < 2 for group in groups):
        return None
    means = [np.array([values[groups == group].mean() for group in groups]) for values in (predicted, true)]
    return _correlation(predicted - means[0], true - means[1])


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's; None where a side does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 1e-12 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mid-ranks."""
    return (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
