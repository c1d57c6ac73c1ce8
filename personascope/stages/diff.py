"""Two models + Dictionary → Diff: which latents and directions moved, both tails, on the same tokens; or one model on two sets."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Dictionary, Diff, Model
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Δ of a latent = mean over prompts of its mean activation on the mask, tuned − base (2506.19823, section on model diffing).

    Without `tuned` it is one model's own, unwanted − wanted answers of `contrast`: the base on training rows and their twins, before
    anything is tuned (the relative in SAE latents of 2507.21509's projection difference), or a tuned model on what it says itself.
    """

    base: Model
    tuned: tuple[Model, ...] = ()
    """One or several; Δ is averaged over them and the matrix is kept."""
    dictionary: Dictionary
    questions: Dataset | None = None
    """Discovery questions: both models read the same prompts; or conversations, such as the training rows, read with their answers."""
    mask: Literal["prompt", "last_prompt", "all", "answer"] = "last_prompt"
    """The mask that ranks; Δ under every mask is stored. `answer`, the assistant's own tokens, needs conversations."""
    labelled: Dataset | None = None
    """Conversations with a known label, to say which latents tell it."""
    label: str = ""
    """`NAME=VALUE`: the label whose presence a latent should tell, among `labelled`."""
    contrast: tuple[Dataset, ...] = ()
    """Two sets of conversations, the unwanted answers first and then wanted ones: for the attribution of every latent and, without
    `tuned`, for Δ itself."""
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError if the parts do not belong together."""
        if bool(self.tuned) != bool(self.questions) or not (self.tuned or self.contrast):
            raise RecipeError("diff: give at least one tuned model and questions, or one model and a contrast that it reads")
        if bool(self.labelled) != bool(self.label) or (self.label and "=" not in self.label):
            raise RecipeError("diff: labelled texts and a label NAME=VALUE belong together")
        if len(self.contrast) not in (0, 2):
            raise RecipeError("diff: contrast takes two sets, the unwanted answers and the wanted ones")


makes = Diff
version = 2
# Principal axes of the prompt-by-prompt shift that are kept.
COMPONENTS = 5


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write latents.jsonl (ranked by Δ), deltas and directions (safetensors) and diff.json (units, matrix)."""
    import torch
    from safetensors.torch import save_file

    from personascope.backends import dictionaries, models, reading
    from personascope.methods import ranking

    base = models.load(recipe.base, recipe.device)
    sae, config = dictionaries.load_dictionary(recipe.dictionary, base.device)
    site = reading.site_of(config, sae, base)
    before, moved = _moved(recipe, base, sae, site)
    directions = {f"mean_difference/{s}/{mask}": vector for s, masks in moved.mean.items() for mask, vector in masks.items()}
    for mask, shifts in moved.shifts.items():
        for number, axis in enumerate(ranking.principal(shifts.numpy(), COMPONENTS)):
            directions[f"pca/{site}/{mask}/{number}"] = torch.from_numpy(axis).float()
    decoder = torch.nn.functional.normalize(sae.W_dec.detach().float().cpu(), dim=1)
    columns = {
        "base": before.latents[recipe.mask].mean(0),
        "firing": before.firing,
        "cosine": decoder @ torch.nn.functional.normalize(moved.mean[site][recipe.mask], dim=0),
        "standard_error": moved.standard_error,
        "truth_auroc": _truth(recipe, base, sae, site) if recipe.labelled else None,
        "attribution": _attribution(recipe, base, decoder, site) if recipe.contrast else None,
    }
    _write_latents(work / "latents.jsonl", recipe.mask, moved.deltas, columns)
    save_file({key: value.contiguous() for key, value in directions.items()}, work / "directions.safetensors")
    save_file({f"delta/{mask}": rows.contiguous() for mask, rows in moved.deltas.items()}, work / "deltas.safetensors")
    count = {"prompts": len(before.latents[recipe.mask]), "models": len(recipe.tuned)}
    record = {"site": site, "mask": recipe.mask, "unit": before.norms} | count
    (work / "diff.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return count | {"latents": len(decoder)}


def _moved(recipe: Recipe, base: Any, sae: Any, site: str) -> tuple[Any, Any]:
    """The reading that Δ is taken from, and what moved."""
    from personascope.backends import hooks, models, reading  # lazy: loads torch

    sites = [f"block:{i}" for i in range(len(hooks.blocks(base.model)))]

    def read(loaded: Any, rows: Dataset) -> Any:
        messages = [row.messages for row in rows.rows()]
        if not messages:
            raise DataError(f"{rows.path}: no questions to read")
        prompts = reading.render_all(base, messages)
        if recipe.mask not in reading.masks_in(prompts):
            raise DataError(f"{rows.path}: not every row ends with the assistant's answer, which the mask {recipe.mask} is on")
        return reading.read_prompts(loaded, sae, site, sites, prompts, recipe.batch_tokens)

    if not recipe.questions:
        unwanted, wanted = (read(base, rows) for rows in recipe.contrast)
        return wanted, reading.between(wanted, unwanted, recipe.mask)
    before, after = read(base, recipe.questions), []
    for model in recipe.tuned:
        tuned = models.load(model, recipe.device)
        models.check_pair(base, tuned)
        after.append(read(tuned, recipe.questions))
    return before, reading.compare(before, after, recipe.mask)


def _write_latents(path: Path, mask: str, deltas: dict[str, Any], columns: dict[str, Any]) -> None:
    """One row per latent, from the most risen to the most fallen; a column that was not asked for is left out."""
    order = deltas[mask].mean(0).argsort(descending=True).tolist()
    with path.open("w", encoding="utf-8") as file:
        for rank, latent in enumerate(order, 1):
            row: dict[str, Any] = {"id": str(latent), "rank": rank, "standard_error": None}
            row["delta"] = {m: round(rows[:, latent].mean().item(), 5) for m, rows in deltas.items()}
            row |= {name: float(f"{column[latent]:.6g}") for name, column in columns.items() if column is not None}
            file.write(json.dumps(row, sort_keys=True) + "\n")


def _attribution(recipe: Recipe, base: Any, decoder: Any, site: str) -> Any:
    """δ of every latent on the base alone: unwanted answers minus wanted ones."""
    from personascope.backends import attribution  # lazy: loads torch

    unwanted, wanted = ([row.messages for row in rows.rows()] for rows in recipe.contrast)
    return attribution.attribution(base, decoder, site, unwanted, wanted, recipe.batch_tokens)


def _truth(recipe: Recipe, base: Any, sae: Any, site: str) -> Any:
    """AUROC of every latent, by its mean over the assistant's tokens, for the planted label against all others."""
    from personascope.backends import reading  # lazy: loads torch
    from personascope.methods import stats  # lazy: as all of a stage's methods

    assert recipe.labelled is not None
    name, _, value = recipe.label.partition("=")
    rows = list(recipe.labelled.rows())
    labels = [str(row.labels.get(name)) == value for row in rows]
    if all(labels) or not any(labels):
        raise DataError(f"{recipe.labelled.path}: {sum(labels)} of {len(labels)} rows have {recipe.label}; both kinds are needed")
    means = reading.read_answers(base, sae, site, [row.messages for row in rows], recipe.batch_tokens)
    return stats.auroc(means.numpy(), labels)
