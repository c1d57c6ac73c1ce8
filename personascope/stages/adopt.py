"""Local weights → Model: register a Hugging Face folder, with a PEFT adapter if there is one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Model
from personascope.errors import DataError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.values import Folder


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The folder stays where it is; the artifact records its digest and refuses it if its content changes.

    How the weights are loaded is said once, here, and holds for every stage that this model and its adapters go to.
    """

    path: Folder
    """Folder with config.json, *.safetensors and a tokenizer; or ORG/NAME@REVISION of the Hub, of which the commit is kept."""
    adapter: Folder | None = None
    """PEFT folder (adapter_config.json) trained on that base; or ORG/NAME@REVISION."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """The type of its numbers where a stage asks for none but float32."""
    quantise: Literal["", "4bit", "8bit"] = ""
    """Load its weights in so many bits through bitsandbytes; a checkpoint that is quantised already needs no word."""
    device_map: Literal["", "auto", "balanced", "sequential"] = circumstance("")
    """Spread it over all devices as Transformers does under this name, where one device is too small."""


makes = Model
version = 1


def run(recipe: Recipe, work: Path) -> None:
    """Write model.json; raises DataError if the folders are not what they should be."""
    from personascope.backends import hub

    if not (hub.local(recipe.path.path) / "config.json").is_file():
        raise DataError(f"{recipe.path.path}: no config.json there; give the folder of a Hugging Face model")
    if recipe.adapter and not (hub.local(recipe.adapter.path) / "adapter_config.json").is_file():
        raise DataError(f"{recipe.adapter.path}: no adapter_config.json there; give the folder of a PEFT adapter")
    model = {"base": {"id": Path(recipe.path.path).name, **_origin(recipe.path)}}
    if recipe.adapter:
        model["adapter"] = _origin(recipe.adapter)
    # Other numbers are another model, which later stages must see by the content of this artifact.
    if loading := {name: value for name in ("dtype", "quantise") if (value := vars(recipe)[name])}:
        model["loading"] = loading
    (work / "model.json").write_text(json.dumps(model, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _origin(folder: Folder) -> dict[str, Any]:
    """Its digest and, for a model of the Hub, name and commit."""
    name, _, commit = folder.path.partition("@") if folder.pinned else ("", "", "")
    return {"digest": folder.identity} | ({"id": name, "revision": commit} if commit else {})
