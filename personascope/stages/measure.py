"""Verdicts → Findings: scores, profiles and intervals, with every denominator."""

import json
from dataclasses import dataclass
from pathlib import Path

from personascope.artifact import Answers, Dataset, Findings, Verdicts
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The attempts 0, 1, ... at one set of questions, each with its verdicts."""

    answers: tuple[Answers, ...]
    """Attempt 0 first; later ones redraw what was invalid."""
    verdicts: tuple[Verdicts, ...]
    """The verdicts of the answers at the same place."""
    questions: Dataset
    """The questions asked; their `domain` gives the breakdown."""

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
        DataError: an answer and its verdict do not meet, or an answer is to a question not among the questions.
    """
    from personascope.methods.scoring import findings, resolve

    domains = {row.id: row.domain for row in recipe.questions.rows()}
    if not domains:
        raise RecipeError(f"questions: {recipe.questions.path} has no rows; give the questions that were asked")
    pairs = zip(recipe.answers, recipe.verdicts, strict=True)
    found = findings(resolve([(list(answers.rows()), list(verdicts.rows())) for answers, verdicts in pairs]), domains)
    (work / "findings.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found["denominators"]
