"""Read and edit the residual stream of any Hugging Face causal language model, as context managers only.

The site `block:N` is the output of decoder block N, counted from 0: exactly what block N+1 reads, and for the last
block what the final norm reads. Hooks run in the order in which their contexts were entered, so a capture entered
after an edit sees the edited stream.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from personascope.errors import BackendError, RecipeError

Change = Callable[[Tensor], Tensor]


class _Reached(Exception):
    """The deepest wanted block has been read; nothing after it is needed."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, wrapped by PEFT or not.

    Raises:
        BackendError: the model's decoder has no single list of as many modules as its configuration has layers.
    """
    try:
        depth = model.config.get_text_config().num_hidden_layers
        decoder = model.get_decoder()
    except AttributeError:
        raise BackendError(
            f"{type(model).__name__}: no decoder of a Hugging Face causal language model found in it; give such a model"
        ) from None
    found = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == depth]
    if len(found) != 1:
        raise BackendError(
            f"{type(model).__name__}: {len(found)} lists of {depth} decoder blocks in {type(decoder).__name__}; "
            "this architecture is not supported"
        )
    return found[0]


def site_index(site: str, model: nn.Module | None = None) -> int:
    """The number in `block:N`; with a model, checked against its depth.

    Raises:
        RecipeError: not of that form, or the model has no such block.
    """
    kind, _, number = site.partition(":")
    if kind != "block" or not number.isascii() or not number.isdigit():
        raise RecipeError(f"site {site!r}: write block:N, the output of decoder block N counted from 0")
    if model is not None and int(number) >= (depth := len(blocks(model))):
        raise RecipeError(f"site {site!r}: the model has {depth} blocks; the last site is block:{depth - 1}")
    return int(number)


@dataclass(eq=False)
class Edit:
    """One change of the residual stream at one block, per row of the batch.

    The caller sets `mask` (rows, positions) before each forward. Where the mask is false, or the row's vector is
    zero, the stream stays bit-identical.
    """

    block: int
    op: Literal["add", "ablate"]
    vectors: Tensor
    """(rows, width), already scaled; for `ablate` only its direction counts. A zero row leaves its row untouched."""
    mask: Tensor | None = field(default=None)
    """(rows, positions) bool: where to edit in the next forward."""

    def __call__(self, x: Tensor) -> Tensor:
        """Change x (rows, positions, width); computed in float32, returned in the dtype of x.

        Raises:
            BackendError: no mask was set, or the shapes do not belong together.
        """
        if self.mask is None:
            raise BackendError(f"edit at block:{self.block}: no mask set; set edit.mask (rows, positions) before each forward")
        if self.mask.shape != x.shape[:2] or self.vectors.shape != (len(x), x.shape[2]):
            raise BackendError(
                f"edit at block:{self.block}: stream {tuple(x.shape)} with mask {tuple(self.mask.shape)} "
                f"and vectors {tuple(self.vectors.shape)}; "
                "give a mask (rows, positions) and vectors (rows, width) of the batch that runs"
            )
        vectors = self.vectors.to(x.device, torch.float32).unsqueeze(1)
        touched = self.mask.to(x.device).unsqueeze(2) & vectors.any(dim=2, keepdim=True)
        if self.op == "add":
            changed = x.float() + vectors
        else:
            unit = nn.functional.normalize(vectors, dim=2)
            changed = x.float() - (x.float() * unit).sum(dim=2, keepdim=True) * unit
        return torch.where(touched, changed.to(x.dtype), x)


@contextmanager
def editing(model: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply the edits at every forward inside the context; several at one block compose in list order.

    Raises:
        RecipeError: an edit of a block the model does not have, or with an unknown operation.
    """
    for edit in edits:
        site_index(f"block:{edit.block}", model)
        if edit.op not in ("add", "ablate"):
            raise RecipeError(f"edit at block:{edit.block}: operation {edit.op!r} is none of add, ablate")
    with changing(model, [(edit.block, edit) for edit in edits]):
        yield


@contextmanager
def changing(model: nn.Module, changes: Sequence[tuple[int, Change]]) -> Iterator[None]:
    """Replace the output x (rows, positions, width) of each named block by change(x), in list order."""
    found = blocks(model)
    with ExitStack() as stack:
        for block, change in changes:
            stack.callback(found[block].register_forward_hook(_hook(change)).remove)
        yield


def _hook(change: Change) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        # Blocks of this generation return the stream itself, older ones a tuple that begins with it.
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


@contextmanager
def capturing(model: nn.Module, sites: Sequence[str], stop: bool = True) -> Iterator[dict[str, Tensor]]:
    """Fill a dict site -> (rows, positions, width), anew at each forward, with the live tensors of the stream.

    With `stop` the forward ends at the deepest site and must be run by `run_to_site`.

    Raises:
        RecipeError: no site, or one the model does not have.
    """
    if not sites:
        raise RecipeError("capturing: no site given; name at least one, such as block:0")
    indices = {site: site_index(site, model) for site in sites}
    seen: dict[str, Tensor] = {}
    deepest = max(sites, key=lambda site: indices[site])

    def read(site: str) -> Change:
        def keep(x: Tensor) -> Tensor:
            seen[site] = x
            if stop and site == deepest:
                raise _Reached
            return x

        return keep

    # Deepest last, so that two names of one block are both filled before the forward ends.
    order = sorted(dict.fromkeys(sites), key=lambda site: (indices[site], site == deepest))
    with changing(model, [(indices[site], read(site)) for site in order]):
        yield seen


def run_to_site(model: nn.Module, **inputs: Any) -> None:
    """Run a forward that ends where a `capturing` context stops it, without building a key-value cache."""
    try:
        model(**inputs, use_cache=False)
    except _Reached:
        return
