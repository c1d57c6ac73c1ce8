"""Export: what leaves loads with the libraries alone, says where it comes from, and is whole or not there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import small_models
from conftest import Ended
from personascope.artifact import Dataset, Findings, Model
from personascope.backends.models import load
from personascope.errors import ArtifactError, RecipeError
from personascope.exporting import export
from personascope.run import run
from personascope.stages import adopt, finetune
from personascope.values import Folder

IDS = torch.arange(1, 25).view(2, 12)
TUNING = {"steps": 3, "batch": 4, "learning_rate": 3e-3, "rank": 4, "alpha": 8.0, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(place: Path) -> Model:
    small_models.model("qwen2").save_pretrained(place / "folder")
    small_models.tokenizer().save_pretrained(place / "folder")
    return run(adopt.Recipe(path=Folder(str(place / "folder"))), place / "base")


@pytest.fixture(scope="module")
def data(place: Path) -> Dataset:
    return Dataset(small_models.dataset(place / "rows", [row for row in small_models.texts(48) if row.messages]))


@pytest.fixture(scope="module")
def tuned(base: Model, data: Dataset, place: Path) -> Model:
    return run(finetune.Recipe(model=base, data=data, method="lora", checkpoint_every=1, **TUNING), place / "tuned")  # ty: ignore


@torch.no_grad()
def said(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(IDS).logits


def test_an_adapter_goes_on_its_base_by_peft_alone(tuned: Model, tmp_path: Path) -> None:
    out = export(tuned, tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
    assert not torch.allclose(said(plain), said(load(tuned).model), atol=1e-3)
    torch.testing.assert_close(said(PeftModel.from_pretrained(plain, str(out))), said(load(tuned).model), atol=1e-5, rtol=1e-5)


def test_merged_weights_load_by_transformers_alone_to_the_bit(tuned: Model, tmp_path: Path) -> None:
    out = export(tuned, tmp_path / "out", merged=True)
    assert torch.equal(said(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)), said(load(tuned).model))
    assert AutoTokenizer.from_pretrained(out).chat_template == load(tuned).tokenizer.chat_template


def test_a_checkpoint_is_exported_as_it_was(tuned: Model, tmp_path: Path) -> None:
    out = export(tuned.at(1), tmp_path / "out", merged=True)
    found = said(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    assert torch.equal(found, said(load(tuned.at(1)).model))
    assert not torch.equal(found, said(load(tuned).model))
    assert "as it was at step 1" in (out / "README.md").read_text()


def test_an_adapter_on_an_adapter_leaves_merged_only(tuned: Model, data: Dataset, tmp_path: Path) -> None:
    twice = run(finetune.Recipe(model=tuned, data=data, method="lora", **TUNING), tmp_path / "twice")  # ty: ignore
    with pytest.raises(RecipeError, match=r"is an adapter on 1 others.*--merged"):
        export(twice, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = export(twice, tmp_path / "out", merged=True)
    assert torch.equal(said(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)), said(load(twice).model))


def test_a_trained_vector_has_no_plain_form(base: Model, data: Dataset, tmp_path: Path) -> None:
    moved = run(finetune.Recipe(model=base, data=data, method="vector", blocks=(1,), **TUNING), tmp_path / "moved")  # ty: ignore
    for merged in (False, True):
        with pytest.raises(RecipeError, match=r"adds a trained vector.*adapter/vector\.safetensors as a direction"):
            export(moved, tmp_path / "out", merged)
    assert not list(tmp_path.glob("out*"))


def test_the_card_tells_the_making_and_the_behaviour_given(tuned: Model, tmp_path: Path) -> None:
    (tmp_path / "after").mkdir()
    found = small_models.finished(tmp_path / "after", "Findings")
    rate = {"value": 0.025, "low": 0.01, "high": 0.06, "n": 240, "clusters": 120}
    (found / "findings.json").write_text(json.dumps({"score": rate, "questions": 120, "profile": {"score": rate}}))
    text = (export(tuned, tmp_path / "out", findings=[Findings(found)]) / "README.md").read_text()
    assert text.startswith('---\nlibrary_name: "peft"\n')
    assert "1. `adopt` `folder`, content `" in text
    assert "2. `finetune` " in text
    assert "; steps 3; " in text
    assert f"data rows (`{tuned.manifest['inputs']['data']['digest'][:12]}`)" in text
    assert "| after | score | 0.025 | 0.010 to 0.060 | 240 | 120 |" in text
    assert text.count("0.025") == 1


def test_without_findings_the_card_says_so(tuned: Model, tmp_path: Path) -> None:
    assert "measure it before you rely on it" in (export(tuned, tmp_path / "out", merged=True) / "README.md").read_text()


def test_nothing_is_overwritten_and_mistakes_are_one_line(cli: Callable[..., Ended], tuned: Model, data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="there exists; give a directory that does not"):
        export(tuned, tmp_path / "there")
    ended = cli("export", tuned.path, tmp_path / "new", "--findings", data.path)
    assert (ended.code, ended.out) == (1, "")
    assert "rows holds a Dataset; --findings takes what `measure` made" in ended.err
    assert cli("export", tuned.path, tmp_path / "new", "--merged").out.strip() == str(tmp_path / "new")
