"""Local cosines: the angle of two straight stretches, an independent loop, and no turn in a random walk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personascope.errors import DataError
from personascope.methods.trajectory import gram, local_cosines, turn


def bent(angle: float, each: int = 10, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A path that goes straight for `each` checkpoints, turns by an angle, and goes straight again: (2 each + 1, 6)."""
    first, then = np.eye(6)[0], np.cos(angle) * np.eye(6)[0] + np.sin(angle) * np.eye(6)[1]
    steps = np.array([first] * each + [then] * each) + noise * np.random.default_rng(seed).normal(size=(2 * each, 6))
    return np.vstack([np.zeros(6), steps.cumsum(0)])


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 180])
def test_two_straight_stretches_meet_at_their_angle(degrees: int) -> None:
    found = local_cosines(gram(bent(np.radians(degrees))), 3)
    assert np.isnan(found[[0, 1, 2, -1, -2, -3]]).all()
    assert found[10] == pytest.approx(np.cos(np.radians(degrees)))
    assert found[[4, 5, 15, 16]] == pytest.approx(1.0)


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_as_written_out(seed: int, window: int) -> None:
    path = np.random.default_rng(seed).normal(size=(12, 5)).cumsum(0)
    found = local_cosines(gram(path), window)
    for t in range(window, 12 - window):
        back, on = path[t] - path[t - window], path[t + window] - path[t]
        assert found[t] == pytest.approx(back @ on / np.linalg.norm(back) / np.linalg.norm(on), abs=1e-9)


def test_a_rotation_of_the_direction_is_found_where_it_is() -> None:
    found = turn(gram(bent(np.radians(80), each=16, noise=0.05)), 8, orders=199)
    assert found.at == 16
    assert found.cosine < 0.3 < found.expected
    assert found.usual > 0.6
    assert found.p == 1 / 200


def test_a_random_walk_has_no_turn() -> None:
    """p is uniform: over 60 walks, each of 24 steps in 40 dimensions, about one in ten is below a tenth, never most of them."""
    ps = [turn(gram(np.random.default_rng(seed).normal(size=(25, 40)).cumsum(0)), 3, orders=59, seed=seed).p for seed in range(60)]
    assert sum(p <= 0.1 for p in ps) <= 13
    assert 0.35 < np.mean(ps) < 0.65


def test_a_straight_path_with_noise_has_no_turn_either() -> None:
    ps = [turn(gram(bent(0.0, each=12, noise=0.5, seed=seed)), 3, orders=59).p for seed in range(30)]
    assert sum(p <= 0.1 for p in ps) <= 8


@pytest.mark.parametrize("window", [0, 6, 20])
def test_a_window_that_does_not_fit(window: int) -> None:
    with pytest.raises(DataError, match="does not fit twice into 11 checkpoints"):
        local_cosines(gram(bent(1.0, each=5)), window)


def test_a_path_needs_checkpoints_and_must_move() -> None:
    with pytest.raises(DataError, match="at least three checkpoints"):
        gram(np.zeros((2, 4)))
    with pytest.raises(DataError, match="did not move"):
        turn(gram(np.zeros((9, 4))), 2)
