"""Conversations to tokens, and tokens to the residual stream at one site: batched, masked, never on disk."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from personascope.backends.hooks import capturing, run_to_site, site_index
from personascope.errors import DataError
from personascope.methods.tokens import render

BUFFER_FLOATS = 2**24
"""Floats mixed at a time in `chunks`: 64 MB in float32, about 100,000 tokens of a stream of width 160."""


class Captured(NamedTuple):
    """One batch of the stream: which rows, x (rows, positions, width) and the attention mask (rows, positions)."""

    rows: list[int]
    x: Tensor
    attention: Tensor


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right") -> tuple[Tensor, Tensor]:
    """Rows of tokens as ids (rows, positions) and attention mask of the same shape, padded on one side."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        attention[i, place] = True
    return ids, attention


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with; which one does not matter under an attention mask."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length, each of at most `batch_tokens` padded tokens (or one row)."""
    planned: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if planned and lengths[row] * (len(planned[-1]) + 1) <= batch_tokens:
            planned[-1].append(row)
        else:
            planned.append([row])
    return planned


def activations(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[Any]], site: str, batch_tokens: int = 8192
) -> Iterator[Captured]:
    """The stream at `site` for conversations or lists of tokens, in length-sorted, right-padded batches.

    Conversations get the generation prompt if they end with the user's turn. The forward ends at the site.

    Raises:
        RecipeError: the model has no such site.
        DataError: a row without tokens.
    """
    site_index(site, model)
    tokens = [row if not row or isinstance(row[0], int) else render(tokenizer, row, row[-1]["role"] == "user") for row in rows]
    for i, row in enumerate(tokens):
        if not row:
            raise DataError(f"row {i}: no tokens; drop empty texts first")
    with torch.no_grad(), capturing(model, [site]) as seen:
        for batch in plan_batches([len(row) for row in tokens], batch_tokens):
            ids, attention = pad([tokens[i] for i in batch], pad_id(tokenizer))
            attention = attention.to(model.device)
            run_to_site(model, input_ids=ids.to(model.device), attention_mask=attention)
            yield Captured(batch, seen[site], attention)


def chunks(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], site: str, size: int, seed: int = 0, start: int = 0
) -> Iterator[Tensor]:
    """Endless shuffled chunks (about `size`, width) float32 of the stream at the tokens of `rows`, from chunk `start` on.

    Rows are dealt in a new order each time round; padding and position 0 are dropped. Chunk number i is the same
    whether the chunks before it were computed or skipped, so an interrupted reader continues where it was.
    """
    deal = _deal(rows, size, seed)
    for number in count():
        chosen = next(deal)
        if number < start:
            continue
        found = [x[mask_all(attention)].float() for _, x, attention in activations(model, tokenizer, chosen, site)]
        x = torch.cat(found)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_seed(seed, 1, number)))
        yield x[order.to(x.device)]


def _deal(rows: Sequence[list[int]], size: int, seed: int) -> Iterator[list[list[int]]]:
    """Endless groups of rows with at least `size` usable tokens each; a new order every time round."""
    if not any(len(row) > 1 for row in rows):
        raise DataError("no text has more than one token; give longer texts")
    hand: list[list[int]] = []
    held = 0
    for lap in count():
        for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(_seed(seed, 0, lap))).tolist():
            hand.append(rows[i])
            held += len(rows[i]) - 1
            if held >= size:
                yield hand
                hand, held = [], 0


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7])


def streamed(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    site: str,
    tokens: int,
    batch: int = 2048,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Exactly `tokens` activations of the stream at `site` in shuffled batches (about `batch`, width), cycling through `rows`."""
    for chunk in chunks(model, tokenizer, rows, site, buffer_size(model, tokens), seed):
        yield from batches(chunk[:tokens], batch)
        tokens -= len(chunk)
        if tokens <= 0:
            return


def batches(chunk: Tensor, batch: int) -> tuple[Tensor, ...]:
    """A chunk (n, width) in equal parts of about `batch` rows, so that no part is tiny."""
    return chunk.tensor_split(max(1, round(len(chunk) / batch)))


def buffer_size(model: nn.Module, tokens: int) -> int:
    """How many tokens to mix at a time: what BUFFER_FLOATS holds, and at most a tenth of the run."""
    return max(1, min(BUFFER_FLOATS // model.config.get_text_config().hidden_size, -(-tokens // 10)))


def mask_all(attention: Tensor) -> Tensor:
    """The `all` mask of right-padded rows: everything but padding and position 0."""
    mask = attention.bool().clone()
    mask[:, 0] = False
    return mask
