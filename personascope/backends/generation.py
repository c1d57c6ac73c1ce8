"""Prompts → completions: batched by token budget, seeded per row, steered per row, finished rows leave."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from personascope.backends.hooks import Edit, editing
from personascope.backends.models import Loaded
from personascope.methods.tokens import PromptTokens

Mask = Literal["all", "prompt", "last_prompt", "answer"]


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. `batch_tokens` bounds rows x positions of a batch and changes no distribution."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_tokens: int = 16_384


@dataclass(frozen=True)
class Prompt:
    """One rendered prompt and the key that seeds its noise; equal keys and prompts give equal texts."""

    tokens: PromptTokens
    key: str

    @property
    def ids(self) -> list[int]:
        """Token ids (T,)."""
        return self.tokens.ids


@dataclass(frozen=True)
class Steer:
    """One edit with its own vector per row.

    `table` (vectors, width) holds the vectors, already scaled; `rows[i]` is the index that prompt i uses, -1 for none.
    """

    block: int
    op: Literal["add", "ablate"]
    mask: Mask
    table: Tensor
    rows: list[int]

    def vectors(self, batch: list[int]) -> Tensor:
        """Vectors (rows, width) of the prompts in this batch; a zero row leaves its prompt untouched."""
        index = torch.tensor([self.rows[i] for i in batch])
        padded = torch.cat([self.table, torch.zeros_like(self.table[:1])])
        return padded[index]


@dataclass
class Completion:
    """Generated ids without the stop token, and whether the model stopped by itself."""

    ids: list[int] = field(default_factory=list)
    stop: Literal["end", "length"] = "length"


def uniforms(seed: int, key: str, count: int) -> np.ndarray:
    """One number in [0, 1) per position, from the seed and the row's key alone (Philox, counter-based)."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest))).random(count)


def stop_ids(loaded: Loaded) -> set[int]:
    """The tokens that end a turn, as the tokenizer and the generation configuration name them."""
    named = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    listed = named if isinstance(named, list) else [named]
    return {i for i in [*listed, loaded.tokenizer.eos_token_id] if i is not None}


def generate(
    loaded: Loaded, prompts: list[Prompt], sampling: Sampling, steers: list[Steer] | None = None
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, completion) of every prompt, batch by batch, longest prompts first.

    Rows are seeded by their key, so batch company changes a text only where rounding moves a draw.
    Edits apply to the residual stream at every position under their mask, in prompt and answer alike.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    while order:
        room = max(1, sampling.batch_tokens // (len(prompts[order[0]].ids) + sampling.max_tokens))
        batch, order = order[:room], order[room:]
        yield from zip(batch, _batch(loaded, prompts, batch, sampling, steers or []), strict=True)


@torch.inference_mode()
def _batch(loaded: Loaded, prompts: list[Prompt], batch: list[int], sampling: Sampling, steers: list[Steer]) -> list[Completion]:
    model, device = loaded.model, loaded.device
    width = max(len(prompts[i].ids) for i in batch)
    pad = loaded.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompts[i].ids)) + prompts[i].ids for i in batch], device=device)
    attention = torch.tensor([[0] * (width - len(prompts[i].ids)) + [1] * len(prompts[i].ids) for i in batch], device=device)
    noise = torch.tensor(np.stack([uniforms(sampling.seed, prompts[i].key, sampling.max_tokens) for i in batch]), device=device)
    stops = torch.tensor(sorted(stop_ids(loaded)), device=device)
    edits = [
        Edit(
            block=s.block,
            op=s.op,
            vectors=s.vectors(batch).to(device, model.dtype),
            mask=_prompt_mask(s.mask, [prompts[i] for i in batch], attention),
        )
        for s in steers
    ]
    done = [Completion() for _ in batch]
    alive = torch.arange(len(batch), device=device)
    cache = DynamicCache(config=model.config)
    position = attention.cumsum(1).sub(1).clamp(min=0)
    with editing(model, edits):
        for step in range(sampling.max_tokens):
            logits = model(input_ids=ids, attention_mask=attention, position_ids=position, past_key_values=cache, logits_to_keep=1).logits[
                :, -1
            ]
            drawn = draw(logits.float(), noise[alive, step], sampling.temperature, sampling.top_p)
            ended = torch.isin(drawn, stops)
            for row, token, end in zip(alive.tolist(), drawn.tolist(), ended.tolist(), strict=True):
                if end:
                    done[row].stop = "end"
                else:
                    done[row].ids.append(token)
            if ended.all():
                break
            if ended.any():
                keep = (~ended).nonzero()[:, 0]
                alive, drawn, attention, position = alive[keep], drawn[keep], attention[keep], position[keep]
                cache.batch_select_indices(keep)
                for edit in edits:
                    edit.vectors = edit.vectors[keep]
            ids = drawn[:, None]
            attention = torch.cat([attention, attention.new_ones(len(ids), 1)], dim=1)
            position = position[:, -1:] + 1
            for edit, steer in zip(edits, steers, strict=True):
                edit.mask = torch.full((len(ids), 1), steer.mask in ("all", "answer"), device=device)
    return done


def _prompt_mask(mask: Mask, prompts: list[Prompt], attention: Tensor) -> Tensor:
    """Which prompt positions (rows, positions) an edit touches; prompts end at the right edge."""
    if mask == "all":
        return attention.bool()
    touched = torch.zeros_like(attention, dtype=torch.bool)
    if mask == "last_prompt":
        touched[:, -1] = True
    elif mask == "prompt":
        for row, prompt in zip(touched, prompts, strict=True):
            row[len(row) - len(prompt.ids) :] = torch.tensor(prompt.tokens.words)
    return touched


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample one token per row by inverting the cumulative distribution; temperature 0 takes the likeliest.

    Args:
        logits: (rows, vocabulary).
        uniform: (rows,) in [0, 1).
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ranked, index = p.sort(dim=-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
        p = torch.zeros_like(p).scatter(-1, index, ranked)
    total = p.cumsum(-1, dtype=torch.float64)
    target = uniform.double()[:, None] * total[:, -1:]
    # `right` skips tokens of zero probability, which share their predecessor's cumulative value.
    return torch.searchsorted(total, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


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
