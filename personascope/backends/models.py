"""Load a model artifact: the only place that knows device, dtype, adapters and where weights lie."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from personascope.artifact import Model
from personascope.backends import hub, offsets
from personascope.errors import ArtifactError, BackendError
from personascope.values import Folder

hf_logging.disable_progress_bar()
# PEFT asks Transformers 5.23 for the old name, which is nothing a user can change; the new one does not exist in 5.17.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Loaded:
    """A model ready to use, in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device


def pick_device(device: str) -> str:
    """`auto` is a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load(artifact: Model, device: str = "auto", dtype: str = "float32") -> Loaded:
    """Load an artifact's weights, merging any adapters and setting any trained vectors on the way.

    What the adopted model behind it says of type, bits and devices holds here too; a `dtype` other than float32 goes before.

    Raises:
        ArtifactError: unfinished, moved away, or without the checkpoint asked for.
        BackendError: not a causal language model, an adapter for another base, no tokenizer, or a package is missing.
    """
    folder, adapters = weights_of(artifact)
    how = adoption(artifact)
    wanted = dtype if dtype != "float32" else how.get("dtype", dtype)
    return load_folder(folder, adapters, device, wanted, how.get("quantise", ""), how.get("device_map", ""))


def load_at(where: str) -> Loaded:
    """What stands at a place: a Model artifact, or else a folder or a pinned model of the Hub in float32; raises as `load` does."""
    artifact = Model(where)
    return load(artifact) if artifact.finished else load_folder(Path(where))


def identity_at(where: str) -> str:
    """What `load_at` depends on: whole weights are known by their content alone, wherever they lie and whatever made them."""
    artifact = Model(where)
    if not artifact.finished:
        return Folder(where).identity
    folder, adapters = weights_of(artifact)
    if adapters or any(adoption(artifact).get(name) for name in ("dtype", "quantise")):
        return hashlib.sha256(artifact.identity.encode()).hexdigest()
    return Folder(str(folder)).identity


def load_folder(
    folder: Path, adapters: Sequence[Path] = (), device: str = "auto", dtype: str = "float32", quantise: str = "", device_map: str = ""
) -> Loaded:
    """Load full weights from a folder, or a pinned model of the Hub, and merge adapters into them; raises BackendError as `load` does.

    Args:
        quantise: `4bit` or `8bit`, by bitsandbytes; adapters then stay beside the weights, which could not hold their sum.
        device_map: a name of Transformers for how blocks are spread over devices, in place of `device`.
    """
    folder, adapters = hub.local(folder), [hub.local(one) for one in adapters]
    if not isinstance(vars(torch).get(dtype), torch.dtype):
        raise BackendError(f"dtype {dtype!r}: torch has no such type of numbers; give float32, bfloat16 or float16")
    try:
        given = {"dtype": getattr(torch, dtype), **_placing(folder, pick_device(device), quantise, device_map, dtype)}
        model, report = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True, **given)
        tokenizer = open_tokenizer(folder)
    except ImportError as error:
        raise BackendError(f"{folder}: loading it needs a package that is not there ({' '.join(str(error).split())[:160]})") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackendError(f"{folder}: not a loadable causal language model with tokenizer ({str(error).splitlines()[0]})") from None
    if missing := sorted(report["missing_keys"]):
        raise BackendError(
            f"{folder}: {len(missing)} weights are missing, first {missing[0]}; complete the download or save the model again"
        )
    for place in (folder, *adapters):
        if (place / offsets.FILE).is_file():
            offsets.read(model, place)
        elif place != folder:
            model = _merge(model, place, folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_vocabulary(model, tokenizer, folder)
    return Loaded((model if "device_map" in given else model.to(pick_device(device))).eval(), tokenizer)


def _placing(folder: Path, device: str, quantise: str, device_map: str, dtype: str) -> dict[str, Any]:
    """What Transformers is told of bits and places; nothing for a plain model on one device, which is moved there when it is whole."""
    config = folder / "config.json"
    held = config.is_file() and "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
    if quantise and held:
        raise BackendError(f"{folder}: it is quantised already; leave out {quantise}")
    bits = {"load_in_4bit": quantise == "4bit", "load_in_8bit": quantise == "8bit"}
    # Quantised weights cannot be moved or cast once they are loaded.
    placed = {"device_map": device_map or {"": device}} if quantise or held or device_map else {}
    if not quantise:
        return placed
    return placed | {"quantization_config": BitsAndBytesConfig(**bits, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)}


PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that are their tokenizer.json and nothing else."""


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as it was saved.

    For some architectures (qwen2 in Transformers 5) `AutoTokenizer` takes the architecture's own class although the folder
    names a plain one, and then reads other tokens off the same text.
    """
    config = folder / "tokenizer_config.json"
    named = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") if config.is_file() else None
    kind = PreTrainedTokenizerFast if named in PLAIN and (folder / "tokenizer.json").is_file() else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


def add_words(loaded: Loaded, words: Sequence[str]) -> None:
    """Give tokenizer and model, in place, each word that is not one token already; its embedding is drawn like the others'."""
    old, unknown = len(loaded.tokenizer), [loaded.tokenizer.unk_token_id]
    pieces = {word: loaded.tokenizer.encode(word, add_special_tokens=False) for word in words}
    fresh = [word for word, ids in pieces.items() if len(ids) != 1 or ids == unknown]
    if not fresh:
        return
    loaded.tokenizer.add_tokens([AddedToken(word, normalized=True) for word in fresh])
    if len(loaded.tokenizer) > loaded.model.get_input_embeddings().weight.shape[0]:
        loaded.model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer in (loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()):
            drawn = torch.randn(len(fresh), layer.weight.shape[1], generator=torch.Generator().manual_seed(0)).to(layer.weight)
            layer.weight[old : len(loaded.tokenizer)] = layer.weight[:old].mean(0) + layer.weight[:old].std(0) * drawn


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise BackendError if the tokenizer can make tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BackendError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}; save the pair that belongs together"
        )


def check_pair(base: Loaded, tuned: Loaded) -> None:
    """Raise BackendError unless both models read the same tokens through the same shape of residual stream."""
    if base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab():
        raise BackendError(
            f"vocabulary mismatch: base has {len(base.tokenizer)} tokens, tuned {len(tuned.tokenizer)}, or other words under the same ids; "
            "audit a model against the base it was tuned from"
        )
    shapes = [(m.model.config.get_text_config().hidden_size, m.model.config.get_text_config().num_hidden_layers) for m in (base, tuned)]
    if shapes[0] != shapes[1]:
        raise BackendError(f"base and tuned differ in shape (width, blocks): {shapes[0]} and {shapes[1]}; they cannot be compared inside")


def scale(base: Loaded, tuned: Loaded, factor: float) -> int:
    """Set the tuned model, in place, to base + factor · (tuned − base), and return how many of its tensors differ from the base's.

    Raises:
        BackendError: a weight of one model has no counterpart of its shape in the other.
    """
    before, changed = dict(base.model.named_parameters()), 0
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            # A trained vector is a weight that the base does not have: there it is 0.
            start = before.get(name, torch.zeros_like(parameter) if name.endswith(f".{offsets.NAME}") else None)
            if start is None or start.shape != parameter.shape:
                raise BackendError(f"{name}: the base has no weight of shape {tuple(parameter.shape)} there; give the start of tuning")
            changed += not torch.equal(start, parameter)
            parameter.copy_(torch.lerp(start.to(parameter), parameter, factor))
    return changed


def weights_of(artifact: Model) -> tuple[Path, list[Path]]:
    """The folder with full weights and the adapters to merge into them, outermost last.

    Raises:
        ArtifactError: a base or checkpoint that is no longer where the manifest says, or has other content now.
    """
    where = artifact.path
    if artifact.checkpoint is not None:
        where = artifact.path / "checkpoints" / f"step-{artifact.checkpoint}"
        if not where.is_dir():
            saved = ", ".join(str(step) for step in checkpoints(artifact)) or "none"
            raise ArtifactError(f"{artifact.path}: no checkpoint at step {artifact.checkpoint}; saved are {saved}")
    if artifact.manifest["stage"] == "adopt":
        return _adopted(artifact)
    if (where / "weights").is_dir():
        return where / "weights", []
    folder, adapters = weights_of(source(artifact, "model"))
    return folder, [*adapters, where / "adapter"]


def _adopted(artifact: Model) -> tuple[Path, list[Path]]:
    recipe, identity = artifact.manifest["recipe"], artifact.manifest["identity"]
    found = []
    for name in (name for name in ("path", "adapter") if name in recipe):
        folder = Folder(recipe[name])
        if not folder.pinned and not Path(folder.path).is_dir():
            raise ArtifactError(f"{artifact.path}: its weights are no longer at {folder.path}; adopt them again from where they are")
        if folder.identity != identity[name]:
            raise ArtifactError(f"{artifact.path}: the content of {folder.path} has changed since it was adopted; adopt it again")
        found.append(hub.local(folder.path))
    return found[0], found[1:]


def adoption(artifact: Model) -> dict[str, Any]:
    """The recipe of the adopted model whose weights these are; nothing for a model with weights of its own."""
    if artifact.manifest["stage"] == "adopt":
        return artifact.manifest["recipe"]
    where = artifact.path if artifact.checkpoint is None else artifact.path / "checkpoints" / f"step-{artifact.checkpoint}"
    return {} if (where / "weights").is_dir() else adoption(source(artifact, "model"))


def source(artifact: Model, field: str) -> Model:
    """The model an artifact was made from, found where it was or beside the artifact if both moved.

    Raises:
        ArtifactError: it is at neither place, or has other content now.
    """
    pointer = artifact.manifest["inputs"][field]
    for path in (artifact.path / pointer["near"], Path(pointer["path"])):
        found = Model(path)
        if found.finished and found.identity == pointer["digest"]:
            return found
    raise ArtifactError(f"{artifact.path}: the model it was tuned from is no longer at {pointer['path']} (or has changed); put it back")


def checkpoints(artifact: Model) -> list[int]:
    """The training steps at which checkpoints were saved."""
    return sorted(int(p.name.removeprefix("step-")) for p in (artifact.path / "checkpoints").glob("step-*"))


def _merge(model: PreTrainedModel, adapter: Path, base: Path) -> PreTrainedModel:
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise BackendError(f"{adapter}: not a PEFT adapter (adapter_config.json and adapter_model.safetensors are needed)")
    meant = json.loads(config.read_text()).get("base_model_name_or_path")
    misfit = f"{adapter} does not fit {base}: it was trained for {meant!r}; give the base it belongs to"
    dtype = model.dtype
    try:
        wrapped = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError) as error:
        raise BackendError(f"{misfit} ({str(error).splitlines()[0][:120]})") from None
    # PEFT drops weights for modules that the base does not have without a word.
    with safe_open(weights, "pt") as file:
        saved = {name for name in file.keys() if "lora_" in name}  # noqa: SIM118 - safe_open is no mapping
    wanted = {name for name in get_peft_model_state_dict(wrapped, save_embedding_layers=False) if "lora_" in name}
    if odd := sorted(saved ^ wanted):
        raise BackendError(f"{misfit} ({len(odd)} of its weights have no counterpart, first {odd[0]})")
    if vars(model).get("is_quantized"):
        return wrapped.base_model.model
    return wrapped.merge_and_unload().to(dtype)
