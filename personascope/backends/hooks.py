"""Read and edit the residual stream of any Hugging Face causal language model, as context managers only.

The site `block:N` is the output of decoder block N, counted from 0: exactly what block N+1 reads, and for the last
block what the final norm reads. Hooks run in the order in which their contexts were entered, so a capture entered
after an edit sees the edited stream.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from personascope.errors import BackendError, RecipeError

Change = Callable[[Tensor], Tensor]
Op = Literal["add", "ablate", "clamp", "cap"]


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


def site_indices(pattern: str, model: nn.Module | None = None) -> list[int]:
    """The blocks that a site or a glob of sites names: `block:3`, `block:*`, `block:1?`.

    Raises:
        RecipeError: not of that form, a glob without a model to look in, or one that fits no block.
    """
    if not set(pattern) & set("*?["):
        return [site_index(pattern, model)]
    if model is None:
        raise RecipeError(f"site {pattern!r}: a glob names blocks of a model, and none was given; write block:N")
    found = [i for i in range(len(blocks(model))) if fnmatchcase(f"block:{i}", pattern)]
    if not found:
        raise RecipeError(f"site {pattern!r} fits no block; the model has block:0 to block:{len(blocks(model)) - 1}")
    return found


@dataclass(frozen=True, eq=False)
class Reader:
    """What `clamp` and `cap` read of a stream x, max(x · weights + bias, floor), and the value it is to have; per row.

    A plain direction is read by its unit vector with floor -inf; a latent by its encoder with floor 0, which is its
    activation before TopK.
    """

    weights: Tensor
    """(rows, width)."""
    biases: Tensor
    """(rows,)."""
    floors: Tensor
    """(rows,)."""
    values: Tensor
    """(rows,): what the reading is set to (`clamp`) or at most (`cap`)."""

    @classmethod
    def along(cls, vectors: Tensor, values: Tensor) -> Self:
        """Read the projection on the unit vectors of (rows, width)."""
        zero = torch.zeros_like(values)
        return cls(nn.functional.normalize(vectors.float(), dim=1), zero, zero - torch.inf, values)

    def at(self, index: Tensor) -> Self:
        """The rows under an index or a bool mask."""
        return type(self)(self.weights[index], self.biases[index], self.floors[index], self.values[index])

    def to(self, device: torch.device) -> Self:
        """The same on a device, in float32."""
        return type(self)(*(tensor.to(device, torch.float32) for tensor in (self.weights, self.biases, self.floors, self.values)))


@dataclass(eq=False)
class Edit:
    """One change of the residual stream at one block, per row of the batch.

    The caller sets `mask` (rows, positions) before each forward. Where the mask is false, or the row's vector is
    zero, the stream stays bit-identical; with `cap` also where the reading is not above its value.
    """

    block: int
    op: Op
    vectors: Tensor
    """(rows, width). `add`: what is added. `ablate`: only the direction counts. `clamp`, `cap`: the stream moves along the
    vector by value - reading. A zero row leaves its row untouched."""
    mask: Tensor | None = field(default=None)
    """(rows, positions) bool: where to edit in the next forward."""
    reader: Reader | None = None
    """For `clamp` and `cap`."""

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
        full = x.float()
        if self.op == "add":
            changed = full + vectors
        elif self.op == "ablate":
            unit = nn.functional.normalize(vectors, dim=2)
            changed = full - (full * unit).sum(dim=2, keepdim=True) * unit
        else:
            short = self._short(full)
            if self.op == "cap":
                touched = touched & (short < 0)
            changed = full + short * vectors
        return torch.where(touched, changed.to(x.dtype), x)

    def _short(self, x: Tensor) -> Tensor:
        """How far the reading is below its value (rows, positions, 1)."""
        assert self.reader is not None
        r = self.reader.to(x.device)
        reading = torch.maximum((x * r.weights[:, None]).sum(dim=2) + r.biases[:, None], r.floors[:, None])
        return (r.values[:, None] - reading).unsqueeze(2)


@contextmanager
def editing(model: nn.Module, edits: Sequence[Edit]) -> Iterator[None]:
    """Apply the edits at every forward inside the context; several at one block compose in list order.

    Raises:
        RecipeError: an edit of a block the model does not have, with an unknown operation, or without what it reads.
    """
    for edit in edits:
        site_index(f"block:{edit.block}", model)
        if edit.op not in get_args(Op):
            raise RecipeError(f"edit at block:{edit.block}: operation {edit.op!r} is none of {', '.join(get_args(Op))}")
        if edit.op in ("clamp", "cap") and edit.reader is None:
            raise RecipeError(f"edit at block:{edit.block}: {edit.op} needs a reader; give Reader.along(vectors, values) or an encoder's")
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
