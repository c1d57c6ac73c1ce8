"""Scaling what tuning changed: ends that are the models themselves, the same as scaling an adapter, refusals."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

import small_models
from personascope.artifact import Model
from personascope.backends import models
from personascope.errors import BackendError, RecipeError
from personascope.run import run
from personascope.stages import adopt, scale
from personascope.values import Folder

IDS = torch.arange(1, 13).view(2, 6)


@pytest.fixture
def base(tmp_path: Path) -> Model:
    return Model(small_models.adopted(tmp_path / "base", small_models.model()))


def weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(models.load(model).model.named_parameters())


def test_the_ends_are_the_models_and_between_them_and_beyond_it_is_linear(base: Model, tmp_path: Path) -> None:
    tuned = Model(small_models.adopted(tmp_path / "tuned", small_models.model(seed=1)))
    start, end = weights(base), weights(tuned)
    for factor in (0.0, 0.5, 1.0, 1.5):
        made = run(scale.Recipe(base=base, tuned=tuned, factor=factor), tmp_path / f"scaled-{factor}")
        assert made.manifest["counts"]["changed_tensors"] == sum(not torch.equal(start[name], end[name]) for name in start)
        for name, found in weights(Model(made.path)).items():
            torch.testing.assert_close(found, start[name] + factor * (end[name] - start[name]))
            assert factor not in (0.0, 1.0) or torch.equal(found, (start, end)[int(factor)][name])


def test_of_an_adapter_it_is_the_adapter_scaled(base: Model, tmp_path: Path) -> None:
    """An independent way: PEFT's own scaling of B·A."""
    torch.manual_seed(5)
    config = LoraConfig(r=1, lora_alpha=8, target_modules=["down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path / "base-weights"
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    tuned = run(adopt.Recipe(path=Folder(str(folder)), adapter=Folder(str(tmp_path / "adapter"))), tmp_path / "tuned")
    made = run(scale.Recipe(base=base, tuned=tuned, factor=1.5), tmp_path / "scaled")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    for module in again.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(1.5)
    with torch.no_grad():
        torch.testing.assert_close(models.load(Model(made.path)).model(IDS).logits, again(IDS).logits, atol=1e-4, rtol=1e-4)


def test_models_of_another_shape_are_refused(base: Model, tmp_path: Path) -> None:
    other = Model(small_models.adopted(tmp_path / "other", small_models.model("gpt2")))
    with pytest.raises(BackendError, match="the base has no weight of shape"):
        run(scale.Recipe(base=base, tuned=other, factor=1.0), tmp_path / "scaled")


def test_a_factor_must_be_a_number(base: Model) -> None:
    with pytest.raises(RecipeError, match="must be a finite number"):
        scale.Recipe(base=base, tuned=base, factor=float("nan"))
