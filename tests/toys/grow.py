"""A number or a data set → Dataset: one row per item.

Standard library only, so that it starts at once.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from personascope.artifact import Dataset
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.rows import Example
from personascope.values import File, Intervention


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """A toy whose rows depend on the word and the item only."""

    count: int = 0
    """How many rows, 100 % of them."""
    word: str = "leaf"
    mode: Literal["plain", "loud"] = "plain"
    scale: float = 1.0
    twice: bool = False
    """Say the word two times."""
    source: Dataset | None = None
    notes: tuple[str, ...] = ()
    file: File | None = None
    interventions: tuple[Intervention, ...] = ()
    pause: float = circumstance(0.0)
    """Seconds per row."""


makes = Dataset
version = 1


def items(recipe: Recipe) -> list[str]:
    return [row.id for row in recipe.source.rows()] if recipe.source else [str(i) for i in range(recipe.count)]


def many(recipe: Recipe, items: list[str]) -> Iterator[Example]:
    for item in items:
        time.sleep(recipe.pause)
        seed = hashlib.sha256(f"{recipe.word} {item}".encode()).hexdigest()
        # The line separator U+2028 ends no line of a .jsonl file.
        text = f"{recipe.word}\u2028{seed}" * (2 if recipe.twice else 1)
        yield Example(id=item, messages=[{"role": "user", "content": text.upper() if recipe.mode == "loud" else text}])
