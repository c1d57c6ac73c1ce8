"""Read models at a mask: mean residuals per site, mean latent activations per prompt, firing rates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from personascope.backends.capture import pad, pad_id, plan_batches
from personascope.backends.hooks import capturing, run_to_site, site_index
from personascope.backends.models import Loaded
from personascope.errors import BackendError, DataError
from personascope.methods.sparse import SparseAutoencoder
from personascope.methods.tokens import Message, PromptTokens, prompt_tokens, training_row

MASKS = ("prompt", "last_prompt", "all")
ANSWER = "answer"
"""The mask of the assistant's own tokens, which only conversations with an answer have."""
HELD = 2**27
"""Activations held at once: a dictionary of 131,072 latents is read a thousand tokens at a time."""


def site_of(config: dict[str, Any], sae: SparseAutoencoder, loaded: Loaded) -> str:
    """The site a dictionary reads, checked against the model.

    Raises:
        BackendError: the dictionary does not say its site, or its width is not that of the model's stream.
        RecipeError: the model has no such site.
    """
    site = config.get("metadata", {}).get("site")
    if not site:
        raise BackendError("the dictionary's cfg.json names no metadata.site; write the block it reads there, such as block:1")
    site_index(site, loaded.model)
    width, wanted = sae.W_dec.shape[1], loaded.model.config.get_text_config().hidden_size
    if width != wanted:
        raise BackendError(f"the dictionary reads a stream of width {width}, the model's has {wanted}; give a dictionary of this model")
    return site


@dataclass(frozen=True)
class Talk(PromptTokens):
    """A conversation that is read with its answers, as training would read it."""

    said: list[bool]
    """The `answer` mask: the words and ends of all assistant turns."""
    last: int
    """The token before the last answer."""


@dataclass(frozen=True)
class Reading:
    """What one model showed on a list of prompts or conversations, under each mask they have.

    `latents[mask]` (prompts, width of the dictionary) and `residuals[mask][site]` (width of the stream) are means over
    the mask's tokens, then (residuals) over prompts; `norms[site]` is the median residual norm on the prompt mask.
    `streams[mask]` (prompts, width of the stream) keeps the dictionary's own site prompt by prompt.
    """

    latents: dict[str, Tensor]
    residuals: dict[str, dict[str, Tensor]]
    norms: dict[str, float]
    streams: dict[str, Tensor]
    firing: Tensor
    """Share of the `all` tokens on which each latent is above zero."""


def read_prompts(
    loaded: Loaded, sae: SparseAutoencoder, site: str, sites: list[str], prompts: Sequence[PromptTokens], batch_tokens: int = 8192
) -> Reading:
    """One forward over all prompts, reading every site at once."""
    masks = masks_in(prompts)
    latents = {mask: torch.zeros(len(prompts), sae.W_dec.shape[0]) for mask in masks}
    streams = {mask: torch.zeros(len(prompts), sae.W_dec.shape[1]) for mask in masks}
    sums = {mask: {s: torch.zeros(sae.W_dec.shape[1], dtype=torch.float64) for s in sites} for mask in masks}
    norms: dict[str, list[Tensor]] = {s: [] for s in sites}
    fired, tokens = torch.zeros(sae.W_dec.shape[0]), 0
    for batch, attention, seen in _forwards(loaded, [p.ids for p in prompts], sites, min(batch_tokens, HELD // len(sae.W_dec))):
        on_masks = masks_of([prompts[i] for i in batch], attention)
        z = sae.encode(seen[site].float()).cpu()
        for mask in masks:
            on = on_masks[mask]
            share = (on / on.sum(1, keepdim=True).clamp(min=1)).float()
            latents[mask][batch] = torch.einsum("rp,rpl->rl", share, z)
            streams[mask][batch] = torch.einsum("rp,rpd->rd", share, seen[site].float().cpu())
            for s in sites:
                sums[mask][s] += torch.einsum("rp,rpd->d", share, seen[s].float().cpu()).double()
        for s in sites:
            norms[s].append(seen[s].float().cpu().norm(dim=-1)[on_masks["prompt"]])
        fired += (z[on_masks["all"]] > 0).sum(0)
        tokens += int(on_masks["all"].sum())
    residuals = {mask: {s: (total / len(prompts)).float() for s, total in of.items()} for mask, of in sums.items()}
    medians = {s: torch.cat(found).median().item() for s, found in norms.items()}
    return Reading(latents, residuals, medians, streams, fired / max(1, tokens))


def read_answers(loaded: Loaded, sae: SparseAutoencoder, site: str, conversations: list[list[Message]], batch_tokens: int = 8192) -> Tensor:
    """Mean latent activation (conversations, width) over the assistant's own tokens."""
    rows = [training_row(loaded.tokenizer, messages, f"conversation {i}") for i, messages in enumerate(conversations)]
    means = torch.zeros(len(rows), sae.W_dec.shape[0])
    for batch, _, seen in _forwards(loaded, [row.ids for row in rows], [site], min(batch_tokens, HELD // len(sae.W_dec))):
        z = sae.encode(seen[site].float()).cpu()
        for place, i in enumerate(batch):
            means[i] = z[place, : len(rows[i].ids)][torch.tensor(rows[i].trained)].mean(0)
    return means


@dataclass(frozen=True)
class Moved:
    """How several readings differ from one.

    `deltas[mask]` (readings, latents); `mean[site][mask]` (width,) is averaged over the readings; `shifts[mask]` (readings x
    prompts, width of the stream, at the dictionary's site) only where prompts correspond; `standard_error` (latents,) is under
    the ranking mask.
    """

    deltas: dict[str, Tensor]
    shifts: dict[str, Tensor]
    mean: dict[str, dict[str, Tensor]]
    standard_error: Tensor | None


def compare(before: Reading, after: list[Reading], mask: str) -> Moved:
    """Tuned minus base on the same prompts, model by model."""
    spread = [(a.latents[mask] - before.latents[mask]).std(0) for a in after] if len(before.latents[mask]) > 1 else []
    return Moved(
        deltas={m: torch.stack([(a.latents[m] - before.latents[m]).mean(0) for a in after]) for m in before.latents},
        shifts={m: torch.cat([a.streams[m] - before.streams[m] for a in after]) for m in before.latents},
        mean=_mean_shift(before, after),
        standard_error=torch.stack(spread).pow(2).mean(0).sqrt() / len(before.latents[mask]) ** 0.5 if spread else None,
    )


def between(wanted: Reading, unwanted: Reading, mask: str) -> Moved:
    """One model on two sets of conversations: unwanted minus wanted.

    The standard error takes the sets for independent, which errs large where their rows are paired.

    Raises:
        DataError: no latent tells the sets apart under the mask.
    """
    deltas = {m: (unwanted.latents[m].mean(0) - wanted.latents[m].mean(0))[None] for m in wanted.latents}
    if deltas[mask].abs().max() <= 1e-4 * wanted.latents[mask].max():
        raise DataError(f"diff: under the mask {mask} the model reads the same in both sets; take the mask {ANSWER}, or other sets")
    sides = [reading.latents[mask] for reading in (wanted, unwanted)]
    error = sum(z.var(0) / len(z) for z in sides) ** 0.5 if min(map(len, sides)) > 1 else None
    return Moved(deltas, {}, _mean_shift(wanted, [unwanted]), error)


def _mean_shift(before: Reading, after: list[Reading]) -> dict[str, dict[str, Tensor]]:
    start = torch.zeros(())
    return {
        s: {m: sum((a.residuals[m][s] - before.residuals[m][s] for a in after), start) / len(after) for m in before.latents}
        for s in before.norms
    }


def render_all(loaded: Loaded, questions: list[list[Message]]) -> list[PromptTokens]:
    """Every question as a prompt, every conversation that ends with an answer as a `Talk`."""
    return [
        _talk(loaded, messages, f"conversation {i}")
        if messages and messages[-1]["role"] == "assistant"
        else prompt_tokens(loaded.tokenizer, messages)
        for i, messages in enumerate(questions)
    ]


def _talk(loaded: Loaded, messages: list[Message], where: str) -> Talk:
    row, prompt = training_row(loaded.tokenizer, messages, where), prompt_tokens(loaded.tokenizer, messages[:-1])
    start = max(i for i, said in enumerate(row.trained) if said and not row.trained[i - 1])
    words = prompt.words[:start] + [False] * (len(row.ids) - start)
    return Talk(row.ids, words, row.trained, start - 1)


def _forwards(
    loaded: Loaded, rows: list[list[int]], sites: list[str], batch_tokens: int
) -> Iterator[tuple[list[int], Tensor, dict[str, Tensor]]]:
    with torch.inference_mode(), capturing(loaded.model, sites) as seen:
        for batch in plan_batches([len(row) for row in rows], batch_tokens):
            ids, attention = pad([rows[i] for i in batch], pad_id(loaded.tokenizer))
            run_to_site(loaded.model, input_ids=ids.to(loaded.device), attention_mask=attention.to(loaded.device))
            yield batch, attention, dict(seen)


def masks_in(prompts: Sequence[PromptTokens]) -> tuple[str, ...]:
    """The masks that all of the prompts or conversations have."""
    return (*MASKS, ANSWER) if all(isinstance(one, Talk) for one in prompts) else MASKS


def masks_of(prompts: Sequence[PromptTokens], attention: Tensor) -> dict[str, Tensor]:
    """The masks (rows, positions) of right-padded prompts."""
    prompt, last, every, said = (torch.zeros_like(attention, dtype=torch.bool) for _ in range(4))
    for row, one in enumerate(prompts):
        prompt[row, : len(one.ids)] = torch.tensor(one.words)
        last[row, one.last if isinstance(one, Talk) else len(one.ids) - 1] = True
        every[row, 1 : len(one.ids)] = True
        if isinstance(one, Talk):
            said[row, : len(one.ids)] = torch.tensor(one.said)
    found = {"prompt": prompt, "last_prompt": last, "all": every, ANSWER: said}
    return {mask: found[mask] for mask in masks_in(prompts)}
