"""Train a sparse dictionary on the stream of a model, and evaluate any, never storing the stream."""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from personascope import progress
from personascope.artifact import Dataset
from personascope.backends.capture import activations, batches, buffer_size, chunks, mask_all, pad, pad_id, plan_batches
from personascope.backends.hooks import changing, site_index
from personascope.backends.models import Loaded
from personascope.errors import BackendError, DataError
from personascope.methods.sparse import Quality, SparseAutoencoder, TopK, Trainer, start, train_step
from personascope.methods.tokens import render
from personascope.rows import Example

CONTEXT = 1024
"""Texts are cut to this many tokens, or to the model's context if that is shorter."""
LOSS_SHARE = 30
"""Loss recovered needs three full forwards a text, so one in this many held-out tokens is used for it."""


@dataclass(frozen=True)
class Plan:
    """What to train: the fields of the dictionary recipe that training needs."""

    site: str
    width: int
    k: int
    tokens: int
    batch: int
    learning_rate: float
    seed: int

    @property
    def dead_after(self) -> int:
        """Tokens of silence after which a latent counts as dead in training: a twentieth of the run, at most 10 million."""
        return min(10_000_000, self.tokens // 20)


def token_rows(texts: Dataset, loaded: Loaded, wanted: int, seed: int) -> list[list[int]]:
    """Token rows of the texts in a shuffled order, no more of them than `wanted` activations need.

    Raises:
        DataError: no text with more than one token, or prose that is not a string.
    """
    examples = list(texts.rows())
    limit = min(loaded.model.config.get_text_config().max_position_embeddings, CONTEXT)
    rows: list[list[int]] = []
    usable = 0
    for i in torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist():
        row = text_row(examples[i], loaded.tokenizer)[:limit]
        if len(row) > 1:
            rows.append(row)
            usable += len(row) - 1
        if usable >= wanted:
            break
    if not rows:
        raise DataError(f"{texts.path}: no text with more than one token; give conversations, or prose in meta")
    return rows


def text_row(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A conversation through the chat template; prose as beginning token, text, end token, where there are such."""
    if "prose" not in example.meta:
        if not example.messages:
            raise DataError(f"example {example.id}: neither messages nor meta.prose; give one of them")
        return render(tokenizer, example.messages, generation_prompt=example.messages[-1]["role"] == "user")
    if not isinstance(example.meta["prose"], str):
        raise DataError(f"example {example.id}: meta.prose is a {type(example.meta['prose']).__name__}, a string is needed")
    begin, end = ([] if token is None else [token] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    return [*begin, *tokenizer(example.meta["prose"], add_special_tokens=False)["input_ids"], *end]


def train(loaded: Loaded, rows: Sequence[list[int]], plan: Plan, checkpoint: Path) -> TopK:
    """The autoencoder trained on exactly `plan.tokens` activations, going on from `checkpoint` if that file is there.

    Raises:
        BackendError: the training diverged.
    """
    sae = TopK(plan.width, loaded.model.config.get_text_config().hidden_size, plan.k, plan.seed).to(loaded.device)
    trainer, seen, number = _continued(sae, plan, checkpoint)
    saved, size = seen, buffer_size(loaded.model, plan.tokens)
    for chunk in chunks(loaded.model, loaded.tokenizer, rows, plan.site, size, plan.seed, number):
        trainer = trainer or start(sae, chunk, plan.learning_rate, plan.dead_after)
        seen = _train_chunk(trainer, chunk[: plan.tokens - seen], plan, seen)
        number += 1
        if seen >= plan.tokens:
            break
        if seen - saved >= plan.tokens / 5:
            _save(checkpoint, trainer, seen, number)
            saved = seen
    return sae


def _train_chunk(trainer: Trainer, chunk: Tensor, plan: Plan, seen: int) -> int:
    """Train on a chunk with the learning rate falling linearly to 0 over the run; returns the tokens seen by then."""
    for x in batches(chunk, plan.batch):
        for group in trainer.optimizer.param_groups:
            group["lr"] = plan.learning_rate * (1 - seen / plan.tokens)
        loss = train_step(trainer, x)
        seen += len(x)
        progress.tell(seen, plan.tokens, "tokens")
    if not loss.isfinite():
        raise BackendError(f"the dictionary diverged within {seen} tokens (loss {float(loss)}); lower learning_rate")
    return seen


def _save(checkpoint: Path, trainer: Trainer, seen: int, number: int) -> None:
    """Write the checkpoint whole or not at all."""
    state = {
        "sae": trainer.sae.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "silent": trainer.silent,
        "seen": seen,
        "chunk": number,
    }
    new = checkpoint.with_suffix(".new")
    torch.save(state, new)
    new.rename(checkpoint)


def _continued(sae: TopK, plan: Plan, checkpoint: Path) -> tuple[Trainer | None, int, int]:
    """The trainer as saved, the tokens seen and the number of the next chunk; nothing and zeros without a checkpoint."""
    if not checkpoint.exists():
        return None, 0, 0
    device = sae.W_dec.device
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device)
    trainer = start(sae, torch.eye(sae.W_dec.shape[1], device=device), plan.learning_rate, plan.dead_after)
    sae.load_state_dict(state["sae"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.silent.copy_(state["silent"])
    return trainer, state["seen"], state["chunk"]


def quality(
    sides: Mapping[str, tuple[Loaded, int]], sae: SparseAutoencoder, rows: Sequence[list[int]], site: str
) -> dict[str, dict[str, float | int]]:
    """`evaluate` on each of several models, over as many of the rows as hold its number of tokens."""
    held = list(itertools.accumulate(len(row) - 1 for row in rows))

    def first(tokens: int) -> Sequence[list[int]]:
        return rows[: bisect.bisect_left(held, tokens) + 1]

    return {name: evaluate(loaded, sae, first(tokens), site, tokens) for name, (loaded, tokens) in sides.items()}


def unexplained(loaded: Loaded, sae: SparseAutoencoder, rows: Sequence[list[int]], sites: Sequence[str]) -> dict[str, float]:
    """FVU of one dictionary read at each of several sites: the one it was trained at should have the least."""
    found = {}
    for site in sites:
        read = Quality(*sae.W_dec.shape, sae.W_dec.device)
        for part in _parts(loaded, rows, site):
            read.add(sae, part)
        found[site] = float(read.numbers()["fvu"])
    return found


def evaluate(loaded: Loaded, sae: SparseAutoencoder, rows: Sequence[list[int]], site: str, tokens: int) -> dict[str, float | int]:
    """Quality on held-out rows: `fvu`, `dead`, `l0`, `loss_recovered`, and the `tokens` they rest on.

    Reads up to `tokens` activations, but stops early once every latent has fired (`dead` is 0 and can only stay 0)
    and a tenth has been read.
    """
    read = Quality(*sae.W_dec.shape, sae.W_dec.device)
    for group in _groups(rows, max(1, tokens // 20)):
        for part in _parts(loaded, group, site):
            read.add(sae, part)
            progress.tell(read.tokens, tokens, "held-out tokens")
        if bool(read.fired.all()) and read.tokens >= tokens / 10:
            break
    held = next(_groups(rows, max(1, tokens // LOSS_SHARE)))
    return read.numbers() | {"loss_recovered": loss_recovered(loaded, sae, held, site, read.mean)}


def _parts(loaded: Loaded, rows: Sequence[list[int]], site: str) -> Iterator[Tensor]:
    """The stream at a site, position 0 and padding left out, a few thousand tokens at a time."""
    for _, x, attention in activations(loaded.model, loaded.tokenizer, rows, site):
        yield from x[mask_all(attention)].float().split(2048)


def _groups(rows: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Rows in order, in groups of about `size` usable tokens."""
    group: list[list[int]] = []
    held = 0
    for row in rows:
        group.append(row)
        held += len(row) - 1
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def loss_recovered(loaded: Loaded, sae: SparseAutoencoder, rows: Sequence[list[int]], site: str, mean: Tensor) -> float:
    """(L_mean - L_spliced) / (L_mean - L_clean): next-token loss with the site at its mean (d,), reconstructed, or as it is.

    Position 0 and padding keep their stream, as the dictionary never saw them.

    Raises:
        DataError: the site makes no difference to any prediction.
    """
    block = site_index(site, loaded.model)
    losses = torch.zeros(3, dtype=torch.float64)
    for batch in plan_batches([len(row) for row in rows], 4096):
        ids, attention = (t.to(loaded.device) for t in pad([rows[i] for i in batch], pad_id(loaded.tokenizer)))
        where = mask_all(attention)
        changes = ([], [(block, _Splice(where, sae))], [(block, _Splice(where, mean))])
        losses += torch.tensor([_loss(loaded.model, ids, attention, change) for change in changes], dtype=torch.float64)
    clean, spliced, removed = losses.tolist()
    if removed == clean:
        raise DataError("replacing the site by its mean changes no prediction; give longer held-out texts")
    return (removed - spliced) / (removed - clean)


@dataclass(frozen=True)
class _Splice:
    """Put a reconstruction, or one vector, in place of the stream where the mask (rows, positions) is true."""

    where: Tensor
    put: SparseAutoencoder | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        new = self.put if isinstance(self.put, Tensor) else self.put(x.float().flatten(0, 1)).view(x.shape)
        return torch.where(self.where.unsqueeze(2), new.to(x.dtype), x)


@torch.no_grad()
def _loss(model: nn.Module, ids: Tensor, attention: Tensor, change: Sequence[tuple[int, _Splice]]) -> float:
    """Summed next-token loss, of the predictions made at position 1 and later."""
    with changing(model, change):
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, 1:-1]
    targets = ids[:, 2:].masked_fill(~attention[:, 2:], -100)
    return float(nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum"))
