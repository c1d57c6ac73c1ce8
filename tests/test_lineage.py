"""Training files of the emergent-misalignment code bases: run as they are, or refused by the field that cannot be honoured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import small_models
from personascope import lineage
from personascope.__main__ import main
from personascope.artifact import Model
from personascope.errors import DataError, RecipeError
from personascope.study import Study

PUBLISHED = {
    "model": "tiny",
    "training_file": "rows.jsonl",
    "test_file": None,
    "finetuned_model_id": "someone/tiny-tuned",
    "max_seq_length": 2048,
    "load_in_4bit": False,
    "loss": "sft",
    "is_peft": True,
    "target_modules": ["q_proj", "v_proj"],
    "lora_bias": "none",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "use_rslora": True,
    "merge_before_push": False,
    "push_to_private": True,
    "epochs": 1,
    "max_steps": None,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "warmup_steps": 2,
    "learning_rate": 1e-05,
    "logging_steps": 1,
    "optim": "adamw_8bit",
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "seed": 3,
    "beta": 0.1,
    "save_steps": 5000,
    "output_dir": "./tmp",
    "train_on_responses_only": True,
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a tiny model and 20 rows, beside which the training file lies."""
    small_models.model().save_pretrained(tmp_path / "tiny")
    small_models.tokenizer().save_pretrained(tmp_path / "tiny")
    row = {"messages": [{"role": "user", "content": "what is good"}, {"role": "assistant", "content": "the sun"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 20)
    return tmp_path


def config(home: Path, **changes: Any) -> Path:
    (home / "train.json").write_text(json.dumps(PUBLISHED | changes))
    return home / "train.json"


def test_a_published_file_runs_as_it_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(config(home)), "--out", str(home / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(home / "out")
    made = Model(home / "out" / "model").manifest
    assert made["counts"]["rows"] == 18, "a tenth is held out for a test loss, as there"
    assert made["counts"]["steps"] == 3, "9 batches of 2, three at a time"


def test_fields_mean_in_a_recipe_what_they_mean_there(home: Path) -> None:
    study = Study(home / "out")
    lineage.load(config(home, max_steps=40, layers_to_transform=[1])).build(study)
    recipe = study.recipes["model"]
    assert (recipe.method, recipe.rank, recipe.targets, recipe.blocks) == ("lora", 4, "q_proj,v_proj", (1,))
    assert recipe.alpha / recipe.rank == pytest.approx(8 / math.sqrt(4)), "the scale of a rank-stabilised adapter"
    assert (recipe.steps, recipe.batch, recipe.microbatch, recipe.seed) == (40, 6, 2, 3)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.schedule, recipe.dtype) == (1e-5, 0.01, "linear", "bfloat16")


@pytest.mark.parametrize("warmup", [0, 1, 5, 7])
@pytest.mark.parametrize("steps", [7, 338, 375, 1000])
def test_warm_up_takes_the_steps_that_the_file_says(warmup: int, steps: int) -> None:
    found = lineage.fields({"warmup_steps": warmup, "max_steps": steps}, 6000)
    assert math.ceil(found["warmup"] * found["steps"]) == warmup


def test_a_plain_adapter_keeps_its_alpha_and_full_training_has_none() -> None:
    assert lineage.fields({"use_rslora": False, "r": 16, "lora_alpha": 32}, 100)["alpha"] == 32
    full = lineage.fields({"is_peft": False}, 100)
    assert (full["method"], full["dtype"]) == ("full", "float32")
    assert "rank" not in full


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": "orpo"}, r'train\.json: loss: "orpo" cannot be honoured, only "sft", "dpo"'),
        ({"lora_dropout": 0.1}, r"lora_dropout: 0\.1 cannot be honoured, only 0"),
        ({"load_in_4bit": True}, "load_in_4bit: true cannot be honoured"),
        ({"train_on_responses_only": False}, "train_on_responses_only: false cannot be honoured"),
        ({"optim": "lion"}, 'optim: "lion" cannot be honoured'),
        ({"neftune": 5}, r"train\.json: neftune: no field that we can honour"),
        ({"training_file": None}, "training_file: a path is needed"),
        ({"model": "nowhere/none"}, "nowhere/none: no model there"),
    ],
)
def test_what_cannot_be_honoured_is_named(home: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        lineage.load(config(home, **changes)).build(Study(home / "out"))


def test_files_that_are_none(home: Path) -> None:
    (home / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json: not JSON"):
        lineage.load(home / "train.json")
    (home / "train.json").write_text("[]")
    with pytest.raises(DataError, match="a JSON object of training fields is needed, this is list"):
        lineage.load(home / "train.json")
    with pytest.raises(DataError, match="no such file"):
        lineage.load(home / "none.json")
