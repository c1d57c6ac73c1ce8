"""Trait description → Dataset: its questions under opposite system prompts, and the rubric that tells who shows it."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Model
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.values import Remote


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """A trait's pairs of system prompts and questions are written by hand, or by `author` (2507.21509, section 2.1)."""

    trait: str
    """A shipped trait, or the path of a .json file: name, description, pairs of system prompts, questions. With an author, the name of
    the new trait."""
    sides: tuple[Literal["positive", "negative", "plain"], ...] = ("positive", "negative")
    """Which system prompts; `plain` asks without one."""
    held_out: bool = False
    """The questions kept for testing in place of those a vector is made from."""
    author: Model | Remote | None = None
    """A local chat model, or `inspect:PROVIDER/MODEL`, that writes the trait into trait.json, which is then a trait file like any other."""
    description: str = ""
    """What the trait to be written means, in a sentence or more."""
    pairs: int = 5
    """Pairs of system prompts that the author writes."""
    count: int = 40
    """Questions that the author writes; every other one is held out."""
    attempts: int = circumstance(4)
    """Replies asked for at most; each but the first is told what was wrong with the last."""
    temperature: float = 0.7
    max_tokens: int = 4096
    seed: int = 0
    api: tuple[str, ...] = circumstance(())
    """Of an `inspect:` author: connections=N, timeout=SECONDS, retries=N and price=IN/OUT, dollars for a million tokens."""
    dtype: str = "float32"
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for a side named twice or none, or an author without an order."""
        if not self.sides or len(set(self.sides)) < len(self.sides):
            raise RecipeError("trait: give sides, each once: positive, negative, plain")
        if bool(self.author) != bool(self.description.strip()):
            raise RecipeError("trait: an author and the description of what it is to write belong together")
        if min(self.pairs, self.count, self.attempts, self.max_tokens) < 1 or self.temperature < 0:
            raise RecipeError("trait: pairs, count, attempts and max_tokens must be at least 1, temperature at least 0")
        if self.author and not re.fullmatch("[a-z0-9][a-z0-9_-]*", self.trait):
            raise RecipeError(f"trait: {self.trait!r} cannot name a new trait; use small letters, digits, - and _")

    def identity(self) -> dict[str, Any]:
        """The trait enters by its content; one that is to be written by what its author is asked."""
        from personascope.backends import vectors, writing

        if self.author:
            return super().identity() | {"asked": writing.digest()}
        # Through JSON, because a manifest gives tuples back as lists.
        return super().identity() | {"trait": json.loads(json.dumps(dataclasses.asdict(vectors.find_trait(self.trait))))}


makes = Dataset
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write examples.jsonl, with trait, side and pair as labels, and rubric.md; of a written trait also trait.json and replies.jsonl.

    Raises:
        DataError: no such trait, a file that is none, no questions held out, or an author none of whose replies is a trait.
    """
    from personascope import suites
    from personascope.backends import vectors
    from personascope.rows import write_rows

    trait = _written(recipe, work) if recipe.author else vectors.find_trait(recipe.trait)
    rows = trait.examples(recipe.sides, recipe.held_out)
    if not rows:
        raise DataError(f"trait {trait.name}: it has no held_out questions; write some, or leave held_out away")
    (work / "rubric.md").write_text(trait.rubric_text(suites.prompt("trait")), encoding="utf-8")
    return {"rows": write_rows(work / "examples.jsonl", rows)}


def _written(recipe: Recipe, work: Path) -> Any:
    """The author's trait, also as a file."""
    from personascope.backends import generation, models, revising, writing  # lazy: loads torch
    from personascope.methods.traits import Order  # lazy: as all of a stage's methods

    assert recipe.author is not None
    author = recipe.author if isinstance(recipe.author, Remote) else models.load(recipe.author, recipe.device, recipe.dtype)
    plan = revising.Plan(0, 0, generation.Sampling(recipe.max_tokens, recipe.temperature, 1.0, recipe.seed), api=recipe.api)
    order = Order(recipe.trait, recipe.description.strip(), recipe.pairs, recipe.count)
    trait = writing.write(author, order, plan, recipe.attempts, work / "replies.jsonl")
    (work / "trait.json").write_text(json.dumps(trait.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return trait
