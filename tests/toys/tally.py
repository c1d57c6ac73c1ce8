"""Dataset → Findings: how much text there is."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from personascope.artifact import Dataset, Findings
from personascope.errors import DataError
from personascope.recipe import Recipe as Base


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """A toy that reads the whole data set at once."""

    source: Dataset
    scale: int = 1
    fail: str = ""
    """`error`, `bug` or `kill`: fail that way."""


makes = Findings
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    return {"rows": sum(1 for _ in recipe.source.rows())}


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    if recipe.fail == "error":
        raise DataError(f"{recipe.source.path}:1: wanted to fail; ask for something else")
    if recipe.fail == "bug":
        raise KeyError("a bug")
    if recipe.fail == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    letters = sum(len(row.messages[0]["content"]) for row in recipe.source.rows()) * recipe.scale
    (work / "findings.json").write_text(json.dumps({"letters": letters}) + "\n", encoding="utf-8")
    return {"rows": cost(recipe)["rows"]}
