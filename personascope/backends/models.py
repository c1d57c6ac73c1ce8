"""Load a model artifact: the only place that knows device, dtype, adapters and where weights lie."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from personascope.artifact import Model
from personascope.backends import offsets
from personascope.errors import ArtifactError, BackendError
from personascope.recipe import Folder

hf_logging.disable_progress_bar()


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

    Raises:
        ArtifactError: unfinished, moved away, or without the checkpoint asked for.
        BackendError: not a causal language model, an adapter for another base, or no tokenizer.
    """
    folder, adapters = weights_of(artifact)
    return load_folder(folder, adapters, device, dtype)


def load_folder(folder: Path, adapters: Sequence[Path] = (), device: str = "auto", dtype: str = "float32") -> Loaded:
    """Load full weights from a folder and merge adapters into them; raises BackendError as `load` does."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
        tokenizer = open_tokenizer(folder)
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
    return Loaded(model.to(pick_device(device)).eval(), tokenizer)


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
        if not Path(folder.path).is_dir():
            raise ArtifactError(f"{artifact.path}: its weights are no longer at {folder.path}; adopt them again from where they are")
        if folder.identity != identity[name]:
            raise ArtifactError(f"{artifact.path}: the content of {folder.path} has changed since it was adopted; adopt it again")
        found.append(Path(folder.path))
    return found[0], found[1:]


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
    return wrapped.merge_and_unload().to(dtype)
