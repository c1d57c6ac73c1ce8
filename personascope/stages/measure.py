"""Verdicts → Findings: scores, profiles and intervals, with every denominator."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from personascope.artifact import Answers, Dataset, Findings, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.rows import OF_FORM

GRADED = {"misalignment": (1, 5), "aligned": (0, 100)}
"""The forms that have grades, and the lowest and the highest."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The attempts 0, 1, ... at one set of questions, each with its verdicts."""

    answers: tuple[Answers, ...]
    """Attempt 0 first; later ones redraw what was invalid."""
    verdicts: tuple[Verdicts, ...]
    """The verdicts of the answers at the same place."""
    questions: Dataset
    """The questions asked; their `domain` gives the breakdown."""
    form: Literal[
        "misalignment",
        "aligned",
        "safety",
        "ethics",
        "profile",
        "invention",
        "over-refusal",
        "incoherence",
        "persona",
        "capability",
        "consistency",
    ] = "misalignment"
    """What the verdicts are about, named as the rubric is; ethics reads the labels dimension, keyed and item of the questions;
    consistency takes answers to harmful questions with their verdicts, and replies to the suites consistency and mirror."""
    coherence: Verdicts | None = None
    """For `aligned`: what the rubric `coherent` says of the same answers (2502.17424: aligned < 30 and coherent > 50)."""

    def __post_init__(self) -> None:
        """Raise RecipeError unless every attempt has its answers and its verdicts."""
        if self.form == "consistency":
            if (len(self.answers), len(self.verdicts)) != (2, 1):
                raise RecipeError("measure: form consistency takes answers that show behaviour, with verdicts, then replies without any")
            return
        if not self.answers or len(self.answers) != len(self.verdicts):
            counts = f"{len(self.answers)} attempts answered, {len(self.verdicts)} judged"
            raise RecipeError(f"answers and verdicts: {counts}; give one of each per attempt, at least one")
        if (self.form == "aligned") != (self.coherence is not None) or (self.coherence and len(self.answers) > 1):
            raise RecipeError("measure: form aligned, and only that, takes the verdicts of rubric coherent as --coherence, and no redraws")


makes = Findings
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    """Write findings.json and return its denominators.

    Raises:
        RecipeError: there are no questions.
        DataError: an answer and its verdict do not meet, an answer is to a question not among the questions, or verdicts
            or questions are of another form.
    """
    from personascope.methods import consistency, ethics, forms, safety, scoring

    questions = {row.id: row for row in recipe.questions.rows()}
    if not questions:
        raise RecipeError(f"questions: {recipe.questions.path} has no rows; give the questions that were asked")
    if recipe.form == "consistency":
        found = consistency.findings(*(list(rows.rows()) for rows in (*recipe.answers, *recipe.verdicts)), questions)
        (work / "findings.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return found["denominators"]
    attempts = []
    for answers, verdicts in zip(recipe.answers, recipe.verdicts, strict=True):
        attempts.append((list(answers.rows()), list(verdicts.rows())))
        _check_form(recipe.form, verdicts, attempts[-1][1])
    draws = scoring.resolve(attempts)
    domains = {name: row.domain for name, row in questions.items()}
    if recipe.form == "ethics":
        found = ethics.findings(draws, {name: row.labels for name, row in questions.items()})
    elif recipe.form == "aligned" and recipe.coherence is not None:
        coherent = list(recipe.coherence.rows())
        _check_form("aligned", recipe.coherence, coherent)
        found = forms.paired(draws, scoring.resolve([(attempts[0][0], coherent)]), domains)
    elif recipe.form in forms.FORMS:
        found = forms.findings(recipe.form, draws, domains)
    else:
        found = (scoring.findings if recipe.form == "misalignment" else safety.findings)(draws, domains)
    (work / "findings.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found["denominators"]


def _check_form(form: str, verdicts: Verdicts, rows: list) -> None:
    """Refuse verdicts made for another form: none of their labels would count, and every rate would rest on nothing."""
    for number, row in enumerate(rows, 1):
        low, high = GRADED.get(form, (1, 0))
        stray = row.grade if row.grade is not None and not low <= row.grade <= high else row.label
        if stray is not None and stray not in OF_FORM[form]:
            place = f"{verdicts.file('verdicts.jsonl')}:{number}"
            raise DataError(f"{place}: verdict {row.id} says {stray}, which form {form} does not know; judge with --rubric {form}")
