"""Nominate before screening: order latents by what moved, by what points along the change, or by what the loss says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personascope.errors import DataError

RANKERS = ("delta", "cosine", "attribution")
"""Δ-activation (2506.19823), cosine of the decoder row with the mean difference, Δ-attribution."""


def value(row: Mapping[str, Any], by: str, mask: str) -> float:
    """What a ranker says of one latent of a diff.

    Raises:
        DataError: the diff did not compute it.
    """
    if by == "delta":
        return row["delta"][mask]
    if by not in row:
        raise DataError(f"ranking by {by}: the diff holds no such column; make the diff with a contrast of unwanted and wanted answers")
    return row[by]


def ranked(rows: Sequence[Mapping[str, Any]], by: str, mask: str) -> list[Mapping[str, Any]]:
    """Latents from the largest value to the smallest; ties keep their order."""
    return sorted(rows, key=lambda row: -value(row, by, mask))


def tails(rows: Sequence[Mapping[str, Any]], rankers: Sequence[str], mask: str, top: int, bottom: int) -> list[tuple[str, int]]:
    """(latent id, sign) of the `top` first and `bottom` last of every ranker, each once, in order of its best rank.

    A latent that different rankers put in different tails stands once with each sign.
    """
    best: dict[tuple[str, int], int] = {}
    for by in rankers:
        order = ranked(rows, by, mask)
        for tail, sign, n in ((order, 1, top), (order[::-1], -1, bottom)):
            for place, row in enumerate(tail[:n]):
                key = (row["id"], sign)
                best[key] = min(place, best.get(key, place))
    return sorted(best, key=lambda key: (best[key], -key[1]))


def principal(shifts: np.ndarray, n: int) -> np.ndarray:
    """The first n principal axes (n, width) of (rows, width) shifts, taken about zero; fewer if the rank is lower.

    Each axis is of length 1 and points the way the mean shift goes. About zero, because the mean shift is what a
    fine-tune did; about their mean the axes would show only how prompts differ.
    """
    _, sizes, axes = np.linalg.svd(np.asarray(shifts, float), full_matrices=False)
    kept = axes[:n][sizes[:n] > 1e-9 * max(1.0, float(sizes.max(initial=0.0)))]
    along = kept @ shifts.mean(0)
    return kept * np.where(along < 0, -1.0, 1.0)[:, None]
