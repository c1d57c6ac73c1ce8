"""A running batch in which every row has its own prompt, length and edits: rows enter, decode one position, leave."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from personascope.backends.hooks import Edit, blocks, editing
from personascope.backends.prefill import Prefill, Stems
from personascope.backends.slots import Attention, Slots
from personascope.backends.steering import Steer
from personascope.methods.tokens import PromptTokens

KINDS = {"full_attention", "sliding_attention"}
"""Kinds of block whose cache is keys and values by position."""


class Batch:
    """Rows of one list of prompts; the caller feeds the tokens.

    A row's first decoded position is its prompt's last token, so that prompts are prefilled without logits.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[PromptTokens], steers: Sequence[Steer], drafts: Sequence[list[int]] | None = None
    ) -> None:
        """No rows yet; `make_room` before letting any in."""
        self.model, self.prompts, self.steers = model, prompts, steers
        self.attention = Attention.of(model)
        self.prefill = Prefill(model, prompts, steers, drafts)
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        self.slots = Slots(0, 0)
        self.rows = torch.zeros(0, dtype=torch.long)
        """(n,) the number of the prompt in each slot."""
        self.tokens = torch.zeros(0, dtype=torch.long)
        """(n,) what the next forward reads."""
        self.first = torch.zeros(0, dtype=torch.bool)
        """(n,) that token is the prompt's last."""
        self.last_words = torch.tensor([prompt.words[-1] for prompt in prompts])
        self.edits: list[tuple[Steer, Edit]] | None = None
        self.device = next(model.parameters()).device

    def __len__(self) -> int:
        """Rows in use."""
        return len(self.rows)

    @torch.inference_mode()
    def make_room(self, rows: int, room: int) -> None:
        """Hold at least `rows` rows of `room` positions; far too much of either is given back."""
        if rows > self.slots.rows or room > self.slots.room or room < 0.7 * self.slots.room:
            self.slots.resize(max(rows, self.slots.rows), room)

    @torch.inference_mode()
    def admit(self, rows: Sequence[int]) -> None:
        """Let prompts in; the caller sees to it that there is room."""
        stems, index = self.prefill.stems(rows)
        lengths = torch.tensor([len(self.prompts[row].ids) - 1 for row in rows])
        self.enter(rows, stems, index, lengths, torch.tensor([self.prompts[row].ids[-1] for row in rows]))

    @torch.inference_mode()
    def enter(self, rows: Sequence[int], stems: Stems, index: Tensor, lengths: Tensor, tokens: Tensor) -> None:
        """Let rows in whose keys and values are known: row i takes the first lengths[i] positions of stem index[i] and reads tokens[i]."""
        self.slots.admit(stems, index, lengths)
        self.rows = torch.cat([self.rows, torch.tensor(rows, dtype=torch.long)])
        self.tokens = torch.cat([self.tokens, tokens])
        asked = torch.tensor([len(self.prompts[row].ids) for row in rows], dtype=torch.long)
        self.first = torch.cat([self.first, lengths == asked - 1])
        self.edits = None

    @torch.inference_mode()
    def step(self) -> Tensor:
        """One forward; logits (n, vocabulary) of what follows each row's token. Set `tokens` before the next."""
        width = self.slots.begin()
        positions = self.slots.lengths.to(self.device)
        with editing(self.model, self._edits()):
            logits = self.model(
                input_ids=self.tokens[:, None].to(self.device),
                attention_mask=self.attention.mask(positions, width),
                position_ids=positions[:, None],
                past_key_values=self.slots,
                use_cache=True,
            ).logits[:, -1]
        self.slots.lengths = self.slots.lengths + 1
        self.first = torch.zeros_like(self.first)
        return logits

    @torch.inference_mode()
    def keep(self, kept: Tensor) -> Tensor:
        """Drop rows where `kept` (n,) is false; returns the former number of each row in use."""
        order = self.slots.keep(kept)
        self.rows, self.tokens, self.first = self.rows[order], self.tokens[order], self.first[order]
        self.edits = None
        return order

    def _edits(self) -> list[Edit]:
        """The edits that touch any row at this position, masks set."""
        if self.edits is None:
            rows = self.rows.tolist()
            used = [s for s in self.steers if any(s.rows[row] >= 0 for row in rows)]
            self.edits = [(steer, steer.edit(rows, self.device)) for steer in used]
        found = []
        for steer, edit in self.edits:
            now = steer.now(self.first, self.last_words[self.rows])
            if now.any():
                edit.mask = now[:, None].to(self.device)
                found.append(edit)
        return found


_FITS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def fits(model: nn.Module) -> bool:
    """Whether `Batch` computes what the model computes: found by trying once per model, on two short rows, one steered."""
    if model not in _FITS:
        _FITS[model] = _could(model) and _does(model)
    return _FITS[model]


def _could(model: nn.Module) -> bool:
    config = model.config.get_text_config()
    kinds = config.to_dict().get("layer_types") or ["full_attention"]
    return config._attn_implementation in ("sdpa", "eager") and set(kinds) <= KINDS and not config.is_encoder_decoder


@torch.inference_mode()
def _does(model: nn.Module) -> bool:
    """Compare with plain forwards from position 0: three decoded positions of rows of 13, 13 and 7 tokens."""
    size = model.get_input_embeddings().weight.shape
    ids = [int(i) for i in torch.linspace(1, size[0] - 1, 17)]
    prompts = [PromptTokens(ids[:n], [True] * n) for n in (13, 13, 7)]
    scale = model.get_input_embeddings().weight.float().std().item() * size[1] ** 0.5
    vector = torch.nn.functional.normalize(torch.linspace(-1, 2, size[1]), dim=0)[None] * scale
    steer = Steer((len(blocks(model)) - 1) // 2, "add", "all", vector, [-1, 0, 0])
    try:
        batch = Batch(model, prompts, [steer])
        batch.make_room(3, 16)
        batch.admit([0, 1])
        seen = [batch.step()]
        batch.tokens = torch.tensor([ids[13], ids[13]])
        batch.admit([2])
        for token in (14, 15):
            seen.append(batch.step())
            batch.tokens = torch.tensor([ids[token], ids[token], ids[token - 7]])
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError):
        return False
    for row, (start, length) in enumerate(((0, 13), (0, 13), (1, 7))):
        edit = Edit(steer.block, "add", vector * (row > 0))
        read = torch.tensor([ids[: length + 2 - start]], device=batch.device)
        edit.mask = torch.ones_like(read, dtype=torch.bool)
        with editing(model, [edit]):
            plain = model(input_ids=read, use_cache=False).logits[0, length - 1 :].float()
        ours = torch.stack([logits[row] for logits in seen[start:]]).float()
        if not (ours - plain).norm() <= (1e-3 if model.dtype == torch.float32 else 0.1) * (plain - plain.mean()).norm():
            return False
    return True
