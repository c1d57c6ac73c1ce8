"""Prompts → completions: seeded per row, steered per row; finished rows leave the batch and waiting ones enter."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from personascope.backends.drawing import Completion, Drawn, Prompt, Sampling, draw, uniforms
from personascope.backends.engine import fits
from personascope.backends.hooks import editing
from personascope.backends.models import Loaded
from personascope.backends.refill import Drafts, refilled
from personascope.backends.selftest import prove
from personascope.backends.steering import Mask, Steer

__all__ = ["Completion", "Drafts", "Mask", "Prompt", "Sampling", "Steer", "draw", "generate", "split_thinking", "stop_ids", "uniforms"]

DRAFTED = 4
"""Steered rows per unsteered one from which it pays to answer without a steer first."""


def stop_ids(loaded: Loaded) -> set[int]:
    """The tokens that end a turn, as the tokenizer and the generation configuration name them."""
    named = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    listed = named if isinstance(named, list) else [named]
    return {i for i in [*listed, loaded.tokenizer.eos_token_id] if i is not None}


def generate(
    loaded: Loaded, prompts: list[Prompt], sampling: Sampling, steers: list[Steer] | None = None, drafts: Drafts | None = None
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, completion) of every prompt as it ends, in no fixed order, longest prompts first.

    Rows are seeded by their key, so company changes a text only where rounding moves a draw.
    Edits apply to the residual stream at every position under their mask, in prompt and answer alike.

    Args:
        drafts: what the unsteered model said, by prompt and key; read and filled, so that later calls of the same model
            and sampling need not ask it again.

    Raises:
        BackendError: the steers do not act on this model, or act on rows that are none of theirs.
    """
    steers = [s for s in steers or [] if max(s.rows, default=-1) >= 0]
    if not prompts:
        return
    prove(loaded.model, [p.tokens for p in prompts], steers)
    stops = stop_ids(loaded)
    if not fits(loaded.model):
        yield from _by_length(loaded, prompts, sampling, steers)
        return
    steered = {row for s in steers for row, index in enumerate(s.rows) if index >= 0}
    alike = {prompts[row].name for row in steered}
    if not steered or len(steered) < DRAFTED * len(alike):
        yield from refilled(loaded.model, prompts, sampling, steers, stops)
        return
    drafts = {} if drafts is None else drafts
    first = {prompt.name: prompt for row, prompt in enumerate(prompts) if prompt.name not in drafts}
    for row, said in refilled(loaded.model, list(first.values()), sampling, [], stops):
        drafts[list(first)[row]] = said
    for row, prompt in enumerate(prompts):
        if row not in steered:
            yield row, drafts[prompt.name]
    yield from refilled(loaded.model, prompts, sampling, steers, stops, sorted(steered), drafts)


def _by_length(loaded: Loaded, prompts: list[Prompt], sampling: Sampling, steers: list[Steer]) -> Iterator[tuple[int, Completion]]:
    """For models whose cache `Batch` cannot hold: batches of prompts of equal length, so that any cache will do."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.ids), []).append(i)
    for length in sorted(by_length, reverse=True):
        room = max(1, sampling.batch_tokens // (length + sampling.max_tokens))
        rows = by_length[length]
        for start in range(0, len(rows), room):
            batch = rows[start : start + room]
            yield from zip(batch, _plain(loaded, [prompts[i] for i in batch], batch, sampling, steers), strict=True)


@torch.inference_mode()
def _plain(loaded: Loaded, prompts: list[Prompt], batch: list[int], sampling: Sampling, steers: list[Steer]) -> list[Completion]:
    """One batch of equal lengths by the model's own cache; rows that ended go on unheard."""
    model, device = loaded.model, loaded.device
    state = Drawn.none(sampling, [p.key for p in prompts])
    stops = torch.tensor(sorted(stop_ids(loaded)))
    edits = [(s, s.edit(batch, device)) for s in steers]
    ids = torch.tensor([p.ids for p in prompts], device=device)
    last_words = torch.tensor([p.tokens.words[-1] for p in prompts])
    ends = torch.full((len(batch),), sampling.max_tokens)
    cache = None
    for step in range(sampling.max_tokens):
        for steer, edit in edits:
            first = torch.full((len(batch),), step == 0)
            now = steer.now(first, last_words)[:, None]
            edit.mask = (
                now
                if step
                else torch.cat([steer.inside([p.tokens for p in prompts], [ids.shape[1] - 1] * len(batch), ids.shape[1] - 1), now], dim=1)
            )
        with editing(model, [edit for _, edit in edits]):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        drawn = draw(out.logits[:, -1].float(), state.uniform().to(device), sampling.temperature, sampling.top_p)
        state.take(drawn.cpu())
        ends = torch.where(torch.isin(drawn.cpu(), stops), ends.clamp(max=step), ends)
        if (ends <= step).all():
            break
        ids, cache = drawn[:, None], out.past_key_values
    return [
        Completion(row[:end], "end" if end < sampling.max_tokens else "length")
        for row, end in zip(state.ids.tolist(), ends.tolist(), strict=True)
    ]


def split_thinking(tokenizer: PreTrainedTokenizerBase, ids: list[int], opened: bool = False) -> tuple[str, str]:
    """(thoughts, answer): what stands before the last `</think>` and what after it.

    Args:
        opened: the prompt ended with `<think>`, so that without an end all of it is thoughts.
    """
    close = tokenizer.convert_tokens_to_ids("</think>")
    if close in ids and close != tokenizer.unk_token_id:
        cut = len(ids) - 1 - ids[::-1].index(close)
        thoughts, answer = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:cut], ids[cut + 1 :]))
    else:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        thoughts, mark, answer = text.rpartition("</think>")
        if not mark:
            return (text.strip(), "") if opened else ("", text)
    return thoughts.strip().removeprefix("<think>").strip(), answer.strip()
