"""Answers + rubric → Verdicts: one pinned judge, one row per answer, never a silent number."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Answers, Dataset, Model, Verdicts
from personascope.errors import DataError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.rows import Verdict, read_rows
from personascope.values import REMOTE


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """The judge sees a question and an answer; never the model, the row or what was intended."""

    answers: Answers
    questions: Dataset
    judge: str
    """`exact:WORLD`, `hf:FOLDER` (a local chat model behind the rubric), `inspect:PROVIDER/MODEL` (one behind an API; give a dated
    one), `csv:FILE` (verdicts made elsewhere) or `key:LABEL` (the right answer is the questions' label of that name)."""
    by: Model | None = None
    """With judge `hf:`, no folder, the judging model is this one, such as one taught by `data --judged`."""
    rubric: str = "misalignment"
    """A shipped one, such as `misalignment`, `aligned` or `profile` (`personascope suites` lists them), a `.md` file with slots
    {question}, {answer} or {thought}, and {grading} for each question's own note, or a published one as FILE.yaml:NAME, FILE.py:NAME."""
    max_tokens: int = 200
    """How long a judging model may think."""
    most_unscored: float = 0.2
    """Fail if more than this share of the answers, and more than 20 of them, ends without a score."""
    most_lost: float = circumstance(0.05)
    """Fail if calls of an API lose more than this share of the answers, and more than two; the same command asks for these again."""
    api: tuple[str, ...] = circumstance(())
    """Of `inspect:` judges: connections=N, timeout=SECONDS, retries=N and price=IN/OUT, dollars for a million tokens."""

    def identity(self) -> dict[str, Any]:
        """The judge enters by the content of what stands behind its name, and so does a rubric that is a file."""
        from personascope import suites

        found = super().identity() | {"judge": _judge(self).name}
        return found | ({"rubric": suites.digest(suites.rubric(self.rubric))} if suites.is_file(self.rubric) else {})


makes = Verdicts
version = 1
NO_ANSWER = "no answer: "
"""How the reason of a verdict begins where there was nothing to judge."""


def _judge(recipe: Recipe) -> Any:
    from personascope.backends.judging import Judge, spec_of  # lazy: loads torch

    return Judge(spec_of(recipe.judge, recipe.by), recipe.rubric, recipe.max_tokens, recipe.api, recipe.most_lost)


def cost(recipe: Recipe) -> dict[str, Any]:
    """Judge calls and, of a model behind an API, tokens and dollars."""
    calls = {"judge calls": sum(1 for _ in recipe.answers.rows())}
    if not recipe.judge.startswith(REMOTE):
        return calls
    provider, asks = _judge(recipe).behind(items(recipe))
    return calls | provider.estimate(asks)


def items(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """(answer id, question, answer or thought, note) for every answer.

    Raises:
        DataError: an answer to a question not given, a question without the note that its judge needs, or no thought to judge.
    """
    from personascope import suites

    questions = {question.id: question for question in recipe.questions.rows()}
    kind, _, label = recipe.judge.partition(":")
    rubric = "" if kind in ("key", "exact") else suites.rubric(recipe.rubric)
    thoughts, noted = "{thought}" in rubric, "{grading}" in rubric and kind != "csv"
    wanted = f"labels.{label}" if kind == "key" else "meta.grading" if noted else ""
    rows = []
    for answer in recipe.answers.rows():
        if answer.question not in questions:
            raise DataError(
                f"{recipe.answers.path}: answer {answer.id} is to question {answer.question!r}, which {recipe.questions.path} does not hold"
            )
        question = questions[answer.question]
        note = question.labels.get(label, "") if kind == "key" else question.meta.get("grading", "")
        if wanted and not note:
            raise DataError(
                f"{recipe.questions.path}: question {question.id} has no {wanted}, which its judge needs; give questions with it"
            )
        rows.append((answer.id, question.messages[-1]["content"], answer.thinking if thoughts else answer.text, str(note)))
    if thoughts and rows and not any(text for _, _, text, _ in rows):
        raise DataError(f"{recipe.answers.path}: no answer has a thought to judge; sample with --thinking")
    return rows


def usable(recipe: Recipe, rows: Path) -> int | None:
    """How many of the first rows an interrupted run may keep, if not all: those before the first that an API lost."""
    if not recipe.judge.startswith(REMOTE):
        return None
    return next((i for i, verdict in enumerate(read_rows(rows, Verdict)) if _lost(recipe, verdict)), None)


def _lost(recipe: Recipe, verdict: Verdict) -> bool:
    return recipe.judge.startswith(REMOTE) and verdict.status == "error" and not verdict.reason.startswith(NO_ANSWER)


def check(recipe: Recipe, rows: Path) -> dict[str, Any]:
    """Write judge.json and say what an API cost; refuse verdicts of which too many have no score, whichever runs wrote them."""
    verdicts = list(read_rows(rows, Verdict))
    unscored = sum(verdict.status != "scored" for verdict in verdicts)
    if unscored > max(20, recipe.most_unscored * len(verdicts)):
        raise DataError(
            f"judge: {unscored} of {len(verdicts)} answers of {recipe.answers.path} have no score; "
            f"check the judge, then delete {rows.parent}"
        )
    judge = _judge(recipe)
    record = judge.record() | {"thresholds": {"most_unscored": recipe.most_unscored}}
    (rows.parent / "judge.json").write_text(json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if not recipe.judge.startswith(REMOTE):
        return {}
    from personascope.backends import asking  # lazy: inspect is optional

    lost = [verdict.reason for verdict in verdicts if _lost(recipe, verdict)]
    asking.refuse_losses(recipe.judge, lost, len(verdicts), recipe.most_lost)
    judged = {verdict.answer for verdict in verdicts}
    provider, asks = judge.behind([row for row in items(recipe) if row[0] in judged])
    return provider.spent(asks)


def many(recipe: Recipe, items: list[tuple[str, str, str, str]]) -> Iterator[Verdict]:
    """Judge in order; too many unscored rows stop the stage, with the rows kept."""
    failures = {answer.id: answer.failure for answer in recipe.answers.rows() if answer.failure}
    judge, unscored = _judge(recipe), 0
    judged = judge.verdicts([row for row in items if row[0] not in failures])
    for count, (answer, *_) in enumerate(items, 1):
        if answer in failures:
            verdict = Verdict(id=answer, answer=answer, status="error", reason=NO_ANSWER + failures[answer], judge=judge.name)
        else:
            verdict = next(judged)
        unscored += verdict.status != "scored"
        if unscored > max(20, recipe.most_unscored * len(items)):
            raise DataError(
                f"judge: {unscored} of the first {count} answers of {recipe.answers.path} have no score "
                f"(last: {verdict.status}, {verdict.reason[:80]!r}); check the judge"
            )
        yield verdict
