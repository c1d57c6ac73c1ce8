"""Solutions of one task compared: what a change of given size buys, how it bears noise, and the way training took (2602.07852).

A change is what fine-tuning added to the start's weights, tensor by tensor; for one trained vector it is that vector.
Its size is the Euclidean norm over all of them. The source calls its measures correlational, and so they are.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from personascope.errors import DataError

Change = dict[str, Tensor]
Gram = Float[Tensor, "p p"]
Spots = Float[Tensor, "p a"]


def difference(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Change:
    """now - start, tensors that did not move left out.

    Raises:
        DataError: nothing moved, or the two have other tensors.
    """
    if now.keys() != start.keys():
        raise DataError(f"solutions: weights differ in name, first {min(now.keys() ^ start.keys())}; compare models of one start")
    found = {name: now[name] - start[name] for name in start}
    if not (found := {name: delta for name, delta in found.items() if delta.any()}):
        raise DataError("solutions: the tuned model has the weights of its start; there is no change to measure")
    return found


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Inner product of two changes, in double precision; a tensor that one lacks is 0."""
    shared = one.keys() & other.keys()
    return sum(float((one[name].double() * other[name].double()).sum()) for name in sorted(shared))


def size(change: Mapping[str, Tensor]) -> float:
    """|x|."""
    return dot(change, change) ** 0.5


def resized(change: Mapping[str, Tensor], wanted: float) -> Change:
    """wanted x / |x|: efficiency is the loss of solutions brought to one size."""
    factor = wanted / size(change)
    return {name: delta * factor for name, delta in change.items()}


def orthogonal(change: Mapping[str, Tensor], draw: torch.Generator) -> Change:
    """A random y of the size of x at right angles to it, spread over the tensors as x is.

    Per tensor a Gaussian of that tensor's norm, then the part along x removed and |y| made |x|; for one vector this is a
    uniform draw from its orthogonal sphere, as in the source.
    """
    noise = {}
    for name, delta in change.items():
        raw = torch.randn(delta.shape, generator=draw, dtype=torch.float64)
        noise[name] = raw * (delta.double().cpu().norm() / raw.norm())
    exact = {name: delta.double().cpu() for name, delta in change.items()}
    along = dot(noise, exact) / dot(exact, exact)
    found = resized({name: noise[name] - along * exact[name] for name in noise}, size(exact))
    return {name: y.to(change[name]) for name, y in found.items()}


def noised(x: Mapping[str, Tensor], y: Mapping[str, Tensor], epsilon: float) -> Change:
    """x' = sqrt(1 - e^2) x + e y with y at right angles to x and as large: |x'| = |x|; stability is how slowly its loss rises."""
    return {name: (1 - epsilon**2) ** 0.5 * x[name] + epsilon * y[name] for name in x}


def mean_height(x: Sequence[float], y: Sequence[float]) -> float:
    """Mean of a curve over its range, by trapezoids; x rises.

    Raises:
        DataError: fewer than two points.
    """
    if len(x) < 2:
        raise DataError(f"solutions: a curve of {len(x)} points has no mean height; give at least two")
    parts = ((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(zip(x, y, strict=True)))
    return sum(parts) / (x[-1] - x[0])


def trajectory(gram: Gram, axes: int = 2) -> tuple[Spots, list[float]]:
    """Principal axes of p points given by their inner products: coordinates about the mean, and each axis' share of the variance."""
    centre = torch.eye(len(gram), dtype=torch.float64) - 1 / len(gram)
    centred = centre @ gram.double() @ centre
    values, vectors = torch.linalg.eigh(centred)
    values, vectors = values.flip(0).clamp(min=0)[:axes], vectors.flip(1)[:, :axes]
    # The sign of an eigenvector is arbitrary: the last point lies on the positive side.
    signs = torch.where(vectors[-1] < 0, -1.0, 1.0)
    whole, least = float(centred.trace()), 1e-12 * float(gram.double().trace())
    return vectors * values.sqrt() * signs, [float(value) / whole if whole > least else 0.0 for value in values]
