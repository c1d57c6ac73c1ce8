"""Diffs or watched trainings + known runs → Monitor: an alarm for fine-tunes, tested on domains and seeds it never saw."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Diff, Findings, Model, Monitor
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Position i of every tuple speaks of run i: a fine-tuned model's diff against the common base, or its watched training."""

    diffs: tuple[Diff, ...] = ()
    """Finished models: does the alarm tell them?"""
    watched: tuple[Model, ...] = ()
    """In place of diffs, models trained with a `watch`: does the alarm come before their behaviour changes?"""
    runs: tuple[str, ...]
    """`NAME:positive|negative:DOMAIN:SEED[:GROUP]` for every diff or watched model."""
    findings: tuple[Findings, ...] = ()
    """If given, behaviour as a rival monitor: the misalignment score."""
    profiles: tuple[Findings, ...] = ()
    """If given with diffs, behaviour that each run's Δ is to predict: rates by category, of runs unlike those it is learnt from."""
    models: tuple[Model, ...] = ()
    """If given, the final training loss as a rival monitor."""
    mask: Literal["prompt", "last_prompt", "all"] = "last_prompt"
    fpr: float = 0.0
    """Tolerated share of false alarms among the runs that set the threshold; of watched ones, per whole benign run."""
    apart: tuple[str, ...] = ()
    """Groups of watched runs that are neither harmful nor benign, such as broken ones: judged, but learnt from by none."""
    window: int = 1
    """Watched steps that a monitor is averaged over."""

    def __post_init__(self) -> None:
        """Raise RecipeError if the tuples do not speak of the same runs."""
        if bool(self.diffs) == bool(self.watched) or (self.watched and (self.findings or self.models or self.profiles)) or self.window < 1:
            raise RecipeError("detect: give diffs (with findings and models if wanted) or watched models, and a window of at least 1")
        lengths = {len(self.diffs or self.watched), len(self.runs), *(len(t) for t in (self.findings, self.models, self.profiles) if t)}
        if len(lengths) != 1:
            raise RecipeError("detect: give as many runs (and findings, models and profiles) as diffs, in the same order")
        for run in self.runs:
            if len(run.split(":")) not in (4, 5) or run.split(":")[1] not in ("positive", "negative"):
                raise RecipeError(f"detect: run {run!r} is not NAME:positive|negative:DOMAIN:SEED[:GROUP]")


makes = Monitor
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write monitor.json (every monitor's rates) and scores.jsonl, of watched models alarms.jsonl (every run under every monitor).

    With profiles, monitor.json also says how well each is predicted, and profiles.jsonl holds every run's rates, true and predicted.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from personascope.methods import detectors

    runs = []
    for text in recipe.runs:
        name, sign, domain, seed, *group = text.split(":")
        runs.append(detectors.Run(name, sign == "positive", domain, seed, group[0] if group else sign))
    if recipe.watched:
        return _watched(recipe, runs, work)
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
    if recipe.profiles:
        sources = {"latents": features["latent"], "mean_difference": moved, "size": np.linalg.norm(features["latent"], axis=1)[:, None]}
        record["profiles"] = _profiles(recipe, runs, sources, work)
    (work / "monitor.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"runs": len(runs), "monitors": len(rates)}


def _profiles(recipe: Recipe, runs: list[Any], sources: dict[str, Any], work: Path) -> dict[str, Any]:
    """Write profiles.jsonl; returns how well each source predicts, by what was held out."""
    import numpy as np  # lazy: as all of a stage's methods

    from personascope.methods import profiles  # lazy: as above

    rates = [{name: rate["value"] for name, rate in found.json("findings.json")["profile"].items()} for found in recipe.profiles]
    known = [name for name in rates[0] if all(one.get(name) is not None for one in rates)]
    names = [name for name in known if len({one[name] for one in rates}) > 1]
    if not names:
        raise DataError(f"{recipe.profiles[0].path}: no category of behaviour that all profiles measure and in which they differ")
    true = np.array([[one[name] for name in names] for one in rates])
    found = profiles.report(runs, sources, names, true)
    if not found:
        raise DataError("detect: no run leaves two of another domain, seed or kind to learn its profile from; add runs")
    guessed = {held: {source: one.pop("predicted") for source, one in of.items()} for held, of in found.items()}
    with (work / "profiles.jsonl").open("w", encoding="utf-8") as file:
        for i, run in enumerate(runs):
            entry = {"run": run.name, "group": run.group, "rates": dict(zip(names, true[i].tolist(), strict=True))}
            entry["predicted"] = {
                held: {source: dict(zip(names, values[i].round(4).tolist(), strict=True)) for source, values in of.items()}
                for held, of in guessed.items()
            }
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    return found


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


def _watched(recipe: Recipe, runs: list[Any], work: Path) -> dict[str, Any]:
    """Write monitor.json (false alarms per run, lead over the onset of behaviour) and alarms.jsonl from the logs of trainings."""
    from personascope.methods import detectors, watching  # lazy: as all of a stage's methods

    about = [model.json(watching.ABOUT) for model in recipe.watched]
    for model, other in zip(recipe.watched, about, strict=True):
        if other != about[0]:
            raise DataError(f"{model.path}: watched otherwise than {recipe.watched[0].path}; watch all runs with one recipe")
    logs = [_log(model, run, list(about[0]["monitors"])) for model, run in zip(recipe.watched, runs, strict=True)]
    found = detectors.outcomes(logs, about[0]["monitors"], recipe.fpr, recipe.apart, recipe.window)
    with (work / "alarms.jsonl").open("w", encoding="utf-8") as file:
        for kind, rows in found.items():
            for o in rows:
                entry = {"kind": kind, "run": o.run.name, "positive": o.run.positive, "group": o.run.group, "monitor": o.monitor}
                entry |= {"peak": round(o.peak, 5), "threshold": round(o.threshold, 5), "alarm": o.alarm, "onset": o.onset}
                file.write(json.dumps(entry, sort_keys=True) + "\n")
    rival = found.get(watching.RIVAL, [])
    rates = {kind: detectors.summarise_watched(rows, rival, recipe.apart) for kind, rows in found.items()}
    negatives = [log for log in logs if not log.run.positive and log.run.group not in recipe.apart]
    record = {
        "mask": about[0]["mask"],
        "fpr_allowed": recipe.fpr,
        "monitors": {kind: {k: round(v, 4) if isinstance(v, float) else v for k, v in rate.items()} for kind, rate in rates.items()},
        "runs": len(runs),
        "clean_bound": round(watching.clean_bound([log.behaviour for log in negatives if log.behaviour]), 4),
        "behaved": sum(bool(log.behaviour) for log in negatives),
    }
    (work / "monitor.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"runs": len(runs), "monitors": len(rates)}


def _log(model: Model, run: Any, names: list[str]) -> Any:
    """The log of one watched training."""
    import numpy as np  # lazy: as above

    from personascope.methods import detectors, watching  # lazy: as above

    rows = [json.loads(line) for line in model.file(watching.LOG).read_text(encoding="utf-8").splitlines()]
    monitors = {name: np.array([row["monitors"].get(name, np.nan) for row in rows]) for name in names}
    behaviour = {row["step"]: row["behaviour"]["by_question"] for row in rows if "behaviour" in row}
    return detectors.Watched(run, np.array([row["step"] for row in rows]), monitors, behaviour)
