"""Local weights → Model: register a Hugging Face folder, with a PEFT adapter if there is one."""

import json
from dataclasses import dataclass
from pathlib import Path

from personascope.artifact import Model
from personascope.errors import DataError
from personascope.recipe import Folder
from personascope.recipe import Recipe as Base


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The folder stays where it is; the artifact records its digest and refuses it if its content changes."""

    path: Folder
    """Folder with config.json, *.safetensors and a tokenizer."""
    adapter: Folder | None = None
    """PEFT folder (adapter_config.json) trained on that base."""


makes = Model
version = 1


def run(recipe: Recipe, work: Path) -> None:
    """Write model.json; raises DataError if the folders are not what they should be."""
    if not (Path(recipe.path.path) / "config.json").is_file():
        raise DataError(f"{recipe.path.path}: no config.json there; give the folder of a Hugging Face model")
    if recipe.adapter and not (Path(recipe.adapter.path) / "adapter_config.json").is_file():
        raise DataError(f"{recipe.adapter.path}: no adapter_config.json there; give the folder of a PEFT adapter")
    model = {"base": {"id": Path(recipe.path.path).name, "digest": recipe.path.identity}}
    if recipe.adapter:
        model["adapter"] = {"digest": recipe.adapter.identity}
    (work / "model.json").write_text(json.dumps(model, indent=1, sort_keys=True) + "\n", encoding="utf-8")
