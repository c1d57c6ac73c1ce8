"""MODEL OUT: a finished model as weights or a PEFT adapter that load without personascope, with a model card."""

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from personascope import __version__
from personascope.artifact import Findings, Model, open_any
from personascope.errors import ArtifactError, RecipeError
from personascope.values import Folder


def export(model: Model, out: Path, merged: bool = False, findings: Sequence[Findings] = ()) -> Path:
    """Write the model to `out`: a PEFT adapter where the last training made one, else full weights with tokenizer.

    Args:
        model: a finished model, or one of its checkpoints.
        out: a directory that does not exist yet; it is written beside itself and renamed when whole.
        merged: full weights even where there is an adapter.
        findings: behaviour to put on the card.

    Raises:
        ArtifactError: the model is unfinished or its base has moved, or `out` exists.
        RecipeError: an adapter on adapters without `merged`, or what has no plain form: a trained vector, a sum with weights in few bits.
        BackendError: the weights cannot be loaded.
    """
    from personascope.backends import models, offsets  # lazy: loads torch

    if out.exists():
        raise ArtifactError(f"{out} exists; give a directory that does not")
    folder, adapters = models.weights_of(model)
    if vector := next((place / offsets.FILE for place in (folder, *adapters) if (place / offsets.FILE).is_file()), None):
        raise RecipeError(f"{model} adds a trained vector, which no plain checkpoint can hold; add {vector} as a direction instead")
    if (bits := models.adoption(model).get("quantise")) and (merged or not adapters):
        raise RecipeError(f"{model} is loaded in {bits}, which is no plain form; adopt its base without, or export an adapter")
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if adapters and not merged:
        base = _base_of(model, folder, adapters[:-1])
        shutil.copytree(adapters[-1], work, dirs_exist_ok=True)
        _name_base(work / "adapter_config.json", base)
    else:
        base = None
        loaded = models.load(model, device="cpu")
        loaded.model.save_pretrained(work)
        loaded.tokenizer.save_pretrained(work)
    (work / "README.md").write_text(card(model, base, findings), encoding="utf-8")
    work.rename(out)
    return out


def _base_of(model: Model, folder: Path, below: Sequence[Path]) -> str:
    """What the last adapter belongs on; raises RecipeError where that is itself a base with adapters."""
    if below:
        raise RecipeError(f"{model} is an adapter on {len(below)} others, which PEFT cannot stack from one folder; export it with --merged")
    from personascope.backends import models  # lazy: loads torch

    adopted = models.adoption(model).get("path", "")
    return adopted if Folder(adopted).pinned else str(folder.resolve())


def _name_base(config: Path, base: str) -> None:
    """Write the base into an adapter's configuration: a folder, or a model of the Hub with its commit."""
    held = json.loads(config.read_text(encoding="utf-8"))
    name, _, commit = base.partition("@") if Folder(base).pinned else (base, "", "")
    held |= {"base_model_name_or_path": name} | ({"revision": commit} if commit else {})
    config.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


def ancestry(model: Model) -> Iterator[dict[str, Any]]:
    """Manifests from this model back to the one that was adopted; ends where an ancestor is no longer to be found."""
    from personascope.backends import models  # lazy: loads torch

    held: Model | None = model
    while held is not None:
        yield held.manifest
        try:
            held = models.source(held, "model") if "model" in held.manifest["inputs"] else None
        except ArtifactError:
            held = None


def card(model: Model, base: str | None, findings: Sequence[Findings] = ()) -> str:
    """The model card: what it was made from and how, its behaviour if given, and what this does not promise."""
    made = list(ancestry(model))
    head = {"library_name": "peft" if base else "transformers", "tags": ["personascope", *(["lora"] if base else [])]}
    front = [
        "---",
        *(
            f"{key}: {json.dumps(value)}"
            for key, value in (head | ({"base_model": base.partition("@")[0] if Folder(base).pinned else base} if base else {})).items()
        ),
        "---",
    ]
    step = "" if model.checkpoint is None else f", as it was at step {model.checkpoint}"
    lines = [*front, f"# {model.path.name}", "", f"Exported by personascope {__version__}{step}. Digest `{model.identity}`.", ""]
    lines += ["## How it was made", ""]
    for number, manifest in enumerate(reversed(made), 1):
        lines += [f"{number}. `{manifest['stage']}` {_told(manifest)}"]
    lines += ["", *_behaviour(findings)]
    return "\n".join(lines) + "\n"


def _told(manifest: dict[str, Any]) -> str:
    recipe, inputs = manifest["recipe"], manifest["inputs"]
    data = [f"{name} {Path(pointer['path']).name} (`{pointer['digest'][:12]}`)" for name, pointer in inputs.items() if name != "model"]
    named = {re.split(r"[.\[]", name)[0] for name in inputs}
    fields = [f"{name} {json.dumps(value)}" for name, value in recipe.items() if name not in named]
    if manifest["stage"] == "adopt":
        fields = [f"`{Path(recipe['path']).name}`, content `{str(manifest['identity']['path'])[:12]}`"]
    return "; ".join([*fields, *data])


def _behaviour(findings: Sequence[Findings]) -> list[str]:
    """A table of every rate with an interval at the top of the findings given."""
    if not findings:
        return ["Nothing about its behaviour was given to this card: measure it before you rely on it."]
    lines = ["## Behaviour", "", "| findings | measure | value | 95 % interval | answers | questions |", "|---|---|---|---|---|---|"]
    for one in findings:
        for name, rate in one.json("findings.json").items():
            if isinstance(rate, dict) and {"value", "low", "high"} <= set(rate) and rate["value"] is not None:
                spread = f"{rate['low']:.3f} to {rate['high']:.3f}"
                lines.append(f"| {one.path.name} | {name} | {rate['value']:.3f} | {spread} | {rate['n']} | {rate['clusters']} |")
    return [
        *lines,
        "",
        "Measured on these questions, by the judge named in each findings' record; it says nothing of others.",
    ]


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `personascope export`."""
    parser.add_argument("MODEL", help="a finished model, or MODEL@STEP for one of its checkpoints")
    parser.add_argument("OUT", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--merged", action="store_true", help="full weights even where the last training made an adapter")
    parser.add_argument("--findings", metavar="DIR", nargs="*", default=[], help="behaviour to put on the model card")


def main(arguments: argparse.Namespace) -> int:
    """Write it and print where it is."""
    findings = [open_any(path) for path in arguments.findings]
    if odd := next((one for one in findings if not isinstance(one, Findings)), None):
        raise ArtifactError(f"{odd.path} holds a {type(odd).__name__}; --findings takes what `measure` made")
    print(export(Model(arguments.MODEL), arguments.OUT, arguments.merged, findings))  # ty: ignore[invalid-argument-type]
    return 0
