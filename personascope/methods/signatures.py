"""Whose signature is it: an ethical profile against expected signatures, by order, sign and angle, and identification.

A signature gives the expected sign and weight per dimension relative to the source model. Letters: D dimensions,
B bootstrap draws, K signatures, M models. Every statistic takes [..., D] profiles and one [D] signature and gives [...];
0 where the profile, or the signature, has no direction.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from personascope.errors import DataError
from personascope.methods.ethics import TIE, Moved
from personascope.methods.stats import Estimate

Signature = Mapping[str, float]
"""Dimension → expected sign and weight; a dimension left out is expected not to move."""
SHUFFLES = 9999
NONE = "none"


def contrast(profiles: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """Weighted mean over dimensions expected to rise minus weighted mean over those expected to fall."""
    up, down = np.maximum(signature, 0), np.maximum(-signature, 0)
    return profiles @ (up / max(up.sum(), TIE) - down / max(down.sum(), TIE))


def order(profiles: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """Share of pairs of dimensions with different expectations that stand in the expected order; ties count one half."""
    i, j = np.triu_indices(len(signature), 1)
    expected = np.sign(signature[i] - signature[j])
    told = expected != 0
    if not told.any():
        return np.zeros(profiles.shape[:-1])
    gap = profiles[..., i] - profiles[..., j]
    seen = np.where(np.abs(gap) < TIE, 0.0, np.sign(gap)) * expected
    return ((seen[..., told] + 1) / 2).mean(-1)


def signs(profiles: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """Share of the dimensions with an expected sign that have it; a dimension that did not move has none."""
    told = signature != 0
    if not told.any():
        return np.zeros(profiles.shape[:-1])
    return ((profiles[..., told] * np.sign(signature[told])) > TIE).mean(-1)


def cosine(profiles: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """Cosine of profile and signature."""
    length = np.linalg.norm(profiles, axis=-1) * np.linalg.norm(signature)
    return np.where(length > TIE, np.clip(profiles @ signature / np.where(length > TIE, length, 1), -1, 1), 0.0)


def spearman(profiles: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of profile and signature, mid-ranks for ties."""
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (_ranks(profiles), _ranks(signature)))
    return cosine(a, b)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mid-ranks along the last axis, from 1."""
    gap = values[..., :, None] - values[..., None, :]
    return (gap > TIE).sum(-1) + ((np.abs(gap) <= TIE).sum(-1) + 1) / 2


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "contrast": contrast,
    "order": order,
    "signs": signs,
    "spearman": spearman,
    "cosine": cosine,
}


def match(moved: Moved, signature: Signature) -> dict[str, Estimate]:
    """Every measure of how a relative profile fits a signature, each bootstrapped over items.

    Raises:
        DataError: the signature names a dimension that was not asked about.
    """
    expected = vector(moved, signature)
    return {name: moved.estimate(lambda p, measure=measure: measure(p, expected)) for name, measure in MEASURES.items()}


def specificity(moved: Moved, own: str, signatures: Mapping[str, Signature]) -> Estimate:
    """Cosine with the own signature minus the largest with another; raises DataError if there is no own or no other."""
    known = _directed(moved, signatures)
    if own not in known or len(known) < 2:
        raise DataError(f"signatures: {own!r} and at least one other are needed, given are {', '.join(known) or NONE}")
    others = [expected for name, expected in known.items() if name != own]
    return moved.estimate(lambda p: cosine(p, known[own]) - np.max([cosine(p, one) for one in others], axis=0))


def identify(moved: Moved, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Whose expected signature is nearest in angle, and how surely.

    `nearest` is a name, or `none` where the profile has not moved or two are equally near. `shares`: how often each is
    nearest over the draws; `sure`: the share of `nearest`. Signatures without any expectation cannot be near.

    Raises:
        DataError: no signature has an expectation, or one names a dimension that was not asked about.
    """
    known = _directed(moved, signatures)
    if not known:
        raise DataError("signatures: none has a dimension that was measured and expected to move; give at least one")
    names = [*known, NONE]
    near = Counter(_nearest(moved.draws, list(known.values())).tolist())
    best = int(_nearest(moved.value, list(known.values())))
    shares = {name: near[i] / len(moved.draws) for i, name in enumerate(names)}
    cosines = {name: moved.estimate(lambda p, one=one: cosine(p, one)).to_dict() for name, one in known.items()}
    return {"nearest": names[best], "sure": shares[names[best]], "shares": shares, "cosine": cosines}


def _nearest(profiles: np.ndarray, expected: list[np.ndarray]) -> np.ndarray:
    """[..., D] profiles -> [...] number of the signature with the largest cosine, K where none is nearest."""
    near = np.stack([cosine(profiles, one) for one in expected], axis=-1)
    best = near.max(-1)
    tied = (near > best[..., None] - TIE).sum(-1) > 1
    still = np.linalg.norm(profiles, axis=-1) < TIE
    return np.where(tied | still, len(expected), near.argmax(-1))


def identification(models: Mapping[str, Moved], signatures: Mapping[str, Signature], own: Mapping[str, str], seed: int = 0) -> dict:
    """The identification matrix: every model against every signature, and how many are nearest to their own.

    `models`: per model what `identify` says, with `own`. `matrix`: model → signature → cosine. `confusion`: own → nearest →
    count. `correct` of `of` models whose own signature has an expectation; `p`: the chance of as many hits when the own
    names are shuffled among these models (9,999 shuffles, counted with the observed); `chance`: expected hits.

    Raises:
        DataError: a model without its own name, or as `identify`.
    """
    if missing := [name for name in models if name not in own]:
        raise DataError(f"identification: model {missing[0]!r} has no own signature named; name one for each model")
    found: dict[str, dict[str, Any]] = {name: {**identify(one, signatures), "own": own[name]} for name, one in models.items()}
    confusion: dict[str, Counter[str]] = {}
    for one in found.values():
        confusion.setdefault(one["own"], Counter())[one["nearest"]] += 1
    # A control that is expected not to move can be identified as nobody, so it is shown and not counted.
    counted = [one for one in found.values() if one["own"] in one["cosine"]]
    return {
        "models": found,
        "matrix": {name: {key: value["value"] for key, value in one["cosine"].items()} for name, one in found.items()},
        "confusion": {name: dict(sorted(counts.items())) for name, counts in confusion.items()},
        **_chance([one["nearest"] for one in counted], [one["own"] for one in counted], seed),
    }


def _chance(nearest: Sequence[str], own: Sequence[str], seed: int) -> dict[str, float | int]:
    said, meant = np.array(nearest, dtype=object), np.array(own, dtype=object)
    hits = int((said == meant).sum())
    random = np.random.default_rng(seed)
    shuffled = np.array([(said == meant[random.permutation(len(meant))]).sum() for _ in range(SHUFFLES)])
    expected = sum(float((said == name).mean() * (meant == name).sum()) for name in set(own)) if own else 0.0
    return {"correct": hits, "of": len(own), "chance": expected, "p": float((1 + (shuffled >= hits).sum()) / (1 + SHUFFLES))}


def vector(moved: Moved, signature: Signature) -> np.ndarray:
    """[D] the signature in the order of a profile's dimensions; raises DataError for a dimension nobody asked about."""
    if unknown := [name for name in signature if name not in (*moved.dimensions, *moved.lacking)]:
        known = ", ".join((*moved.dimensions, *moved.lacking))
        raise DataError(f"signature: dimension {unknown[0]!r} was not asked about; asked about are {known}")
    return np.array([float(signature.get(name, 0.0)) for name in moved.dimensions])


def _directed(moved: Moved, signatures: Mapping[str, Signature]) -> dict[str, np.ndarray]:
    vectors = {name: vector(moved, signature) for name, signature in signatures.items()}
    return {name: one for name, one in vectors.items() if one.any()}
