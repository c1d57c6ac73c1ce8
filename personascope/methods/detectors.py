"""Monitors of whole fine-tuning runs: choose feature and threshold without the tested domain and seed."""

from dataclasses import dataclass

import numpy as np

from personascope.errors import DataError
from personascope.methods import stats


@dataclass(frozen=True)
class Run:
    """One fine-tuned model: whether it is misaligned, and what must be left out when it is tested."""

    name: str
    positive: bool
    domain: str
    seed: str
    group: str = ""
    """What a plot calls its kind, such as `harmful` or `benign`."""


@dataclass(frozen=True)
class Tested:
    """A run judged by a monitor that has seen neither its domain nor its seed."""

    run: Run
    value: float
    """The chosen feature's value over its threshold's scale: (value − threshold) / spread of the negatives."""
    alarm: bool
    feature: int


def leave_out(runs: list[Run], features: np.ndarray, fpr: float) -> list[Tested]:
    """Test every run by the feature and threshold chosen on runs of other domains and other seeds.

    The feature is the one whose smallest positive lies farthest above its largest negative, in units of the
    negatives' spread; the threshold is halfway between, but never below the value that `fpr` of the negatives exceed.

    Args:
        features: (runs, candidates) values, such as Δ of every latent.
        fpr: tolerated share of false alarms among the negatives chosen on.

    Raises:
        DataError: leaving a run's domain and seed out leaves no positive or no negative.
    """
    tested = []
    for i, run in enumerate(runs):
        kept = [j for j, other in enumerate(runs) if other.seed != run.seed and (other.domain != run.domain or not other.domain)]
        positive = np.array([runs[j].positive for j in kept], bool)
        if not positive.any() or positive.all():
            raise DataError(
                f"detect: without domain {run.domain!r} and seed {run.seed!r} of {run.name} no positive or no negative is left; add runs"
            )
        high, low = features[kept][positive], features[kept][~positive]
        spread = low.std(axis=0) + 1e-3 * np.abs(features[kept]).max() + 1e-12
        best = int(((high.min(axis=0) - low.max(axis=0)) / spread).argmax())
        least = stats.threshold_at_fpr(low[:, best], fpr)
        threshold = max(least, (high[:, best].min() + low[:, best].max()) / 2)
        value = (features[i, best] - threshold) / spread[best]
        tested.append(Tested(run, float(value), bool(features[i, best] > threshold), best))
    return tested


def summarise(tested: list[Tested]) -> dict[str, float]:
    """AUROC over the left-out values, and the rates of alarm among positives (tpr) and negatives (fpr)."""
    labels = [t.run.positive for t in tested]
    alarms = np.array([t.alarm for t in tested])
    positive = np.array(labels)
    return {
        "auroc": float(stats.auroc([t.value for t in tested], labels)),
        "tpr": float(alarms[positive].mean()),
        "fpr": float(alarms[~positive].mean()),
    }


def by_mean_difference(runs: list[Run], moved: np.ndarray, fpr: float) -> list[Tested]:
    """Project each run's shift on the mean shift of the positives of other domains and seeds; moved is (runs, width)."""
    tested = []
    for i, run in enumerate(runs):
        kept = [
            j
            for j, other in enumerate(runs)
            if other.positive and other.seed != run.seed and (other.domain != run.domain or not other.domain)
        ]
        direction = moved[kept].mean(axis=0) if kept else np.ones(moved.shape[1])
        projected = moved @ direction / (np.linalg.norm(direction) + 1e-12)
        tested.append(leave_out(runs, projected[:, None], fpr)[i])
    return tested
