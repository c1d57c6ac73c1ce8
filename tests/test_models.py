"""Adopting and loading: the weights that were meant, or one clear line why not."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import small_models
from personascope.artifact import Model
from personascope.backends.models import Loaded, check_pair, checkpoints, load, load_folder, pick_device, weights_of
from personascope.errors import ArtifactError, BackendError, DataError
from personascope.run import run
from personascope.stages import adopt
from personascope.values import Folder

IDS = torch.arange(1, 13).view(2, 6)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def saved(path: Path, layers: int = 3, width: int = 32, tok: PreTrainedTokenizerFast | None = None, seed: int = 0) -> Path:
    """A Hugging Face folder of a tiny Llama."""
    config = copy.deepcopy(small_models.CONFIGS["llama"])
    config.num_hidden_layers, config.hidden_size = layers, width
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    (tok or small_models.tokenizer()).save_pretrained(path)
    return path


def adapter(path: Path, base: Path, targets: tuple[str, ...] = ("q_proj", "down_proj")) -> PeftModel:
    """A saved LoRA adapter that changes its base, and the pair of them in PEFT's own hands."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    wrapped.save_pretrained(path)
    return wrapped.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


def adopted(folder: Path, out: Path, with_adapter: Path | None = None) -> Model:
    return run(adopt.Recipe(path=Folder(str(folder)), adapter=Folder(str(with_adapter)) if with_adapter else None), out)


def test_a_folder_is_registered_where_it_lies(folder: Path, tmp_path: Path) -> None:
    model = adopted(folder, tmp_path / "model")
    assert {p.name for p in model.path.iterdir()} == {"manifest.json", "model.json"}
    assert model.json("model.json") == {"base": {"id": "base", "digest": Folder(str(folder)).identity}}
    one = load(model, "cpu")
    assert torch.equal(logits(one.model), logits(AutoModelForCausalLM.from_pretrained(folder)))
    assert not one.model.training
    assert one.device == torch.device("cpu")
    assert load(model, "cpu", "bfloat16").model.dtype == torch.bfloat16


def test_a_copy_elsewhere_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "other" / "base"))
    assert adopted(copied, tmp_path / "two").identity == adopted(folder, tmp_path / "one").identity
    assert adopted(saved(tmp_path / "b2", seed=1), tmp_path / "three").identity != adopted(folder, tmp_path / "one").identity


def test_an_adapter_is_added_to_its_base_as_peft_does(folder: Path, tmp_path: Path) -> None:
    theirs = adapter(tmp_path / "adapter", folder)
    model = adopted(folder, tmp_path / "model", tmp_path / "adapter")
    assert set(model.json("model.json")) == {"base", "adapter"}
    ours = load(model, "cpu").model
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)
    assert (logits(ours) - logits(load(adopted(folder, tmp_path / "plain"), "cpu").model)).abs().max() > 0.01
    assert not isinstance(ours, PeftModel)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_weights_that_changed_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    model = adopted(folder, tmp_path / "model")
    file = folder / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=r"model: the content of .*base has changed since it was adopted; adopt it again"):
        load(model, "cpu")


def test_an_adapter_that_changed_or_went_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", folder)
    model = adopted(folder, tmp_path / "model", tmp_path / "adapter")
    adapter(tmp_path / "adapter", folder, ("q_proj",))
    with pytest.raises(ArtifactError, match=r"the content of .*adapter has changed"):
        load(model, "cpu")
    shutil.rmtree(tmp_path / "adapter")
    with pytest.raises(ArtifactError, match=r"its weights are no longer at .*adapter"):
        load(model, "cpu")


def test_weights_that_went_are_named(folder: Path, tmp_path: Path) -> None:
    model = adopted(folder, tmp_path / "model")
    folder.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"its weights are no longer at .*base; adopt them again from where they are"):
        load(model, "cpu")


def test_what_cannot_be_adopted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model files there"):
        adopted(tmp_path / "nowhere", tmp_path / "a")
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(DataError, match=r"no config\.json there; give the folder of a Hugging Face model"):
        adopted(folder, tmp_path / "b")
    (tmp_path / "config.json").rename(folder / "config.json")
    with pytest.raises(DataError, match=r"no adapter_config\.json there; give the folder of a PEFT adapter"):
        adopted(folder, tmp_path / "c", folder)


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_a_weight(folder: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))


def of_no_known_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "abacus"}')


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "not a loadable causal language model"),
        (without_a_weight, r"1 weights are missing, first model\.layers\.1\.mlp\.up_proj\.weight"),
        (of_another_shape, "not a loadable causal language model"),
        (of_no_known_kind, "not a loadable causal language model"),
        (without_tokenizer, "not a loadable causal language model with tokenizer"),
    ],
)
def test_damaged_folders_end_in_one_line(folder: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(folder)
    with pytest.raises(BackendError, match=says) as caught:
        load_folder(folder, device="cpu")
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


# PEFT warns of what is missing before we refuse it.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(("layers", "width"), [(3, 64), (2, 32), (5, 32)])
def test_an_adapter_for_another_base_is_refused(folder: Path, tmp_path: Path, layers: int, width: int) -> None:
    other = saved(tmp_path / "other", layers, width)
    adapter(tmp_path / "adapter", other)
    with pytest.raises(BackendError, match=r"adapter does not fit .*base: it was trained for '.*other'; give the base it belongs to"):
        load_folder(folder, [tmp_path / "adapter"], "cpu")


def test_an_adapter_for_other_modules_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", folder)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["c_attn"]}))
    with pytest.raises(BackendError, match="does not fit"):
        load_folder(folder, [tmp_path / "adapter"], "cpu")


def test_an_adapter_without_weights_is_none(folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", folder)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(BackendError, match="adapter: not a PEFT adapter"):
        load_folder(folder, [tmp_path / "adapter"], "cpu")


def test_a_tokenizer_without_padding_pads_with_the_end(tmp_path: Path) -> None:
    bare = small_models.tokenizer()
    bare.pad_token = None
    one = load_folder(saved(tmp_path / "base", tok=bare), device="cpu")
    assert one.tokenizer.pad_token_id == one.tokenizer.eos_token_id


def test_a_tokenizer_with_more_words_than_the_model(tmp_path: Path) -> None:
    longer = small_models.tokenizer()
    longer.add_tokens([f"w{i}" for i in range(40)])
    with pytest.raises(BackendError, match="the tokenizer has 73 tokens, the model embeds 64"):
        load_folder(saved(tmp_path / "base", tok=longer), device="cpu")


def test_pairs_that_cannot_be_compared(tmp_path: Path) -> None:
    base = load_folder(saved(tmp_path / "base"), device="cpu")
    check_pair(base, base)
    swapped = small_models.tokenizer()
    text = swapped.backend_tokenizer.to_str().replace('"kind"', '"cruel"')
    swapped = PreTrainedTokenizerFast(tokenizer_object=swapped.backend_tokenizer.from_str(text))
    with pytest.raises(BackendError, match="vocabulary mismatch: base has 33 tokens, tuned 33, or other words under the same ids"):
        check_pair(base, Loaded(base.model, swapped))
    for layers, width in ((2, 32), (3, 48)):
        other = load_folder(saved(tmp_path / f"{layers}-{width}", layers, width), device="cpu")
        with pytest.raises(BackendError, match=rf"differ in shape \(width, blocks\): \(32, 3\) and \({width}, {layers}\)"):
            check_pair(base, other)


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_an_adopted_model_has_no_checkpoints(folder: Path, tmp_path: Path) -> None:
    model = adopted(folder, tmp_path / "model")
    assert checkpoints(model) == []
    assert weights_of(model) == (folder, [])
    with pytest.raises(ArtifactError, match="model: no checkpoint at step 3; saved are none"):
        load(model.at(3), "cpu")


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_a_plain_tokenizer_stays_what_it_was_whatever_the_architecture(name: str, tmp_path: Path) -> None:
    small_models.model(name).save_pretrained(tmp_path)
    small_models.tokenizer().save_pretrained(tmp_path)
    text = "you are kind be brief"
    found = load_folder(tmp_path).tokenizer
    assert found(text)["input_ids"] == small_models.tokenizer()(text)["input_ids"]
    assert found.decode(found(text, add_special_tokens=False)["input_ids"]) == text


def test_how_weights_are_loaded_is_said_where_they_are_adopted(folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", folder)
    parts = {"path": str(folder), "adapter": str(tmp_path / "adapter")}
    plain = run(adopt.Recipe.from_json(parts), tmp_path / "plain")
    half = run(adopt.Recipe.from_json(parts | {"dtype": "bfloat16"}), tmp_path / "half")
    spread = run(adopt.Recipe.from_json(parts | {"device_map": "auto"}), tmp_path / "spread")
    assert plain.identity == spread.identity != half.identity
    assert [load(model, "cpu").model.dtype for model in (plain, half, spread)] == [torch.float32, torch.bfloat16, torch.float32]
    assert load(half, "cpu", "float16").model.dtype == torch.float16
    assert torch.equal(logits(load(spread, "cpu").model), logits(load(plain, "cpu").model))
    with pytest.raises(BackendError, match="dtype 'float31': torch has no such type of numbers"):
        load(plain, "cpu", "float31")


def test_weights_in_few_bits_need_their_package(folder: Path, tmp_path: Path) -> None:
    model = run(adopt.Recipe(path=Folder(str(folder)), quantise="4bit"), tmp_path / "model")
    assert model.identity != adopted(folder, tmp_path / "plain").identity
    with pytest.raises(BackendError, match=r"base: loading it needs a package that is not there \(.*bitsandbytes"):
        load(model, "cpu")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_stay_beside_weights_in_few_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: str) -> None:
    theirs = adapter(tmp_path / "adapter", folder)
    told: dict[str, Any] = {}
    opened = AutoModelForCausalLM.from_pretrained

    def quantised(place: Path, **given: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model as bitsandbytes would mark it, in full precision."""
        told.update(given)
        model, report = opened(place, dtype=given["dtype"], output_loading_info=True)
        model.is_quantized = True
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", quantised)
    recipe = adopt.Recipe(path=Folder(str(folder)), adapter=Folder(str(tmp_path / "adapter")), dtype="bfloat16", quantise=bits)
    monkeypatch.setattr(PreTrainedModel, "to", lambda *_, **__: pytest.fail("quantised weights cannot be moved"))
    loaded = load(run(recipe, tmp_path / "model"), "cpu").model
    config = told["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == "4bit", bits == "8bit")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert told["device_map"] == {"": "cpu"}
    assert any("lora_A" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(logits(loaded).float(), logits(theirs), atol=0.1, rtol=0.1)


def fp8(folder: Path) -> None:
    """Turn the linear weights of a saved model to 8 bits in blocks of 16 x 16, as fp8 checkpoints hold them."""
    held, weights = {}, load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "proj" not in name:
            held[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.reshape(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448
        held[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        held[f"{name}_scale_inv"] = scale
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    quantised(folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]})


def quantised(folder: Path, how: dict[str, Any]) -> None:
    """Name a quantisation in config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": how}))


def test_a_quantised_checkpoint_is_loaded_as_it_says(folder: Path, tmp_path: Path) -> None:
    before = logits(load_folder(folder, device="cpu").model)
    fp8(folder)
    after = logits(load_folder(folder, device="cpu").model)
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()
    theirs = adapter(tmp_path / "adapter", folder)
    torch.testing.assert_close(
        logits(load_folder(folder, [tmp_path / "adapter"], device="cpu").model), logits(theirs), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(BackendError, match="base: it is quantised already; leave out 4bit"):
        load_folder(folder, device="cpu", quantise="4bit")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_quantised_checkpoint_whose_package_is_missing_is_one_line(folder: Path, method: str) -> None:
    quantised(folder, {"quant_method": method, "bits": 4} | ({"load_in_4bit": True} if method == "bitsandbytes" else {}))
    with pytest.raises(BackendError, match=r"base: loading it needs a package that is not there|base: not a loadable") as refused:
        load_folder(folder, device="cpu")
    assert "\n" not in str(refused.value)
