"""Model + texts → Dictionary: a TopK sparse autoencoder of the residual stream, streamed.

The stream is never written to disk. A killed run continues from its last checkpoint (one every fifth of the tokens)
with the same stream and step count; its result equals the uninterrupted one up to the rounding of float sums, and is
the same bytes on one machine with one thread.
"""

import bisect
import itertools
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
    heldout: Dataset
    """Texts for the reported quality, none of them in `texts`."""
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


makes = Dictionary
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Tokens read by the model, at most."""
    return {"tokens": recipe.tokens + recipe.heldout_tokens + (recipe.also_tokens if recipe.also else 0)}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Train, evaluate, and write cfg.json, sae_weights.safetensors and quality.json.

    Raises:
        RecipeError: no such site, or impossible sizes.
        DataError: texts without a usable token, or with prose that is not text.
        BackendError: the training diverged, or `also` is not a tuned `model`.
    """
    from personascope.backends.coding import Plan, evaluate, token_rows, train
    from personascope.backends.dictionaries import CONFIG, read_dictionary, save_dictionary
    from personascope.backends.hooks import site_index
    from personascope.backends.models import check_pair, load

    _check(recipe)
    models = {"base": load(recipe.model, recipe.device)}
    site_index(recipe.site, models["base"].model)
    if recipe.also:
        models["tuned"] = load(recipe.also, recipe.device)
        check_pair(models["base"], models["tuned"])
    plan = Plan(recipe.site, recipe.width, recipe.k, recipe.tokens, recipe.batch, recipe.learning_rate, recipe.seed)
    checkpoint = work / "training.pt"
    if not (work / CONFIG).exists():
        texts = token_rows(recipe.texts, models["base"], recipe.tokens, recipe.seed)
        sae = train(models["base"], texts, plan, checkpoint)
        save_dictionary(work, sae, {"site": recipe.site, "model": recipe.model.identity, "tokens": recipe.tokens, "seed": recipe.seed})
    checkpoint.unlink(missing_ok=True)
    sae = read_dictionary(work)[0].to(models["base"].device)
    heldout = token_rows(recipe.heldout, models["base"], recipe.heldout_tokens, recipe.seed)
    most = {"base": recipe.heldout_tokens, "tuned": min(recipe.also_tokens, recipe.heldout_tokens)}
    quality = {name: evaluate(loaded, sae, _first(heldout, most[name]), recipe.site, most[name]) for name, loaded in models.items()}
    (work / "quality.json").write_text(json.dumps(quality, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"tokens": recipe.tokens, "quality": quality}


def _first(rows: list[list[int]], tokens: int) -> list[list[int]]:
    """As many of the rows as hold this many usable tokens."""
    held = list(itertools.accumulate(len(row) - 1 for row in rows))
    return rows[: bisect.bisect_left(held, tokens) + 1]


def _check(recipe: Recipe) -> None:
    for name in ("width", "k", "tokens", "batch", "heldout_tokens", "learning_rate"):
        if (value := getattr(recipe, name)) <= 0:
            raise RecipeError(f"{name}: {value} is not possible; give more than 0")
    if recipe.k >= recipe.width:
        raise RecipeError(f"k: {recipe.k} active latents of {recipe.width} is not sparse; give k below width")
