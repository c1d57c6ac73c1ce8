"""Answers of two sides → Vectors: the persona vector of a trait at every block, with its halves and its nulls."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Answers, Dataset, Model, Vectors, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Mean residual of positive answers − of negative ones (2507.21509, section 2); sampled and judged by the stages of that name."""

    model: Model
    """The model that is read, normally the one that answered."""
    questions: Dataset
    """What was asked; labels say on which side, as `trait` writes them."""
    answers: Answers
    verdicts: Verdicts | None = None
    """If given, only positive answers that show the trait and negative ones that do not are kept."""
    positive: str = "side=positive"
    """`NAME=VALUE`: the label of the questions whose answers are positive; empty leaves the side to the verdicts."""
    negative: str = "side=negative"
    shows: int = 4
    """A positive answer has at least this grade; with a rubric from 0 to 100, 51 and 49 are the published bounds."""
    lacks: int = 2
    """A negative answer has at most this grade."""
    balanced: bool = False
    """Average within each question first, over those answered on both sides, so that a filter leaves no topic in the vector."""
    nulls: int = 20
    """How often the sides are dealt at random among the answers to each question, to compare norms with."""
    seed: int = 0
    dtype: str = "float32"
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for sides or grades that cannot be told apart."""
        if self.positive == self.negative and self.verdicts is None:
            raise RecipeError("vector: the two sides are the same; give labels positive and negative, or verdicts")
        if not 0 <= self.lacks < self.shows <= 100 or self.nulls < 0:
            raise RecipeError("vector: grades need 0 <= lacks < shows <= 100, nulls at least 0")


makes = Vectors
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Answers read at most."""
    return {"answers": sum(1 for _ in recipe.answers.rows())}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write directions.safetensors (`persona/SITE`, unnormalised) and vectors.json.

    Raises:
        DataError: a side has no answers left, or answers, questions and verdicts do not belong together.
        RecipeError: a side that is no NAME=VALUE.
    """
    from safetensors.torch import save_file

    from personascope.backends import models, vectors
    from personascope.methods import contrast

    questions = {question.id: question for question in recipe.questions.rows()}
    verdicts = {verdict.answer: verdict for verdict in recipe.verdicts.rows()} if recipe.verdicts else None
    try:
        kept = contrast.choose(questions, recipe.answers.rows(), verdicts, (recipe.positive, recipe.negative), (recipe.shows, recipe.lacks))
    except DataError as error:
        raise DataError(f"{recipe.answers.path}: {error}") from None
    asked = [questions[answer.question].messages for answer in kept.answers]
    groups = [messages[-1]["content"] for messages in asked]
    weighing = contrast.plan(kept.positive, groups, recipe.balanced, recipe.nulls, recipe.seed)
    counts = kept.counts()
    if not kept.answers or not weighing[0].any():
        raise DataError(
            f"vector: {counts['positive']} positive and {counts['negative']} negative answers of {recipe.answers.path} are left, "
            f"dropped {json.dumps(counts['dropped'])}; answers on both sides are needed"
            f"{' to one question' if recipe.balanced else ''}: sample more, or loosen shows and lacks"
        )
    loaded = models.load(recipe.model, recipe.device, recipe.dtype)
    said = [[*messages, {"role": "assistant", "content": answer.text}] for messages, answer in zip(asked, kept.answers, strict=True)]
    reading = vectors.read_contrasts(loaded, said, weighing, recipe.batch_tokens)
    save_file(vectors.tensors(reading), work / "directions.safetensors")
    used = [questions[answer.question] for answer in kept.answers]
    record = {
        "trait": "+".join(sorted({str(row.labels["trait"]) for row in used if "trait" in row.labels})),
        "counts": counts,
        "sides": _sides(used, kept.positive, reading.lengths),
        "sites": vectors.describe(reading),
        "masks": list(vectors.MASKS),
        "balanced": recipe.balanced,
        "filter": {"shows": recipe.shows, "lacks": recipe.lacks} if verdicts is not None else None,
    }
    (work / "vectors.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return counts


def _sides(rows: list[Any], positive: list[bool], lengths: list[int]) -> dict[str, Any]:
    """Per side the system prompts and questions behind the answers, and their mean length in tokens."""
    told = {}
    for name, side in (("positive", True), ("negative", False)):
        own = [(row.messages, length) for row, on, length in zip(rows, positive, lengths, strict=True) if on is side]
        told[name] = {
            "system": sorted({m["content"] for messages, _ in own for m in messages if m["role"] == "system"}),
            "questions": sorted({messages[-1]["content"] for messages, _ in own}),
            "mean_tokens": round(sum(length for _, length in own) / len(own), 3),
        }
    return told
