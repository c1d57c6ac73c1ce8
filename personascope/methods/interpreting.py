"""What a latent is, from numbers: bounded samples of contexts, the label it tells, clusters of decoder rows.

Letters: n texts, L chosen latents, m latents of the dictionary, d width of the stream.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from personascope.methods import stats
from personascope.methods.stats import Estimate

LEAST = 5
"""Texts with and without a label that each half must hold for the label to be tried."""
STATISTICS = ("max", "mean")
"""What a latent shows of a text: its largest, or its mean, activation over the text's tokens."""


class Context(NamedTuple):
    """A window of one text: its id, the window's first position, token ids and activations, both (window,)."""

    text: str
    start: int
    ids: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def peak(self) -> float:
        """The largest activation in the window."""
        return max(self.values)


def window(peak: int, length: int, size: int) -> tuple[int, int]:
    """Begin and end of the `size` positions around `peak` of a text: two thirds of them before it, cut to the text."""
    start = max(0, min(peak - 2 * size // 3, length - size))
    return start, min(length, start + size)


def chance(seed: int, ids: Sequence[int]) -> float:
    """A number in [0, 1) that depends on the seed and these tokens alone."""
    digest = hashlib.blake2b(f"{seed}\0{','.join(map(str, ids))}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


class Sample:
    """The `most` contexts of smallest rank, each token window once; what is kept does not depend on the order of arrival.

    With `chance` as the rank it is a uniform sample of the distinct windows (bottom-k sampling, Cohen & Kaplan 2007),
    with minus the activation as the rank it holds the strongest ones.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bound = math.inf
        self._kept: dict[tuple[int, ...], tuple[float, float, str, Context]] = {}

    def wants(self, rank: float) -> bool:
        """Whether a context of this rank could still be among those kept."""
        return rank <= self.bound

    def add(self, rank: float, context: Context) -> None:
        """Take a context in; of equal windows the strongest stays."""
        new = (rank, -context.peak, context.text, context)
        if context.ids not in self._kept or new[:3] < self._kept[context.ids][:3]:
            self._kept[context.ids] = new
        if len(self._kept) >= 2 * self.most + 8:
            kept = sorted(self._kept.values(), key=lambda item: item[:3])[: self.most]
            self.bound = kept[-1][0] if kept else -math.inf
            self._kept = {item[3].ids: item for item in kept}

    def contexts(self) -> list[Context]:
        """What is kept, by rank."""
        return [item[3] for item in sorted(self._kept.values(), key=lambda item: item[:3])[: self.most]]


class Picked(NamedTuple):
    """Contexts of one latent: the strongest, some from each quantile band (weakest band first), silent ones, and held-out ones."""

    top: list[Context]
    bands: list[list[Context]]
    silent: list[Context]
    heldout_active: list[Context]
    heldout_silent: list[Context]


def pick(top: Sample, spread: Sample, silent: Sample, bands: int, each: int, heldout: int) -> Picked:
    """Part the samples into what is shown and what is held out; no token window is in two parts.

    `spread` is a uniform sample of the active windows; its quantiles of activation make the `bands`. Held out are at
    most `heldout` active windows, taken evenly from the bands, and as many silent ones.
    """
    strongest = top.contexts()
    taken = {context.ids for context in strongest}
    rest = [context for context in spread.contexts() if context.ids not in taken]
    order = np.argsort([context.peak for context in rest], kind="stable")
    # Within a band the order of the sample stays, which is random.
    parts = [[rest[i] for i in sorted(part.tolist())] for part in np.array_split(order, bands)]
    shown = [part[:each] for part in parts]
    queues = [part[each:] for part in parts]
    kept: list[Context] = []
    while len(kept) < heldout and any(queues):
        kept += [queue.pop(0) for queue in queues if queue]
    # A window can be active in one text and silent in another, for what stands before it.
    active = {context.ids for context in (*strongest, *rest)}
    quiet = [context for context in silent.contexts() if context.ids not in active]
    number = min(heldout, len(kept), max(0, len(quiet) - each))
    return Picked(strongest, shown, quiet[:each], kept[:number], quiet[each : each + number])


class Told(NamedTuple):
    """The label a latent tells best: chosen on one half of the texts, scored on the other (`auroc`)."""

    key: str
    value: str
    statistic: str
    auroc: Estimate
    next_value: str
    """The value of the same key that comes second, with its held-out AUROC; empty if there is no other."""
    next_auroc: float | None


def best_labels(
    scores: Mapping[str, np.ndarray], labels: Sequence[Mapping[str, Any]], chooses: np.ndarray, wanted: Sequence[str]
) -> list[Told | None]:
    """For each of L latents the label `key=value` whose presence it tells best.

    Args:
        scores: statistic → (n, L) activations a text.
        labels: what is known of each text; a text without a key says nothing about that key.
        chooses: (n,) True for the half on which label and statistic are chosen; the other half scores.
        wanted: `key` or `key=value`; none of them means all.
    """
    together = np.concatenate([scores[name] for name in STATISTICS], axis=1)
    latents = together.shape[1] // len(STATISTICS)
    tried = [(key, value, known, has) for key, value, known, has in _candidates(labels, wanted) if _enough(known, has, chooses)]
    if not tried:
        return [None] * latents
    chosen = np.stack([stats.auroc(together[known & chooses], has[known & chooses]) for _, _, known, has in tried])
    by_latent = chosen.reshape(len(tried), len(STATISTICS), latents)

    def held(candidate: int, column: int) -> tuple[float, int, int]:
        _, _, known, has = tried[candidate]
        on = known & ~chooses
        return float(stats.auroc(together[on, column], has[on])), int(has[on].sum()), int((~has[on]).sum())

    found: list[Told | None] = []
    for latent in range(latents):
        best, kind = divmod(int(by_latent[:, :, latent].argmax()), len(STATISTICS))
        key, value = tried[best][:2]
        column = kind * latents + latent
        others = [i for i, other in enumerate(tried) if other[0] == key and i != best]
        second = max(others, key=lambda i: chosen[i, column], default=None)
        after = ("", None) if second is None else (tried[second][1], round(held(second, column)[0], 4))
        found.append(Told(key, value, STATISTICS[kind], auroc_estimate(*held(best, column)), *after))
    return found


def _candidates(labels: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """(key, value, texts that have the key, texts that have the value) for every label asked for."""
    found = []
    for key in sorted({key for one in labels for key in one}):
        known = np.array([key in one for one in labels])
        values = np.array([str(one.get(key)) for one in labels])
        for value in sorted(set(values[known].tolist())):
            if not wanted or key in wanted or f"{key}={value}" in wanted:
                found.append((key, value, known, known & (values == value)))
    return found


def _enough(known: np.ndarray, has: np.ndarray, chooses: np.ndarray) -> bool:
    return all(min((has & half).sum(), (known & ~has & half).sum()) >= LEAST for half in (chooses, ~chooses))


def auroc_estimate(value: float, positives: int, negatives: int) -> Estimate:
    """An AUROC with its 95 % interval by Wilson's principle on Hanley & McNeil's variance (Newcombe 2006, method 5).

    Unlike the plain standard error it keeps a width at 0 and 1.
    """
    z, spare = 1.959964, (positives + negatives) / 2 - 1

    def outside(theta: float) -> bool:
        parts = 1 + spare * (1 - theta) / (2 - theta) + spare * theta / (1 + theta)
        return abs(value - theta) > z * math.sqrt(theta * (1 - theta) * parts / (positives * negatives))

    def bound(edge: float) -> float:
        far, near = edge, value
        for _ in range(50):
            middle = (far + near) / 2
            far, near = (middle, near) if outside(middle) else (far, middle)
        return near

    return Estimate(value, bound(0.0), bound(1.0), positives + negatives, positives + negatives)


def average_linkage(similarity: np.ndarray, threshold: float) -> list[list[int]]:
    """Clusters of (L, L) similarities: the two with the largest mean similarity merge until it falls below the threshold."""
    s = similarity.astype(float).copy()
    np.fill_diagonal(s, -np.inf)
    groups = [[i] for i in range(len(s))]
    while len(s) and s.max() >= threshold:
        i, j = sorted(divmod(int(s.argmax()), len(s)))
        a, b = len(groups[i]), len(groups[j])
        s[i] = s[:, i] = (a * s[i] + b * s[j]) / (a + b)
        s[i, i] = -np.inf
        groups[i] += groups[j]
        s[j] = s[:, j] = -np.inf
        groups[j] = []
    return sorted((sorted(group) for group in groups if group), key=lambda group: (-len(group), group))


def likeness(rows: np.ndarray, threshold: float) -> tuple[list[list[int]], dict[str, float]]:
    """Clusters of unit rows (L, d), and `pairwise`, `within` (mean cosine, 0 without a pair) and `largest` (size)."""
    cosine = rows @ rows.T
    clusters = average_linkage(cosine, threshold)
    inside = [cosine[i, j] for group in clusters for i in group for j in group if i < j]
    pairs = cosine[np.triu_indices(len(rows), 1)]
    mean = {"pairwise": pairs, "within": inside}
    numbers = {name: float(np.mean(found)) if len(found) else 0.0 for name, found in mean.items()}
    return clusters, numbers | {"largest": float(len(clusters[0]))}


def against_chance(rows: np.ndarray, pool: np.ndarray, threshold: float, seed: int, draws: int) -> dict[str, dict[str, float | None]]:
    """The numbers of `likeness` beside as many rows drawn from `pool` (p, d), `draws` times: value, null_mean, null_p95.

    A pool smaller than the set says nothing; its nulls are None.
    """
    value = likeness(rows, threshold)[1]
    generator = np.random.default_rng(seed)
    enough = len(pool) >= len(rows)
    null = [likeness(pool[generator.choice(len(pool), len(rows), replace=False)], threshold)[1] for _ in range(draws * enough)]
    return {
        name: {
            "value": round(value[name], 4),
            "null_mean": round(float(np.mean([one[name] for one in null])), 4) if null else None,
            "null_p95": round(float(np.percentile([one[name] for one in null], 95)), 4) if null else None,
        }
        for name in value
    }


def steered(record: Any, latent: int) -> list[dict[str, Any]]:
    """Every row of a screen's record that is about this latent, wherever it stands, with its place as `where`."""

    def walk(data: Any, place: str) -> list[dict[str, Any]]:
        if isinstance(data, list):
            return [row for item in data for row in walk(item, place)]
        if not isinstance(data, dict):
            return []
        if data.get("latent") == latent or data.get("direction") == str(latent):
            return [{"where": place} | {key: value for key, value in data.items() if not isinstance(value, list)}]
        return [row for key, value in data.items() for row in walk(value, f"{place}.{key}".lstrip("."))]

    return walk(record, "")
