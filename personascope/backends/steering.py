"""Steers: one edit with its own vector per prompt, and the edits that a batch of them takes at each forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from personascope.backends.hooks import Edit, Op, Reader
from personascope.methods.tokens import PromptTokens

Mask = Literal["all", "prompt", "last_prompt", "answer"]


@dataclass(frozen=True)
class Steer:
    """One edit with its own vector per row.

    `table` (vectors, width) holds the vectors as `Edit` wants them; `rows[i]` is the index that prompt i uses, -1 for none.
    """

    block: int
    op: Op
    mask: Mask
    table: Tensor
    rows: list[int]
    reader: Reader | None = None
    """For `clamp` and `cap`: what is read for each vector of the table."""

    def vectors(self, batch: Sequence[int]) -> Tensor:
        """Vectors (rows, width) of the prompts in this batch; a zero row leaves its prompt untouched."""
        index = torch.tensor([self.rows[i] for i in batch], dtype=torch.long)
        index = index.to(self.table.device)
        return self.table[index.clamp(min=0)] * (index >= 0)[:, None]

    def edit(self, batch: Sequence[int], device: torch.device) -> Edit:
        """The edit of these prompts, its mask not yet set."""
        reader = None
        if self.reader is not None:
            reader = self.reader.at(torch.tensor([max(0, self.rows[i]) for i in batch], dtype=torch.long)).to(device)
        return Edit(self.block, self.op, self.vectors(batch).to(device, torch.float32), reader=reader)

    @property
    def reads_prompt(self) -> bool:
        """Whether it edits prompt positions before the last."""
        return self.mask in ("all", "prompt")

    def inside(self, prompts: Sequence[PromptTokens], lengths: Sequence[int], width: int) -> Tensor:
        """The mask (rows, width) over right-padded rows of prompt and then answer tokens, of which the first lengths[i] are there."""
        touched = torch.zeros(len(prompts), width, dtype=torch.bool)
        for row, prompt, length in zip(touched, prompts, lengths, strict=True):
            size = len(prompt.ids)
            if self.mask == "all":
                row[:length] = True
            elif self.mask == "answer":
                row[size:length] = True
            elif self.mask == "prompt":
                row[: min(size, length)] = torch.tensor(prompt.words[:length])
            elif size <= length:
                row[size - 1] = True
        return touched

    def now(self, first: Tensor, last_words: Tensor) -> Tensor:
        """The mask (rows,) of one decoded position.

        Args:
            first: (rows,) the position is the prompt's last token, the others are answer tokens.
            last_words: (rows,) that token is one of the prompt's words.
        """
        if self.mask == "all":
            return torch.ones_like(first)
        if self.mask == "answer":
            return ~first
        return first & last_words if self.mask == "prompt" else first
