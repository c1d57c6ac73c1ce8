"""What a user names, as artifacts: models and dictionaries by folder, artifact or place on the Hub, and a shape that suits a base."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personascope.artifact import MANIFEST, Dictionary, Model
from personascope.backends import hub
from personascope.errors import RecipeError
from personascope.stages import adopt, borrow
from personascope.study import Study
from personascope.values import REMOTE, Published, Remote


def model(study: Study, name: str, where: str, base: str = "", loading: Mapping[str, str] | None = None) -> Model | Remote:
    """A model by what stands at a path: an artifact, a Hugging Face folder, or a PEFT folder on `base`; or by its name.

    Args:
        where: a path, `ORG/NAME@REVISION` of the Hub or `inspect:PROVIDER/MODEL`; `base` alike.
        loading: fields of `adopt` that say how the weights of a folder are loaded.

    Raises:
        RecipeError: nothing usable at the path, an adapter where a base is needed, or `loading` of an artifact.
        BackendError: a model of the Hub that cannot be had.
    """
    if where.startswith(REMOTE):
        return Remote(where)
    artifact = Model(where)
    if artifact.finished and loading:
        raise RecipeError(f"{where} is a Model artifact, which knows how it is loaded; leave out {', '.join(loading)} or give its folder")
    if artifact.finished:
        return artifact
    path = hub.local(where := hub.pinned(where))
    if (path / "adapter_config.json").is_file():
        if not base:
            raise RecipeError(f"{where} is a PEFT adapter; give it as TUNED, and the model it was trained on as BASE")
        return study.run(name, adopt.Recipe.from_json({"path": hub.pinned(base), "adapter": where, **(loading or {})}))
    if (path / "config.json").is_file():
        return study.run(name, adopt.Recipe.from_json({"path": where, **(loading or {})}))
    raise RecipeError(
        f"{where}: no model there; give a Hugging Face folder (config.json), a PEFT folder (adapter_config.json), a Model artifact, "
        "or a model of the Hub as ORG/NAME@REVISION"
    )


def dictionary(study: Study, where: str, site: str, k: int) -> Dictionary:
    """A finished dictionary, or a published one by folder, file or name on the Hub.

    Raises:
        RecipeError: nothing there.
        BackendError: a dictionary of the Hub that cannot be had.
    """
    artifact = Dictionary(where)
    if artifact.finished:
        return artifact
    if not hub.local(where := hub.pinned(where)).exists():
        raise RecipeError(
            f"{where}: no dictionary there; give a Dictionary artifact, a published one, or ORG/NAME@REVISION:PATH of the Hub"
        )
    return study.run("dictionary", borrow.Recipe(path=Published(where), site=site, k=k))


def shape(base: Path) -> dict[str, Any]:
    """A dictionary that suits the base: the middle block, 8 latents per dimension of the stream, a tenth of it active.

    Reads config.json of the folder, of a Model artifact, or of what that artifact refers to; nothing found, nothing chosen.
    """
    places = [base, base / "weights"]
    if (base / MANIFEST).is_file():
        places.append(Path(json.loads((base / MANIFEST).read_text(encoding="utf-8"))["recipe"].get("path", base)))
    for place in places:
        if (place / "config.json").is_file():
            config = json.loads((place / "config.json").read_text(encoding="utf-8"))
            config = config.get("text_config", config)
            depth, width = config.get("num_hidden_layers", config.get("n_layer")), config.get("hidden_size", config.get("n_embd"))
            if depth and width:
                return {"site": f"block:{(depth - 1) // 2}", "width": 8 * width, "k": max(1, min(64, width // 10))}
    return {}
