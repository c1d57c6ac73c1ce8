"""Key-value slots: a cache whose rows have their own lengths, so that rows enter and leave without moving others."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one block, each (rows, heads, positions, head width)."""


class Filled(Exception):
    """The last block's keys and values are known; nothing after them is needed."""


class Collector(Cache):
    """Takes the keys and values of one forward, and ends it once the last block has given its own."""

    def __init__(self, last: int | None, past: dict[int, KeyValue] | None = None, start: int = 0) -> None:
        """What is asked for.

        Args:
            last: the number of the last block, None to go on to the logits.
            past: keys and values of the first `start` positions, for every block that will run.
        """
        super().__init__(layers=[])
        self.found: dict[int, KeyValue] = {}
        self.last, self.past, self.start = last, past or {}, start

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> KeyValue:
        """Keep a block's keys and values, those of the past before them; raises Filled at the last block."""
        found = key_states, value_states
        if self.start:
            keys, values = (torch.cat([old, new], dim=2) for old, new in zip(self.past[layer_idx], found, strict=True))
            found = keys, values
        self.found[layer_idx] = found
        if layer_idx == self.last:
            raise Filled
        return found

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the interface
        """Positions before this forward."""
        return self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002 - the interface
        """Keys are those of the past and of this forward."""
        return self.start + query_length, 0


class Slots(Cache):
    """Buffers (rows, heads, room, head width) per block; row r holds positions 0 to lengths[r] - 1 from the left.

    A position's column is its number, so that a mask needs no padding rule and a finished row's place is simply
    overwritten. Rows 0 to n - 1 are in use; one decoded position is written per forward.
    """

    def __init__(self, rows: int, room: int) -> None:
        """`rows` slots of `room` positions; nothing is allocated before the first write."""
        super().__init__(layers=[])
        self.rows, self.room = rows, room
        self.buffers: dict[int, list[Tensor]] = {}
        self.lengths = torch.zeros(0, dtype=torch.long)
        """(n,) on the CPU."""
        self._width = 0
        self._places: dict[int, Tensor] = {}

    def begin(self) -> int:
        """Make ready for a forward over one new position per row; returns how many columns it attends to."""
        self._width = int(self.lengths.max()) + 1
        self._places = {}
        return self._width

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> KeyValue:
        """Write the new position of every row and return the columns in use."""
        held = self._held(layer_idx, (key_states, value_states))
        n, heads = key_states.shape[:2]
        for buffer, new in zip(held, (key_states, value_states), strict=True):
            flat = buffer.view(-1, buffer.shape[3])
            flat.index_copy_(0, self._place(heads, new.device), new.reshape(n * heads, -1))
        keys, values = held
        return keys[:n, :, : self._width], values[:n, :, : self._width]

    def admit(self, stems: dict[int, KeyValue], index: Tensor, lengths: Tensor) -> None:
        """Append rows: row i takes stem index[i], of which its first lengths[i] positions count.

        Args:
            stems: per block, keys and values (stems, heads, positions, head width).
            index: (new rows,).
            lengths: (new rows,) positions already known, 0 for a prompt of one token.
        """
        start, stop = len(self.lengths), len(self.lengths) + len(index)
        for layer, pair in stems.items():
            for buffer, stem in zip(self._held(layer, pair), pair, strict=True):
                buffer[start:stop, :, : stem.shape[2]] = stem[index.to(stem.device)]
        self.lengths = torch.cat([self.lengths, lengths])

    def keep(self, kept: Tensor) -> Tensor:
        """Drop the rows where `kept` (n,) is false; the last rows move into their places.

        Returns:
            The former number of each row that is now in use.
        """
        count = int(kept.sum())
        order = torch.arange(count)
        holes, movers = (~kept[:count]).nonzero()[:, 0], kept[count:].nonzero()[:, 0] + count
        order[holes] = movers
        if len(holes):
            width = int(self.lengths[movers].max())
            for pair in self.buffers.values():
                for buffer in pair:
                    buffer[holes.to(buffer.device), :, :width] = buffer[movers.to(buffer.device), :, :width]
        self.lengths = self.lengths[order]
        return order

    def resize(self, rows: int, room: int) -> None:
        """Another number of slots and room, with the rows in use kept."""
        n, width = len(self.lengths), int(self.lengths.max()) if len(self.lengths) else 0
        for layer, pair in self.buffers.items():
            for place, buffer in enumerate(pair):
                fresh = buffer.new_zeros(rows, buffer.shape[1], room, buffer.shape[3])
                fresh[:n, :, :width] = buffer[:n, :, :width]
                self.buffers[layer][place] = fresh
        self.rows, self.room = rows, room

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the interface
        """Columns before the new position; positions and masks are given to the model, so nothing rests on it."""
        return max(0, self._width - 1)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002 - the interface
        """All columns in use."""
        return self._width, 0

    def _held(self, layer: int, like: KeyValue) -> list[Tensor]:
        if layer not in self.buffers:
            # Zeros, because a masked column still enters a product, where garbage could be infinite.
            self.buffers[layer] = [t.new_zeros(self.rows, t.shape[1], self.room, t.shape[3]) for t in like]
        return self.buffers[layer]

    def _place(self, heads: int, device: torch.device) -> Tensor:
        """Where row r's new position lies in a flattened buffer, for every head: (n x heads,)."""
        if heads not in self._places:
            row = torch.arange(len(self.lengths))[:, None] * heads + torch.arange(heads)
            self._places[heads] = (row * self.room + self.lengths[:, None]).reshape(-1).to(device)
        return self._places[heads]


@dataclass(frozen=True)
class Attention:
    """The form in which a model takes what a position may look at."""

    kinds: frozenset[str]
    """Kinds of block that want a mask each; none if one mask serves all."""
    window: int | None
    """Positions that a sliding block looks back over."""
    forbidden: float | None
    """What is added where it may not look, for models that add masks; None for those that take bools."""
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module) -> "Attention":
        """Read a model's configuration."""
        config = model.config.get_text_config()
        said = config.to_dict()
        window = None if said.get("use_sliding_window") is False else said.get("sliding_window")
        forbidden = torch.finfo(model.dtype).min if config._attn_implementation == "eager" else None
        return cls(frozenset(said.get("layer_types") or ()), window, forbidden, model.dtype)

    def mask(self, lengths: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """What the new position, number lengths[r] in row r, may look at: (rows, 1, 1, width), by kind of block if it has kinds."""
        columns, at = torch.arange(width, device=lengths.device), lengths[:, None]
        full = columns <= at
        near = full if self.window is None else full & (columns > at - self.window)
        full, near = self._form(full), self._form(near)
        return {kind: near if kind == "sliding_attention" else full for kind in self.kinds} if self.kinds else near

    def _form(self, mask: Tensor) -> Tensor:
        if self.forbidden is not None:
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(~mask, self.forbidden)
        return mask[:, None, None]
