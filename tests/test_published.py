"""Published dictionaries: read as their makers' own code reads them, refused where that is not known, and told apart from wrong sites."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from personascope.artifact import Dataset, Dictionary, Findings, Model
from personascope.backends import dictionaries, published
from personascope.errors import ArtifactError, BackendError, DataError, RecipeError
from personascope.methods.sparse import JumpReLU, TopK
from personascope.run import run
from personascope.stages import borrow, dictionary, fidelity
from personascope.values import Published
from small_models import adopted, dataset, model, texts, tuned_twin

MADE = Path(__file__).parent / "data" / "dictionaries"
EXPECTED = sorted(MADE.rglob("expected.safetensors"))


def copied(name: str, to: Path) -> Path:
    return Path(shutil.copytree(MADE / name, to / Path(name).name, ignore=shutil.ignore_patterns("expected.*")))


def edited(name: str, to: Path, file: str, **change: object) -> Path:
    folder = copied(name, to)
    config = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: str(path.parent.relative_to(MADE)))
def test_it_computes_what_its_makers_code_computes_and_survives_being_saved(expected: Path, tmp_path: Path) -> None:
    found, wanted = published.read(expected.parent), load_file(expected)
    dictionaries.save_dictionary(tmp_path, found.sae, {"site": found.site})
    for sae in (found.sae, dictionaries.read_dictionary(tmp_path)[0]):
        z = sae.encode(wanted["x"])
        torch.testing.assert_close(z, wanted["z"], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(sae(wanted["x"]), wanted["x_hat"], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(sae.decode(z), wanted["x_hat"], atol=2e-5, rtol=1e-4)
    assert 0 < float((wanted["z"] > 0).float().mean()) < 0.6


def test_there_is_one_of_every_format_and_kind() -> None:
    found = [published.read(path.parent) for path in EXPECTED]
    assert {one.format for one in found} == {"SAELens", "sparsify", "dictionary_learning", "Gemma Scope"}
    assert {type(one.sae) for one in found} == {TopK, JumpReLU}
    assert {one.site for one in found} == {"block:3"}


def test_what_is_borrowed_is_written_by_the_rules_of_its_format(tmp_path: Path) -> None:
    """Our files, read by the rules of their format: stream less b_dec, times W_enc, plus b_enc."""
    expected = MADE / "saelens-jumprelu"
    made = run(borrow.Recipe(path=Published(str(expected))), tmp_path / "out")
    config, t = made.json("cfg.json"), load_file(made.file("sae_weights.safetensors"))
    assert config["architecture"] == "jumprelu"
    assert config["metadata"] == {"site": "block:3", "format": "SAELens", "origin": ""}
    assert config["apply_b_dec_to_input"]
    wanted = load_file(expected / "expected.safetensors")
    pre = (wanted["x"] - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    torch.testing.assert_close(pre.relu() * (pre > t["threshold"]), wanted["z"], atol=2e-5, rtol=1e-4)


def test_a_file_may_stand_for_its_folder_and_a_site_may_be_said(tmp_path: Path) -> None:
    file = MADE / "dictionary_learning" / "BatchTopKSAE" / "ae.pt"
    assert published.read(file).site == "block:3"
    run(borrow.Recipe(path=Published(str(file)), site="block:3"), tmp_path / "agreed")
    with pytest.raises(RecipeError, match="it reads block:3 by its own files, not block:5; leave site out"):
        borrow.run(borrow.Recipe(path=Published(str(file)), site="block:5"), tmp_path)


def test_lone_files_are_read(tmp_path: Path) -> None:
    x = torch.randn(5, 8)
    linear = {"encoder_linear.weight": torch.randn(24, 8), "encoder_linear.bias": torch.randn(24)}
    linear |= {"decoder_linear.weight": torch.randn(8, 24), "decoder_linear.bias": torch.randn(8)}
    torch.save(linear, tmp_path / "Model-8B-SAE-l19.pth")
    found = published.read(tmp_path / "Model-8B-SAE-l19.pth")
    z = (x @ linear["encoder_linear.weight"].T + linear["encoder_linear.bias"]).relu()
    assert (found.site, found.format) == ("block:19", "Goodfire")
    torch.testing.assert_close(found.sae.encode(x), z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sae(x), z @ linear["decoder_linear.weight"].T + linear["decoder_linear.bias"], atol=1e-5, rtol=1e-4)

    scope = {"W_enc": torch.randn(24, 8), "W_dec": torch.randn(8, 24), "b_enc": torch.randn(24), "b_dec": torch.randn(8)}
    folder = tmp_path / "SAE-Res-Tiny-W24K-L0_4"
    folder.mkdir()
    for place in (folder, tmp_path):
        torch.save(scope, place / "layer7.sae.pt")
    found = published.read(folder / "layer7.sae.pt")
    assert (found.site, found.format) == ("block:7", "Qwen Scope")
    pre = x @ scope["W_enc"].T + scope["b_enc"]
    kept = torch.zeros_like(pre).scatter(1, pre.topk(4).indices, pre.topk(4).values.relu())
    torch.testing.assert_close(found.sae.encode(x), kept, atol=1e-5, rtol=1e-4)
    with pytest.raises(RecipeError, match="how many latents are active on a token; give k"):
        published.read(tmp_path / "layer7.sae.pt")
    torch.testing.assert_close(published.read(tmp_path / "layer7.sae.pt", k=4).sae.encode(x), kept, atol=1e-5, rtol=1e-4)


def test_gemma_scope_2_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "resid_post" / "layer_12_width_24_l0_small"
    folder.mkdir(parents=True)
    with np.load(MADE / "gemma-scope-res" / "layer_3" / "width_24" / "average_l0_4" / "params.npz") as arrays:
        save_file({name.replace("W_", "w_"): torch.from_numpy(arrays[name]) for name in arrays.files}, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu"}))
    wanted = load_file(MADE / "gemma-scope-res" / "layer_3" / "width_24" / "average_l0_4" / "expected.safetensors")
    found = published.read(folder)
    assert (found.site, found.format) == ("block:12", "Gemma Scope 2")
    torch.testing.assert_close(found.sae.encode(wanted["x"]), wanted["z"], atol=2e-5, rtol=1e-4)
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "hf_hook_point_in": "model.layers.11.output"}))
    assert published.read(folder).site == "block:11"


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_post", "block:3"),
        ("blocks.3.hook_resid_pre", "block:2"),
        ("blocks.0.hook_resid_pre", ""),
        ("blocks.3.hook_mlp_out", ""),
        ("model.layers.12", "block:12"),
        ("layers.12", "block:12"),
        ("model.language_model.layers.7.output", "block:7"),
        ("transformer.h.5", "block:5"),
        ("layers.12.mlp", ""),
        ("embed_tokens", ""),
    ],
)
def test_hook_points_are_sites_only_where_the_stream_after_a_block_is_read(hook: str, site: str) -> None:
    assert dictionaries.block_of(hook) == site


@pytest.mark.parametrize("part", ["gemma-scope-2b-pt-att/layer_3", "gemma-scope-2b-pt-mlp/layer_3", "resid/embedding", "clt/layer_3"])
def test_a_path_of_another_part_of_a_block_gives_no_site(part: str, tmp_path: Path) -> None:
    folder = tmp_path / part
    shutil.copytree(MADE / "gemma-scope-res" / "layer_3" / "width_24" / "average_l0_4", folder)
    assert published.read(folder).site == ""
    with pytest.raises(RecipeError, match="do not name a residual stream that it reads; give site as block:N"):
        borrow.run(borrow.Recipe(path=Published(str(folder))), tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("saelens-topk", "cfg.json", {"architecture": "gated"}, "architecture 'gated'"),
        ("saelens-topk", "cfg.json", {"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ("saelens-standard", "cfg.json", {"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ("saelens-jumprelu", "cfg.json", {"rescale_acts_by_decoder_norm": True}, "known for topk alone"),
        ("sparsify/layers.3", "cfg.json", {"transcode": True}, "transcode is True"),
        ("sparsify/layers.3", "cfg.json", {"activation": "groupmax"}, "activation is 'groupmax'"),
        (
            "dictionary_learning/AutoEncoder",
            "config.json",
            {"trainer": {"dict_class": "GatedAutoEncoder"}},
            "dict_class is 'GatedAutoEncoder'",
        ),
    ],
)
def test_what_would_be_read_wrong_is_refused(name: str, file: str, change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=message):
        published.read(edited(name, tmp_path, file, **change))


def test_nothing_becomes_a_relu_for_want_of_a_word(tmp_path: Path) -> None:
    folder = copied("sparsify/layers.3", tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if key != "k"}))
    with pytest.raises(RecipeError, match="how many latents are active on a token; give k"):
        published.read(folder)
    jump = copied("dictionary_learning/JumpReluAutoEncoder", tmp_path)
    torch.save({name: one for name, one in torch.load(jump / "ae.pt").items() if name != "threshold"}, jump / "ae.pt")
    with pytest.raises(ArtifactError, match="tensor 'threshold' is missing"):
        published.read(jump)
    part = (tmp_path / "layers.3").rename(tmp_path / "layers.3.mlp")
    with pytest.raises(BackendError, match=r"it reads layers\.3\.mlp"):
        published.read(part)


def test_damage_is_named(tmp_path: Path) -> None:
    learned = copied("dictionary_learning/BatchTopKSAE", tmp_path)
    tensors = torch.load(learned / "ae.pt")
    torch.save(tensors | {"threshold": torch.tensor(-1.0)}, learned / "ae.pt")
    with pytest.raises(BackendError, match="a BatchTopKSAE without the threshold that its training ends with"):
        published.read(learned)
    torch.save({name: one for name, one in tensors.items() if name != "b_dec"}, learned / "ae.pt")
    with pytest.raises(ArtifactError, match="tensor 'b_dec' is missing"):
        published.read(learned)
    torch.save(tensors | {"encoder.bias": torch.zeros(3)}, learned / "ae.pt")
    with pytest.raises(ArtifactError, match="of 24 latents over 8 numbers in part only"):
        published.read(learned)
    torch.save({"code": print}, learned / "ae.pt")
    with pytest.raises(DataError, match="cannot be read as tensors"):
        published.read(learned)
    archive = copied("gemma-scope-res/layer_3/width_24/average_l0_4", tmp_path)
    (archive / "params.npz").write_bytes(b"PK\x03\x04 short")
    with pytest.raises(ArtifactError, match=r"params\.npz: not readable"):
        published.read(archive)
    np.savez(archive / "params.npz", W_enc=np.array([{}], dtype=object))
    with pytest.raises(ArtifactError, match=r"params\.npz: not readable"):
        published.read(archive)
    for nothing in (tmp_path / "none", tmp_path):
        with pytest.raises(BackendError, match=r"no dictionary of a known format; .*sparsify: cfg\.json and sae\.safetensors"):
            published.read(nothing)


def test_its_identity_is_its_content(tmp_path: Path) -> None:
    folder = copied("saelens-topk", tmp_path)
    same = copied("saelens-topk", tmp_path / "elsewhere")
    assert Published(str(folder)).identity == Published(str(same)).identity
    edited_config = (same / "cfg.json").read_text().replace('"k": 4', '"k": 5')
    (same / "cfg.json").write_text(edited_config)
    assert Published(str(folder)).identity != Published(str(same)).identity
    with pytest.raises(DataError, match="no dictionary there"):
        _ = Published(str(tmp_path / "none")).identity
    pinned = Published("org/saes@" + "a" * 40 + ":layer_3/width_24")
    assert pinned.pinned
    assert len(pinned.identity) == 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A random model, a model tuned from it, texts, and a dictionary trained on its second block without held-out texts."""
    root = tmp_path_factory.mktemp("world")
    made = {"base": Model(adopted(root / "base", model())), "tuned": Model(adopted(root / "tuned", tuned_twin()))}
    train, held = (Dataset(dataset(root / name, texts(300, seed))) for name, seed in (("train", 1), ("held", 2)))
    sizes = {"width": 128, "k": 8, "tokens": 30_000, "batch": 256, "learning_rate": 5e-3}
    learned = run(dictionary.Recipe(model=made["base"], texts=train, **sizes), root / "dictionary")
    whole = run(dictionary.Recipe(model=made["base"], also=made["tuned"], texts=train, heldout=held, **sizes), root / "whole")
    return made | {"texts": held, "dictionary": learned, "whole": whole, "root": root}


def examined(world: dict, name: str, learned: Dictionary) -> dict:
    found = run(fidelity.Recipe(dictionary=learned, base=world["base"], tuned=world["tuned"], texts=world["texts"]), world["root"] / name)
    assert isinstance(found, Findings)
    return found.json("findings.json")


def test_fidelity_gives_what_the_dictionary_stage_gives(world: dict) -> None:
    assert not (world["dictionary"].path / "quality.json").exists()
    found = examined(world, "fidelity", world["dictionary"])
    assert {side: found[side] for side in ("base", "tuned")} == world["whole"].json("quality.json")
    assert "caveat" not in found
    assert min(found["sites"], key=found["sites"].get) == found["site"] == "block:1"
    assert set(found["sites"]) == {"block:0", "block:1", "block:2"}


def test_a_dictionary_at_the_wrong_block_or_of_another_model_is_found_out(world: dict) -> None:
    misplaced = shutil.copytree(world["dictionary"].path, world["root"] / "published")
    config = json.loads((misplaced / "cfg.json").read_text())
    (misplaced / "cfg.json").write_text(json.dumps(config | {"metadata": {"hook_name": "blocks.2.hook_resid_post"}}))
    borrowed = run(borrow.Recipe(path=Published(str(misplaced))), world["root"] / "borrowed")
    assert borrowed.json("cfg.json")["metadata"]["site"] == "block:2"
    assert "explains block:1 better than its own block:2" in examined(world, "misplaced", borrowed)["caveat"]

    foreign = dict(load_file(world["dictionary"].file("sae_weights.safetensors")))
    foreign["W_dec"] = foreign["W_dec"][torch.randperm(128, generator=torch.Generator().manual_seed(0))].contiguous()
    save_file(foreign, misplaced / "sae_weights.safetensors")
    (misplaced / "cfg.json").write_text(json.dumps(config | {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}))
    shuffled = run(borrow.Recipe(path=Published(str(misplaced))), world["root"] / "shuffled")
    caveat = examined(world, "shuffled fidelity", shuffled)["caveat"]
    assert "is it this model's?" in caveat or "better than its own" in caveat


def test_counts_and_partners_are_checked(world: dict) -> None:
    with pytest.raises(RecipeError, match="must be above 0"):
        fidelity.Recipe(dictionary=world["dictionary"], base=world["base"], texts=world["texts"], tokens=0)
    with pytest.raises(RecipeError, match="also is a model to evaluate on, which needs heldout texts"):
        dictionary.Recipe(model=world["base"], also=world["tuned"], texts=world["texts"])
