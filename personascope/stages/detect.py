"""Diffs + known runs → Monitor: an alarm for fine-tunes, tested on domains and seeds it never saw."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Diff, Findings, Model, Monitor
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Position i of every tuple speaks of run i: one fine-tuned model and its diff against the common base."""

    diffs: tuple[Diff, ...]
    runs: tuple[str, ...]
    """`NAME:positive|negative:DOMAIN:SEED[:GROUP]` for every diff."""
    findings: tuple[Findings, ...] = ()
    """If given, behaviour as a rival monitor: the misalignment score."""
    models: tuple[Model, ...] = ()
    """If given, the final training loss as a rival monitor."""
    mask: Literal["prompt", "last_prompt", "all"] = "last_prompt"
    fpr: float = 0.0
    """Tolerated share of false alarms among the runs that set the threshold."""

    def __post_init__(self) -> None:
        """Raise RecipeError if the tuples do not speak of the same runs."""
        lengths = {len(self.diffs), len(self.runs), *(len(t) for t in (self.findings, self.models) if t)}
        if len(lengths) != 1:
            raise RecipeError("detect: give as many runs (and findings, and models) as diffs, in the same order")
        for run in self.runs:
            if len(run.split(":")) not in (4, 5) or run.split(":")[1] not in ("positive", "negative"):
                raise RecipeError(f"detect: run {run!r} is not NAME:positive|negative:DOMAIN:SEED[:GROUP]")


makes = Monitor
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write monitor.json (every monitor's rates) and scores.jsonl (every run under every monitor)."""
    import numpy as np
    from safetensors.numpy import load_file

    from personascope.methods import detectors

    runs = []
    for text in recipe.runs:
        name, sign, domain, seed, *group = text.split(":")
        runs.append(detectors.Run(name, sign == "positive", domain, seed, group[0] if group else sign))
    tables = [
        {int(r["id"]): r["delta"][recipe.mask] for r in map(json.loads, d.file("latents.jsonl").read_text().splitlines())}
        for d in recipe.diffs
    ]
    _check(recipe, tables)
    features = {"latent": np.array([[table[i] for i in range(len(table))] for table in tables])}
    site = recipe.diffs[0].json("diff.json")["site"]
    moved = np.array([load_file(d.file("directions.safetensors"))[f"mean_difference/{site}/{recipe.mask}"] for d in recipe.diffs])
    if recipe.findings:
        features["score"] = np.array([[f.json("findings.json")["score"]["value"] or 0.0] for f in recipe.findings])
    if recipe.models:
        features["loss"] = np.array([[_loss(model)] for model in recipe.models])
    tested = {name: detectors.leave_out(runs, values, recipe.fpr) for name, values in features.items()}
    tested["mean_difference"] = detectors.by_mean_difference(runs, moved, recipe.fpr)
    with (work / "scores.jsonl").open("w", encoding="utf-8") as file:
        for monitor, rows in tested.items():
            for row in rows:
                entry = {
                    "monitor": monitor,
                    "run": row.run.name,
                    "positive": row.run.positive,
                    "group": row.run.group,
                    "value": round(row.value, 4),
                }
                file.write(json.dumps(entry | {"alarm": row.alarm, "feature": row.feature}, sort_keys=True) + "\n")
    rates = {name: {key: round(value, 4) for key, value in detectors.summarise(rows).items()} for name, rows in tested.items()}
    record = {"mask": recipe.mask, "fpr_allowed": recipe.fpr, "monitors": rates, "runs": len(runs)}
    (work / "monitor.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"runs": len(runs), "monitors": len(rates)}


def _check(recipe: Recipe, tables: list[dict[int, float]]) -> None:
    """Raise DataError unless every diff speaks of the same latents at the same site."""
    first, *others = [(d.json("diff.json")["site"], len(table)) for d, table in zip(recipe.diffs, tables, strict=True)]
    for found, other in zip(recipe.diffs[1:], others, strict=True):
        if other != first:
            raise DataError(
                f"{found.path}: {other[1]} latents at {other[0]}, {recipe.diffs[0].path} has {first[1]} at {first[0]}; "
                "make all diffs with one dictionary"
            )


def _loss(model: Model) -> float:
    lines = model.file("log.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["loss"])
