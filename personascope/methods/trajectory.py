"""Where a training run turns: local cosines of the path that its weights take, and whether a turn is more than chance.

Letters: T checkpoints, evenly spaced, P weights. Everything is computed from the Gram matrix of the steps between
checkpoints, so that a path of any number of weights costs T² numbers.
"""

from dataclasses import dataclass

import numpy as np

from personascope.errors import DataError


@dataclass(frozen=True)
class Turn:
    """The sharpest bend of a path."""

    at: int
    """Index of the checkpoint."""
    cosine: float
    """Local cosine there."""
    usual: float
    """Median of the local cosines: near the one above, the path bends everywhere alike."""
    expected: float
    """Mean, over orders of the same steps drawn at random, of the smallest local cosine."""
    p: float
    """Share of those orders that bend as sharply somewhere, counted with the observed one."""


def gram(path: np.ndarray) -> np.ndarray:
    """Products (T - 1, T - 1) of the steps between the checkpoints of a path (T, P).

    Raises:
        DataError: fewer than three checkpoints.
    """
    if path.ndim != 2 or len(path) < 3:
        raise DataError(f"a path of shape {path.shape}: at least three checkpoints of the same weights are needed")
    steps = np.diff(path.astype(float), axis=0)
    return steps @ steps.T


def local_cosines(products: np.ndarray, window: int) -> np.ndarray:
    """Cosine (T,) between the changes of `window` checkpoints before and after each one; NaN at the ends (2506.11613).

    cos(w_t - w_(t-k), w_(t+k) - w_t): 1 where training goes straight on, low where it turns.

    Args:
        products: `gram` of the path.

    Raises:
        DataError: the window does not fit into the path twice.
    """
    total = len(products) + 1
    if not 1 <= window <= (total - 1) // 2:
        raise DataError(f"local cosine: a window of {window} does not fit twice into {total} checkpoints; save more of them")
    # Corners of a summed table give the product of any two stretches of the path.
    table = np.zeros((total, total))
    table[1:, 1:] = products.cumsum(0).cumsum(1)

    def product(a: int, b: int, c: int, d: int) -> float:
        return table[b, d] - table[a, d] - table[b, c] + table[a, c]

    found = np.full(total, np.nan)
    for t in range(window, total - window):
        back, on = (t - window, t), (t, t + window)
        size = product(*back, *back) * product(*on, *on)
        found[t] = product(*back, *on) / np.sqrt(size) if size > 0 else np.nan
    return found


def turn(products: np.ndarray, window: int, orders: int = 999, seed: int = 0) -> Turn:
    """The smallest local cosine, against the same steps taken in random order.

    Steps of a random walk, and of a straight path with noise, may be exchanged, so that p is uniform for them; a path
    that first goes one way and then another is only so sharply bent in the order it was taken. Short windows can hold
    steps of one kind alone by chance and so have little power; a quarter of the path has enough.

    Raises:
        DataError: the window does not fit, or nothing moved.
    """
    seen = local_cosines(products, window)
    if np.isnan(seen).all():
        raise DataError("turn: the weights did not move between the checkpoints")
    at, rng = int(np.nanargmin(seen)), np.random.default_rng(seed)
    lowest = []
    for _ in range(orders):
        order = rng.permutation(len(products))
        lowest.append(np.nanmin(local_cosines(products[np.ix_(order, order)], window)))
    as_low = sum(value <= seen[at] for value in lowest)
    return Turn(at, float(seen[at]), float(np.nanmedian(seen)), float(np.mean(lowest)), (1 + int(as_low)) / (1 + orders))
