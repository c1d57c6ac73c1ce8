"""Trait description → Dataset: its questions under opposite system prompts, and the rubric that tells who shows it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """A trait's pairs of system prompts and questions are written by hand, or by any model elsewhere; none is asked here."""

    trait: str
    """A shipped trait, or the path of a .json file: name, description, pairs of system prompts, questions."""
    sides: tuple[Literal["positive", "negative", "plain"], ...] = ("positive", "negative")
    """Which system prompts; `plain` asks without one."""
    held_out: bool = False
    """The questions kept for testing in place of those a vector is made from."""

    def __post_init__(self) -> None:
        """Raise RecipeError for a side named twice or none."""
        if not self.sides or len(set(self.sides)) < len(self.sides):
            raise RecipeError("trait: give sides, each once: positive, negative, plain")

    def identity(self) -> dict[str, Any]:
        """The trait enters by its content."""
        from personascope.backends import vectors

        # Through JSON, because a manifest gives tuples back as lists.
        return super().identity() | {"trait": json.loads(json.dumps(dataclasses.asdict(vectors.find_trait(self.trait))))}


makes = Dataset
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write examples.jsonl, with trait, side and pair as labels, and rubric.md.

    Raises:
        DataError: no such trait, a file that is none, or no questions held out.
    """
    from personascope import suites
    from personascope.backends import vectors
    from personascope.rows import write_rows

    trait = vectors.find_trait(recipe.trait)
    rows = trait.examples(recipe.sides, recipe.held_out)
    if not rows:
        raise DataError(f"trait {trait.name}: it has no held_out questions; write some, or leave held_out away")
    (work / "rubric.md").write_text(trait.rubric_text(suites.prompt("trait")), encoding="utf-8")
    return {"rows": write_rows(work / "examples.jsonl", rows)}
