"""Preference pairs of a training row, chosen over rejected, and their loss against the model that training starts from.

TRL's trainer for this brings its own data sets, tokenizer calls and checkpoints; the loss is one line, so it runs in our one loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from personascope.backends.capture import pad, plan_batches
from personascope.errors import DataError
from personascope.methods import preference
from personascope.methods.preference import IGNORED
from personascope.methods.tokens import TrainingRow, training_row
from personascope.rows import Example

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation; the loss counts each one's last turn."""

    chosen: TrainingRow
    rejected: TrainingRow
    start: tuple[float, float] = (0.0, 0.0)
    """log pi_0 of both, in nats, of the model that training starts from."""

    @property
    def differs(self) -> bool:
        """Whether there is anything to prefer."""
        return self.chosen.ids != self.rejected.ids


def pair(tokenizer: Any, example: Example, where: str) -> Pair:
    """The last assistant turn over `meta["rejected"]`.

    Raises:
        DataError: no assistant turn, or no rejected text; `where` (file:line and row id) is part of the message.
    """
    rejected = example.meta.get("rejected")
    if not isinstance(rejected, str) or not rejected.strip():
        raise DataError(f"{where}: no text in meta.rejected; preference training needs the answer that is not preferred")
    last = max((i for i, message in enumerate(example.messages) if message["role"] == "assistant"), default=-1)
    chosen = training_row(tokenizer, example.messages[: last + 1], where, last_only=True)
    other = [*example.messages[:last], {"role": "assistant", "content": rejected}]
    return Pair(chosen, training_row(tokenizer, other, where, last_only=True))


@torch.no_grad()
def with_start(model: Any, pairs: Sequence[Pair], pad_id: int) -> list[Pair]:
    """The pairs with the log-probabilities that `model`, as it is now, gives to both answers."""
    rows = [row for one in pairs for row in (one.chosen, one.rejected)]
    found = torch.zeros(len(rows), dtype=torch.float64)
    for batch in plan_batches([len(row.ids) for row in rows], BATCH_TOKENS):
        inputs = {name: tensor.to(model.device) for name, tensor in padded([rows[i] for i in batch], pad_id).items()}
        labels = inputs.pop("labels")
        logits = model(**inputs, use_cache=False).logits
        found[batch] = preference.answer_log_probs(logits.float(), labels).double().cpu()
    return [replace(one, start=(float(won), float(lost))) for one, (won, lost) in zip(pairs, found.view(-1, 2), strict=True)]


def padded(rows: Sequence[TrainingRow], pad_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels` (rows, positions), padded right; tokens that do not count are IGNORED."""
    ids, attention = pad([row.ids for row in rows], pad_id)
    trained = pad([[int(on) for on in row.trained] for row in rows], 0)[0].bool()
    return {"input_ids": ids, "attention_mask": attention.long(), "labels": ids.masked_fill(~trained, IGNORED)}


def collated(pairs: Sequence[Pair], pad_id: int) -> dict[str, Tensor]:
    """A batch of 2 b rows: the chosen answers, then the rejected ones, with `start` (2 b,)."""
    batch = padded([one.chosen for one in pairs] + [one.rejected for one in pairs], pad_id)
    return batch | {"start": torch.tensor([one.start[side] for side in (0, 1) for one in pairs])}


class Judged(NamedTuple):
    """What the model thinks of a batch of pairs: losses and margins (b,), and the logits it read."""

    losses: Tensor
    margins: Tensor
    logits: Tensor


def judged(model: Any, inputs: dict[str, Tensor], beta: float) -> Judged:
    """One forward over a collated batch."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    found = preference.answer_log_probs(logits.float(), inputs["labels"])
    margin = preference.margins(*found.chunk(2), *inputs["start"].to(found).chunk(2), beta)
    return Judged(preference.dpo(margin), margin, logits)
