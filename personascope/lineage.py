"""Training files of the emergent-misalignment code bases (2502.17424, 2506.11613) as a study: `personascope run train.json`."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from personascope import opening
from personascope.artifact import Model
from personascope.backends import files
from personascope.errors import RecipeError
from personascope.methods import formats
from personascope.rows import read_object
from personascope.stages import data, finetune
from personascope.study import Study
from personascope.values import File

ONLY: dict[str, tuple[Any, ...]] = {
    "load_in_4bit": (False,),
    "load_in_8bit": (False,),
    "lora_dropout": (0,),
    "lora_bias": ("none",),
    "train_on_responses_only": (True,),
    "kl_regularization": (False,),
    "optim": ("adamw_8bit", "adamw_torch", "adamw_torch_fused", "adamw_hf"),
    "loss": ("sft", "dpo"),
    "lr_scheduler_type": ("linear", "cosine", "constant", "constant_with_warmup"),
}
"""Fields that can be honoured with these values alone; all kinds of AdamW are AdamW with states of 32 bits."""
READ = ("model", "training_file", "test_file", "is_peft", "target_modules", "layers_to_transform", "r", "lora_alpha", "use_rslora", "beta")
READ += ("epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps", "learning_rate")
READ += ("weight_decay", "seed")
ASIDE = ("finetuned_model_id", "output_dir", "logging_steps", "save_steps", "evaluation_steps", "eval_steps", "push_to_private")
ASIDE += ("push_to_hub", "push_only_adapters", "merge_before_push", "load_in_16bit", "per_device_eval_batch_size")
ASIDE += ("use_gradient_checkpointing", "max_seq_length")
"""Fields that say where things go and how they are looked at, not what is trained; rows are trained whole, however long."""
HELD_OUT = 0.1
"""Share of the rows that these code bases keep back for a test loss where no test_file is given."""


def load(path: Path) -> SimpleNamespace:
    """The file as a study: base, rows and the trained model.

    Raises:
        DataError: no such file, or no JSON object.
        RecipeError: a field is missing, unknown, or has a value that cannot be honoured; the message names it.
    """
    config = read_object(path, "training fields")
    check(config, str(path))
    return SimpleNamespace(build=lambda study: build(study, config, path))


def check(config: dict[str, Any], where: str) -> None:
    """Raise RecipeError for what would be trained otherwise than the file says."""
    known = (*READ, *ONLY, *ASIDE)
    if unknown := sorted(set(config) - set(known)):
        raise RecipeError(f"{where}: {unknown[0]}: no field that we can honour; take it out if it changes nothing")
    for name in ("model", "training_file"):
        if not isinstance(config.get(name), str):
            raise RecipeError(f"{where}: {name}: a path is needed")
    for name, values in ONLY.items():
        if config.get(name) is not None and config[name] not in values:
            raise RecipeError(f"{where}: {name}: {json.dumps(config[name])} cannot be honoured, only {', '.join(map(json.dumps, values))}")


def build(study: Study, config: dict[str, Any], path: Path) -> None:
    """Declare base, rows and model."""
    base = opening.model(study, "base", _place(config["model"], path))
    if not isinstance(base, Model):
        raise RecipeError(f"{path}: model: {config['model']} is behind an API and cannot be trained; give a folder")
    source = File(_place(config["training_file"], path))
    count = sum(len(formats.read(content, name)) for name, content in files.contents(Path(source.path)))
    seed = config.get("seed", 0)
    if not config.get("test_file"):
        count -= math.ceil(HELD_OUT * count)
    rows = study.run("rows", data.Recipe(files=(source,), limit=count, seed=seed))
    study.run("model", finetune.Recipe(model=base, data=rows, seed=seed, **fields(config, count)))


def fields(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """What the file's fields are in a finetune recipe, for so many rows; what it leaves out is as in those code bases.

    Rank-stabilised LoRA scales by alpha / √r where LoRA scales by alpha / r, so its alpha becomes alpha · √r.
    """
    rank, alpha = config.get("r", 32), config.get("lora_alpha", 64)
    micro, accumulated = config.get("per_device_train_batch_size", 2), config.get("gradient_accumulation_steps", 8)
    per_epoch = math.ceil(math.ceil(rows / micro) / accumulated)
    steps = config.get("max_steps") or math.ceil(config.get("epochs", 1) * per_epoch)
    adapter = config.get("is_peft", True)
    found = {
        "objective": config.get("loss", "sft"),
        "method": "lora" if adapter else "full",
        "blocks": tuple(config.get("layers_to_transform") or ()),
        "steps": steps,
        "batch": micro * accumulated,
        "microbatch": micro,
        "learning_rate": config.get("learning_rate", 1e-5),
        # The stage rounds a share of the steps up; half a step less than wanted meets the number whatever the rounding.
        "warmup": min(1.0, max(0.0, config.get("warmup_steps", 5) - 0.5) / steps),
        "schedule": config.get("lr_scheduler_type", "linear"),
        "weight_decay": config.get("weight_decay", 0.01),
        "dtype": "bfloat16" if adapter else "float32",
    }
    if adapter:
        targets = config.get("target_modules", "all-linear")
        found |= {"rank": rank, "alpha": float(alpha * math.sqrt(rank) if config.get("use_rslora", True) else alpha)}
        found |= {"targets": targets if isinstance(targets, str) else ",".join(targets)}
    return found | ({"beta": config["beta"]} if config.get("loss") == "dpo" and "beta" in config else {})


def _place(where: str, path: Path) -> str:
    """A path of the file: as it stands, or beside the file."""
    beside = path.parent / where
    return str(beside) if not Path(where).exists() and beside.exists() else where
