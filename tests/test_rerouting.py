"""Rerouting: shares by hand, the part that chosen latents account for, and what counts as grown."""

import numpy as np
import pytest
import torch

from personascope.errors import DataError
from personascope.methods import rerouting


def test_the_way_within_chosen_latents_is_their_change_times_their_decoder_rows() -> None:
    own, other = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    decoder = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    found = rerouting.within(own, other, decoder, torch.tensor(2.0))
    assert torch.equal(found, torch.tensor([[[0.0, 1.5, 1.5], [0.0, -1.0, -1.0]]]))


def test_along_a_direction_the_two_parts_add_up_to_the_whole_move() -> None:
    torch.manual_seed(0)
    delta, decoder, way = torch.randn(30), torch.randn(30, 8), torch.randn(8)
    inside, outside = rerouting.along(delta, decoder, way, torch.tensor([3, 5, 8]))
    by_hand = sum(float(delta[k] * (decoder[k] @ way) / way.norm()) for k in (3, 5, 8))
    assert inside == pytest.approx(by_hand, rel=1e-5)
    assert inside + outside == pytest.approx(float(delta @ decoder @ way / way.norm()), rel=1e-5)


def test_the_share_of_the_rise_outside_leaves_falls_out() -> None:
    delta = torch.tensor([3.0, 1.0, -50.0, 4.0])
    assert rerouting.outside_share(delta, torch.tensor([0])) == pytest.approx(5 / 8)
    assert rerouting.outside_share(delta, torch.tensor([0, 1, 3])) == pytest.approx(0)
    assert rerouting.outside_share(-delta.abs(), torch.tensor([0])) is None


def test_grown_are_free_latents_that_rose_beyond_plain_training() -> None:
    plain, blocked = torch.tensor([9.0, 0.0, 1.0, 2.0, -9.0, 5.0]), torch.tensor([0.0, 4.0, 3.0, 2.0, -1.0, 6.0])
    found = rerouting.grown(plain, blocked, {1})
    assert [row["latent"] for row in found] == [2, 5]
    assert found[0] == {"latent": 2, "plain": 1.0, "blocked": 3.0}
    assert len(rerouting.grown(plain, blocked, set(), top=1)) == 1
    assert rerouting.grown(plain, plain, set()) == []


def test_a_share_is_a_ratio_of_means_and_is_refused_where_the_whole_may_be_nothing() -> None:
    random = np.random.default_rng(0)
    whole = random.normal(4, 1, 200)
    found = rerouting.share(0.25 * whole + random.normal(0, 0.2, 200), whole)
    assert found is not None
    assert found.low < 0.25 < found.high
    assert found.high - found.low < 0.05
    assert rerouting.share(whole, random.normal(0, 1, 200)) is None
    with pytest.raises(DataError, match="pairs"):
        rerouting.share([1.0], [1.0])


def test_its_interval_covers() -> None:
    hits = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        whole = random.normal(3, 2, 60)
        found = rerouting.share(0.5 * whole + random.normal(0, 1, 60), whole, seed, 400)
        hits += found is not None and found.low <= 0.5 <= found.high
    assert 180 <= hits <= 198


def test_overlap_is_of_sets() -> None:
    assert rerouting.overlap([1, 2, 2], [2, 3]) == pytest.approx(1 / 3)
    assert rerouting.overlap([], []) == 1
