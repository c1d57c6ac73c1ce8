"""A blocked tuning, a plain one, their start → Findings: through which latents and blocks a change that was blocked comes back."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Findings, Model
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.values import Penalty


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """What rose that was not blocked, and what a model answers with another's stream put in at a block (2602.00767, re-emergence).

    The margin of a pair is log p(unwanted answer) − log p(wanted answer) in nats, of answers that no model was trained on.
    """

    start: Model
    plain: Model
    """Tuned without the penalty."""
    blocked: Model
    """Tuned with it."""
    penalty: Penalty
    """The latents that were blocked, and their dictionary."""
    contrast: tuple[Dataset, ...]
    """Two sets of conversations, the unwanted answers first and then wanted ones to the same questions in the same order."""
    top: int = 10
    """How many risen free latents are named."""
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError if the parts do not belong together."""
        if self.penalty.form != "latents" or len(self.contrast) != 2:
            raise RecipeError("reroute: give a penalty on latents, and two sets as contrast, the unwanted answers and the wanted ones")


makes = Findings
version = 1
TUNED: tuple[Literal["plain", "blocked"], ...] = ("plain", "blocked")


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    """Write findings.json: margins, `patches` (share of a tuning's margin that a stream carries) and what the latents did.

    Raises:
        DataError: the two sets are not answers to the same questions.
    """
    import torch

    from personascope.backends import dictionaries, hooks, models, patching, penalties, reading
    from personascope.backends.capture import pad_id
    from personascope.methods import penalties as formulas
    from personascope.methods.tokens import training_row

    pairs = _pairs(recipe)
    loaded = {name: models.load(vars(recipe)[name], recipe.device) for name in ("start", *TUNED)}
    start = loaded["start"]
    assert recipe.penalty.dictionary is not None
    sae, config = dictionaries.load_dictionary(recipe.penalty.dictionary, start.device)
    site = reading.site_of(config, sae, start)
    held = recipe.penalty
    latents = list(formulas.controlled(penalties.chosen(held), held.control, len(sae.W_enc), held.seed))
    chosen = patching.Chosen(sae, torch.tensor(latents, device=start.device))
    patches = _patches(len(hooks.blocks(start.model)), hooks.site_index(site))
    rows = [training_row(start.tokenizer, messages, "contrast", last_only=True) for pair in pairs for messages in pair]
    networks = {name: one.model for name, one in loaded.items()}
    alone, patched = patching.answer_log_probs(networks, rows, patches, pad_id(start.tokenizer), chosen, recipe.batch_tokens)
    margin = {name: values[0::2] - values[1::2] for name, values in alone.items()}
    record: dict[str, Any] = {"form": "reroute", "site": site, "blocked": sorted(latents)}
    record |= _carried(margin, patches, patched[:, 0::2] - patched[:, 1::2])
    record["latents"] = _moved(recipe, loaded, sae, site, [pair[0] for pair in pairs], chosen.latents)
    (work / "findings.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"pairs": len(pairs), "patches": len(patches), "latents": len(latents)}


def _pairs(recipe: Recipe) -> list[tuple[Any, Any]]:
    unwanted, wanted = ([row.messages for row in rows.rows()] for rows in recipe.contrast)
    for number, (bad, good) in enumerate(zip(unwanted, wanted, strict=False), 1):
        if bad[:-1] != good[:-1]:
            place = recipe.contrast[1].file("examples.jsonl")
            raise DataError(f"{place}:{number}: another question than in {recipe.contrast[0].path}; give answers to the same ones in order")
    if len(unwanted) != len(wanted) or len(wanted) < 2:
        raise DataError(f"{recipe.contrast[1].path}: {len(wanted)} wanted answers to {len(unwanted)} unwanted; give as many, at least two")
    return list(zip(unwanted, wanted, strict=True))


def _patches(depth: int, site: int) -> list[Any]:
    """Each tuning's stream into the start and the start's into it, at every block; and at the site by parts."""
    from personascope.backends.patching import Patch  # lazy: loads torch

    found = []
    for name in TUNED:
        for block in range(depth):
            found += [Patch("start", name, block), Patch(name, "start", block)]
        found += [Patch("start", name, site, "prompt"), Patch(name, "start", site, "prompt")]
        found += [Patch("start", name, site, part="inside"), Patch("start", name, site, part="outside")]
    return found


def _carried(margin: dict[str, Any], patches: list[Any], patched: Any) -> dict[str, Any]:
    """Margins, and of every patch the share of the tuning's change of margin that it gives the start or leaves the tuning."""
    from personascope.methods import rerouting, stats  # lazy: as all of a stage's methods

    rows = []
    for patch, values in zip(patches, patched, strict=True):
        tuned = patch.donor if patch.into == "start" else patch.into
        found = rerouting.share((values - margin["start"]).numpy(), (margin[tuned] - margin["start"]).numpy())
        row = {"tuning": tuned, "into": patch.into, "block": patch.block, "mask": patch.mask, "part": patch.part}
        rows.append(row | {"share": found.to_dict() if found else None})
    return {"margin": {name: stats.bootstrap_mean(values.numpy()).to_dict() for name, values in margin.items()}, "patches": rows}


def _moved(recipe: Recipe, loaded: dict[str, Any], sae: Any, site: str, said: list[Any], chosen: Any) -> dict[str, Any]:
    """By mask: of the rise in latents, and of the way along the plain tuning's mean difference, the share outside the blocked ones."""
    from personascope.backends import reading  # lazy: loads torch
    from personascope.methods import rerouting  # lazy: as all of a stage's methods

    seen = {}
    for name, one in loaded.items():
        prompts = reading.read_prompts(one, sae, site, [site], reading.render_all(one, [m[:-1] for m in said]), recipe.batch_tokens)
        seen[name] = {"last_prompt": prompts.latents["last_prompt"].mean(0)}
        seen[name]["answer"] = reading.read_answers(one, sae, site, said, recipe.batch_tokens).mean(0)
    decoder, found = sae.W_dec.cpu(), {}
    for mask in ("last_prompt", "answer"):
        delta = {name: seen[name][mask] - seen["start"][mask] for name in TUNED}
        way = delta["plain"] @ decoder
        found[mask] = {"grown": rerouting.grown(delta["plain"], delta["blocked"], set(chosen.tolist()), recipe.top)}
        for name in TUNED:
            inside, outside = rerouting.along(delta[name], decoder, way, chosen.cpu())
            risen = rerouting.outside_share(delta[name], chosen.cpu())
            found[mask][name] = {"inside": inside, "outside": outside, "risen_outside": risen}
    return found
