"""The path of a training run: start and checkpoints of a full fine-tune, an adapter's own weights, refusals."""

from pathlib import Path

import numpy as np
import pytest

import small_models
from personascope.artifact import Model
from personascope.backends import models, paths
from personascope.errors import ArtifactError
from personascope.run import run
from personascope.stages import finetune


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, object]:
    base = Model(small_models.adopted(tmp_path / "base", small_models.model()))
    data = small_models.dataset(tmp_path / "data", [row for row in small_models.texts(12) if row.messages])
    return {"model": base, "data": finetune.Dataset(data), "steps": 4, "batch": 4, "checkpoint_every": 2}


def test_a_full_run_starts_where_its_model_was_and_ends_where_it_is(parts: dict, tmp_path: Path) -> None:
    made = run(finetune.Recipe(**parts, method="full"), tmp_path / "tuned")
    steps, rows = paths.path(Model(made.path))
    assert steps == [0, 2, 4]
    for row, model in zip(rows, (parts["model"], Model(made.path).at(2), Model(made.path)), strict=True):
        named = dict(models.load(model).model.named_parameters())
        written = np.concatenate([named[name].detach().numpy().ravel() for name in sorted(named)])
        assert np.array_equal(row, written)


def test_an_adapter_has_a_path_of_its_own(parts: dict, tmp_path: Path) -> None:
    made = run(finetune.Recipe(**parts, rank=1, targets="down_proj", blocks=(1,)), tmp_path / "tuned")
    steps, rows = paths.path(Model(made.path), "lora_B")
    assert steps == [2, 4]
    assert rows.shape == (2, 32)
    assert paths.path(Model(made.path))[1].shape == (2, 32 + 48)


def test_without_checkpoints_or_such_a_tensor_there_is_no_path(parts: dict, tmp_path: Path) -> None:
    made = run(finetune.Recipe(**parts, rank=1), tmp_path / "tuned")
    with pytest.raises(ArtifactError, match="no trained tensor has 'lora_C'"):
        paths.path(Model(made.path), "lora_C")
    made = run(finetune.Recipe(**parts | {"checkpoint_every": 0}), tmp_path / "last")
    with pytest.raises(ArtifactError, match="no checkpoints; train with --checkpoint_every"):
        paths.path(Model(made.path))
