"""Dataset + Model → Model: supervised fine-tuning, full or LoRA, on the assistant's tokens."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Model
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import Watch, circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Re-alignment is this stage too: start from the tuned model and give benign data."""

    model: Model
    data: Dataset
    method: Literal["full", "lora"] = "lora"
    rank: int = 32
    alpha: float = 64.0
    targets: str = "all-linear"
    """Module names that get an adapter, comma-separated."""
    blocks: tuple[int, ...] = ()
    """Decoder blocks that get an adapter; none given means all."""
    steps: int = 0
    """Optimiser steps; 0 means `epochs` passes over the data."""
    epochs: float = 1.0
    batch: int = 32
    """Rows per optimiser step."""
    learning_rate: float = 1e-4
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: float = 0.0
    train_on: Literal["all", "last"] = "all"
    """Which assistant turns the loss counts."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 0
    """Keep the model every so many steps, as MODEL@STEP; 0 keeps the last only."""
    watch: Watch | None = None
    """What to read, and ask, during training: watch.jsonl and watch.json; the weights stay the same."""
    microbatch: int = circumstance(0)
    """Rows per forward pass; 0 means the whole batch."""
    save_every: int = circumstance(200)
    """Steps between states that an interrupted run continues from."""
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for sizes that cannot be."""
        least = {"batch": 1, "rank": 1, "save_every": 1, "steps": 0, "microbatch": 0, "checkpoint_every": 0, "warmup": 0}
        for name, low in least.items():
            if vars(self)[name] < low:
                raise RecipeError(f"finetune: {name} {vars(self)[name]} must be at least {low}")
        if self.learning_rate <= 0 or (self.epochs <= 0 and not self.steps) or self.warmup > 1:
            raise RecipeError(
                f"finetune: learning_rate {self.learning_rate} and epochs {self.epochs} must be above 0, warmup {self.warmup} at most 1"
            )
        if self.microbatch and self.batch % self.microbatch:
            raise RecipeError(f"finetune: batch {self.batch} is no multiple of microbatch {self.microbatch}")

    def identity(self) -> dict[str, Any]:
        """A judge that watches enters by the content of what stands behind its name."""
        known = super().identity()
        if self.watch and self.watch.judge:
            from personascope.backends.judging import Judge

            known["watch"]["judge"] = Judge(self.watch.judge).name
        return known


makes = Model
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Optimiser steps and rows, from the recipe and the data."""
    steps = _steps(recipe, sum(1 for _ in recipe.data.rows()))
    return {"steps": steps, "training rows": steps * recipe.batch}


def _steps(recipe: Recipe, rows: int) -> int:
    return recipe.steps or max(1, round(recipe.epochs * rows / recipe.batch))


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Train and save; the manifest counts rows, steps and trained tokens, model.json names base and first masked row."""
    from personascope.backends import models, training, watching
    from personascope.methods.tokens import training_row

    loaded = models.load(recipe.model, recipe.device, recipe.dtype)
    place = recipe.data.file("examples.jsonl")
    rows = [
        training_row(loaded.tokenizer, example.messages, f"{place}:{i} (row {example.id})", last_only=recipe.train_on == "last")
        for i, example in enumerate(recipe.data.rows(), 1)
    ]
    if not rows:
        raise RecipeError(f"finetune: {recipe.data.path} has no rows to train on")
    model: Any = loaded.model
    if recipe.method == "lora":
        model = training.add_lora(model, training.Lora(recipe.rank, recipe.alpha, recipe.targets, recipe.blocks), recipe.seed)
    micro = recipe.microbatch or recipe.batch
    plan = training.Plan(
        steps=_steps(recipe, len(rows)),
        batch=micro,
        learning_rate=recipe.learning_rate,
        warmup=recipe.warmup,
        schedule=recipe.schedule,
        weight_decay=recipe.weight_decay,
        seed=recipe.seed,
        checkpoint_every=recipe.checkpoint_every,
        save_every=recipe.save_every,
        gradient_accumulation=recipe.batch // micro,
        bf16=recipe.dtype == "bfloat16" and models.pick_device(recipe.device) == "cuda",
    )
    training.fit(model, loaded.tokenizer, rows, plan, work, [watching.of(recipe.watch, loaded, work)] if recipe.watch else [])
    training.save(model, loaded.tokenizer, work)
    shutil.rmtree(work / training.STATE, ignore_errors=True)
    shown = loaded.tokenizer.decode([i for i, on in zip(rows[0].ids, rows[0].trained, strict=True) if on])
    record = {"base": {"digest": recipe.model.identity}, "adapter": recipe.method == "lora", "trained_part_of_first_row": shown}
    (work / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"rows": len(rows), "steps": plan.steps, "trained_tokens_per_pass": sum(sum(row.trained) for row in rows)}
