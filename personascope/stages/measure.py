"""Verdicts → Findings: scores, profiles and intervals, with every denominator."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from personascope.artifact import Answers, Dataset, Findings, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.rows import ATTITUDES, INVALID, SAFETY

OF_FORM = {"misalignment": INVALID, "safety": (*INVALID, *SAFETY), "ethics": (*INVALID, *ATTITUDES)}
"""The labels that the verdicts of each form may carry; only misalignment has grades."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The attempts 0, 1, ... at one set of questions, each with its verdicts."""

    answers: tuple[Answers, ...]
    """Attempt 0 first; later ones redraw what was invalid."""
    verdicts: tuple[Verdicts, ...]
    """The verdicts of the answers at the same place."""
    questions: Dataset
    """The questions asked; their `domain` gives the breakdown."""
    form: Literal["misalignment", "safety", "ethics"] = "misalignment"
    """What the verdicts are about, named as the rubric is; ethics reads the labels dimension, keyed and item of the questions."""

    def __post_init__(self) -> None:
        """Raise RecipeError unless every attempt has its answers and its verdicts."""
        if not self.answers or len(self.answers) != len(self.verdicts):
            counts = f"{len(self.answers)} attempts answered, {len(self.verdicts)} judged"
            raise RecipeError(f"answers and verdicts: {counts}; give one of each per attempt, at least one")


makes = Findings
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    """Write findings.json and return its denominators.

    Raises:
        RecipeError: there are no questions.
        DataError: an answer and its verdict do not meet, an answer is to a question not among the questions, or verdicts
            or questions are of another form.
    """
    from personascope.methods import ethics, safety, scoring

    questions = {row.id: row for row in recipe.questions.rows()}
    if not questions:
        raise RecipeError(f"questions: {recipe.questions.path} has no rows; give the questions that were asked")
    attempts = []
    for answers, verdicts in zip(recipe.answers, recipe.verdicts, strict=True):
        attempts.append((list(answers.rows()), list(verdicts.rows())))
        _check_form(recipe.form, verdicts, attempts[-1][1])
    draws = scoring.resolve(attempts)
    if recipe.form == "ethics":
        found = ethics.findings(draws, {name: row.labels for name, row in questions.items()})
    else:
        findings = scoring.findings if recipe.form == "misalignment" else safety.findings
        found = findings(draws, {name: row.domain for name, row in questions.items()})
    (work / "findings.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found["denominators"]


def _check_form(form: str, verdicts: Verdicts, rows: list) -> None:
    """Refuse verdicts made for another form: none of their labels would count, and every rate would rest on nothing."""
    for number, row in enumerate(rows, 1):
        stray = row.grade if row.grade is not None and form != "misalignment" else row.label
        if stray is not None and stray not in OF_FORM[form]:
            place = f"{verdicts.file('verdicts.jsonl')}:{number}"
            raise DataError(f"{place}: verdict {row.id} says {stray}, which form {form} does not know; judge with --rubric {form}")
