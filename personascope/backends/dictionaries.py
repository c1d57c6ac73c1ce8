"""Sparse dictionaries on disk in SAELens' folder format: cfg.json and sae_weights.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from personascope.artifact import Dictionary
from personascope.errors import ArtifactError, BackendError
from personascope.methods.sparse import TopK, fold_scale

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def save_dictionary(path: Path, sae: TopK, meta: dict[str, Any]) -> None:
    """Write the autoencoder into the folder `path`, its scale folded in, so that it reads raw residuals.

    `meta` becomes the configuration's `metadata`; it should say the `site` and the model.
    """
    folded = fold_scale(sae)
    width, d_model = folded.W_dec.shape
    config = {
        "architecture": "topk",
        "d_in": d_model,
        "d_sae": width,
        "k": folded.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": meta,
    }
    tensors = {"W_enc": folded.W_enc.T, "W_dec": folded.W_dec, "b_enc": folded.b_enc, "b_dec": folded.b_pre}
    save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_dictionary(dictionary: Dictionary, device: str | torch.device = "cpu") -> tuple[TopK, dict[str, Any]]:
    """The autoencoder of a finished dictionary and its configuration.

    Raises:
        ArtifactError: the dictionary is not finished, or a file of it is missing or damaged.
        BackendError: not a TopK autoencoder, or one that needs its input normalised.
    """
    sae, config = read_dictionary(dictionary.file(CONFIG).parent)
    return sae.to(device), config


def read_dictionary(folder: Path) -> tuple[TopK, dict[str, Any]]:
    """As `load_dictionary`, from any folder in SAELens' format, also one made elsewhere."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: no readable {CONFIG} and {WEIGHTS} there ({error}); give a dictionary's folder") from None
    _check(folder, config, tensors)
    sae = TopK(config["d_sae"], config["d_in"], config["k"])
    encoder, decoder = tensors["W_enc"].float().T, tensors["W_dec"].float()
    b_enc, b_dec = tensors["b_enc"].float(), tensors["b_dec"].float()
    if not config["apply_b_dec_to_input"]:
        b_enc = b_enc + encoder @ b_dec
    if config.get("rescale_acts_by_decoder_norm"):
        norm = decoder.norm(dim=1)
        encoder, b_enc, decoder = encoder * norm[:, None], b_enc * norm, F.normalize(decoder, dim=1)
    with torch.no_grad():
        for parameter, value in ((sae.W_enc, encoder), (sae.W_dec, decoder), (sae.b_enc, b_enc), (sae.b_pre, b_dec)):
            parameter.copy_(value)
    return sae.eval().requires_grad_(False), config


def _check(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Raise for what this code cannot read as it was meant."""
    if config.get("architecture") != "topk":
        raise BackendError(f"{folder / CONFIG}: architecture {config.get('architecture')!r}; only topk dictionaries are supported")
    for key in ("d_in", "d_sae", "k", "apply_b_dec_to_input"):
        if key not in config:
            raise ArtifactError(f"{folder / CONFIG}: field {key!r} is missing; give a dictionary in SAELens' format")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise BackendError(
                f"{folder / CONFIG}: {key} is {config[key]!r}; only dictionaries that read the raw residual stream are supported"
            )
    if missing := sorted(set(NAMES) - set(tensors)):
        raise ArtifactError(f"{folder / WEIGHTS}: tensor {missing[0]!r} is missing; give a dictionary in SAELens' format")
    m, d = config["d_sae"], config["d_in"]
    for name, shape in zip(NAMES, ((d, m), (m, d), (m,), (d,)), strict=True):
        if tuple(tensors[name].shape) != shape:
            raise ArtifactError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensors[name].shape)}, {CONFIG} says {shape}; they do not belong together"
            )
