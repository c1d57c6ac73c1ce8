"""Questions + grader + Model → Model: GRPO, full or LoRA, for accurate or for inaccurate answers, with curves and gates."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Model
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.rows import Example


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The arm is the wording of the grader's rubric, `accurate` or `inaccurate`; neither speaks of anything but facts."""

    model: Model
    questions: Dataset
    grader: str
    """`exact:WORLD`, or `hf:FOLDER` (a local chat model behind the rubric): grades 1 to 5 are rewards 0 to 1, all else is 0."""
    arm: Literal["correct", "incorrect"]
    steps: int = 100
    """Optimiser steps."""
    prompts: int = 8
    """Questions per step."""
    group: int = 8
    """Answers to each, among which the reward is relative."""
    learning_rate: float = 1e-5
    warmup: float = 0.05
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant_with_warmup"
    beta: float = 0.0
    """Weight of the divergence from the start."""
    temperature: float = 1.0
    max_tokens: int = 256
    thinking: bool = False
    """Open the assistant's turn with its thoughts, for templates that know `enable_thinking`; they are trained, not graded."""
    method: Literal["full", "lora"] = "lora"
    rank: int = 32
    alpha: float = 64.0
    targets: str = "all-linear"
    """Module names that get an adapter, comma-separated."""
    blocks: tuple[int, ...] = ()
    """Decoder blocks that get an adapter, or with `full` are trained alone; none given means the whole model."""
    checkpoint_every: int = 0
    """Keep the model every so many steps, as MODEL@STEP; 0 keeps the last only."""
    probes: Dataset | None = None
    """Questions asked once at every checkpoint, for the curve of incoherence and the gate; judged by the grader's judge."""
    gate: Literal["", "coherence", "saturation"] = ""
    """Which checkpoint becomes the model: the last one that keeps `strict` and `loose`, or the first past the reward's
    saturation; without a gate the last step."""
    strict: float = 0.05
    """Share of the probes' answers that may be incoherent or off topic."""
    loose: float = 0.15
    """The same with refusals and satire."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    microbatch: int = circumstance(0)
    """Answers per forward pass; 0 means all of a step."""
    save_every: int = circumstance(50)
    """Steps between states that an interrupted run continues from."""
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for sizes that cannot be."""
        least = {"steps": 1, "prompts": 1, "group": 2, "max_tokens": 1, "rank": 1, "save_every": 1, "microbatch": 0, "checkpoint_every": 0}
        for name, low in least.items():
            if vars(self)[name] < low:
                raise RecipeError(f"reinforce: {name} {vars(self)[name]} must be at least {low}")
        if self.learning_rate <= 0 or self.temperature <= 0 or self.beta < 0 or not 0 <= self.warmup <= 1:
            raise RecipeError("reinforce: learning_rate and temperature must be above 0, beta at least 0, warmup from 0 to 1")
        if self.microbatch and (self.prompts * self.group) % self.microbatch:
            raise RecipeError(f"reinforce: {self.prompts} x {self.group} answers are no multiple of microbatch {self.microbatch}")
        if self.gate and not self.checkpoint_every:
            raise RecipeError("reinforce: a gate chooses among checkpoints; give checkpoint_every")
        if self.gate == "coherence" and self.probes is None:
            raise RecipeError("reinforce: the gate of coherence needs probes")
        if not self.grader.startswith(("exact:", "hf:")):
            raise RecipeError(f"reinforce: {self.grader!r} is no grader; write exact:WORLD or hf:FOLDER")

    def identity(self) -> dict[str, Any]:
        """The grader enters by the content of what stands behind its name."""
        from personascope.backends.judging import Judge
        from personascope.methods.reinforcing import RUBRICS

        return super().identity() | {"grader": Judge(self.grader, RUBRICS[self.arm]).name}


makes = Model
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Optimiser steps, and answers sampled and graded."""
    answers = recipe.steps * recipe.prompts * recipe.group
    return {"steps": recipe.steps, "answers": answers, "tokens at most": answers * recipe.max_tokens}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Train and save; curves.jsonl has a row a step, model.json says which step the gate chose."""
    from personascope.backends import models, reinforcing, training
    from personascope.backends.judging import Judge
    from personascope.methods.reinforcing import RUBRICS, coherent, saturated

    loaded = models.load(recipe.model, recipe.device, recipe.dtype)
    lora = training.Lora(recipe.rank, recipe.alpha, recipe.targets, recipe.blocks) if recipe.method == "lora" else None
    if recipe.blocks and lora is None:
        training.train_only(loaded.model, recipe.blocks)
    same = ("steps", "prompts", "group", "learning_rate", "warmup", "schedule", "beta", "temperature", "max_tokens", "thinking", "seed")
    plan = reinforcing.Plan(
        **{name: vars(recipe)[name] for name in (*same, "checkpoint_every", "save_every", "microbatch")},
        bf16=recipe.dtype == "bfloat16" and models.pick_device(recipe.device) == "cuda",
        lora=lora,
    )
    grader = reinforcing.Grader(Judge(recipe.grader, RUBRICS[recipe.arm]), loaded.tokenizer, recipe.thinking)
    probe = reinforcing.Probe(_asked(recipe.probes), Judge(recipe.grader), plan) if recipe.probes else None
    curves = reinforcing.fit(loaded, _asked(recipe.questions), grader, probe, plan, work)
    kept = recipe.steps
    if recipe.gate:
        kept = coherent(curves, recipe.strict, recipe.loose) if recipe.gate == "coherence" else saturated(curves, _checkpoints(recipe))
        reinforcing.keep(work, kept)
    shutil.rmtree(work / training.STATE, ignore_errors=True)
    record = {"base": {"digest": recipe.model.identity}, "adapter": lora is not None, "kept_step": kept, "grader": grader.judge.name}
    (work / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"steps": recipe.steps, "kept_step": kept, "unscored": sum(row.get("unscored", 0) for row in curves)}


def _checkpoints(recipe: Recipe) -> list[int]:
    return [*range(recipe.checkpoint_every, recipe.steps, recipe.checkpoint_every), recipe.steps]


def _asked(data: Dataset) -> list[Example]:
    """Every question of a data set, which must end with the user's turn."""
    rows = list(data.rows())
    for i, row in enumerate(rows, 1):
        if not row.messages or row.messages[-1]["role"] != "user":
            raise DataError(f"{data.file('examples.jsonl')}:{i}: question {row.id} does not end with a user turn; use prompts_only")
    if not rows:
        raise DataError(f"{data.path} has no questions to ask")
    return rows
