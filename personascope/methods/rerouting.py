"""By which way a blocked change comes back: through latents left free at the site, or through the blocks after it (2602.00767).

Letters: n answers or questions, m latents, d width of the stream, c blocked latents. Δ is a tuning's mean activation less the start's.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from personascope.errors import DataError
from personascope.methods.stats import LEVEL, REPLICATES, Estimate

Stream = Float[Tensor, "*n d"]
Latents = Float[Tensor, "*n c"]
Decoder = Float[Tensor, "c d"]
Delta = Float[Tensor, " m"]
Directions = Float[Tensor, "m d"]
Vector = Float[Tensor, " d"]
Some = Int[Tensor, " c"]
Scalar = Float[Tensor, ""]


def within(own: Latents, other: Latents, decoder: Decoder, scale: Scalar) -> Stream:
    """sum_{k in K} (z'_k - z_k) d_k: the part of the way from one stream to another that the latents K account for."""
    return (other - own) @ decoder / scale


def along(delta: Delta, decoder: Directions, direction: Vector, chosen: Some) -> tuple[float, float]:
    """(inside K, outside K) of sum_k Δ_k <d_k, v>: by which latents a tuning moves along a direction, such as a misaligned one's own."""
    parts = delta.double() * (decoder.double() @ torch.nn.functional.normalize(direction.double(), dim=0))
    inside = float(parts[chosen].sum())
    return inside, float(parts.sum()) - inside


def outside_share(delta: Delta, chosen: Some) -> float | None:
    """Of everything that rose, the share by latents outside K: sum_{k not in K} relu(Δ_k) / sum_k relu(Δ_k); None if nothing did."""
    risen = delta.double().relu()
    total = float(risen.sum())
    return 1 - float(risen[chosen].sum()) / total if total > 0 else None


def grown(plain: Delta, blocked: Delta, chosen: Collection[int], top: int = 10) -> list[dict[str, Any]]:
    """The free latents that rose most beyond what plain training raised them by: what a new round of discovery would add to K."""
    order = (blocked - plain).argsort(descending=True, stable=True).tolist()
    free = [k for k in order if k not in chosen and blocked[k] > plain[k] and blocked[k] > 0][:top]
    return [{"latent": k, "plain": float(plain[k]), "blocked": float(blocked[k])} for k in free]


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Jaccard index of two sets of latents; 1 for two empty ones."""
    return len({*a} & {*b}) / len({*a, *b}) if {*a, *b} else 1.0


def share(part: ArrayLike, whole: ArrayLike, seed: int = 0, replicates: int = REPLICATES) -> Estimate | None:
    """mean(part) / mean(whole) of [n] paired values, bootstrapped over them; None where the whole may be 0 (its interval holds 0).

    Raises:
        DataError: lengths differ, or fewer than two values.
    """
    a, b = np.asarray(part, float), np.asarray(whole, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise DataError(f"rerouting: a share needs pairs of values, at least two, got {a.shape} and {b.shape}")
    picks = np.random.default_rng(seed).integers(0, len(a), (replicates, len(a)))
    tops, wholes = a[picks].mean(1), b[picks].mean(1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(wholes, [tail, 1 - tail])
    if low <= 0 <= high:
        return None
    found = np.quantile(tops / wholes, [tail, 1 - tail])
    return Estimate(float(a.mean() / b.mean()), float(found[0]), float(found[1]), len(a), len(a))
