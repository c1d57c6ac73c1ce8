"""A direction in the model's own words: the logit lens, and token pieces that read as their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from personascope.backends.hooks import blocks
from personascope.backends.models import Loaded

WORDS = 10
"""Tokens listed at each end."""


@dataclass(frozen=True)
class Lens:
    """The logit lens (nostalgebraist 2020) of a direction: W_U norm(direction), minus the mean over the vocabulary.

    `norm` is the model's final norm applied to the direction alone, scaled to RMS 1, its bias taken out: this keeps
    the norm's learnt scale (and the centring of a LayerNorm) and nothing of any text.
    """

    unembedding: Tensor
    norm: nn.Module | None
    name: str
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, loaded: Loaded) -> "Lens":
        """The last module of the decoder, after its blocks, with one weight a channel is the final norm."""
        decoder, width = loaded.model.get_decoder(), loaded.model.config.get_text_config().hidden_size
        children = list(decoder.named_children())
        last = next(i for i, (_, child) in enumerate(children) if child is blocks(loaded.model))
        norms = [(name, child) for name, child in children[last + 1 :] if any(p.shape == (width,) for p in child.parameters())]
        name, norm = norms[-1] if norms else ("none", None)
        weight = loaded.model.get_output_embeddings().weight.detach()
        return cls(weight[: len(loaded.tokenizer)].float().cpu(), norm, name, loaded.tokenizer)

    @torch.no_grad()
    def logits(self, direction: Tensor) -> Tensor:
        """(vocabulary,) for a direction (d,)."""
        x = nn.functional.normalize(direction.float(), dim=0) * len(direction) ** 0.5
        if self.norm is not None:
            there = next(self.norm.parameters())
            x = x.to(there.device, there.dtype).view(1, 1, -1)
            x = ((self.norm(x) - self.norm(-x)) / 2).view(-1).float().cpu()
        found = self.unembedding @ x
        return found - found.mean()

    def words(self, direction: Tensor) -> dict[str, list[dict[str, Any]]]:
        """The tokens raised and lowered most, with their logits."""
        logits = self.logits(direction)
        order = logits.argsort(descending=True, stable=True).tolist()
        ends = {"raised": order[:WORDS], "lowered": order[::-1][:WORDS]}
        return {end: [{"token": self.tokenizer.decode([i]), "logit": round(float(logits[i]), 4)} for i in ids] for end, ids in ends.items()}


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token such that together they read as the text; a character over several tokens comes with its last."""
    found, before = [], ""
    for i in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:i], clean_up_tokenization_spaces=False)
        # An unfinished character decodes to a replacement sign that the next token changes.
        if not text.startswith(before) or text.endswith("\ufffd"):
            found.append("" if text.endswith("\ufffd") else tokenizer.decode([ids[i - 1]]))
        else:
            found.append(text[len(before) :])
        before = before if text.endswith("\ufffd") else text
    return found
