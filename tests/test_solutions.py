"""Solutions compared: against hand-computed cases and plain references, and nothing where there is nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from personascope.errors import DataError
from personascope.methods import solutions

X = {"a": torch.tensor([[3.0, 0.0], [0.0, 0.0]]), "b": torch.tensor([0.0, 4.0, 0.0])}


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_difference_holds_what_moved() -> None:
    start = {"a": torch.zeros(2), "b": torch.ones(2)}
    found = solutions.difference({"a": torch.tensor([0.0, 2.0]), "b": torch.ones(2)}, start)
    assert list(found) == ["a"]
    assert found["a"].tolist() == [0.0, 2.0]
    with pytest.raises(DataError, match="no change to measure"):
        solutions.difference(start, start)
    with pytest.raises(DataError, match="first b"):
        solutions.difference({"a": torch.zeros(2)}, start)


def test_sizes_by_hand() -> None:
    assert solutions.size(X) == 5
    assert solutions.dot(X, {"a": torch.ones(2, 2)}) == 3
    half = solutions.resized(X, 2.5)
    assert half["a"][0, 0] == 1.5
    assert half["b"][1] == 2.0


@given(st.integers(0, 1000), st.floats(0, 1))
def test_noise_is_as_large_at_right_angles_and_spread_as_the_change_is(seed: int, share: float) -> None:
    x = {name: torch.randn(60, generator=drawn(seed + i)) * (i + 1) for i, name in enumerate("abc")}
    y = solutions.orthogonal(x, drawn(seed))
    assert solutions.size(y) == pytest.approx(solutions.size(x), rel=1e-5)
    assert solutions.dot(x, y) == pytest.approx(0, abs=1e-4 * solutions.size(x) ** 2)
    assert y["c"].norm() / y["a"].norm() == pytest.approx(float(x["c"].norm() / x["a"].norm()), rel=0.15)
    mixed = solutions.noised(x, y, share)
    assert solutions.size(mixed) == pytest.approx(solutions.size(x), rel=1e-4)
    assert solutions.dot(mixed, x) == pytest.approx(math.sqrt(1 - share**2) * solutions.size(x) ** 2, rel=1e-3, abs=1e-3)


def test_noise_at_either_end() -> None:
    x, y = {"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([0.0, 1.0])}
    assert torch.equal(solutions.noised(x, y, 0.0)["a"], x["a"])
    assert torch.equal(solutions.noised(x, y, 1.0)["a"], y["a"])
    assert solutions.noised(x, y, 0.6)["a"].tolist() == pytest.approx([0.8, 0.6])


def test_the_mean_height_of_a_curve() -> None:
    assert solutions.mean_height([0, 1, 3], [0, 2, 2]) == pytest.approx((1 + 4) / 3)
    assert solutions.mean_height([1, 2], [5, 5]) == 5
    with pytest.raises(DataError, match="1 points"):
        solutions.mean_height([1], [5])


def test_a_trajectory_is_that_of_principal_components() -> None:
    points = torch.randn(7, 40, generator=drawn(0), dtype=torch.float64)
    spots, shares = solutions.trajectory(points @ points.T)
    pca = PCA(2).fit(points.numpy())
    wanted = pca.transform(points.numpy())
    wanted *= np.where(wanted[-1] < 0, -1, 1)
    assert spots.numpy() == pytest.approx(wanted, abs=1e-8)
    assert shares == pytest.approx(pca.explained_variance_ratio_.tolist())


def test_points_that_do_not_move_have_no_trajectory() -> None:
    spots, shares = solutions.trajectory(torch.ones(3, 3))
    assert spots.abs().max() < 1e-7
    assert shares == [0.0, 0.0]
