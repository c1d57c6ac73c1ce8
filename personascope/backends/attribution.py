"""Δ-attribution: which latents make one kind of completion likelier than another, from one model and one backward pass.

Formula of the SAE latent attribution that followed 2506.19823: at token t, latent i has

    δ_it = -(g_t · d_i) ((a_t - ā) · d_i)

with g the gradient of the completion's log-loss by the residual stream a, ā the mean stream and d the unit decoder
rows: to first order, how much likelier the completion is for what the stream carries along d_i.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from personascope.backends.capture import pad, pad_id, plan_batches
from personascope.backends.hooks import changing, site_index
from personascope.backends.models import Loaded
from personascope.errors import DataError
from personascope.methods.tokens import Message, TrainingRow, training_row

MOST_PRODUCTS = 2**27
"""Products of a token's stream with a latent's row held at once."""


class _Streams(NamedTuple):
    """Stream and gradient (tokens, width) at the tokens that count."""

    a: Tensor
    g: Tensor


def attribution(
    loaded: Loaded, decoder: Tensor, site: str, wanted: list[list[Message]], unwanted: list[list[Message]], batch_tokens: int = 8192
) -> Tensor:
    """Mean δ (latents,) on the wanted completions minus mean δ on the unwanted ones.

    The mean is over the assistant's marker and words; ā is the mean stream there over both kinds.

    Args:
        decoder: (latents, width), rows of length 1.

    Raises:
        DataError: one of the two kinds is empty, or a conversation has no assistant turn.
    """
    kinds = [_streams(loaded, site, rows, name, batch_tokens) for name, rows in (("wanted", wanted), ("unwanted", unwanted))]
    centre = torch.cat([kind.a for kind in kinds]).mean(0)
    # Tokens x latents can be far more than any memory holds; latents do not depend on each other.
    parts = decoder.split(max(1, MOST_PRODUCTS // max(len(kind.a) for kind in kinds)))
    high, low = (torch.cat([-((kind.g @ d.T) * ((kind.a - centre) @ d.T)).mean(0) for d in parts]) for kind in kinds)
    return high - low


def _streams(loaded: Loaded, site: str, conversations: list[list[Message]], name: str, batch_tokens: int) -> _Streams:
    if not conversations:
        raise DataError(f"attribution: no {name} completions; give conversations of both kinds")
    rows = [training_row(loaded.tokenizer, messages, f"{name} conversation {i}") for i, messages in enumerate(conversations)]
    found = [_batch(loaded, site, [rows[i] for i in batch]) for batch in plan_batches([len(row.ids) for row in rows], batch_tokens)]
    return _Streams(torch.cat([part.a for part in found]), torch.cat([part.g for part in found]))


def _batch(loaded: Loaded, site: str, rows: list[TrainingRow]) -> _Streams:
    """One forward and one backward that ends at the site; every completion's own log-loss counts alike per token."""
    ids, attention = (t.to(loaded.device) for t in pad([row.ids for row in rows], pad_id(loaded.tokenizer)))
    trained = torch.zeros_like(attention)
    for place, row in enumerate(rows):
        trained[place, : len(row.ids)] = torch.tensor(row.trained)
    leaf: list[Tensor] = []

    def cut(x: Tensor) -> Tensor:
        leaf.append(x.detach().requires_grad_(True))
        return leaf[-1]

    with torch.enable_grad(), changing(loaded.model, [(site_index(site, loaded.model), cut)]):
        logits = loaded.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        target = ids[:, 1:].masked_fill(~trained[:, 1:], -100)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    counted = trained.clone()
    # The marker before a turn is where its speaker is decided.
    counted[:, :-1] |= trained[:, 1:]
    return _Streams(leaf[0].detach()[counted].float().cpu(), gradient[counted].float().cpu())
