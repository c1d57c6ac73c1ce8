"""Published dictionary → Dictionary: one of SAELens, sparsify, dictionary_learning, Gemma Scope, Goodfire or Qwen Scope.

Read as its makers' code reads it and written in one format, so that every later stage knows one. Whether it was read
right and belongs to a model is for `fidelity` to show.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Dictionary
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.values import Published


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Sparse autoencoders of the residual stream: TopK, BatchTopK, JumpReLU and ReLU."""

    path: Published
    """Its folder, or its file of weights where one folder holds several; or ORG/NAME@REVISION:PATH of the Hub, of which the commit
    is kept."""
    site: str = ""
    """block:N, the block whose output it reads, where its files do not say it; where they do, they must agree."""
    k: int = 0
    """Active latents a token, where its files do not say it."""


makes = Dictionary
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write cfg.json and sae_weights.safetensors.

    Raises:
        ArtifactError: files that are missing, damaged or do not belong together.
        BackendError: a format or a kind of dictionary that cannot be read.
        RecipeError: no site known, or another than its files name.
    """
    from personascope.backends import hub, published
    from personascope.backends.dictionaries import save_dictionary
    from personascope.backends.hooks import site_index

    found = published.read(hub.local(recipe.path.path), recipe.k)
    site = recipe.site or found.site
    if not site:
        raise RecipeError(f"{recipe.path.path}: its files do not name a residual stream that it reads; give site as block:N")
    if found.site and found.site != site:
        raise RecipeError(f"{recipe.path.path}: it reads {found.site} by its own files, not {site}; leave site out")
    site_index(site)
    save_dictionary(work, found.sae, {"site": site, "format": found.format, "origin": recipe.path.path if recipe.path.pinned else ""})
    width, d_model = found.sae.W_dec.shape
    return {"format": found.format, "site": site, "width": width, "d_model": d_model}
