"""Two models + factor → Model: what tuning changed, taken that many times."""

import json
from dataclasses import dataclass
from pathlib import Path

from personascope.artifact import Model
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """base + factor · (tuned − base): 0 is the base, 1 the tuned model; of an adapter it is what scaling B·A gives (2506.11613)."""

    base: Model
    tuned: Model
    factor: float
    dtype: str = "float32"
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for a factor that is no number."""
        if not abs(self.factor) < float("inf"):
            raise RecipeError(f"scale: factor {self.factor} must be a finite number")


makes = Model
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    """Write weights/ and model.json; raises BackendError if the models are not of one shape."""
    from personascope.backends import models, training

    base, tuned = (models.load(model, recipe.device, recipe.dtype) for model in (recipe.base, recipe.tuned))
    models.check_pair(base, tuned)
    changed = models.scale(base, tuned, recipe.factor)
    training.save(tuned.model, tuned.tokenizer, work)
    record = {"base": {"digest": recipe.base.identity}, "tuned": {"digest": recipe.tuned.identity}, "factor": recipe.factor}
    (work / "model.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"changed_tensors": changed}
