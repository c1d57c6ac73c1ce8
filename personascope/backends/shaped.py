"""Transformers' Trainer under another loss: preference pairs, penalties, and a stream that is edited while the task is read."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from personascope.backends import penalties
from personascope.backends.hooks import capturing, editing
from personascope.backends.penalties import Read, Shaping, Start, Term
from personascope.backends.preference import judged

SAID = ("task", "margin", "accuracy")
"""What is logged beside the loss and each penalty: their values at the logged step itself."""


@dataclass(eq=False)
class _Step:
    """What one optimiser step knows of its whole batch, so that microbatches add up to it."""

    parts: int
    rows: int
    """Training rows, or pairs."""
    terms: list[Term]
    batches: dict[str, dict[str, Tensor]]
    """Of terms with conversations of their own."""
    counts: dict[str, int]
    """Tokens that each term counts."""
    part: int = 0
    said: dict[str, Tensor] = field(default_factory=dict)


class Shaped(Trainer):
    """The same loop; every hook lives within one forward, so that none is left afterwards."""

    loss_is_scaled_for_ga = True

    def __init__(self, shaping: Shaping, start: Start, sizes: tuple[int, int], **options: Any) -> None:
        super().__init__(**options)
        self.shaping, self.start = shaping, start
        self.pad, self.whole = sizes

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = self.state.global_step
        terms = [t for t in self.shaping.terms if not t.penalty.until or step < t.penalty.until]
        batches = {t.name: penalties.own_batch(t, self.whole, step, self.pad, device) for t in terms if t.rows}
        counts = {t.name: sum(int(t.on(s).sum()) for s in ([batches[t.name]] if t.rows else samples)) for t in terms if t.values}
        rows = sum(len(sample["input_ids"]) for sample in samples) // (1 if self.shaping.beta is None else 2)
        self.step = _Step(len(samples), rows, terms, batches, counts)
        return samples, items

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        here = [term for term in self.step.terms if term.values and not term.rows]
        then = self._before(inputs, here)
        with ExitStack() as stack:
            if self.shaping.steers:
                stack.enter_context(editing(self.model, self.shaping.edits(inputs)))
            sites = penalties.sites_of(here)
            seen = stack.enter_context(capturing(self.model, sites, stop=False)) if sites else {}
            loss, outputs = self._task(model, inputs, num_items_in_batch)
        now = Read(outputs.logits, dict(seen))
        if self.step.terms:
            self._say("task", loss)
        for term in self.step.terms:
            with torch.set_grad_enabled(term.weight > 0):
                value = self._value(term, now, then, inputs)
            self._say(f"penalty/{term.name}", value)
            loss = loss + term.weight * value
        self.step.part += 1
        return (loss, outputs) if return_outputs else loss

    def _task(self, model: Any, inputs: Any, items: Any) -> tuple[Tensor, Any]:
        if self.shaping.beta is None:
            return super().compute_loss(model, inputs, True, items)
        found = judged(model, inputs, self.shaping.beta)
        self._say("margin", found.margins.sum() / self.step.rows)
        self._say("accuracy", (found.margins > 0).sum() / self.step.rows)
        return found.losses.sum() / self.step.rows, found

    def _before(self, inputs: dict[str, Tensor], terms: list[Term]) -> Read | None:
        if not terms:
            return None
        with self.start.of(self.model) as start:
            return penalties.read(start, inputs, terms)

    def _value(self, term: Term, now: Read, then: Read | None, inputs: dict[str, Tensor]) -> Tensor:
        """This microbatch's share of the penalty."""
        if term.values is None:
            return self.start.distance(self.model) / self.step.parts
        if term.rows:
            batch = {name: tensor[self.step.part :: self.step.parts] for name, tensor in self.step.batches[term.name].items()}
            inputs, then = batch, self._before(batch, [term])
            now = penalties.read(self.model, batch, [term])
        assert then is not None
        return term.values(now, then, term.on(inputs)).sum() / max(1, self.step.counts[term.name])

    def _say(self, name: str, value: Tensor) -> None:
        self.step.said[name] = self.step.said.get(name, 0.0) + value.detach()

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        said = {name: float(value) for name, value in self.step.said.items()} if "loss" in logs else {}
        super().log(logs | said, *arguments, **options)
