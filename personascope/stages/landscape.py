"""Start + tuned models + their task → Findings: losses along each change at matched size, under noise, and on other texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Dataset, Findings, Model
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Why one solution of a task is preferred to another: efficiency, stability, influence and trajectory of 2602.07852."""

    base: Model
    """The model that all of them were tuned from."""
    models: tuple[Model, ...]
    """Solutions; the size of the first one's change is size 1."""
    data: Dataset
    """The task: training rows whose loss is read."""
    texts: Dataset
    """Texts such as the base was pretrained on, whose predictions are compared with the base's."""
    sizes: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    noise: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Shares ε of noise in sqrt(1 - ε²) x + ε y, at each change's own size."""
    draws: int = 3
    """Random directions y per model, and as many random changes."""
    path: tuple[Model, ...] = ()
    """Models, such as checkpoints, to lay out on the two principal axes of their changes, beside the base."""
    rows: int = 256
    """Rows of `data` that are read, from the first."""
    tokens: int = 10_000
    """Tokens of `texts` that are read, about."""
    seed: int = 0
    dtype: str = "float32"
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for sizes and shares that cannot be."""
        if not self.models or min(self.sizes, default=0) <= 0 or min(self.draws, self.rows, self.tokens) < 1:
            raise RecipeError("landscape: at least one model, sizes above 0, and draws, rows and tokens of at least 1 are needed")
        if not self.noise or min(self.noise) < 0 or max(self.noise) > 1:
            raise RecipeError("landscape: noise is a share from 0 to 1; give at least one")


makes = Findings
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    """Write findings.json: rows of `scaled`, `random` and `noise`, each with the number of its model, and `path`.

    Raises:
        DataError: no rows, or a model that is not tuned from the base.
        BackendError: models that read other tokens or have another shape.
    """
    from personascope.backends import coding, landscape, models
    from personascope.methods import solutions
    from personascope.methods.tokens import training_row

    start = models.load(recipe.base, recipe.device, recipe.dtype)
    examples = list(recipe.data.rows())[: recipe.rows]
    place = recipe.data.file("examples.jsonl")
    rows = [training_row(start.tokenizer, row.messages, f"{place}:{i} (row {row.id})") for i, row in enumerate(examples, 1)]
    texts = coding.token_rows(recipe.texts, start, recipe.tokens, recipe.seed)
    ground = landscape.Ground(start, rows, texts, recipe.batch_tokens)

    def change(model: Model) -> Any:
        tuned = models.load(model, recipe.device, recipe.dtype)
        models.check_pair(start, tuned)
        return ground.change(tuned)

    changes = [change(model) for model in recipe.models]
    found: dict[str, Any] = {"form": "landscape", "start": ground.loss({}), "sizes": [solutions.size(one) for one in changes]}
    found |= landscape.measured(ground, changes, recipe.sizes, recipe.noise, range(recipe.seed, recipe.seed + recipe.draws))
    if recipe.path:
        found["path"] = landscape.path([change(model) for model in recipe.path])
    (work / "findings.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"rows": len(rows), "texts": len(texts), "looks": sum(len(found[key]) for key in ("scaled", "random", "noise"))}
