"""Directions by name: unit vectors out of dictionaries and diffs, and what an intervention makes of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personascope.artifact import Dictionary, Diff
from personascope.backends.directions import steers_of, vector
from personascope.errors import RecipeError
from personascope.recipe import Direction, Intervention
from small_models import finished


@pytest.fixture
def dictionary(tmp_path: Path) -> Dictionary:
    (tmp_path / "dictionary").mkdir()
    decoder = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    save_file({"W_dec": decoder, "W_enc": torch.ones(2, 3)}, tmp_path / "dictionary" / "sae_weights.safetensors")
    return Dictionary(finished(tmp_path / "dictionary", "Dictionary"))


@pytest.fixture
def diff(tmp_path: Path) -> Diff:
    (tmp_path / "diff").mkdir()
    tensors = {"mean_difference/block:1/all": torch.tensor([0.0, 5.0]), "nothing": torch.zeros(2)}
    save_file(tensors, tmp_path / "diff" / "directions.safetensors")
    return Diff(finished(tmp_path / "diff", "Diff"))


def test_a_latents_direction_is_its_decoder_row_with_length_one(dictionary: Dictionary) -> None:
    torch.testing.assert_close(vector(Direction(dictionary, "decoder/0")), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(vector(Direction(dictionary, "decoder/2")), torch.tensor([0.0, -1.0]))


def test_a_tensor_of_a_diff(diff: Diff) -> None:
    torch.testing.assert_close(vector(Direction(diff, "mean_difference/block:1/all")), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", ["decoder/3", "decoder/-1", "decoder/x", "decoder", "W_dec/0", ""])
def test_a_latent_that_is_not_there(dictionary: Dictionary, name: str) -> None:
    with pytest.raises(RecipeError, match="write decoder/LATENT with LATENT below 3"):
        vector(Direction(dictionary, name))


def test_a_tensor_that_is_not_there_and_those_that_are(diff: Diff) -> None:
    with pytest.raises(RecipeError, match=r"'other': .*diff has mean_difference/block:1/all, nothing"):
        vector(Direction(diff, "other"))


def test_no_direction_has_length_zero(dictionary: Dictionary, diff: Diff) -> None:
    for direction in (Direction(dictionary, "decoder/1"), Direction(diff, "nothing")):
        with pytest.raises(RecipeError, match="has length 0"):
            vector(direction)


def test_an_intervention_is_strength_times_unit_along_the_direction_in_every_row(dictionary: Dictionary) -> None:
    add = Intervention(Direction(dictionary, "decoder/0"), site="block:2", mask="last_prompt", strength=-0.5, unit=4.0)
    ablate = Intervention(Direction(dictionary, "decoder/2"), op="ablate", site="block:1", strength=9.0)
    first, second = steers_of((add, ablate), 3)
    assert (first.block, first.op, first.mask, first.rows) == (2, "add", "last_prompt", [0, 0, 0])
    torch.testing.assert_close(first.vectors([0, 2]), torch.tensor([[-1.2, -1.6]] * 2))
    assert (second.block, second.op, second.mask) == (1, "ablate", "all")
    torch.testing.assert_close(second.table, torch.tensor([[0.0, -1.0]]), msg="strength has no meaning for ablation")


def test_a_site_that_is_none(dictionary: Dictionary) -> None:
    with pytest.raises(RecipeError, match="write block:N"):
        steers_of((Intervention(Direction(dictionary, "decoder/0"), site="mlp:1"),), 1)


def test_no_interventions_make_no_steers() -> None:
    assert steers_of((), 4) == []
