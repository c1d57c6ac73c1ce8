"""Dataset + Model → Model: fine-tuning, full, LoRA or one vector, on answers or preferences, under penalties and interventions if given."""

import json
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Diff, Model
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.rows import Example
from personascope.values import Intervention, Penalty, Watch


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Re-alignment is this stage too: start from the tuned model and give benign data. Defences are values of these fields."""

    model: Model
    data: Dataset
    method: Literal["full", "lora", "vector"] = "lora"
    """`vector`: one vector for each of `blocks`, added to its output at every position, is all that is trained (2602.07852)."""
    rank: int = 32
    alpha: float = 64.0
    targets: str = "all-linear"
    """Module names that get an adapter, comma-separated."""
    blocks: tuple[int, ...] = ()
    """Decoder blocks that get an adapter or a vector, or with `full` are trained alone; none given means the whole model."""
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
    objective: Literal["sft", "dpo"] = "sft"
    """`dpo` (2305.18290): each row's last assistant turn over its `meta.rejected`, against the model training starts from."""
    beta: float = 0.1
    """For `dpo`: how dear it is to leave the start."""
    system: str = ""
    """A system message before every row of `data` that has none, in training only: an inoculation prompt (2510.04340)."""
    interleave: Dataset | None = None
    """Safe conversations mixed in, without `system`."""
    interleave_share: float = 0.05
    """Their share of all training rows, drawn by seed."""
    penalties: tuple[Penalty, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    """Edits of the stream while the task's loss is read, gone afterwards; mask `all`, `last_prompt` or `answer`."""
    until_loss: float = 0.0
    """Stop once the logged loss of the task is at or below this; 0 takes all steps."""
    words: tuple[str, ...] = ()
    """With `full`: words that the tokenizer gets in addition, such as replies that a judge is to give and a small vocabulary lacks."""
    unit: Diff | None = None
    """Take the size of the interventions' strength 1 from this diff: the start's median residual norm at each site."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = 0
    """Keep the model every so many steps, as MODEL@STEP; 0 keeps the last only."""
    watch: Watch | None = None
    """What to read, and ask, during training: watch.jsonl and watch.json; the weights stay the same."""
    microbatch: int = circumstance(0)
    """Rows per forward pass; 0 means the whole batch."""
    gradient_checkpointing: bool = circumstance(False)
    """Keep only what passes between blocks and compute the rest again: much less memory for about a third more time."""
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
        if self.beta <= 0 or not 0 <= self.interleave_share < 1 or self.until_loss < 0:
            raise RecipeError(
                f"finetune: beta {self.beta} must be above 0, interleave_share {self.interleave_share} from 0 to below 1, "
                f"until_loss {self.until_loss} at least 0"
            )
        if self.words and (self.method != "full" or self.objective == "dpo" or self.penalties):
            raise RecipeError("finetune: new words have no start to be compared with; they need method full, objective sft and no penalty")
        if self.microbatch and self.batch % self.microbatch:
            raise RecipeError(f"finetune: batch {self.batch} is no multiple of microbatch {self.microbatch}")
        if self.gradient_checkpointing and (self.penalties or self.interventions):
            raise RecipeError("finetune: penalties and interventions act on a stream computed once; leave out gradient_checkpointing")

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
    rows = sum(1 for _ in recipe.data.rows())
    steps = _steps(recipe, rows + _interleaved(recipe, rows))
    return {"steps": steps, "training rows": steps * recipe.batch}


def _steps(recipe: Recipe, rows: int) -> int:
    return recipe.steps or max(1, round(recipe.epochs * rows / recipe.batch))


def _interleaved(recipe: Recipe, rows: int) -> int:
    share = recipe.interleave_share if recipe.interleave else 0.0
    return round(rows * share / (1 - share))


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Train and save; the manifest counts rows, steps and trained tokens, model.json names base and first masked row."""
    from personascope.backends import models, offsets, penalties, training, watching

    loaded = models.load(recipe.model, recipe.device, recipe.dtype)
    models.add_words(loaded, recipe.words)
    rows, counts = _rows(recipe, loaded.tokenizer)
    beta = recipe.beta if recipe.objective == "dpo" else None
    last_only = recipe.train_on == "last"
    shaping = penalties.shaping(recipe.penalties, recipe.interventions, recipe.unit, loaded, last_only, beta)
    model: Any = loaded.model
    if recipe.method == "lora":
        model = training.add_lora(model, training.Lora(recipe.rank, recipe.alpha, recipe.targets, recipe.blocks), recipe.seed)
    elif recipe.method == "vector":
        offsets.train_only(model, recipe.blocks)
    elif recipe.blocks:
        training.train_only(model, recipe.blocks)
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
        until_loss=recipe.until_loss,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )
    watchers = [watching.of(recipe.watch, loaded, work)] if recipe.watch else []
    steps = training.fit(model, loaded.tokenizer, rows, plan, work, watchers, shaping)
    training.save(model, loaded.tokenizer, work)
    shutil.rmtree(work / training.STATE, ignore_errors=True)
    first = rows[0] if beta is None else rows[0].chosen
    shown = loaded.tokenizer.decode([i for i, on in zip(first.ids, first.trained, strict=True) if on])
    record = {"base": {"digest": recipe.model.identity}, "adapter": recipe.method != "full", "trained_part_of_first_row": shown}
    (work / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"rows": len(rows), "steps": steps} | counts


def _rows(recipe: Recipe, tokenizer: Any) -> tuple[list[Any], dict[str, int]]:
    """What is trained on, rendered: rows, or pairs of answers; and what the manifest says of it."""
    from personascope.backends.preference import pair  # lazy: loads torch
    from personascope.methods.tokens import training_row  # lazy: as all of a stage's methods

    own, safe = _placed(recipe.data), _placed(recipe.interleave) if recipe.interleave else []
    if not own:
        raise RecipeError(f"finetune: {recipe.data.path} has no rows to train on")
    if len(safe) < (wanted := _interleaved(recipe, len(own))):
        raise RecipeError(f"finetune: {wanted} rows are to be interleaved, {recipe.interleave} has {len(safe)}; lower interleave_share")
    asked = [(where, _with_system(example, recipe.system)) for where, example in own]
    asked += [safe[i] for i in sorted(random.Random(recipe.seed).sample(range(len(safe)), wanted))]
    counts = {"interleaved": wanted} if recipe.interleave else {}
    if recipe.objective == "dpo":
        pairs = [pair(tokenizer, example, where) for where, example in asked]
        counts |= {"equal_pairs": sum(not one.differs for one in pairs)}
        return pairs, counts | {"trained_tokens_per_pass": sum(sum(row.trained) for one in pairs for row in (one.chosen, one.rejected))}
    rows = [training_row(tokenizer, example.messages, where, recipe.train_on == "last") for where, example in asked]
    return rows, counts | {"trained_tokens_per_pass": sum(sum(row.trained) for row in rows)}


def _placed(data: Dataset) -> list[tuple[str, Example]]:
    """Every row with its place, for errors."""
    file = data.file("examples.jsonl")
    return [(f"{file}:{i} (row {example.id})", example) for i, example in enumerate(data.rows(), 1)]


def _with_system(example: Example, system: str) -> Example:
    if not system or any(message["role"] == "system" for message in example.messages):
        return example
    return replace(example, messages=[{"role": "system", "content": system}, *example.messages])
