"""The dictionary stage end to end on a tiny model: quality, resume, format, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from personascope.artifact import Dataset, Dictionary, Model
from personascope.backends import coding, dictionaries
from personascope.backends.models import load
from personascope.errors import ArtifactError, BackendError, DataError, RecipeError
from personascope.methods.sparse import TopK
from personascope.rows import Example
from personascope.stages import dictionary
from small_models import adopted, dataset, finished, model, texts, tokenizer, tuned_twin

SIZES = {"width": 128, "k": 8, "tokens": 30_000, "batch": 256, "learning_rate": 5e-3, "heldout_tokens": 3_000}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A random model and, as its tuned twin, one with small changes; texts to train on and to hold out."""
    root = tmp_path_factory.mktemp("world")
    return {
        "model": Model(adopted(root / "base", model())),
        "also": Model(adopted(root / "tuned", tuned_twin())),
        "texts": Dataset(dataset(root / "texts", texts(300, 1))),
        "heldout": Dataset(dataset(root / "heldout", texts(300, 2))),
    }


@pytest.fixture(scope="module")
def made(world: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("made")
    dictionary.run(dictionary.Recipe(**world, **SIZES), work)
    finished(work, "Dictionary")
    return work


def test_it_writes_what_it_should_and_nothing_else(made: Path) -> None:
    assert {p.name for p in made.iterdir()} == {"cfg.json", "sae_weights.safetensors", "quality.json", "manifest.json"}


def test_quality_is_measured_on_both_models(made: Path) -> None:
    quality = json.loads((made / "quality.json").read_text())
    assert set(quality) == {"base", "tuned"}
    for numbers in quality.values():
        assert set(numbers) == {"fvu", "dead", "l0", "loss_recovered", "tokens"}
        assert numbers["fvu"] < 0.2
        assert 0 < numbers["l0"] <= 8
        assert numbers["tokens"] >= 300
    assert abs(quality["base"]["loss_recovered"] - 1) < 0.2
    assert quality["tuned"]["fvu"] != quality["base"]["fvu"]


def test_a_broken_dictionary_shows_in_its_quality(made: Path, world: dict) -> None:
    loaded = load(world["model"])
    sae, _ = dictionaries.load_dictionary(Dictionary(made))
    rows = coding.token_rows(world["heldout"], loaded, 3000, 0)
    good = coding.evaluate(loaded, sae, rows, "block:1", 3000)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec[torch.randperm(128, generator=torch.Generator().manual_seed(0))])
    broken = coding.evaluate(loaded, sae, rows, "block:1", 3000)
    assert broken["fvu"] > 1 > good["fvu"]
    # On a random model the loss may move either way; a good splice leaves it where it was.
    assert abs(broken["loss_recovered"] - 1) > 4 * abs(good["loss_recovered"] - 1)
    with torch.no_grad():
        sae.b_enc[:32] = -1e6
    assert coding.evaluate(loaded, sae, rows, "block:1", 3000)["dead"] >= 0.25


def test_the_mean_in_place_of_the_site_recovers_nothing(world: dict) -> None:
    loaded = load(world["model"])
    rows = coding.token_rows(world["heldout"], loaded, 1000, 0)
    constant = TopK(16, 32, 2)
    with torch.no_grad():
        constant.b_enc.fill_(-1e9)
        constant.b_pre.fill_(0.5)
    assert coding.loss_recovered(loaded, constant, rows, "block:1", torch.full((32,), 0.5)) == 0


def test_a_killed_run_continues_to_the_same_weights(world: dict, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    real, saves = coding._save, []

    def save_and_die(*args: object) -> None:
        real(*args)
        saves.append(args[2])
        if len(saves) == 2:
            raise Killed

    recipe = dictionary.Recipe(**world, **SIZES)
    with monkeypatch.context() as patched:
        patched.setattr(coding, "_save", save_and_die)
        with pytest.raises(Killed):
            dictionary.run(recipe, tmp_path)
    assert (tmp_path / "training.pt").exists()
    trained: list[int] = []
    step = coding.train_step
    monkeypatch.setattr(coding, "train_step", lambda trainer, x: trained.append(len(x)) or step(trainer, x))
    dictionary.run(recipe, tmp_path)
    assert sum(trained) == 30_000 - saves[-1]
    whole, continued = load_file(made / "sae_weights.safetensors"), load_file(tmp_path / "sae_weights.safetensors")
    for name in whole:
        torch.testing.assert_close(continued[name], whole[name], atol=1e-5, rtol=1e-4)


def test_a_run_killed_while_evaluating_does_not_train_again(
    world: dict, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    monkeypatch.setattr(coding, "train_step", None)
    dictionary.run(dictionary.Recipe(**world, **SIZES), tmp_path)
    assert (tmp_path / "quality.json").read_text() == (made / "quality.json").read_text()


def test_the_folder_is_in_saelens_format(made: Path) -> None:
    config = json.loads((made / "cfg.json").read_text())
    shapes = {name: tuple(t.shape) for name, t in load_file(made / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": (32, 128), "W_dec": (128, 32), "b_enc": (128,), "b_dec": (32,)}
    wanted = {"architecture": "topk", "d_in": 32, "d_sae": 128, "k": 8, "apply_b_dec_to_input": True, "normalize_activations": "none"}
    assert wanted.items() <= config.items()
    assert config["metadata"]["site"] == "block:1"


def test_the_stored_dictionary_reads_raw_residuals(tmp_path: Path) -> None:
    sae = TopK(64, 16, 4, seed=1)
    with torch.no_grad():
        sae.scale.fill_(0.1)
        sae.b_pre.normal_()
        sae.b_enc.normal_(0, 0.1)
    dictionaries.save_dictionary(tmp_path, sae, {"site": "block:0"})
    found, config = dictionaries.read_dictionary(tmp_path)
    x = torch.randn(20, 16) * 9
    torch.testing.assert_close(found(x), sae(x), atol=1e-4, rtol=1e-4)
    assert config["metadata"] == {"site": "block:0"}
    assert not any(p.requires_grad for p in found.parameters())


def test_dictionaries_made_elsewhere_are_read_as_meant(tmp_path: Path) -> None:
    dictionaries.save_dictionary(tmp_path, TopK(64, 16, 4), {})
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    w = {"W_enc": torch.randn(16, 64), "W_dec": torch.randn(64, 16) * 3, "b_enc": torch.randn(64), "b_dec": torch.randn(16)}
    save_file(w, tmp_path / "sae_weights.safetensors")
    x, norm = torch.randn(10, 16), w["W_dec"].norm(dim=1)
    pre = (x @ w["W_enc"] + w["b_enc"]) * norm
    z = torch.where(pre >= pre.topk(4).values[:, -1:], pre.relu(), 0)
    found, _ = dictionaries.read_dictionary(tmp_path)
    torch.testing.assert_close(found(x), (z / norm) @ w["W_dec"] + w["b_dec"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "gated"}, BackendError, "architecture 'gated'; only topk"),
        ({"normalize_activations": "layer_norm"}, BackendError, "normalize_activations is 'layer_norm'"),
        ({"d_sae": 63}, ArtifactError, "do not belong together"),
        ({"d_in": None}, ArtifactError, "field 'd_in' is missing"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, change: dict, error: type[Exception], message: str) -> None:
    dictionaries.save_dictionary(tmp_path, TopK(64, 16, 4), {})
    config = json.loads((tmp_path / "cfg.json").read_text()) | change
    (tmp_path / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(error, match=message):
        dictionaries.read_dictionary(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no readable cfg\.json"):
        dictionaries.read_dictionary(tmp_path)
    dictionaries.save_dictionary(tmp_path, TopK(64, 16, 4), {})
    (tmp_path / "sae_weights.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="give a dictionary's folder"):
        dictionaries.read_dictionary(tmp_path)
    with pytest.raises(ArtifactError):
        dictionaries.load_dictionary(Dictionary(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "block:3"}, "the model has 3 blocks"),
        ({"k": 128}, "k below width"),
        ({"tokens": 0}, "tokens: 0"),
        ({"site": "mlp:1"}, "write block:N"),
    ],
)
def test_impossible_recipes_are_refused(world: dict, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        dictionary.run(dictionary.Recipe(**world, **(SIZES | change)), tmp_path)


def test_texts_become_tokens(world: dict, tmp_path: Path) -> None:
    loaded, tok = load(world["model"]), tokenizer()
    said = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "yes"}]
    mixed = [
        Example(id="a", messages=[], meta={"prose": "rain and sun"}),
        Example(id="b", messages=said),
        Example(id="c", messages=said[:1]),
    ]
    rows = coding.token_rows(Dataset(dataset(tmp_path / "mixed", mixed)), loaded, 10**6, 0)
    assert sorted(" ".join(tok.convert_ids_to_tokens(row)) for row in rows) == [
        "<s> <|user|> go </s> <|assistant|>",
        "<s> <|user|> go </s> <|assistant|> yes </s>",
        "<s> rain and sun </s>",
    ]
    few = coding.token_rows(world["texts"], loaded, 100, 0)
    assert 100 <= sum(len(row) - 1 for row in few) < 140


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example(id="bad", messages=[], meta={"prose": 3}), "example bad: meta.prose is a int"),
        (Example(id="bad", messages=[]), "example bad: neither messages nor meta.prose"),
    ],
)
def test_texts_that_are_none_are_named(world: dict, tmp_path: Path, example: Example, message: str) -> None:
    with pytest.raises(DataError, match=message):
        coding.token_rows(Dataset(dataset(tmp_path / "bad", [example])), load(world["model"]), 10, 0)


def test_divergence_is_reported(world: dict, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"diverged within \d+ tokens .*; lower learning_rate"):
        dictionary.run(dictionary.Recipe(**world, **(SIZES | {"learning_rate": 1e38})), tmp_path)
