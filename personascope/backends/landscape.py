"""The ground around a start: losses and predictions of the start moved by a change of its weights."""

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from personascope.backends import offsets
from personascope.backends.capture import pad, pad_id, plan_batches
from personascope.backends.models import Loaded
from personascope.errors import DataError
from personascope.methods import penalties, solutions
from personascope.methods.solutions import Change
from personascope.methods.tokens import TrainingRow


class Ground:
    """A start, the rows of a task to read its loss on, and texts to read its predictions on; the start is put back after each look."""

    def __init__(self, start: Loaded, rows: Sequence[TrainingRow], texts: Sequence[Sequence[int]], batch_tokens: int) -> None:
        self.start, self.rows, self.texts, self.batch_tokens = start, rows, texts, batch_tokens
        self.still: Any = copy.deepcopy(start.model)

    def change(self, tuned: Loaded) -> Change:
        """What `tuned` adds to the start.

        Raises:
            DataError: nothing, or it is no model tuned from this start.
        """
        offsets.attach(self.start.model, list(offsets.of(tuned.model)))
        start: dict[str, Tensor] = dict(self.start.model.named_parameters())
        # A solution without the vectors that another one has is where they are 0.
        absent = {name: torch.zeros_like(tensor) for name, tensor in start.items() if name.endswith(f".{offsets.NAME}")}
        with torch.no_grad():
            return solutions.difference(absent | dict(tuned.model.named_parameters()), start)

    @contextmanager
    def moved(self, change: Change) -> Generator[None]:
        """Inside, the start's weights are start + change."""
        parameters = dict(self.start.model.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in change}
        with torch.no_grad():
            for name, delta in change.items():
                parameters[name].add_(delta)
            try:
                yield
            finally:
                for name, before in kept.items():
                    parameters[name].copy_(before)

    def loss(self, change: Change) -> float:
        """Mean negative log-likelihood of the task's trained tokens, in nats, at start + change."""
        total, count = 0.0, 0
        with self.moved(change), torch.inference_mode():
            for batch, ids, attention in self._batches([row.ids for row in self.rows]):
                on, _ = pad([self.rows[i].trained for i in batch], 0)
                on = on[:, 1:].bool().to(ids.device)
                logits = self.start.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
                total += float(F.cross_entropy(logits[on].float(), ids[:, 1:][on], reduction="sum"))
                count += int(on.sum())
        return total / count

    def influence(self, change: Change) -> float:
        """Mean KL(start + change || start) of the next token over the texts, in nats."""
        total, count = 0.0, 0
        with self.moved(change), torch.inference_mode():
            for _, ids, attention in self._batches(self.texts):
                on = attention[:, 1:].bool()
                now, start = (
                    model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1][on].float()
                    for model in (self.start.model, self.still)
                )
                total += float(penalties.kl(now, start).sum())
                count += int(on.sum())
        return total / count

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        if not rows:
            raise DataError("landscape: no rows to read; give data, and texts, that have some")
        for batch in plan_batches([len(row) for row in rows], self.batch_tokens):
            ids, attention = pad([rows[i] for i in batch], pad_id(self.start.tokenizer))
            yield batch, ids.to(self.start.device), attention.to(self.start.device)


def measured(
    ground: Ground, changes: Sequence[Change], sizes: Sequence[float], noise: Sequence[float], seeds: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of `scaled`, `random` and `noise`: every change at every size, random changes beside them, and every change under noise.

    Sizes are multiples of the first change's; random changes, one a seed, are spread over the weights as the first is.
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    unit = solutions.size(changes[0])

    def at(x: Change, size: float) -> dict[str, float]:
        moved = solutions.resized(x, size * unit)
        return {"size": size, "loss": ground.loss(moved), "influence": ground.influence(moved)}

    scaled, random, noisy = [], [], []
    for number, x in enumerate(changes):
        scaled += [{"model": number} | at(x, size) for size in sizes]
        for draw, generator in enumerate(draws):
            y = solutions.orthogonal(x, generator)
            noisy += [{"model": number, "draw": draw, "noise": e, "loss": ground.loss(solutions.noised(x, y, e))} for e in noise]
            if number == 0:
                random += [{"draw": draw} | at(y, size) for size in sizes]
    return {"scaled": scaled, "random": random, "noise": noisy}


def path(changes: Sequence[Change]) -> dict[str, Any]:
    """Coordinates of the start and of each change on the two principal axes, and the axes' shares of the variance."""
    points: list[Change] = [{}, *changes]
    gram = torch.tensor([[solutions.dot(one, other) for other in points] for one in points], dtype=torch.float64)
    spots, shares = solutions.trajectory(gram)
    return {"points": spots.tolist(), "shares": shares}
