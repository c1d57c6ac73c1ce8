"""The self-test of a steered run: the steers act where they should and nowhere else, seen on a few rows before many are spent."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from personascope.backends.engine import Batch, fits
from personascope.backends.hooks import blocks, editing
from personascope.backends.steering import Steer
from personascope.errors import BackendError
from personascope.methods.tokens import PromptTokens

TRIED = 8
"""Steered rows that are tried at most."""


@torch.inference_mode()
def prove(model: nn.Module, prompts: Sequence[PromptTokens], steers: Sequence[Steer]) -> None:
    """Try the steers on few rows, each beside an unsteered twin, before many rows are spent on them.

    The strongest edit of each steer is tried, so that a strength that rounding swallows is not taken for a fault.

    Raises:
        BackendError: at a decoded position under its mask a steered row's logits are those of the unsteered row, or a
            twin's logits are not those of the same batch without steers.
    """
    live = [s.table.any(dim=1).float() * s.table.norm(dim=1) for s in steers]
    picks = []
    for steer, size in zip(steers, live, strict=True):
        used = torch.tensor([size[v] if v >= 0 else 0.0 for v in steer.rows])
        if used.any():
            picks.append(int(used.argmax()))
    picks = list(dict.fromkeys(picks))[:TRIED]
    if not picks:
        return
    twins = [prompts[row] for row in picks] * 2
    tried = [replace(s, rows=[*(s.rows[row] for row in picks), *(-1 for _ in picks)]) for s in steers]
    three = _three if fits(model) else _three_alone
    plain, tokens = three(model, twins, [], None)
    steered, _ = three(model, twins, tried, tokens)
    apart = (plain != steered).any(dim=2)
    for i, row in enumerate(picks):
        for step, wanted in enumerate(_expected(tried, twins[i], i, len(blocks(model)) - 1)):
            if wanted and not apart[i, step]:
                raise BackendError(
                    f"steering is not applied: the logits of steered prompt {row} equal the unsteered ones at decoded position {step}; "
                    "check that the model runs its own blocks (no fused or compiled copy) and that the strength is not lost to rounding"
                )
    beside = slice(len(picks), None)
    mixed = any("_experts" in key for key in model.config.get_text_config().to_dict())
    # Where rows choose among feed-forward parts, those that choose alike share a product, and its last bits.
    if apart[beside].any() and not (mixed and torch.allclose(plain[beside], steered[beside], atol=1e-2, rtol=1e-2)):
        raise BackendError("steering leaks: rows without a steer change when others in their batch are steered; run them apart")


def _three(model: nn.Module, prompts: list[PromptTokens], steers: list[Steer], tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (rows, 3, vocabulary) of three decoded positions and the tokens (rows, 2) read between them: greedy, or those given."""
    batch = Batch(model, prompts, steers)
    batch.make_room(len(prompts), max(len(p.ids) for p in prompts) + 3)
    batch.admit(range(len(prompts)))
    seen, read = [batch.step()], []
    for step in range(2):
        batch.tokens = seen[-1].argmax(1).cpu() if tokens is None else tokens[:, step]
        read.append(batch.tokens)
        seen.append(batch.step())
    return torch.stack(seen, dim=1), torch.stack(read, dim=1)


def _three_alone(model: nn.Module, prompts: list[PromptTokens], steers: list[Steer], tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `_three` by forwards from position 0, each steered row beside its twin, for models whose cache `Batch` cannot hold."""
    half, device = len(prompts) // 2, next(model.parameters()).device
    seen, read = torch.zeros(len(prompts), 3, 0), torch.zeros(len(prompts), 2, dtype=torch.long)
    for i in range(half):
        pair, size = [i, i + half], len(prompts[i].ids)
        ids = torch.tensor([prompts[i].ids] * 2)
        for step in range(3):
            edits = [steer.edit(pair, device) for steer in steers]
            for steer, edit in zip(steers, edits, strict=True):
                at = torch.arange(ids.shape[1] - size + 1).expand(2, -1)
                edit.mask = torch.cat(
                    [steer.inside([prompts[i]] * 2, [size - 1] * 2, size - 1), steer.now(at == 0, torch.tensor(prompts[i].words[-1]))], 1
                )
            with editing(model, edits):
                logits = model(input_ids=ids.to(device), use_cache=False).logits[:, -1].cpu()
            if not seen.shape[2]:
                seen = logits.new_zeros(len(prompts), 3, logits.shape[1])
            seen[pair, step] = logits
            if step < 2:
                read[pair, step] = logits.argmax(1) if tokens is None else tokens[pair, step]
                ids = torch.cat([ids, read[pair, step][:, None]], dim=1)
    return seen, read


def _expected(steers: Sequence[Steer], prompt: PromptTokens, row: int, last: int) -> list[bool]:
    """At which of three decoded positions an addition must show. Other operations may rightly leave a stream as it is."""
    found = [False] * 3
    for steer in steers:
        if steer.rows[row] < 0 or steer.op != "add" or not steer.table[steer.rows[row]].any():
            continue
        first = torch.tensor([True, False, False])
        shown = steer.now(first, torch.tensor([prompt.words[-1]] * 3)).tolist()
        if steer.mask == "prompt" and steer.block < last and any(prompt.words):
            shown[0] = True
        found = [a or b for a, b in zip(found, shown, strict=True)]
    return found
