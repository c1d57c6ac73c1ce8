"""Drafts + reviser + constitution → Dataset: rounds of critique and revision, each kept; failures apart, the rest through a gate."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Answers, Dataset, Model
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.rows import write_rows
from personascope.values import Remote


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Constitutional AI's supervised half (2212.08073, section 3) with a reviser of its own; every draft becomes a row or a failure."""

    drafts: Answers
    """Sampled from the model to be taught, before any of this."""
    questions: Dataset
    """What the drafts answer; their `domain` goes into the rows."""
    reviser: Model | Remote
    """A local chat model, or `inspect:PROVIDER/MODEL`, one behind an API; give a dated one."""
    constitution: str
    """A shipped constitution by name, FILE.toml, or world:WORLD/CHARACTER."""
    rounds: int = 1
    """Critique and revision, each round under another principle drawn by seed and row."""
    examples: int = 2
    """Worked examples of the constitution shown before each request."""
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    """Of a critique and of a revision each; a revision that is longer is a failure."""
    thinking: bool = False
    """Open the reviser's turn with its thoughts, for templates that know `enable_thinking`; thoughts are not kept."""
    seed: int = 0
    creed: bool = False
    """Add the constitution's creed: questions such as what one holds to, each answered by every sentence of it."""
    drop: tuple[
        Literal[
            "meta", "unchanged", "hedging", "refusal", "short", "long", "draft_cut", "critique_cut", "unused", "duplicate", "near_duplicate"
        ],
        ...,
    ] = ("meta", "unchanged")
    """Flags of the gate that keep a row out; all are counted. What is no answer at all is out in any case."""
    judge: str = ""
    """A judge that reads every revision by the safety rubric, as in the judge stage; what it calls incoherent or off topic, or
    cannot score, gives no row."""
    most_failed: float = circumstance(0.25)
    """Stop if more than this share of the drafts gives no row."""
    api: tuple[str, ...] = circumstance(())
    """Of an `inspect:` reviser: connections=N, timeout=SECONDS, retries=N and price=IN/OUT, dollars for a million tokens."""
    dtype: str = "float32"
    batch_tokens: int = circumstance(16_384)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for settings that cannot be."""
        if self.rounds < 1 or self.max_tokens < 1 or self.examples < 0 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError("constitute: rounds and max_tokens must be at least 1, examples and temperature at least 0, top_p in (0, 1]")
        if isinstance(self.reviser, Remote) and self.thinking:
            raise RecipeError(f"constitute: {self.reviser.name} is behind an API and decides by itself how it thinks; leave thinking out")
        if not 0 <= self.most_failed <= 1:
            raise RecipeError(f"constitute: most_failed {self.most_failed:g} is no share; give 0 to 1")

    def identity(self) -> dict[str, Any]:
        """The constitution enters by name and content, a judge by the content of what stands behind its name."""
        from personascope.backends import constitutions
        from personascope.backends.judging import Judge

        judge = {"judge": Judge(self.judge, "safety").name} if self.judge else {}
        return super().identity() | {"constitution": constitutions.identity(self.constitution)} | judge


makes = Dataset
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Replies of the reviser and their tokens at most."""
    from personascope.backends import constitutions

    turns = 2 if constitutions.load(recipe.constitution).ask.critique else 1
    replies = sum(1 for _ in recipe.drafts.rows()) * recipe.rounds * turns
    return {"replies": replies, "tokens at most": replies * recipe.max_tokens}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write examples.jsonl, failures.jsonl (with reasons), attempts.jsonl (both before the gate) and constitution.json.

    Raises:
        DataError: a draft to no question, a constitution that is none, or too many drafts without a row.
    """
    from personascope.backends import constitutions, generation, models, revising
    from personascope.methods.constitutions import creed_rows
    from personascope.methods.gating import gate
    from personascope.methods.revisions import training_row

    constitution = constitutions.load(recipe.constitution)
    questions = {question.id: question for question in recipe.questions.rows()}
    begun = revising.begun(recipe.drafts, questions)
    sampling = generation.Sampling(recipe.max_tokens, recipe.temperature, recipe.top_p, recipe.seed, recipe.batch_tokens)
    plan = revising.Plan(recipe.rounds, recipe.examples, sampling, recipe.thinking, recipe.api)
    reviser: list[models.Loaded | Remote] = [recipe.reviser] if isinstance(recipe.reviser, Remote) else []

    def revise(block: Sequence[Any]) -> list[Any]:
        if not reviser:
            reviser.append(models.load(recipe.reviser, recipe.device, recipe.dtype))
        return revising.revise(reviser[0], constitution, block, plan)

    attempts = revising.resumed(work / "attempts.jsonl", begun, revise, recipe.most_failed)
    gated = gate(attempts, constitution, recipe.drop, revising.judged(recipe.judge, attempts, questions) if recipe.judge else None)
    (work / "constitution.json").write_text(json.dumps(constitution.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with (work / "failures.jsonl").open("w", encoding="utf-8") as file:
        for attempt, reasons in gated.dropped:
            file.write(json.dumps({"reasons": reasons} | attempt.to_dict(), ensure_ascii=False, sort_keys=True) + "\n")
    if not gated.kept or len(gated.dropped) > recipe.most_failed * len(begun):
        raise DataError(
            f"constitute: {len(gated.dropped)} of {len(begun)} drafts give no row (failures {gated.counts['failures']}, "
            f"flags {gated.counts['flags']}), more than most_failed {recipe.most_failed:g} allows; see {work / 'failures.jsonl'}"
        )
    rows = [training_row(attempt, list(flags), constitution, questions) for attempt, flags in gated.kept]
    creed = creed_rows(constitution) if recipe.creed else []
    write_rows(work / "examples.jsonl", [*rows, *creed])
    named = {"constitution": {"name": constitution.name, "version": constitution.version, "digest": constitution.digest}}
    return gated.counts | named | ({"creed": len(creed)} if creed else {})
