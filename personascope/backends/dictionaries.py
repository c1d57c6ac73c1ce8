"""Sparse dictionaries on disk in SAELens' folder format: cfg.json and sae_weights.safetensors."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from personascope.artifact import Dictionary
from personascope.errors import ArtifactError, BackendError
from personascope.methods.sparse import JumpReLU, SparseAutoencoder, TopK, fold_scale

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")
KINDS = ("topk", "jumprelu", "standard")


def save_dictionary(path: Path, sae: SparseAutoencoder, meta: dict[str, Any]) -> None:
    """Write the autoencoder into the folder `path`, its scale folded in, so that it reads raw residuals.

    `meta` becomes the configuration's `metadata`; it should say the `site` and the model.
    """
    kind: dict[str, Any] = {"architecture": "jumprelu"}
    if isinstance(sae, TopK):
        sae = fold_scale(sae)
        kind = {"architecture": "topk", "k": sae.k, "rescale_acts_by_decoder_norm": False}
    width, d_model = sae.W_dec.shape
    config = kind | {
        "d_in": d_model,
        "d_sae": width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": meta,
    }
    tensors = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_pre}
    if isinstance(sae, JumpReLU):
        tensors["threshold"] = sae.threshold
    save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_dictionary(dictionary: Dictionary, device: str | torch.device = "cpu") -> tuple[SparseAutoencoder, dict[str, Any]]:
    """The autoencoder of a finished dictionary and its configuration.

    Raises:
        ArtifactError: the dictionary is not finished, or a file of it is missing or damaged.
        BackendError: an autoencoder of another kind, or one that needs its input normalised.
    """
    sae, config = read_dictionary(dictionary.file(CONFIG).parent)
    return sae.to(device), config


def read_dictionary(folder: Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """As `load_dictionary`, from any folder in SAELens' format, also one made elsewhere."""
    try:
        config = modern(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: no readable {CONFIG} and {WEIGHTS} there ({error}); give a dictionary's folder") from None
    _check(folder, config, tensors)
    found = Weights(
        encoder=tensors["W_enc"].T,
        decoder=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        centred=config["apply_b_dec_to_input"],
        by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm")),
        k=config["k"] if config["architecture"] == "topk" else 0,
        threshold=tensors.get("threshold"),
    )
    config["metadata"].setdefault("site", block_of(str(config["metadata"].get("hook_name", ""))))
    return assembled(found), config


def block_of(hook: str) -> str:
    """The site of a hook point as others write it, such as `blocks.3.hook_resid_post` or `model.layers.3`; nothing for another place."""
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(post|pre)", hook):
        number = int(found[1]) - (found[2] == "pre")
        return f"block:{number}" if number >= 0 else ""
    found = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)[._](\d+)(?:\.output)?", hook)
    return f"block:{found[1]}" if found else ""


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of SAELens before version 6 in the words of later ones; a later one as it is."""
    if "metadata" in config:
        return config
    was = {"architecture": "standard", "apply_b_dec_to_input": True, "metadata": config} | config
    arguments = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk" and "k" in arguments:
        was |= {"architecture": "topk", "k": arguments["k"]}
    if was.get("normalize_activations") in (False, None):
        was["normalize_activations"] = "none"
    return was


@dataclass(frozen=True)
class Weights:
    """A dictionary as it was trained: m latents over a stream of width d."""

    encoder: Tensor
    """(m, d)"""
    decoder: Tensor
    """(m, d)"""
    b_enc: Tensor
    b_dec: Tensor
    centred: bool
    """Whether b_dec is taken from the stream before it is encoded."""
    by_decoder_norm: bool = False
    """Whether activations are in units of a decoder row of norm 1."""
    k: int = 0
    """Active latents a token; 0 where thresholds choose."""
    threshold: Tensor | None = None
    """One for all latents or one for each; none means 0, a ReLU."""


def assembled(found: Weights) -> SparseAutoencoder:
    """The autoencoder with these weights, in float32 and frozen; what it computes is what its makers' code computes."""
    encoder, decoder, b_enc, b_dec = (tensor.float() for tensor in (found.encoder, found.decoder, found.b_enc, found.b_dec))
    if not found.centred:
        b_enc = b_enc + encoder @ b_dec
    if found.by_decoder_norm:
        norm = decoder.norm(dim=1)
        encoder, b_enc, decoder = encoder * norm[:, None], b_enc * norm, F.normalize(decoder, dim=1)
    width, d_model = decoder.shape
    sae = TopK(width, d_model, found.k) if found.k else JumpReLU(width, d_model)
    with torch.no_grad():
        for parameter, value in ((sae.W_enc, encoder), (sae.W_dec, decoder), (sae.b_enc, b_enc), (sae.b_pre, b_dec)):
            parameter.copy_(value)
        if isinstance(sae, JumpReLU) and found.threshold is not None:
            sae.threshold.copy_(found.threshold.float())
    return sae.eval().requires_grad_(False)


def _check(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise for what this code cannot read as it was meant."""
    kind = config.get("architecture")
    if kind not in KINDS:
        raise BackendError(f"{folder / CONFIG}: architecture {kind!r}; only {', '.join(KINDS)} dictionaries are supported")
    for key in ("d_in", "d_sae", "apply_b_dec_to_input", *(("k",) if kind == "topk" else ())):
        if key not in config:
            raise ArtifactError(f"{folder / CONFIG}: field {key!r} is missing; give a dictionary in SAELens' format")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise BackendError(
                f"{folder / CONFIG}: {key} is {config[key]!r}; only dictionaries that read the raw residual stream are supported"
            )
    if kind == "standard" and config.get("activation_fn", config.get("activation_fn_str", "relu")) != "relu":
        raise BackendError(f"{folder / CONFIG}: activation_fn is {config.get('activation_fn')!r}; only relu is supported")
    if "scaling_factor" in tensors or "finetuning_scaling_factor" in tensors:
        raise BackendError(
            f"{folder / WEIGHTS}: its reconstruction is scaled after training, which is not supported; fold the factor in first"
        )
    if kind != "topk" and config.get("rescale_acts_by_decoder_norm"):
        raise BackendError(f"{folder / CONFIG}: rescale_acts_by_decoder_norm is known for topk alone; fold the norms in first")
    _fit(folder, tensors, kind, config["d_sae"], config["d_in"])


def _fit(folder: Path, tensors: dict[str, Tensor], kind: str, m: int, d: int) -> None:
    """Raise for tensors that are missing or are not of m latents over d numbers."""
    needed = [*NAMES, *(["threshold"] if kind == "jumprelu" else [])]
    if missing := sorted(set(needed) - set(tensors)):
        raise ArtifactError(f"{folder / WEIGHTS}: tensor {missing[0]!r} is missing; give a dictionary in SAELens' format")
    for name, shape in zip((*NAMES, "threshold"), ((d, m), (m, d), (m,), (d,), (m,)), strict=True):
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ArtifactError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensors[name].shape)}, {CONFIG} says {shape}; they do not belong together"
            )
