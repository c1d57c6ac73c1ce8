"""Two models + Dictionary → Diff: which latents and directions moved, both tails, on the same tokens."""

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
    """Δ of a latent = mean over prompts of its mean activation on the mask, tuned − base (2506.19823, section on model diffing)."""

    base: Model
    tuned: tuple[Model, ...]
    """One or several; Δ is averaged over them and the matrix is kept."""
    dictionary: Dictionary
    questions: Dataset
    """Discovery questions: both models read the same prompts."""
    mask: Literal["prompt", "last_prompt", "all"] = "last_prompt"
    """The mask that ranks; Δ under every mask is stored."""
    labelled: Dataset | None = None
    """Conversations with a known label, to say which latents tell it."""
    label: str = ""
    """`NAME=VALUE`: the label whose presence a latent should tell, among `labelled`."""
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError if the parts do not belong together."""
        if not self.tuned:
            raise RecipeError("diff: give at least one tuned model")
        if bool(self.labelled) != bool(self.label) or (self.label and "=" not in self.label):
            raise RecipeError("diff: labelled texts and a label NAME=VALUE belong together")


makes = Diff
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write latents.jsonl (ranked by Δ), directions.safetensors (mean differences), diff.json (units, matrix)."""
    import torch
    from safetensors.torch import save_file

    from personascope.backends import dictionaries, hooks, models, reading

    base = models.load(recipe.base, recipe.device)
    sae, config = dictionaries.load_dictionary(recipe.dictionary, base.device)
    site = reading.site_of(config, sae, base)
    sites = [f"block:{i}" for i in range(len(hooks.blocks(base.model)))]
    questions = [question.messages for question in recipe.questions.rows()]
    if not questions:
        raise DataError(f"{recipe.questions.path}: no questions to read")
    prompts = reading.render_all(base, questions)
    before = reading.read_prompts(base, sae, site, sites, prompts, recipe.batch_tokens)
    deltas: dict[str, list[torch.Tensor]] = {mask: [] for mask in reading.MASKS}
    spread: list[torch.Tensor] = []
    moved: dict[str, torch.Tensor] = {}
    for model in recipe.tuned:
        tuned = models.load(model, recipe.device)
        models.check_pair(base, tuned)
        after = reading.read_prompts(tuned, sae, site, sites, prompts, recipe.batch_tokens)
        for mask in reading.MASKS:
            deltas[mask].append((after.latents[mask] - before.latents[mask]).mean(0))
            for s in sites:
                key, change = f"mean_difference/{s}/{mask}", after.residuals[mask][s] - before.residuals[mask][s]
                moved[key] = moved.get(key, 0) + change / len(recipe.tuned)
        if len(prompts) > 1:
            spread.append((after.latents[recipe.mask] - before.latents[recipe.mask]).std(0) / len(prompts) ** 0.5)
    matrix = {mask: torch.stack(rows) for mask, rows in deltas.items()}
    truth = _truth(recipe, base, sae, site) if recipe.labelled else None
    order = matrix[recipe.mask].mean(0).argsort(descending=True).tolist()
    with (work / "latents.jsonl").open("w", encoding="utf-8") as file:
        for rank, latent in enumerate(order, 1):
            row = {
                "id": str(latent),
                "rank": rank,
                "delta": {mask: round(matrix[mask][:, latent].mean().item(), 5) for mask in reading.MASKS},
                "standard_error": round(torch.stack(spread)[:, latent].pow(2).mean().sqrt().item(), 5) if spread else None,
                "base": round(before.latents[recipe.mask][:, latent].mean().item(), 5),
                "firing": round(before.firing[latent].item(), 6),
            }
            file.write(
                json.dumps(row | ({"truth_auroc": round(float(truth[latent]), 4)} if truth is not None else {}), sort_keys=True) + "\n"
            )
    save_file({key: value.contiguous() for key, value in moved.items()}, work / "directions.safetensors")
    per_model = {str(i): [round(v, 5) for v in matrix[recipe.mask][i, order[:50] + order[-50:]].tolist()] for i in range(len(recipe.tuned))}
    record = {
        "site": site,
        "mask": recipe.mask,
        "unit": before.norms,
        "prompts": len(prompts),
        "matrix": {"latents": order[:50] + order[-50:], "delta": per_model},
    }
    (work / "diff.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"prompts": len(prompts), "models": len(recipe.tuned), "latents": len(order)}


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
