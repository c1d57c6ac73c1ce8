"""Stems: the keys and values of prompts without their last token, each computed once however many rows need it.

Rows of equal prompts that no steer edits before the last token share one stem, and stems of prompts that begin alike, as a
judge's do with its rubric, share that beginning. Where a steer edits the prompt at block b, blocks 0 to b are still computed
once per prompt; only what lies above runs once per (prompt, edit).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from personascope.backends.hooks import Edit, blocks, changing, editing
from personascope.backends.slots import Collector, Filled, KeyValue
from personascope.backends.steering import Steer
from personascope.methods.tokens import PromptTokens

Stems = dict[int, KeyValue]
"""Per block, keys and values (stems, heads, positions, head width), right-padded."""
LEAST_SHARED = 32
"""Tokens that prompts must begin with alike for these to be computed apart: a forward costs something however short."""


class _Enough(Exception):
    """The block below which everything is shared has been read."""


@dataclass
class Trunk:
    """What was computed of some prompts alone: keys and values of blocks, and the stream after the last block computed."""

    place: dict[int, int]
    """Prompt group → its row below."""
    stems: Stems
    depth: int
    """Blocks computed; all of them for a whole prefill."""
    streams: dict[int, Tensor] = field(default_factory=dict)
    """Block → its output (prompts, positions, width)."""


@dataclass(frozen=True)
class Tried:
    """Steered prompts and drafts in one forward."""

    stems: Stems
    index: Tensor
    """(rows,) the stem of each row."""
    logits: Tensor
    """(stems, positions, vocabulary) from position `first` on."""
    first: int


class Prefill:
    """Makes stems for rows of one list of prompts, keeping what the rows admitted last had in common."""

    def __init__(
        self, model: nn.Module, prompts: Sequence[PromptTokens], steers: Sequence[Steer], drafts: Sequence[list[int]] | None = None
    ) -> None:
        """Find which prompts, and drafts of an answer, are equal; rows are then named by their number in `prompts`."""
        self.model, self.prompts, self.steers = model, prompts, steers
        self.last = len(blocks(model)) - 1
        self.device = next(model.parameters()).device
        self.drafts = drafts
        self.groups = _groups(prompts, drafts or [[]] * len(prompts))
        self.acting = [n for n, steer in enumerate(steers) if drafts is not None or (steer.reads_prompt and steer.block < self.last)]
        """The steers that set rows apart: with drafts all of them, else those that reach the keys and values of the prompt."""
        self.signatures = [tuple((n, steers[n].rows[row]) for n in self.acting if steers[n].rows[row] >= 0) for row in range(len(prompts))]
        """Per row its (steer, vector) pairs; rows with equal ones share all."""
        self.trunk: Trunk | None = None
        self.shared = _shared([prompt.ids for prompt in dict(zip(self.groups, prompts, strict=True)).values()]) if drafts is None else 0
        """Tokens that all prompts begin with, the last token of none among them; 0 where they are too few to matter."""
        self.beginning: Stems | None = None

    def order(self) -> list[int]:
        """All rows, longest prompts first, those that share a stem side by side."""
        return sorted(range(len(self.prompts)), key=lambda row: (-len(self.prompts[row].ids), self.groups[row], self.signatures[row], row))

    def stems(self, rows: Sequence[int]) -> tuple[Stems, Tensor]:
        """The stems of some rows and, per row, which one is its own (rows,)."""
        kinds = list(dict.fromkeys((self.groups[row], self.signatures[row]) for row in rows))
        of = {kind: n for n, kind in enumerate(kinds)}
        index = torch.tensor([of[self.groups[row], self.signatures[row]] for row in rows])
        if max(len(self.prompts[row].ids) for row in rows) == 1:
            return {}, index
        example = dict(zip(((self.groups[row], self.signatures[row]) for row in rows), rows, strict=True))
        edited = [kind for kind in kinds if kind[1]]
        floor = min((self.steers[n].block for _, steers in edited for n, _ in steers), default=self.last)
        trunk = self._trunk(rows, self.last + 1 if len(edited) < len(kinds) else floor + 1, floor if edited else None)
        place = torch.tensor([trunk.place[group] for group, _ in kinds], device=self.device)
        if not edited:
            return {layer: (k[place], v[place]) for layer, (k, v) in trunk.stems.items()}, index
        steered = torch.tensor([n for n, kind in enumerate(kinds) if kind[1]], device=self.device)
        upper = self._upper([example[kind] for kind in edited], trunk.streams[floor][place[steered]], floor)
        return {layer: _joined(layer, trunk, upper, place, steered, len(edited) == len(kinds)) for layer in range(self.last + 1)}, index

    @torch.inference_mode()
    def drafted(self, rows: Sequence[int], upto: int) -> Tried:
        """Steered rows over their prompts and the first `upto` tokens of their drafts."""
        kinds = list(dict.fromkeys((self.groups[row], self.signatures[row]) for row in rows))
        of = {kind: n for n, kind in enumerate(kinds)}
        example = dict(zip(((self.groups[row], self.signatures[row]) for row in rows), rows, strict=True))
        chosen = [example[kind] for kind in kinds]
        lengths = [len(self._ids(row)[: len(self.prompts[row].ids) + upto - 1]) for row in chosen]
        first, width = min(len(self.prompts[row].ids) for row in chosen) - 1, max(lengths)
        floor = min(self.steers[n].block for _, edits in kinds for n, _ in edits)
        # Where no edit reaches the prompt before its last token, all rows have its keys and values in common too.
        start = 0 if any(self.steers[n].reads_prompt for _, edits in kinds for n, _ in edits) else first
        trunk = self._trunk(rows, self.last + 1 if start else floor + 1, floor)
        place = torch.tensor([trunk.place[group] for group, _ in kinds], device=self.device)
        past = {layer: (k[place, :, :start], v[place, :, :start]) for layer, (k, v) in trunk.stems.items() if start and layer > floor}
        collector, edits = Collector(None, past, start), self._edits(chosen, lengths, width, start)
        with starting_after(self.model, floor, trunk.streams[floor][place, start:width]), editing(self.model, edits):
            logits = self._run(chosen, lengths, collector, width - first)
        lower = {layer: (k[place, :, :width], v[place, :, :width]) for layer, (k, v) in trunk.stems.items() if layer <= floor}
        index = torch.tensor([of[self.groups[row], self.signatures[row]] for row in rows])
        return Tried(lower | collector.found, index, logits, first)

    @torch.inference_mode()
    def _trunk(self, rows: Sequence[int], depth: int, floor: int | None) -> Trunk:
        """Prompts (and drafts) alone, at least `depth` blocks of them and the stream after block `floor`."""
        example = dict(zip((self.groups[row] for row in rows), rows, strict=True))
        kept = self.trunk
        if kept is not None and kept.depth >= depth and example.keys() <= kept.place.keys() and (floor is None or floor in kept.streams):
            return kept
        start = self.shared if floor is None and len(example) > 1 else 0
        collector = Collector(self.last if self.drafts is None else None, self._beginning(len(example)) if start else None, start)
        streams: dict[int, Tensor] = {}

        def read(x: Tensor) -> Tensor:
            assert floor is not None
            streams[floor] = x
            if depth == floor + 1:
                raise _Enough
            return x

        with changing(self.model, [(floor, read)] if floor is not None else []):
            self._run(list(example.values()), [len(self._ids(row)) for row in example.values()], collector)
        self.trunk = Trunk({group: n for n, group in enumerate(example)}, collector.found, depth, streams)
        return self.trunk

    def _beginning(self, rows: int) -> Stems:
        """Keys and values of what all prompts begin with, for so many rows."""
        if self.beginning is None:
            collector = Collector(self.last)
            self._run([0], [self.shared], collector)
            self.beginning = collector.found
        return {layer: (k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for layer, (k, v) in self.beginning.items()}

    @torch.inference_mode()
    def _upper(self, rows: list[int], stream: Tensor, floor: int) -> Stems:
        """Blocks above `floor`, from its output (rows, positions, width), under the rows' edits."""
        collector, lengths = Collector(self.last), [len(self._ids(row)) for row in rows]
        with starting_after(self.model, floor, stream), editing(self.model, self._edits(rows, lengths, stream.shape[1])):
            self._run(rows, [*lengths[:-1], stream.shape[1]], collector)
        return collector.found

    def _edits(self, rows: Sequence[int], lengths: Sequence[int], width: int, start: int = 0) -> list[Edit]:
        """The rows' edits over positions `start` to `width`, those that touch any."""
        found = []
        for steer in (self.steers[n] for n in self.acting):
            edit = steer.edit(rows, self.device)
            edit.mask = steer.inside([self.prompts[row] for row in rows], lengths, width)[:, start:]
            if edit.mask.any():
                found.append(edit)
        return found

    def _ids(self, row: int) -> list[int]:
        """What is known of a row but its last token."""
        return self.prompts[row].ids[:-1] if self.drafts is None else self.prompts[row].ids + self.drafts[row][:-1]

    @torch.inference_mode()
    def _run(self, rows: Sequence[int], lengths: Sequence[int], collector: Collector, keep: int = 0) -> Tensor:
        """One forward, right-padded: what stands behind a token cannot change it. Returns logits of the last `keep` positions, if any."""
        width = max(lengths)
        ids = [self._ids(row)[:length] for row, length in zip(rows, lengths, strict=True)]
        start = collector.start
        padded = torch.tensor([one[start:] + [0] * (width - len(one)) for one in ids], device=self.device)
        try:
            if keep:
                return self.model(input_ids=padded, past_key_values=collector, use_cache=True, logits_to_keep=keep).logits
            self.model.get_decoder()(input_ids=padded, past_key_values=collector, use_cache=True)
        except (_Enough, Filled):
            pass
        return torch.zeros(0)


def _shared(distinct: Sequence[list[int]]) -> int:
    """How many tokens all of them begin with, short of the last two of the shortest; 0 if fewer than LEAST_SHARED."""
    # All begin as the first and the last of them in alphabetical order do.
    first, last = min(distinct, default=[]), max(distinct, default=[])
    alike = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    found = min([alike, *(len(ids) - 2 for ids in distinct)])
    return found if found >= LEAST_SHARED else 0


def _groups(prompts: Sequence[PromptTokens], drafts: Sequence[list[int]]) -> list[int]:
    """Equal numbers for equal prompts with equal drafts."""
    known: dict[tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]], int] = {}
    seen: dict[tuple[int, int], int] = {}
    found = []
    for prompt, draft in zip(prompts, drafts, strict=True):
        pair = (id(prompt), id(draft))
        if pair not in seen:
            seen[pair] = known.setdefault((tuple(prompt.ids), tuple(prompt.words), tuple(draft)), len(known))
        found.append(seen[pair])
    return found


def _joined(layer: int, trunk: Trunk, upper: Stems, place: Tensor, steered: Tensor, all_steered: bool) -> KeyValue:
    """Keys and values of one block for all stems: steered ones from `upper` where it reaches, the others from the trunk."""
    if layer not in upper:
        keys, values = trunk.stems[layer]
        return keys[place], values[place]
    if all_steered:
        return upper[layer]
    pairs = []
    for below, above in zip(trunk.stems[layer], upper[layer], strict=True):
        both = below[place]
        both[steered, :, : above.shape[2]] = above
        pairs.append(both)
    return pairs[0], pairs[1]


@contextmanager
def starting_after(model: nn.Module, block: int, stream: Tensor) -> Iterator[None]:
    """Inside, blocks 0 to `block` compute nothing: they hand on what they got, and `block` gives `stream`."""
    found = blocks(model)
    with ExitStack() as stack:
        for i in range(block + 1):
            stack.callback(_restore(found[i]))
            found[i].forward = _standing_in(stream if i == block else None)
        yield


def _restore(module: nn.Module) -> Callable[[], None]:
    """Undo for an attribute `forward` set on the instance."""
    before = module.__dict__.get("forward")

    def undo() -> None:
        if before is None:
            del module.forward
        else:
            module.forward = before

    return undo


def _standing_in(stream: Tensor | None) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states if stream is None else stream

    return forward
