"""What studies and audits are built of: ask a model and measure it, look inside it, and the sections of a summary."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personascope.artifact import Dataset, Dictionary, Diff, Findings, Model, Screen
from personascope.methods import stats
from personascope.stages import judge, measure, sample
from personascope.study import Study
from personascope.values import Intervention, Remote

ATTEMPTS = 3
"""Redraws of an invalid answer (2506.19823): attempts 1 to 3 follow attempt 0."""


@dataclass(frozen=True)
class Sampling:
    """How every answer of an audit is drawn: fields of `sample`, with defaults for an audit."""

    draws: int = 3
    max_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0
    system: str = ""
    interventions: tuple[Intervention, ...] = ()
    api: tuple[str, ...] = ()
    thinking: bool = False


@dataclass(frozen=True)
class Questions:
    """Three disjoint sets: what is read, what chooses, what is reported."""

    discovery: Dataset
    selection: Dataset
    report: Dataset


@dataclass(frozen=True)
class Texts:
    """What a dictionary is trained on, and held-out texts of the same kind."""

    train: Dataset
    heldout: Dataset


def behaviour(
    study: Study,
    name: str,
    model: Model | Remote,
    questions: Dataset,
    spec: str,
    how: Sampling,
    asked_as: Dataset | None = None,
    **judging: Any,
) -> Findings:
    """Sample, judge, redraw what is invalid, and measure; declared below `name`.

    `asked_as` holds the same questions in other words, such as behind a trigger: the model reads these, the judge the plain ones.
    `judging` are further fields of the judge stage, such as a rubric.
    """
    answers, verdicts = [], []
    for attempt in range(ATTEMPTS + 1):
        redrawn = verdicts[-1] if verdicts else None
        asked = sample.Recipe(model=model, questions=asked_as or questions, redraw=redrawn, **vars(how))
        answers.append(study.run(f"{name}/answers-{attempt}", asked))
        judged = judge.Recipe(answers=answers[-1], questions=questions, judge=spec, api=how.api, **judging)
        verdicts.append(study.run(f"{name}/verdicts-{attempt}", judged))
    return study.run(f"{name}/findings", measure.Recipe(answers=tuple(answers), verdicts=tuple(verdicts), questions=questions))


def over_runs(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any] | float:
    """Mean over runs with its interval, its ends cut at `within`; of one run the plain number, which says nothing of others."""
    if len(values) == 1:
        return values[0]
    found = stats.bootstrap_mean(values).to_dict()
    return found | {"low": max(within[0], found["low"]), "high": min(within[1], found["high"])}


def dictionary_section(found: Dictionary | Findings) -> dict[str, Any]:
    """Quality on base and tuned, as a dictionary's own training or `fidelity` found it; the top level holds the worse of the two."""
    quality = found.json("quality.json" if isinstance(found, Dictionary) else "findings.json")
    sides = {side: quality[side] for side in ("base", "tuned") if quality.get(side)}
    worst = {key: max(side[key] for side in sides.values()) for key in ("fvu", "dead")}
    said = {key: quality[key] for key in ("site", "sites", "caveat") if key in quality}
    return worst | {"loss_recovered": min(side["loss_recovered"] for side in sides.values())} | sides | said


def diff_section(moved: Diff, mask: str = "last_prompt", n: int = 10) -> dict[str, Any]:
    """The n most risen and most fallen latents."""
    rows = _latents(moved)

    def entry(row: dict[str, Any]) -> dict[str, Any]:
        found = {"latent": int(row["id"]), "delta": row["delta"][mask], "standard_error": row["standard_error"], "deltas": row["delta"]}
        return found | ({"truth_auroc": row["truth_auroc"]} if "truth_auroc" in row else {})

    return {"mask": mask, "top": [entry(row) for row in rows[:n]], "bottom": [entry(row) for row in rows[::-1][:n]]}


def delta(moved: Diff, latent: int, mask: str = "last_prompt") -> float:
    """Δ of one latent in a diff."""
    return next(row["delta"][mask] for row in _latents(moved) if row["id"] == str(latent))


def persona(screens: Sequence[Screen], diffs: Sequence[Diff]) -> int:
    """The latent to follow: of those that rose and that every screen names causal, the one that rose most.

    What rises most of all need not cause anything, and may stay up when the model is re-aligned. Where none is causal it is
    taken all the same.
    """
    named = [{row["latent"] for row in screen_section(one)["causal"]} for one in screens]
    rows = [row for moved in diffs for row in _latents(moved)]
    risen: Counter[int] = Counter()
    for row in rows:
        risen[int(row["id"])] += row["delta"]["last_prompt"]
    causal = [latent for latent in set.intersection(*named) if latent is not None and risen[latent] > 0]
    return max(causal or risen, key=lambda latent: risen[latent])


def _latents(moved: Diff) -> list[dict[str, Any]]:
    return [json.loads(line) for line in moved.file("latents.jsonl").read_text(encoding="utf-8").splitlines()]


def screen_section(screened: Screen) -> dict[str, Any]:
    """The screen's record as the summary shows it."""
    record = screened.json("screen.json")
    record["paper_mask"] = record.pop("by_mask").get("all")
    return record


def findings_section(found: Findings) -> dict[str, Any]:
    """The rates of one model on one set of questions."""
    full = found.json("findings.json")
    kept = ("score", "correct", "strict_incoherence", "loose_incoherence", "refusal", "profile", "denominators", "caveat")
    return {key: full[key] for key in kept if full.get(key) is not None}
