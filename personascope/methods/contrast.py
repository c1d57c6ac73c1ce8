"""Two sides of answers: which are kept, how much each weighs in a difference of means, and what chance would give."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from personascope.errors import DataError, RecipeError
from personascope.rows import Answer, Example, Verdict


@dataclass
class Kept:
    """Answers that count, the side of each, and why the others do not."""

    answers: list[Answer] = field(default_factory=list)
    positive: list[bool] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """How many were kept on each side and dropped for each reason."""
        return {"positive": sum(self.positive), "negative": len(self.positive) - sum(self.positive), "dropped": dict(self.dropped)}


def fits(spec: str, labels: dict[str, Any]) -> bool:
    """Whether labels hold NAME=VALUE; an empty spec fits all.

    Raises:
        RecipeError: the spec is of another form.
    """
    name, equals, value = spec.partition("=")
    if spec and not (name and equals):
        raise RecipeError(f"side {spec!r}: write NAME=VALUE, a label of the questions")
    return not spec or str(labels.get(name)) == value


def choose(
    questions: dict[str, Example],
    answers: Iterable[Answer],
    verdicts: dict[str, Verdict] | None,
    sides: tuple[str, str],
    grades: tuple[int, int],
) -> Kept:
    """Keep the answers that belong to a side and, with verdicts, are as that side should be (2507.21509, section 2.2).

    Args:
        verdicts: by answer id; None keeps every answer that is not empty.
        sides: labels of the questions for the positive and the negative side; an empty one leaves it to the verdicts.
        grades: a positive answer has at least the first grade, a negative one at most the second.

    Raises:
        DataError: an answer to no question given, or without a verdict where there are some.
    """
    kept = Kept()
    for answer in answers:
        if answer.question not in questions:
            raise DataError(f"answer {answer.id} is to question {answer.question!r}, which the questions given do not hold")
        if verdicts is not None and answer.id not in verdicts:
            raise DataError(f"answer {answer.id} has no verdict; judge these answers, or give the verdicts that belong to them")
        wanted = [fits(side, questions[answer.question].labels) for side in sides]
        reason, positive = _side(wanted, answer, verdicts[answer.id] if verdicts is not None else None, grades)
        if reason:
            name = "either" if all(wanted) else "positive" if wanted[0] else "negative" if wanted[1] else ""
            kept.dropped[f"{name}: {reason}" if name else reason] += 1
        else:
            kept.answers.append(answer)
            kept.positive.append(positive)
    return kept


def _side(wanted: list[bool], answer: Answer, verdict: Verdict | None, grades: tuple[int, int]) -> tuple[str, bool]:
    """(why it is dropped or nothing, whether it is positive)."""
    if not any(wanted):
        return "on neither side", False
    if not answer.text.strip():
        return "empty", False
    if verdict is None:
        return "", wanted[0]
    if verdict.grade is None:
        return verdict.label or verdict.status, False
    if wanted[0] and verdict.grade >= grades[0]:
        return "", True
    if wanted[1] and verdict.grade <= grades[1]:
        return "", False
    return f"grade {verdict.grade}", False


def weights(positive: Sequence[bool] | np.ndarray, groups: Sequence[str], balanced: bool = False) -> np.ndarray:
    """What each answer weighs (answers,) in mean(positive) − mean(negative); zeros if a side is empty.

    Args:
        groups: the question of each answer.
        balanced: average within each question first, over the questions that have answers on both sides.
    """
    on = np.asarray(positive, dtype=bool)
    if not balanced:
        if on.all() or not on.any():
            return np.zeros(len(on))
        return np.where(on, 1 / on.sum(), -1 / (~on).sum())
    names = np.asarray(groups)
    each = np.zeros(len(on))
    both = 0
    for name in dict.fromkeys(groups):
        own = names == name
        if (share := weights(on[own], [name] * int(own.sum()))).any():
            each[own], both = share, both + 1
    return each / max(1, both)


def half(groups: Sequence[str]) -> np.ndarray:
    """One half (answers,) of the questions, by hash, so that all answers to a question are on one side."""
    return np.array([hashlib.sha256(group.encode()).digest()[0] % 2 == 0 for group in groups], dtype=bool)


def dealt(positive: Sequence[bool], groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """The sides (answers,) dealt anew at random among the answers to each question: what no trait at all would look like."""
    on, names = np.array(positive, dtype=bool), np.asarray(groups)
    for name in dict.fromkeys(groups):
        own = names == name
        on[own] = rng.permutation(on[own])
    return on


def plan(positive: Sequence[bool], groups: Sequence[str], balanced: bool, nulls: int, seed: int) -> np.ndarray:
    """Weights (3 + nulls, answers): of the vector, of it on either half of the questions, and of it with sides dealt at random."""
    on, first = np.asarray(positive, dtype=bool), half(groups)
    rows = [weights(on, groups, balanced)]
    for part in (first, ~first):
        row = np.zeros(len(on))
        row[part] = weights(on[part], [group for group, taken in zip(groups, part, strict=True) if taken], balanced)
        rows.append(row)
    rng = np.random.default_rng(seed)
    return np.stack(rows + [weights(dealt(positive, groups, rng), groups, balanced) for _ in range(nulls)])
