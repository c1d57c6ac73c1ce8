"""Answers + rubric → Verdicts: one pinned judge, one row per answer, never a silent number."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Answers, Dataset, Verdicts
from personascope.errors import DataError
from personascope.recipe import Recipe as Base
from personascope.rows import Verdict, read_rows


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The judge sees a question and an answer; never the model, the row or what was intended."""

    answers: Answers
    questions: Dataset
    judge: str
    """`exact:WORLD`, `hf:FOLDER` (a local chat model behind the rubric) or `csv:FILE` (verdicts made elsewhere)."""
    rubric: str = "misalignment"
    """`misalignment` (grades), `safety`, `ethics`, or a `.md` file with slots {question} and {answer}."""
    max_tokens: int = 200
    """How long a judging model may think."""
    most_unscored: float = 0.2
    """Fail if more than this share of the answers, and more than 20 of them, ends without a score."""

    def identity(self) -> dict[str, Any]:
        """The judge enters by the content of what stands behind its name, and so does a rubric that is a file."""
        from personascope import suites

        found = super().identity() | {"judge": _judge(self).name}
        return found | ({"rubric": suites.digest(suites.rubric(self.rubric))} if self.rubric.endswith(".md") else {})


makes = Verdicts
version = 1


def _judge(recipe: Recipe) -> Any:
    from personascope.backends.judging import Judge  # lazy: loads torch

    return Judge(recipe.judge, recipe.rubric, recipe.max_tokens)


def cost(recipe: Recipe) -> dict[str, int]:
    """Judge calls."""
    return {"judge calls": sum(1 for _ in recipe.answers.rows())}


def items(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(answer id, question, answer) for every answer."""
    questions = {question.id: question.messages[-1]["content"] for question in recipe.questions.rows()}
    rows = []
    for answer in recipe.answers.rows():
        if answer.question not in questions:
            raise DataError(
                f"{recipe.answers.path}: answer {answer.id} is to question {answer.question!r}, which {recipe.questions.path} does not hold"
            )
        rows.append((answer.id, questions[answer.question], answer.text))
    return rows


def check(recipe: Recipe, rows: Path) -> None:
    """Refuse to publish verdicts of which too many have no score, whichever runs wrote them."""
    verdicts = list(read_rows(rows, Verdict))
    unscored = sum(verdict.status != "scored" for verdict in verdicts)
    if unscored > max(20, recipe.most_unscored * len(verdicts)):
        raise DataError(
            f"judge: {unscored} of {len(verdicts)} answers of {recipe.answers.path} have no score; "
            f"check the judge, then delete {rows.parent}"
        )


def many(recipe: Recipe, items: list[tuple[str, str, str]]) -> Iterator[Verdict]:
    """Judge in order; too many unscored rows stop the stage, with the rows kept."""
    unscored = 0
    for count, verdict in enumerate(_judge(recipe).verdicts(items), 1):
        unscored += verdict.status != "scored"
        if unscored > max(20, recipe.most_unscored * len(items)):
            raise DataError(
                f"judge: {unscored} of the first {count} answers of {recipe.answers.path} have no score "
                f"(last: {verdict.status}, {verdict.reason[:80]!r}); check the judge"
            )
        yield verdict
