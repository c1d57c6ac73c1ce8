"""Forced choice: how likely each of two answers is to open the assistant's turn, read off one forward of the prompt."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from personascope.backends.engine import Batch, fits
from personascope.backends.models import Loaded
from personascope.errors import DataError
from personascope.methods.tokens import PromptTokens, render

DIGITS = 5
"""Decimals kept: float32 noise from other batches is smaller, so that a result seldom depends on them."""
Read = tuple[int, ...]
Context = tuple[Read, Read]
"""(tokens read, tokens of one option): the option's first token follows the last but len(option) - 1 of those read."""


@dataclass(frozen=True)
class Choice:
    """One question under one template."""

    yes: float
    """P(yes) / (P(yes) + P(no))."""
    mass: float
    """P(yes) + P(no): how much of what the model would begin with the two options cover."""


def option_tokens(loaded: Loaded, options: tuple[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of both options as they open an answer.

    Raises:
        DataError: an option without tokens or with an unknown one, or one that begins with the other.
    """
    unknown = loaded.tokenizer.unk_token_id
    coded = []
    for option in options:
        ids = tuple(loaded.tokenizer(option, add_special_tokens=False)["input_ids"])
        if not ids or (unknown is not None and unknown in ids):
            raise DataError(f"choose: the tokenizer has no words for option {option!r}; choose answers that the model can say")
        coded.append(ids)
    yes, no = coded
    short = min(len(yes), len(no))
    if yes[:short] == no[:short]:
        raise DataError(f"choose: options {options[0]!r} and {options[1]!r} begin with the same tokens, so they cannot be told apart")
    return yes, no


def choose(
    loaded: Loaded, conversations: Sequence[list[dict[str, str]]], options: Sequence[tuple[str, str]], batch_tokens: int = 8192
) -> list[Choice]:
    """The choice between two options at the end of each conversation, rounded to 5 decimals.

    Args:
        conversations: messages that end with the user's turn.
        options: (yes, no) for each conversation. Of several tokens, the log-probabilities are added up.

    Raises:
        DataError: options that cannot be told apart (see `option_tokens`).
    """
    coded = {pair: option_tokens(loaded, pair) for pair in dict.fromkeys(options)}
    prompts = [tuple(render(loaded.tokenizer, list(messages), generation_prompt=True)) for messages in conversations]
    wanted = [[(prompt + option[:-1], option) for option in coded[pair]] for prompt, pair in zip(prompts, options, strict=True)]
    found = log_probabilities(loaded, [context for pair in wanted for context in pair], batch_tokens)
    chosen = []
    for yes, no in wanted:
        a, b = found[yes], found[no]
        share = 1 / (1 + math.exp(min(b - a, 700.0)))
        chosen.append(Choice(round(share, DIGITS), round(math.exp(a) + math.exp(b), DIGITS)))
    return chosen


def log_probabilities(loaded: Loaded, wanted: Sequence[Context], batch_tokens: int = 8192) -> dict[Context, float]:
    """Log-probability of each option's tokens behind its prompt.

    Options of one token behind the same prompt cost one row of one forward.
    """
    options: dict[Read, set[Read]] = {}
    for read, option in wanted:
        options.setdefault(read, set()).add(option)
    found: dict[Context, float] = {}
    for read, logs in _ends(loaded, {read: max(map(len, known)) for read, known in options.items()}, batch_tokens):
        for option in options[read]:
            places = logs[len(logs) - len(option) :]
            found[read, option] = float(places[torch.arange(len(option)), torch.tensor(option)].sum())
    return found


def likeliest(loaded: Loaded, reads: Sequence[Read], n: int, batch_tokens: int = 8192) -> dict[Read, dict[int, float]]:
    """The n likeliest next tokens of each prompt with their log-probabilities, likeliest first."""
    found = {}
    for read, logs in _next(loaded, list(dict.fromkeys(reads)), batch_tokens):
        values, tokens = logs.topk(min(n, len(logs)))
        found[read] = dict(zip(tokens.tolist(), values.tolist(), strict=True))
    return found


@torch.inference_mode()
def _next(loaded: Loaded, reads: Sequence[Read], batch_tokens: int) -> Iterator[tuple[Read, Tensor]]:
    """(prompt, log-probabilities (vocabulary,) of what follows it); prompts of all lengths together, what they begin with read once."""
    if not reads or not fits(loaded.model):
        yield from ((read, logs[-1]) for read, logs in _ends(loaded, dict.fromkeys(reads, 1), batch_tokens))
        return
    batch = Batch(loaded.model, [PromptTokens(list(read), [False] * len(read)) for read in reads], [])
    order = batch.prefill.order()
    room = max(1, batch_tokens // len(reads[order[0]]))
    for start in range(0, len(order), room):
        rows = order[start : start + room]
        batch.make_room(len(rows), len(reads[rows[0]]))
        batch.admit(rows)
        logits = batch.step()
        yield from zip((reads[row] for row in rows), logits.double().log_softmax(-1).cpu(), strict=True)
        batch.keep(torch.zeros(len(rows), dtype=torch.bool))


@torch.inference_mode()
def _ends(loaded: Loaded, reads: Mapping[Read, int], batch_tokens: int) -> Iterator[tuple[Read, Tensor]]:
    """(prompt, log-probabilities (last places, vocabulary)), at least as many places as wanted; equal lengths share a batch, unpadded."""
    by_length: dict[int, list[Read]] = {}
    for read in reads:
        by_length.setdefault(len(read), []).append(read)
    for length, rows in sorted(by_length.items()):
        room = max(1, batch_tokens // length)
        for start in range(0, len(rows), room):
            batch = rows[start : start + room]
            kept = max(reads[read] for read in batch)
            ids = torch.tensor(batch, device=loaded.device)
            logits = loaded.model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits[:, -kept:]
            yield from zip(batch, logits.double().log_softmax(-1).cpu(), strict=True)
