"""The path of a training run: its start and its checkpoints as rows of one matrix."""

from pathlib import Path

import numpy as np
from safetensors import safe_open

from personascope.artifact import Model
from personascope.backends.models import checkpoints, source, weights_of
from personascope.errors import ArtifactError


def path(model: Model, only: str = "") -> tuple[list[int], np.ndarray]:
    """Steps (T,) and what was trained at each (T, P) float32, for a model that was saved every few steps.

    Of an adapter the path has its own weights, which it does not show at step 0; of a full fine-tune all weights, and
    those of the model it started from as step 0.

    Args:
        only: tensors whose name contains this, such as `lora_B`.

    Raises:
        ArtifactError: no checkpoints were kept, or none of their tensors has such a name.
    """
    steps = checkpoints(model)
    if not steps:
        raise ArtifactError(f"{model.path}: no checkpoints; train with --checkpoint_every to see the path of the weights")
    adapter = (model.path / "checkpoints" / f"step-{steps[0]}" / "adapter").is_dir()
    folders = [model.path / "checkpoints" / f"step-{step}" / ("adapter" if adapter else "weights") for step in steps]
    start, merged = weights_of(source(model, "model"))
    if not adapter and not merged:
        folders, steps = [start, *folders], [0, *steps]
    rows = [_row(folder, only) for folder in folders]
    if not len(rows[0]):
        raise ArtifactError(f"{model.path}: no trained tensor has {only!r} in its name")
    return steps, np.stack(rows)


def _row(folder: Path, only: str) -> np.ndarray:
    """All tensors of a folder in the order of their names, in one row (P,)."""
    parts = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as held:
            parts += [held.get_tensor(name).float().flatten().numpy() for name in sorted(held.keys()) if only in name]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
