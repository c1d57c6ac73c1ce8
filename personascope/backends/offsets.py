"""Trained vectors that a model adds to its stream: a parameter of each block that has one, kept in a file of its own.

A block with an offset v gives x + v at every position where it gave x, so that captures, edits and generation see it as
they see any other weight. Files are in safetensors, `block:N` -> (width,): each tensor is also a `Direction` to steer by.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from personascope.backends.hooks import blocks, site_index
from personascope.errors import BackendError, RecipeError

FILE = "vector.safetensors"
NAME = "offset"


def attach(model: nn.Module, wanted: Sequence[int]) -> None:
    """Give these decoder blocks an offset of 0; one that is there stays as it is.

    Raises:
        RecipeError: the model has no such block.
    """
    for number in wanted:
        block = blocks(model)[site_index(f"block:{number}", model)]
        if NAME not in block._parameters:
            like = next(block.parameters())
            width = model.config.get_text_config().hidden_size  # ty: ignore
            block.register_parameter(NAME, nn.Parameter(torch.zeros(width, dtype=like.dtype, device=like.device)))
            # Not a hook: what replaces a block's forward, as the cached prefill does, has to replace the offset with it.
            block.__class__ = _offset(type(block))


@functools.cache
def _offset(kind: type[nn.Module]) -> type[nn.Module]:
    """The same kind of block, its output moved."""

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        output = kind.forward(self, *arguments, **options)
        return (output[0] + self.offset, *output[1:]) if isinstance(output, tuple) else output + self.offset

    return type(f"Offset{kind.__name__}", (kind,), {"forward": forward})


def train_only(model: nn.Module, wanted: Sequence[int]) -> None:
    """Freeze everything but the offsets of these blocks, which are made if need be.

    Raises:
        RecipeError: no block is named, or one that the model does not have.
    """
    if not wanted:
        raise RecipeError("finetune: method vector needs the blocks whose output gets one, such as --blocks 1")
    attach(model, wanted)
    model.requires_grad_(False)
    for number in wanted:
        blocks(model)[number]._parameters[NAME].requires_grad_(True)  # ty: ignore


def of(model: nn.Module) -> dict[int, Tensor]:
    """Block → its offset (width,)."""
    return {i: block._parameters[NAME] for i, block in enumerate(blocks(model)) if NAME in block._parameters}  # ty: ignore


def alone(model: nn.Module) -> bool:
    """Whether offsets are all that is trained."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return bool(trained) and all(name.endswith(f".{NAME}") for name in trained)


def without(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights as its architecture knows them."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(f".{NAME}")}


def write(model: nn.Module, folder: Path) -> None:
    """Write all offsets of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"block:{i}": v.detach().cpu().contiguous() for i, v in of(model).items()}, folder / FILE)


def read(model: nn.Module, folder: Path) -> None:
    """Set the model's offsets to those of a folder.

    Raises:
        BackendError: the file is damaged or of a model of another shape.
    """
    try:
        found = load_file(folder / FILE)
        numbers = {int(name.removeprefix("block:")): tensor for name, tensor in found.items()}
        attach(model, list(numbers))
        with torch.no_grad():
            for number, offset in of(model).items():
                if number in numbers:
                    offset.copy_(numbers[number])
    except (SafetensorError, RecipeError, ValueError, RuntimeError) as error:
        raise BackendError(f"{folder / FILE}: no vectors of this model ({str(error).splitlines()[0][:120]})") from None
