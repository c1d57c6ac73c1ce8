"""Read the vector that a Direction names, and turn interventions into steers of a batch."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from personascope.artifact import Dictionary
from personascope.backends.dictionaries import load_dictionary
from personascope.backends.hooks import Reader, blocks, site_indices
from personascope.backends.steering import Steer
from personascope.errors import DataError, RecipeError
from personascope.values import Direction, File, Intervention


def vector(direction: Direction, block: int | None = None) -> Tensor:
    """The unit vector (width,) of a direction.

    Args:
        block: the block it is wanted at; decides the row of a file's tensor with one row per layer.

    Raises:
        RecipeError: the artifact or file holds no such tensor, or it has length 0.
        DataError: a file that cannot be read as vectors.
    """
    if isinstance(direction.source, File):
        found = _from_file(direction.source, direction.tensor, block)
    elif isinstance(direction.source, Dictionary):
        with safe_open(direction.source.file("sae_weights.safetensors"), "pt") as file:
            decoder = file.get_tensor("W_dec")
        drawn = _drawn(direction.tensor, decoder.shape[1])
        found = decoder[_latent(direction.tensor, len(decoder))].float() if drawn is None else drawn
    else:
        with safe_open(direction.source.file("directions.safetensors"), "pt") as file:
            names = list(file.keys())
            drawn = _drawn(direction.tensor, file.get_slice(names[0]).get_shape()[-1])
            if drawn is None and direction.tensor not in names:
                raise RecipeError(f"direction {direction.tensor!r}: {direction.source.path} has {', '.join(names)}")
            found = file.get_tensor(direction.tensor).float() if drawn is None else drawn
    if not found.norm() > 0:
        raise RecipeError(f"direction {direction.tensor!r} of {direction.source.path} has length 0")
    return found / found.norm()


def _drawn(tensor: str, width: int) -> Tensor | None:
    """The vector (width,) that `random/SEED` names, of independent normal numbers; None for any other name."""
    name, _, seed = tensor.partition("/")
    if name != "random" or not (seed.isascii() and seed.isdigit()):
        return None
    return torch.randn(width, generator=torch.Generator().manual_seed(int(seed)))


def _latent(tensor: str, count: int) -> int:
    name, _, latent = tensor.partition("/")
    if name != "decoder" or not latent.isascii() or not latent.isdigit() or int(latent) >= count:
        raise RecipeError(f"direction {tensor!r}: in a dictionary write decoder/LATENT with LATENT below {count}")
    return int(latent)


def _from_file(file: File, tensor: str, block: int | None) -> Tensor:
    """One vector of a user's file: `[NAME/][ROW]`, where a tensor (rows, width) without ROW gives row block + 1.

    That is the layout of the Persona Vectors release (2507.21509): row i belongs to `hidden_states[i]`, row 0 to the embeddings.
    """
    tensors = read_tensors(Path(file.path))
    name, row = tensor, ""
    if len(tensors) == 1 and (not tensor or (tensor.isdigit() and tensor not in tensors)):
        (name,), row = tensors, tensor
    elif "/" in tensor and tensor not in tensors:
        name, _, row = tensor.rpartition("/")
    if name not in tensors or (row and not (row.isascii() and row.isdigit())):
        known = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise RecipeError(f"direction {tensor!r}: {file.path} has {known}; write NAME, or NAME/ROW for one row of a matrix")
    found = tensors[name].float()
    if found.ndim == 1 and not row:
        return found
    if found.ndim != 2:
        raise RecipeError(
            f"direction {tensor!r}: {name or 'the tensor'} of {file.path} has shape {tuple(found.shape)}; one row is a vector"
        )
    if not row and block is None:
        raise RecipeError(f"direction {tensor!r}: {file.path} has {len(found)} rows; write the row, block N is row N + 1")
    index = int(row) if row else (block or 0) + 1
    if index >= len(found):
        raise RecipeError(f"direction {tensor!r}: row {index} of {file.path} is wanted, it has {len(found)}")
    return found[index]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt or .pth file by name; a lone tensor's name is empty. Nothing in it is executed.

    Raises:
        DataError: no such file, of another kind, or not a tensor or a flat table of tensors.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise DataError(f"{path}: tensors are read from .safetensors, .pt and .pth files")
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as tensors ({str(error).splitlines()[0][:120]})") from None
    found = {"": held} if isinstance(held, Tensor) else held
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path}: a tensor or a flat table of named tensors is needed")
    return {str(name): value for name, value in found.items()}


def reader(direction: Direction, at: Tensor, value: float) -> tuple[Tensor, Reader]:
    """What `clamp` and `cap` move along (1, width) and what they read, for the unit vector `at` (width,) of a direction.

    A latent is read by its encoder and moved along its decoder row as the dictionary decodes it, so that its own
    reconstruction changes by exactly the change of activation.
    """
    if not isinstance(direction.source, Dictionary):
        return at[None], Reader.along(at[None], torch.tensor([value]))
    sae, _ = load_dictionary(direction.source)
    latent = _latent(direction.tensor, len(sae.W_dec))
    bias = sae.b_enc[latent] - sae.W_enc[latent] @ sae.b_pre
    weights = sae.W_enc[latent][None] * sae.scale
    return sae.W_dec[latent][None] / sae.scale, Reader(weights, bias[None], torch.zeros(1), torch.tensor([value]))


def steers_of(interventions: tuple[Intervention, ...], rows: int, model: nn.Module | None = None) -> list[Steer]:
    """Every intervention applied to every row of a batch, in order; a glob of sites becomes one steer per block.

    Raises:
        RecipeError: a site or vector that is not there, or, with a model, a vector of another width than its stream.
    """
    steers = []
    for edit in interventions:
        value = edit.strength * edit.unit
        for block in site_indices(edit.site, model):
            at = vector(edit.direction, block)
            _check(edit, at, model, block)
            if edit.op in ("clamp", "cap"):
                along, what = reader(edit.direction, at, value)
                steers.append(Steer(block, edit.op, edit.mask, along, [0] * rows, what))
            else:
                steers.append(Steer(block, edit.op, edit.mask, at[None] * (value if edit.op == "add" else 1.0), [0] * rows))
    return steers


def _check(edit: Intervention, at: Tensor, model: nn.Module | None, block: int) -> None:
    if model is None:
        return
    if block >= len(blocks(model)):
        raise RecipeError(f"site {edit.site!r}: the model has {len(blocks(model))} blocks")
    width = model.config.get_text_config().hidden_size
    if at.shape != (width,):
        raise RecipeError(
            f"direction {edit.direction.tensor!r} of {edit.direction.source.path} has width {at.numel()}, "
            f"the model's stream {width}; give a direction of this model"
        )
