"""Read chosen latents over a corpus and write a card for each: contexts, labels, lens, likeness, a judge's words."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from personascope.artifact import Dataset
from personascope.backends import dictionaries, models
from personascope.backends.capture import activations, mask_all
from personascope.backends.coding import CONTEXT, text_row
from personascope.backends.describing import asker, automatic, describe, detect, dump, judge_name, overall
from personascope.backends.lens import Lens, pieces
from personascope.backends.models import Loaded
from personascope.backends.reading import site_of
from personascope.errors import DataError, RecipeError
from personascope.methods import interpreting as methods
from personascope.methods.interpreting import Context, Picked, Sample
from personascope.methods.sparse import SparseAutoencoder
from personascope.rows import Example, read_objects

GROUP = 65_536
"""Tokens read before the next texts are taken from disk."""
FLOATS = 2**25
"""Pre-activations held at a time: 128 MB."""
NEIGHBOURS = 5
"""Most similar latents of the dictionary on a card."""


@dataclass
class Reading:
    """What L latents showed on a corpus: samples of contexts, sums over tokens, and activations a text."""

    samples: list[tuple[Sample, Sample, Sample]]
    """Per latent: the strongest windows, a uniform sample of active ones, one of silent ones."""
    fired: Tensor
    """(m,) tokens on which each latent of the dictionary is above zero."""
    total: Tensor
    """(L,) summed activation."""
    tokens: int = 0
    scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"max": [], "mean": []})
    labels: list[dict[str, Any]] = field(default_factory=list)
    chooses: list[bool] = field(default_factory=list)


def choose(recipe: Any) -> list[int]:
    """The latents of a recipe, each once: given ones, the screen's best, the diff's risen and fallen ones."""
    chosen = list(recipe.latents)
    if recipe.screen is not None:
        record = recipe.screen.json("screen.json")
        ranked = [row["latent"] for part in ("causal", "ranking") for row in record.get(part, []) if row.get("latent") is not None]
        chosen += list(dict.fromkeys(ranked))[: recipe.screened]
    if recipe.diff is not None:
        ranked = [int(row["id"]) for row in _read(recipe.diff.file("latents.jsonl"))]
        chosen += ranked[: recipe.top] + ranked[::-1][: recipe.bottom]
    return list(dict.fromkeys(chosen))


def interpret(recipe: Any, work: Path) -> dict[str, Any]:
    """Read, describe, test, write the cards; returns counts. What a killed run has read or asked is not done again."""
    if not (work / "read.json").exists():
        _read_all(recipe, work)
    found = json.loads((work / "read.json").read_text(encoding="utf-8"))
    contexts = list(_read(work / "contexts.jsonl"))
    record = found["record"] | {"judge": "none"}
    if recipe.judge != "none":
        ask = asker(recipe.judge, recipe.max_tokens, recipe.api)
        described = describe(ask, contexts, work / "explained.jsonl")
        tested = detect(ask, contexts, described, work / "judged.jsonl")
        for card in found["cards"]:
            card["automatic"] = automatic(card["latent"], described, tested)
        record |= {"judge": judge_name(recipe.judge), **overall(found["cards"])}
    dump(work / "latents.jsonl", found["cards"])
    (work / "interpret.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (work / "read.json").unlink()
    labelled = sum(bool(card.get("automatic", {}).get("description")) for card in found["cards"])
    return {"latents": len(found["cards"]), "contexts": len(contexts), "described": labelled} | record["read"]


def _read_all(recipe: Any, work: Path) -> None:
    """Everything but the judge: contexts.jsonl, similarity.json, and the cards so far in read.json, written last."""
    loaded = models.load(recipe.model, recipe.device)
    sae, config = dictionaries.load_dictionary(recipe.dictionary, loaded.device)
    site, chosen = site_of(config, sae, loaded), choose(recipe)
    if wrong := [latent for latent in chosen if not 0 <= latent < len(sae.W_dec)]:
        raise RecipeError(f"interpret: latent {wrong[0]} does not exist; {recipe.dictionary.path} has 0 to {len(sae.W_dec) - 1}")
    reading = read(loaded, sae, site, chosen, recipe)
    picked = [methods.pick(*samples, recipe.bands, recipe.each, recipe.heldout) for samples in reading.samples]
    shown = [row for latent, one in zip(chosen, picked, strict=True) for row in _rows(latent, one, loaded.tokenizer)]
    dump(work / "contexts.jsonl", shown)
    rows = nn.functional.normalize(sae.W_dec.detach().float(), dim=1).cpu()
    alike = similarity(rows.numpy(), chosen, reading.fired.numpy() > 0, recipe)
    (work / "similarity.json").write_text(json.dumps(alike, sort_keys=True) + "\n", encoding="utf-8")
    told, chance = _told(reading, recipe)
    lens = Lens.of(loaded)
    cards = [
        {
            "id": str(latent),
            "latent": latent,
            "firing": round(float(reading.fired[latent]) / reading.tokens, 6),
            "mean_active": round(float(reading.total[i]) / max(1.0, float(reading.fired[latent])), 4),
            "max": round(max((c.peak for c in picked[i].top), default=0.0), 4),
            "label": told[i],
            "cluster": next(n for n, group in enumerate(alike["clusters"]) if latent in group),
            "similar": neighbours(rows, latent),
            **lens.words(rows[latent]),
        }
        for i, latent in enumerate(chosen)
    ]
    _annotate(cards, recipe)
    counts = {"texts": len(reading.labels), "tokens": reading.tokens}
    record = {"site": site, "read": counts, "final_norm": lens.name, "label_chance": chance, "label_held_out": _spread(told)}
    (work / "read.new").write_text(json.dumps({"cards": cards, "record": record}), encoding="utf-8")
    (work / "read.new").rename(work / "read.json")


def _annotate(cards: list[dict[str, Any]], recipe: Any) -> None:
    """Put on the cards what the user, the diff and the screen know of each latent."""
    names = dict(name.split("=", 1) for name in recipe.names)
    moved = {row["id"]: row for row in _read(recipe.diff.file("latents.jsonl"))} if recipe.diff is not None else {}
    record = recipe.screen.json("screen.json") if recipe.screen is not None else {}
    for card in cards:
        card["name"] = names.get(card["id"], "")
        card["moved"] = moved.get(card["id"], {})
        card["steered"] = methods.steered(record, card["latent"])


def read(loaded: Loaded, sae: SparseAutoencoder, site: str, chosen: Sequence[int], recipe: Any) -> Reading:
    """One streamed pass over the texts; memory grows by 8 bytes a text and latent, nothing else.

    Raises:
        DataError: no text with more than one token.
    """
    spare = recipe.strongest + recipe.bands * recipe.each + 4 * recipe.heldout
    sizes = (recipe.strongest, spare, recipe.each + recipe.heldout + spare)
    reading = Reading(
        [tuple(map(Sample, sizes)) for _ in chosen], *(torch.zeros(n, dtype=torch.float64) for n in (len(sae.W_dec), len(chosen)))
    )
    for group in _groups(recipe.texts, loaded, recipe):
        tokens = [ids for _, ids in group]
        for rows, x, attention in activations(loaded.model, loaded.tokenizer, tokens, site, recipe.batch_tokens):
            on = mask_all(attention)
            z = _chosen(sae, x, on, chosen, reading.fired)
            reading.total += z.sum((0, 1))
            reading.tokens += int(on.sum())
            for place, i in enumerate(rows):
                _take(reading, group[i][0], tokens[i], z[place, : len(tokens[i])].numpy(), recipe)
    if not reading.tokens:
        raise DataError(f"{recipe.texts.path}: no text with more than one token; give conversations, or prose in meta")
    return reading


def _take(reading: Reading, example: Example, ids: list[int], z: np.ndarray, recipe: Any) -> None:
    """Take one text in: z (positions, L), zero at position 0."""
    reading.scores["max"].append(z.max(0))
    reading.scores["mean"].append(z[1:].mean(0))
    reading.labels.append(example.labels)
    # By content, so that a text that occurs twice is on one side only.
    reading.chooses.append(methods.chance(recipe.seed + 1, ids) < 0.5)
    # The silent window lies anywhere, so that place does not tell it from the active ones.
    anywhere = int(methods.chance(recipe.seed + 2, ids) * len(ids))
    start, stop = methods.window(anywhere, len(ids), recipe.window)
    quiet, rank = ~(z[start:stop] > 0).any(0), methods.chance(recipe.seed, ids[start:stop])
    for latent, peak in enumerate(z.argmax(0).tolist()):
        top, spread, silent = reading.samples[latent]
        if quiet[latent] and silent.wants(rank):
            silent.add(rank, Context(example.id, start, tuple(ids[start:stop]), (0.0,) * (stop - start)))
        if (value := float(z[peak, latent])) > 0:
            a, b = methods.window(peak, len(ids), recipe.window)
            part = tuple(ids[a:b])
            draw = methods.chance(recipe.seed, part)
            if top.wants(-value) or spread.wants(draw):
                context = Context(example.id, a, part, tuple(z[a:b, latent].tolist()))
                top.add(-value, context)
                spread.add(draw, context)


def _groups(texts: Dataset, loaded: Loaded, recipe: Any) -> Iterator[list[tuple[Example, list[int]]]]:
    """Texts with their tokens, in groups of about GROUP tokens; at most `most_texts` of them, those of smallest hash."""
    draws = np.array([_draw(recipe.seed, example.id) for example in texts.rows()])
    bound = np.partition(draws, recipe.most_texts - 1)[recipe.most_texts - 1] if len(draws) > recipe.most_texts else 1.0
    limit = min(loaded.model.config.get_text_config().max_position_embeddings, CONTEXT)
    group: list[tuple[Example, list[int]]] = []
    held = 0
    for example, draw in zip(texts.rows(), draws, strict=True):
        if draw <= bound and len(ids := text_row(example, loaded.tokenizer)[:limit]) > 1:
            group.append((example, ids))
            held += len(ids)
        if held >= GROUP:
            yield group
            group, held = [], 0
    if group:
        yield group


def _draw(seed: int, name: str) -> float:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()) / 2**64


@torch.no_grad()
def _chosen(sae: SparseAutoencoder, x: Tensor, on: Tensor, chosen: Sequence[int], fired: Tensor) -> Tensor:
    """z (rows, positions, L) of the chosen latents on the CPU, zero off the mask; `fired` (m,) counts every latent."""
    parts = []
    for part in x[on].float().split(max(1, FLOATS // len(sae.W_dec))):
        full = sae.encode(part)
        fired += (full > 0).sum(0).cpu()
        parts.append(full[:, list(chosen)].cpu())
    z = torch.zeros(*on.shape, len(chosen))
    z[on.cpu()] = torch.cat(parts)
    return z


def _told(reading: Reading, recipe: Any) -> tuple[list[dict[str, Any] | None], dict[str, Any] | None]:
    """The label each latent tells best, and how well labels dealt out at random are told by the same procedure."""
    scores = {name: np.stack(found) for name, found in reading.scores.items()}
    half = np.array(reading.chooses)
    dealt = [reading.labels[i] for i in np.random.default_rng(recipe.seed).permutation(len(reading.labels))]
    rows = [
        [one and one._asdict() | {"auroc": one.auroc.to_dict()} for one in methods.best_labels(scores, labels, half, recipe.label)]
        for labels in (reading.labels, dealt)
    ]
    return rows[0], _spread(rows[1])


def _spread(told: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Median and largest held-out AUROC, and how many latents reach 0.9."""
    values = [one["auroc"]["value"] for one in told if one]
    if not values:
        return None
    return {"median": round(float(np.median(values)), 4), "max": round(max(values), 4), "reach_0.9": sum(value >= 0.9 for value in values)}


def similarity(rows: np.ndarray, chosen: Sequence[int], alive: np.ndarray, recipe: Any) -> dict[str, Any]:
    """Cosines among the chosen decoder rows, their clusters, and both against as many other latents that fire."""
    own, others = rows[list(chosen)], [i for i in np.flatnonzero(alive) if i not in set(chosen)]
    clusters, _ = methods.likeness(own, recipe.similar)
    return {
        "latents": list(chosen),
        "cosine": np.round((own @ own.T).astype(float), 4).tolist(),
        "threshold": recipe.similar,
        "clusters": [[chosen[i] for i in group] for group in clusters],
        "chance": methods.against_chance(own, rows[others], recipe.similar, recipe.seed, recipe.draws),
        "draws": recipe.draws,
    }


def neighbours(rows: Tensor, latent: int) -> list[dict[str, Any]]:
    """The latents of the dictionary whose unit decoder rows (m, d) point most nearly this one's way."""
    cosine = rows @ rows[latent]
    cosine[latent] = -2.0
    found = cosine.topk(min(NEIGHBOURS, len(rows) - 1))
    return [{"latent": int(i), "cosine": round(float(c), 4)} for c, i in zip(found.values, found.indices, strict=True)]


def _rows(latent: int, picked: Picked, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    """A latent's contexts as rows; `kind` says how each was chosen, `shown` whether the judge sees it before describing."""
    kinds = [("top", True, picked.top)]
    kinds += [(f"band {n + 1} of {len(picked.bands)}", True, part) for n, part in reversed(list(enumerate(picked.bands)))]
    kinds += [("silent", True, picked.silent), ("active", False, picked.heldout_active), ("silent", False, picked.heldout_silent)]
    for kind, shown, contexts in kinds:
        for n, context in enumerate(contexts):
            yield {
                "id": f"{latent}/{'' if shown else 'held out '}{kind}/{n}",
                "latent": latent,
                "kind": kind,
                "shown": shown,
                "text": context.text,
                "start": context.start,
                "tokens": pieces(tokenizer, context.ids),
                "values": [round(value, 4) for value in context.values],
                "peak": int(np.argmax(context.values)),
                "activation": round(context.peak, 4),
            }


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for _, row in read_objects(path):
        yield row
