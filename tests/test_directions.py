"""Directions by name: unit vectors out of dictionaries and diffs, and what an intervention makes of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personascope.artifact import Dictionary, Diff
from personascope.backends.dictionaries import save_dictionary
from personascope.backends.directions import read_tensors, steers_of, vector
from personascope.errors import DataError, RecipeError
from personascope.methods.sparse import TopK
from personascope.values import Direction, File, Intervention
from small_models import finished, model


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


def test_a_random_direction_has_the_sources_width_and_length_one_and_depends_on_its_seed(dictionary: Dictionary, diff: Diff) -> None:
    first, again, other = (vector(Direction(source, f"random/{seed}")) for source, seed in ((dictionary, 7), (diff, 7), (diff, 8)))
    assert first.shape == (2,)
    assert first.norm() == pytest.approx(1.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(RecipeError, match="'random/x'"):
        vector(Direction(diff, "random/x"))


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


LAYERED = torch.arange(4 * 32, dtype=torch.float32).reshape(4, 32) + 1


@pytest.fixture
def files(tmp_path: Path) -> dict[str, File]:
    """A lone vector, one row per layer, and a table of both, as users keep them."""
    torch.save(LAYERED[2], tmp_path / "one.pt")
    torch.save(LAYERED, tmp_path / "layers.pt")
    torch.save({"a": [1, 2]}, tmp_path / "lists.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pt")
    save_file({"evil": LAYERED, "kind/v2": LAYERED[1].clone()}, tmp_path / "table.safetensors")
    save_file({"only": LAYERED.clone()}, tmp_path / "only.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    return {path.stem: File(str(path)) for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("name", "tensor", "row"),
    [
        ("one", "", 2),
        ("layers", "", 3),
        ("layers", "1", 1),
        ("only", "", 3),
        ("only", "0", 0),
        ("only", "only/1", 1),
        ("table", "evil", 3),
        ("table", "evil/0", 0),
        ("table", "kind/v2", 1),
    ],
)
def test_a_users_file_gives_the_row_of_the_blocks_output_or_the_one_asked_for(
    files: dict[str, File], name: str, tensor: str, row: int
) -> None:
    torch.testing.assert_close(vector(Direction(files[name], tensor), block=2), LAYERED[row] / LAYERED[row].norm())


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("layers", "9", "row 9 of .*layers.pt is wanted, it has 4"),
        ("table", "", "has evil .4, 32., kind/v2 .32,.; write NAME"),
        ("table", "good", "direction 'good': .*table.safetensors has evil"),
        ("table", "evil/x", "write NAME, or NAME/ROW"),
        ("table", "kind/v2/1", "has shape .32,.; one row is a vector"),
    ],
)
def test_what_a_file_does_not_hold_is_said(files: dict[str, File], name: str, tensor: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        vector(Direction(files[name], tensor), block=2)


def test_a_matrix_needs_a_row_where_no_block_says_it(files: dict[str, File]) -> None:
    with pytest.raises(RecipeError, match="has 4 rows; write the row"):
        vector(Direction(files["layers"]))


@pytest.mark.parametrize(("name", "said"), [("code", "cannot be read as tensors"), ("lists", "flat table"), ("noise", "cannot be read")])
def test_files_that_are_no_vectors_are_refused_and_code_is_not_run(files: dict[str, File], name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_tensors(Path(files[name].path))
    with pytest.raises(DataError, match=r"read from \.safetensors, \.pt and \.pth"):
        read_tensors(Path("x.npy"))


def test_a_glob_becomes_one_steer_per_block_each_with_its_own_row(files: dict[str, File]) -> None:
    net = model()
    steers = steers_of((Intervention(Direction(files["layers"]), site="block:*", strength=2.0),), 2, net)
    assert [s.block for s in steers] == [0, 1, 2]
    for steer in steers:
        row = LAYERED[steer.block + 1]
        torch.testing.assert_close(steer.table[0], 2 * row / row.norm())


def test_a_direction_of_another_model_is_refused(diff: Diff) -> None:
    edit = Intervention(Direction(diff, "mean_difference/block:1/all"), strength=1.0)
    with pytest.raises(RecipeError, match="has width 2, the model's stream 32"):
        steers_of((edit,), 1, model())


def test_a_clamped_latent_changes_the_reconstruction_by_the_missing_activation(tmp_path: Path) -> None:
    """The step is measured through the dictionary itself: encode, set one activation, decode."""
    sae = TopK(12, 8, 12, seed=3)
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-0.5, 0.5, 12))
        sae.b_pre.copy_(torch.linspace(1, -1, 8))
        sae.scale.fill_(0.5)
    (tmp_path / "sae").mkdir()
    save_dictionary(tmp_path / "sae", sae, {"site": "block:0"})
    source = Dictionary(finished(tmp_path / "sae", "Dictionary"))
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    z = sae.encode(x) / sae.scale
    for op in ("clamp", "cap"):
        (steer,) = steers_of((Intervention(Direction(source, "decoder/4"), op=op, strength=0.5, unit=1.2),), 6)
        edit = steer.edit(range(6), torch.device("cpu"))
        edit.mask = torch.ones(6, 1, dtype=torch.bool)
        wanted = z.clone()
        wanted[:, 4] = 0.6 if op == "clamp" else z[:, 4].clamp(max=0.6)
        moved = sae.decode(wanted * sae.scale) - sae.decode(z * sae.scale)
        torch.testing.assert_close(edit(x[:, None])[:, 0] - x, moved, atol=1e-5, rtol=1e-4)
    assert (z[:, 4] > 0.6).any()
    assert (z[:, 4] == 0).any()


def test_a_clamped_plain_direction_has_that_projection(diff: Diff) -> None:
    (steer,) = steers_of((Intervention(Direction(diff, "mean_difference/block:1/all"), op="clamp", strength=-2.0, unit=1.5),), 1)
    edit = steer.edit([0], torch.device("cpu"))
    edit.mask = torch.ones(1, 4, dtype=torch.bool)
    out = edit(torch.randn(1, 4, 2))
    torch.testing.assert_close(out[..., 1], torch.full((1, 4), -3.0))
