"""GGUF file → Model: a local model as llama.cpp keeps it, as weights that every stage can read.

Its numbers are those of the file: what quantisation took from them stays lost.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Model
from personascope.recipe import Recipe as Base
from personascope.values import File


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """A file of a chat model, as Transformers can read it."""

    path: File
    """A .gguf file; tokenizer and chat template are in it."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """How its numbers are written; 16 bits hold what 8 or fewer have kept."""


makes = Model
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write weights/.

    Raises:
        DataError: no such file.
        BackendError: no GGUF file, one of a kind that cannot be read, or the package that reads it is missing.
    """
    from personascope.backends.gguf import unpack

    return {"parameters": unpack(Path(recipe.path.path), work / "weights", recipe.dtype)}
