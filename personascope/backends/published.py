"""Dictionaries as others publish them, told apart by their files and read as their makers' code reads them.

Nothing is unpickled. A file that says how its weights are meant in a way not known here is refused: a dictionary read a
little wrong still gives numbers.
"""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from personascope.backends.dictionaries import CONFIG, WEIGHTS, Weights, assembled, block_of, read_dictionary
from personascope.backends.directions import read_tensors
from personascope.errors import ArtifactError, BackendError, RecipeError
from personascope.methods.sparse import SparseAutoencoder


class Found(NamedTuple):
    """A dictionary read, the site its files name (may be nothing), and whose format it is in."""

    sae: SparseAutoencoder
    site: str
    format: str


def read(place: Path, k: int = 0) -> Found:
    """The dictionary in a folder, or in a file of weights whose configuration, if its format has one, lies beside it.

    Args:
        place: the folder or file.
        k: active latents a token, for formats whose files do not say it.

    Raises:
        ArtifactError: files that are missing, damaged or do not belong together.
        DataError: weights that are not a flat table of tensors.
        BackendError: no known format, or one of a kind that cannot be read as it was meant.
    """
    folder = place.parent if place.is_file() else place
    held = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    for name, reader, needed in FORMATS:
        if set(needed) <= held and (place == folder or place.name in needed):
            return Found(*reader(folder, k), name)
    if place.is_file() and place.suffix in (".pt", ".pth"):
        return _single(place, k)
    known = "; ".join(f"{name}: {' and '.join(needed)}" for name, _, needed in FORMATS)
    raise BackendError(f"{place}: no dictionary of a known format; give a folder with the files of one ({known}), or a .pt file")


def _sae_lens(folder: Path, _: int) -> tuple[SparseAutoencoder, str]:
    sae, config = read_dictionary(folder)
    meta = config["metadata"]
    return sae, meta["site"] or _stream(folder, meta.get("hook_name"))


def _sparsify(folder: Path, k: int) -> tuple[SparseAutoencoder, str]:
    """TopK on the stream less b_dec; the folder is called by the module whose output it reads."""
    config, tensors = _json(folder / CONFIG), read_tensors(folder / "sae.safetensors")
    for key, only in (("activation", "topk"), ("transcode", False), ("skip_connection", False), ("signed", False)):
        if config.get(key, only) != only:
            raise BackendError(f"{folder / CONFIG}: {key} is {config[key]!r}; only TopK autoencoders of one site are supported")
    names = ("encoder.weight", "W_dec", "encoder.bias", "b_dec")
    site = _stream(folder, folder.name) if re.search(r"(?<![a-z])(layers|h|blocks)[._]\d", folder.name) else ""
    return _made(folder, tensors, names, "mm", k=_said(folder, config.get("k") or k)), site


def _dictionary_learning(folder: Path, k: int) -> tuple[SparseAutoencoder, str]:
    """`dict_class` says which of its classes reads the weights: where b_dec is taken away first, and what chooses."""
    trainer, tensors = _json(folder / "config.json").get("trainer", {}), read_tensors(folder / "ae.pt")
    kind, site = trainer.get("dict_class"), _resid_post(folder, trainer)
    threshold = tensors.get("threshold")
    linear, plain = ("encoder.weight", "decoder.weight", "encoder.bias"), ("W_enc", "W_dec", "b_enc", "b_dec")
    if kind == "AutoEncoderTopK":
        return _made(folder, tensors, (*linear, "b_dec"), "md", k=_said(folder, tensors.get("k", trainer.get("k")) or k)), site
    if kind == "AutoEncoder":
        return _made(folder, tensors, (*linear, "bias"), "md", by_decoder_norm=True), site
    if kind == "AutoEncoderNew":
        return _made(folder, tensors, (*linear, "decoder.bias"), "md", centred=False), site
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        if threshold is None or threshold.numel() != 1 or float(threshold) < 0:
            raise BackendError(f"{folder / 'ae.pt'}: a {kind} without the threshold that its training ends with; it cannot be read alone")
        return _made(
            folder, tensors, *(((*linear, "b_dec"), "md") if "encoder.weight" in tensors else (plain, "dm")), threshold=threshold
        ), site
    if kind == "JumpReluAutoEncoder":
        centred = bool(tensors.get("apply_b_dec_to_input", False))
        return _made(folder, tensors, plain, "dm", centred=centred, threshold=_threshold(folder, tensors)), site
    raise BackendError(f"{folder / 'config.json'}: trainer.dict_class is {kind!r}, which is not supported")


def _gemma_scope(folder: Path, _: int) -> tuple[SparseAutoencoder, str]:
    """JumpReLU, b_dec only added; the path says the layer, and the repository's name whether it is the residual stream."""
    try:
        with (folder / "params.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            tensors = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{folder / 'params.npz'}: not readable ({error})") from None
    return _jump_relu(folder, tensors), _from_path(folder)


def _gemma_scope_2(folder: Path, _: int) -> tuple[SparseAutoencoder, str]:
    """As the first Gemma Scope, with a configuration."""
    config, tensors = _json(folder / "config.json"), read_tensors(folder / "params.safetensors")
    if config.get("architecture") != "jump_relu" or "affine_skip_connection" in tensors:
        raise BackendError(
            f"{folder}: architecture {config.get('architecture')!r} or a skip connection; only JumpReLU autoencoders are supported"
        )
    return _jump_relu(folder, tensors), _stream(folder, config.get("hf_hook_point_in")) or _from_path(folder)


def _jump_relu(folder: Path, tensors: dict[str, Tensor]) -> SparseAutoencoder:
    tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in tensors.items()}
    if (factor := tensors.get("scaling_factor")) is not None and not bool((factor == 1).all()):
        raise BackendError(f"{folder}: its reconstruction is scaled after training, which is not supported")
    return _made(folder, tensors, ("W_enc", "W_dec", "b_enc", "b_dec"), "dm", centred=False, threshold=_threshold(folder, tensors))


def _single(file: Path, k: int) -> Found:
    """A lone file of tensors: Goodfire's ReLU autoencoders, or Qwen Scope's TopK ones, whose k stands in the repository's name."""
    tensors = read_tensors(file)
    if "encoder_linear.weight" in tensors:
        names = ("encoder_linear.weight", "decoder_linear.weight", "encoder_linear.bias", "decoder_linear.bias")
        return Found(_made(file, tensors, names, "md", centred=False), _from_path(file), "Goodfire")
    if "W_enc" in tensors and re.fullmatch(r"layer\d+\.sae\.pt", file.name):
        named = re.search(r"-L0_(\d+)", str(file.resolve()))
        k = _said(file, k or (named and named[1]))
        return Found(_made(file, tensors, ("W_enc", "W_dec", "b_enc", "b_dec"), "md", centred=False, k=k), _from_path(file), "Qwen Scope")
    raise BackendError(f"{file}: tensors {', '.join(sorted(tensors)[:4])} are of no format known here")


Reader = Callable[[Path, int], tuple[SparseAutoencoder, str]]
FORMATS: tuple[tuple[str, Reader, tuple[str, ...]], ...] = (
    ("SAELens", _sae_lens, (CONFIG, WEIGHTS)),
    ("sparsify", _sparsify, (CONFIG, "sae.safetensors")),
    ("dictionary_learning", _dictionary_learning, ("config.json", "ae.pt")),
    ("Gemma Scope", _gemma_scope, ("params.npz",)),
    ("Gemma Scope 2", _gemma_scope_2, ("config.json", "params.safetensors")),
)


def _made(
    place: Path, tensors: dict[str, Tensor], names: tuple[str, ...], layout: str, *, centred: bool = True, **how: Any
) -> SparseAutoencoder:
    """The autoencoder of tensors called `names`: encoder, decoder, encoder's bias, decoder's bias.

    `layout` says how both weights lie: "dm" (d, m) and (m, d), "md" (m, d) and (d, m), "mm" (m, d) both.
    """
    if missing := [name for name in names if name not in tensors]:
        raise ArtifactError(f"{place}: tensor {missing[0]!r} is missing; it has {', '.join(sorted(tensors)[:6])}")
    encoder, decoder, b_enc, b_dec = (tensors[name] for name in names)
    encoder, decoder = encoder.T if layout == "dm" else encoder, decoder.T if layout == "md" else decoder
    m, d = decoder.shape
    if encoder.shape != decoder.shape or b_enc.shape != (m,) or b_dec.shape != (d,):
        raise ArtifactError(f"{place}: {names[0]}, {names[1]} and their biases are of {m} latents over {d} numbers in part only")
    if (threshold := how.get("threshold")) is not None and threshold.numel() not in (1, m):
        raise ArtifactError(f"{place}: {threshold.numel()} thresholds for {m} latents")
    return assembled(Weights(encoder, decoder, b_enc, b_dec, centred, **how))


def _said(place: Path, k: Any) -> int:
    """The number of active latents; raises RecipeError where nothing says it, for without it a TopK dictionary would be a ReLU."""
    if not k:
        raise RecipeError(f"{place}: neither it nor its path says how many latents are active on a token; give k")
    return int(k)


def _threshold(place: Path, tensors: dict[str, Tensor]) -> Tensor:
    """The thresholds; raises ArtifactError where there are none, for without them a JumpReLU would be a ReLU."""
    if "threshold" not in tensors:
        raise ArtifactError(f"{place}: tensor 'threshold' is missing; a JumpReLU dictionary has one for each latent")
    return tensors["threshold"]


def _stream(place: Path, hook: str | None) -> str:
    """The site of a hook point that a file names, nothing if it names none; raises BackendError for one elsewhere than in the stream."""
    if hook and not block_of(hook):
        raise BackendError(f"{place}: it reads {hook}; only dictionaries of the residual stream after a block are supported")
    return block_of(hook or "")


def _resid_post(folder: Path, trainer: dict[str, Any]) -> str:
    """The site of dictionary_learning's `submodule_name` and `layer`; raises BackendError for another part of a block."""
    submodule, layer = str(trainer.get("submodule_name") or "resid_post"), trainer.get("layer")
    if not submodule.startswith("resid_post"):
        raise BackendError(f"{folder}: it reads {submodule}; only dictionaries of the residual stream after a block are supported")
    return f"block:{layer}" if isinstance(layer, int) and layer >= 0 else ""


def _from_path(place: Path) -> str:
    """The site of `layer_20` or `-l19` in a path; nothing where the path speaks of attention, MLPs or embeddings."""
    path = str(place.resolve()).lower()
    if re.search(r"(?<![a-z])(att|attn|mlp|transcoders?|clt|embedding)(?![a-z])", path):
        return ""
    found = re.findall(r"(?<![a-z])layer_?(\d+)(?![a-z0-9])", path) or re.findall(r"(?<![a-z])l(\d+)(?![a-z0-9_])", path)
    return f"block:{found[-1]}" if found else ""


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file}: not readable ({error}); give a dictionary's folder") from None
