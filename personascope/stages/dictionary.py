"""Model + texts → Dictionary: a TopK sparse autoencoder of the residual stream, streamed.

The stream is never written to disk. A killed run continues from its last checkpoint (one every fifth of the tokens)
with the same stream and step count; its result equals the uninterrupted one up to the rounding of float sums, and is
the same bytes on one machine with one thread.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Dataset, Dictionary, Model
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Train on one model's stream; report quality on held-out texts, also for a model tuned from it."""

    model: Model
    """The model whose stream is learnt, normally the base."""
    texts: Dataset
    """Training texts: conversations, or prose in `meta["prose"]`; cycled through if they are short."""
    heldout: Dataset | None = None
    """Texts for the reported quality, none of them in `texts`; without them it is left to `fidelity`, beside other stages."""
    also: Model | None = None
    """A tuned model on which the same dictionary is evaluated too."""
    site: str = "block:1"
    """`block:N` is the output of decoder block N, counted from 0."""
    width: int = 1280
    """Number of latents, usually 8 or more times the width of the stream."""
    k: int = 16
    """Active latents a token."""
    tokens: int = 2_000_000
    """Activations trained on."""
    batch: int = 2048
    """Activations an optimiser step."""
    learning_rate: float = 1e-3
    """Adam's at the start; it falls linearly to 0."""
    seed: int = 0
    heldout_tokens: int = 1_000_000
    """Evaluate on at most this many activations; fewer once every latent has fired and a tenth has been read."""
    also_tokens: int = 250_000
    """The same for the tuned model; over fewer tokens its dead share can only look worse."""
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for a model that nothing is read on."""
        if self.also and not self.heldout:
            raise RecipeError("dictionary: also is a model to evaluate on, which needs heldout texts; give them, or leave it to fidelity")


makes = Dictionary
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Tokens read by the model, at most."""
    held = recipe.heldout_tokens + (recipe.also_tokens if recipe.also else 0)
    return {"tokens": recipe.tokens + (held if recipe.heldout else 0)}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Train, and write cfg.json and sae_weights.safetensors; with held-out texts, evaluate and write quality.json.

    Raises:
        RecipeError: no such site, or impossible sizes.
        DataError: texts without a usable token, or with prose that is not text.
        BackendError: the training diverged, or `also` is not a tuned `model`.
    """
    from personascope.backends.coding import Plan, quality, token_rows, train
    from personascope.backends.dictionaries import CONFIG, read_dictionary, save_dictionary
    from personascope.backends.hooks import site_index
    from personascope.backends.models import check_pair, load

    _check(recipe)
    base = load(recipe.model, recipe.device)
    site_index(recipe.site, base.model)
    sides = {"base": (base, recipe.heldout_tokens)}
    if recipe.also:
        sides["tuned"] = (load(recipe.also, recipe.device), min(recipe.also_tokens, recipe.heldout_tokens))
        check_pair(base, sides["tuned"][0])
    plan = Plan(recipe.site, recipe.width, recipe.k, recipe.tokens, recipe.batch, recipe.learning_rate, recipe.seed)
    checkpoint = work / "training.pt"
    if not (work / CONFIG).exists():
        texts = token_rows(recipe.texts, base, recipe.tokens, recipe.seed)
        sae = train(base, texts, plan, checkpoint)
        save_dictionary(work, sae, {"site": recipe.site, "model": recipe.model.identity, "tokens": recipe.tokens, "seed": recipe.seed})
    checkpoint.unlink(missing_ok=True)
    if not recipe.heldout:
        return {"tokens": recipe.tokens}
    sae = read_dictionary(work)[0].to(base.device)
    found = quality(sides, sae, token_rows(recipe.heldout, base, recipe.heldout_tokens, recipe.seed), recipe.site)
    (work / "quality.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"tokens": recipe.tokens, "quality": found}


def _check(recipe: Recipe) -> None:
    for name in ("width", "k", "tokens", "batch", "heldout_tokens", "learning_rate"):
        if (value := getattr(recipe, name)) <= 0:
            raise RecipeError(f"{name}: {value} is not possible; give more than 0")
    if recipe.k >= recipe.width:
        raise RecipeError(f"k: {recipe.k} active latents of {recipe.width} is not sparse; give k below width")
