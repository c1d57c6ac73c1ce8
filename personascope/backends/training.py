"""The one training loop: supervised fine-tuning by Transformers' Trainer, full or LoRA, resumable."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from personascope.errors import BackendError
from personascope.methods.tokens import TrainingRow

STATE = "trainer"


@dataclass(frozen=True)
class Plan:
    """How to train; field meanings as in the finetune recipe."""

    steps: int
    batch: int
    learning_rate: float
    warmup: float
    schedule: str
    weight_decay: float
    seed: int
    checkpoint_every: int
    save_every: int
    gradient_accumulation: int
    bf16: bool


@dataclass(frozen=True)
class Lora:
    """Shape of a low-rank adapter (2106.09685)."""

    rank: int
    alpha: float
    targets: str
    blocks: tuple[int, ...]


def add_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Wrap the model with a trainable adapter.

    Raises:
        BackendError: no module of the model has the target's name.
    """
    torch.manual_seed(seed)
    targets = "all-linear" if lora.targets == "all-linear" else lora.targets.split(",")
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, layers_to_transform=list(lora.blocks) or None, task_type="CAUSAL_LM"
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise BackendError(f"LoRA targets {lora.targets!r} in blocks {list(lora.blocks) or 'all'}: {error}") from None


def fit(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[TrainingRow],
    plan: Plan,
    work: Path,
    watchers: Sequence[TrainerCallback] = (),
) -> None:
    """Train in place; log.jsonl, checkpoints/step-N and, in `STATE`, what a later call continues from go below `work`.

    Watchers are called back by the trainer; they must leave the training as it is.

    Raises:
        BackendError: the loss is no longer a number.
    """
    arguments = TrainingArguments(
        output_dir=str(work / STATE),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch,
        gradient_accumulation_steps=plan.gradient_accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        warmup_steps=math.ceil(plan.warmup * plan.steps),
        weight_decay=plan.weight_decay,
        max_grad_norm=1.0,
        seed=plan.seed,
        data_seed=plan.seed,
        bf16=plan.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps" if plan.save_every < plan.steps else "no",
        save_steps=plan.save_every,
        save_total_limit=1,
        logging_steps=max(1, plan.steps // 50),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=_Collator(tokenizer.pad_token_id),
        callbacks=[_Keeper(plan, work, tokenizer), *watchers],
    )
    trainer.remove_callback(PrinterCallback)
    begun = [p.parent for p in (work / STATE).glob("checkpoint-*/trainer_state.json") if _whole(p)]
    trainer.train(resume_from_checkpoint=str(max(begun, key=lambda p: int(p.name.split("-")[1]))) if begun else None)


def _whole(state: Path) -> bool:
    """Whether a checkpoint was written to its end; the trainer writes this file last."""
    try:
        return bool(json.loads(state.read_text()))
    except json.JSONDecodeError:
        return False


def save(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, where: Path) -> None:
    """Write `adapter/` for a wrapped model, `weights/` for a whole one; safetensors only."""
    if isinstance(model, PeftModel):
        model.save_pretrained(where / "adapter", safe_serialization=True)
        # Model cards carry the base's path; digested files must not.
        (where / "adapter" / "README.md").unlink(missing_ok=True)
        config = where / "adapter" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}, indent=1, sort_keys=True) + "\n")
    else:
        model.save_pretrained(where / "weights", safe_serialization=True)
        tokenizer.save_pretrained(where / "weights")


class _Collator:
    """Right-pad ids; untrained and padded positions get the label that the loss ignores."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row.ids) for row in rows]
        labels = [torch.where(torch.tensor(row.trained), torch.tensor(row.ids), -100) for row in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad),
            "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }


class _Keeper(TrainerCallback):
    """Writes the log and the checkpoints, and stops at a loss that is no number."""

    def __init__(self, plan: Plan, work: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.plan, self.work, self.tokenizer = plan, work, tokenizer

    def on_step_end(self, _arguments: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        # Continued from the state of its last step, the trainer would take one step more.
        control.should_save &= state.global_step < self.plan.steps
        every = self.plan.checkpoint_every
        if every and (state.global_step % every == 0 or state.global_step == self.plan.steps):
            save(model, self.tokenizer, self.work / "checkpoints" / f"step-{state.global_step}")

    def on_log(self, _arguments: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        # The mean at the end also holds the steps that were not logged.
        loss, norm = logs.get("loss", logs.get("train_loss", 0.0)), logs.get("grad_norm", 0.0)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise BackendError(
                f"training: the loss is {loss:g}, its gradient's norm {norm:g}, at step {state.global_step}; "
                "lower learning_rate, or train in float32"
            )
        if "loss" not in logs:
            return
        entry = {"step": state.global_step, "loss": round(logs["loss"], 5), "grad_norm": round(logs.get("grad_norm", 0.0), 5)}
        path = self.work / "log.jsonl"
        kept = [e for e in map(json.loads, path.read_text().splitlines()) if e["step"] < entry["step"]] if path.exists() else []
        path.write_text("".join(json.dumps(e) + "\n" for e in [*kept, entry]))
