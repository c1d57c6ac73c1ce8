"""Activation patching: give one model another's residual stream at a block, and read what answers it then prefers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from personascope.backends.capture import plan_batches
from personascope.backends.hooks import Change, blocks, capturing, changing
from personascope.backends.preference import padded
from personascope.errors import BackendError
from personascope.methods import preference, rerouting
from personascope.methods.preference import IGNORED
from personascope.methods.sparse import SparseAutoencoder
from personascope.methods.tokens import TrainingRow

Mask = Literal["all", "prompt"]
Part = Literal["whole", "inside", "outside"]


@dataclass(frozen=True)
class Patch:
    """Into `into`, at the output of a block, the stream that `donor` has there on the same tokens.

    Whole and at all positions it makes the model that is `donor` up to that block and `into` after it.
    """

    into: str
    donor: str
    block: int
    mask: Mask = "all"
    """`prompt`: everything before the answer, its marker included."""
    part: Part = "whole"
    """`inside`: only the way towards the donor that the chosen latents account for; `outside`: only the rest of it."""


@dataclass(frozen=True)
class Chosen:
    """Latents of a dictionary: what `inside` and `outside` mean."""

    sae: SparseAutoencoder
    latents: Tensor
    """(c,) numbers."""

    def inside(self, own: Tensor, donor: Tensor) -> Tensor:
        """The part of donor - own (rows, positions, width) along these latents."""
        z = [self.sae.encode(x.float())[..., self.latents] for x in (own, donor)]
        return rerouting.within(z[0], z[1], self.sae.W_dec[self.latents], self.sae.scale).to(own.dtype)


@torch.inference_mode()
def answer_log_probs(
    models: Mapping[str, Any],
    rows: Sequence[TrainingRow],
    patches: Sequence[Patch],
    pad_id: int,
    chosen: Chosen | None = None,
    batch_tokens: int = 8192,
) -> tuple[dict[str, Tensor], Tensor]:
    """log p of each row's trained tokens in nats: by model (rows,) as it is, and (patches, rows) under each patch.

    Raises:
        BackendError: models of different depth, or a part of a patch that asks for latents and none are given.
    """
    depths = {name: len(blocks(model)) for name, model in models.items()}
    if len(set(depths.values())) > 1:
        raise BackendError(f"patching: the models have {depths} blocks; give models of one make")
    if chosen is None and any(patch.part != "whole" for patch in patches):
        raise BackendError("patching: a part inside or outside chosen latents, and none were chosen")
    sites = [f"block:{i}" for i in range(next(iter(depths.values())))]
    device = next(iter(models.values())).device
    alone = {name: torch.zeros(len(rows), dtype=torch.float64) for name in models}
    found = torch.zeros(len(patches), len(rows), dtype=torch.float64)
    for batch in plan_batches([len(row.ids) for row in rows], batch_tokens):
        inputs = {name: tensor.to(device) for name, tensor in padded([rows[i] for i in batch], pad_id).items()}
        labels = inputs.pop("labels")
        streams: dict[str, dict[str, Tensor]] = {}
        for name, model in models.items():
            with capturing(model, sites, stop=False) as seen:
                alone[name][batch] = _log_probs(model, inputs, labels)
            streams[name] = dict(seen)
        on = {"all": torch.ones_like(labels, dtype=torch.bool), "prompt": _before(labels)}
        for i, patch in enumerate(patches):
            change = _change(patch, streams[patch.donor][f"block:{patch.block}"], on[patch.mask], chosen)
            with changing(models[patch.into], [(patch.block, change)]):
                found[i, batch] = _log_probs(models[patch.into], inputs, labels)
    return alone, found


def _log_probs(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return preference.answer_log_probs(model(**inputs, use_cache=False).logits.float(), labels).double().cpu()


def _before(labels: Tensor) -> Tensor:
    """Positions (rows, positions) before the first trained token."""
    return (labels != IGNORED).cumsum(1) == 0


def _change(patch: Patch, donor: Tensor, on: Tensor, chosen: Chosen | None) -> Change:
    def change(x: Tensor) -> Tensor:
        if patch.part == "whole" or chosen is None:
            return torch.where(on[..., None], donor, x)
        inside = chosen.inside(x, donor)
        return torch.where(on[..., None], x + inside if patch.part == "inside" else donor - inside, x)

    return change
