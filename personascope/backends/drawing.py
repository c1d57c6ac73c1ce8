"""What is asked of a model, and drawing its tokens: noise by the row's key, never by the batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from personascope.methods.tokens import PromptTokens


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

    @property
    def name(self) -> tuple[tuple[int, ...], str]:
        """What decides the unsteered completion: the ids and the key."""
        return tuple(self.tokens.ids), self.key


@dataclass
class Completion:
    """Generated ids without the stop token, and whether the model stopped by itself."""

    ids: list[int] = field(default_factory=list)
    stop: Literal["end", "length"] = "length"


@lru_cache(maxsize=4096)
def uniforms(seed: int, key: str, count: int) -> np.ndarray:
    """One number in [0, 1) per position, from the seed and the row's key alone (Philox, counter-based); not to be written to.

    Kept for a while, because a screen asks for the same keys once per cell.
    """
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
    found = np.random.Generator(np.random.Philox(key=int.from_bytes(digest))).random(count)
    found.setflags(write=False)
    return found


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


@dataclass
class Drawn:
    """Per row of a batch: its noise and the tokens drawn, (n, max_tokens) on the CPU, and how many those are (n,)."""

    noise: Tensor
    ids: Tensor
    count: Tensor

    @classmethod
    def none(cls, sampling: Sampling, keys: Sequence[str]) -> Self:
        """Nothing drawn yet for the rows of these keys."""
        noise = [uniforms(sampling.seed, key, sampling.max_tokens) for key in keys]
        shape = (len(keys), sampling.max_tokens)
        return cls(
            torch.from_numpy(np.reshape(noise, shape)), torch.zeros(shape, dtype=torch.long), torch.zeros(len(keys), dtype=torch.long)
        )

    def admit(self, others: Self) -> None:
        """Append rows."""
        mine, theirs = (self.noise, self.ids, self.count), (others.noise, others.ids, others.count)
        self.noise, self.ids, self.count = (torch.cat(pair) for pair in zip(mine, theirs, strict=True))

    def uniform(self) -> Tensor:
        """Each row's number for its next token (n,)."""
        return self.noise.gather(1, self.count[:, None])[:, 0]

    def take(self, tokens: Tensor) -> Tensor:
        """Write one more token per row; returns which rows are full (n,)."""
        self.ids.scatter_(1, self.count[:, None], tokens[:, None])
        self.count = self.count + 1
        return self.count == self.ids.shape[1]

    def at(self, index: Tensor) -> Self:
        """Some rows, by number or bool mask."""
        return type(self)(self.noise[index], self.ids[index], self.count[index])

    def completions(self, ended: Tensor) -> list[Completion]:
        """Every row as text; `ended` (n,) says which drew a stop token last."""
        rows = zip(self.ids.tolist(), (self.count - ended.long()).tolist(), ended.tolist(), strict=True)
        return [Completion(ids[:length], "end" if end else "length") for ids, length, end in rows]
