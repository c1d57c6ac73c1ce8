"""Dictionary + models + held-out texts → Findings: how well a dictionary of any origin, ours or published, explains each model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Dataset, Dictionary, Findings, Model
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Unexplained variance, silent latents and recovered loss, as the dictionary stage gives them for what it trained."""

    dictionary: Dictionary
    """Its own site is read."""
    base: Model
    texts: Dataset
    """Texts that the dictionary was not trained on: conversations, or prose in `meta["prose"]`."""
    tuned: Model | None = None
    """A model tuned from the base, seen through the same dictionary."""
    tokens: int = 1_000_000
    """At most this many activations of the base; fewer once every latent has fired and a tenth has been read."""
    tuned_tokens: int = 250_000
    """The same for the tuned model; over fewer tokens its dead share can only look worse."""
    seed: int = 0
    dtype: str = "float32"
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for counts that cannot be."""
        if min(self.tokens, self.tuned_tokens) < 1:
            raise RecipeError(f"fidelity: tokens {self.tokens} and tuned_tokens {self.tuned_tokens} must be above 0")


BESIDE = 200
"""Texts on which the sites beside the dictionary's are compared with it."""

makes = Findings
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Tokens read, at most."""
    return {"tokens": recipe.tokens + (recipe.tuned_tokens if recipe.tuned else 0)}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write findings.json: for `base` and `tuned` each `fvu`, `dead`, `l0`, `loss_recovered` and `tokens`; `sites`, and a `caveat`.

    `sites` is the unexplained variance of the base at the dictionary's site and at both beside it. The caveat names one
    that is explained better, as happens when blocks were counted otherwise or the dictionary is another model's.

    Raises:
        DataError: texts without a usable token.
        BackendError: a dictionary that does not fit the model, or a tuned model that is no relative of the base.
    """
    from personascope.backends import coding, dictionaries, hooks, models, reading

    base = models.load(recipe.base, recipe.device, recipe.dtype)
    sae, config = dictionaries.load_dictionary(recipe.dictionary, base.device)
    site = reading.site_of(config, sae, base)
    sides = {"base": (base, recipe.tokens)}
    if recipe.tuned:
        tuned = models.load(recipe.tuned, recipe.device, recipe.dtype)
        models.check_pair(base, tuned)
        sides["tuned"] = (tuned, recipe.tuned_tokens)
    rows = coding.token_rows(recipe.texts, base, recipe.tokens, recipe.seed)
    quality = coding.quality(sides, sae, rows, site)
    number = hooks.site_index(site)
    beside = [f"block:{i}" for i in range(max(0, number - 1), min(len(hooks.blocks(base.model)), number + 2))]
    sites = coding.unexplained(base, sae, rows[:BESIDE], beside)
    found = {"form": "fidelity", **quality, "site": site, "sites": sites} | _caveat(site, sites)
    (work / "findings.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"quality": quality}


def _caveat(site: str, sites: dict[str, float]) -> dict[str, str]:
    """Whether the site is likely the wrong one, or the dictionary another model's."""
    best = min(sites, key=lambda one: sites[one])
    here, there = f"{sites[site]:.2f}", f"{sites[best]:.2f}"
    if best != site:
        return {"caveat": f"the dictionary explains {best} better than its own {site}: unexplained {there} against {here}"}
    if sites[site] > 1:
        return {"caveat": f"the dictionary explains {site} worse than a constant would (unexplained {here}): is it this model's?"}
    return {}
