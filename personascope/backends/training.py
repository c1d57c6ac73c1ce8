"""The one training loop, Transformers' Trainer: weights, LoRA or vectors; answers or preferences; under penalties and edits; resumable."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D

from personascope import progress
from personascope.backends import offsets, penalties
from personascope.backends.hooks import blocks, site_index
from personascope.backends.penalties import Shaping, Start
from personascope.backends.preference import Pair, collated, with_start
from personascope.backends.shaped import SAID, Shaped
from personascope.errors import BackendError
from personascope.methods.penalties import weight_for
from personascope.methods.tokens import TrainingRow

STATE = "trainer"
PILOT = "pilot"
PENALTIES = "penalties.json"
PLAIN = Shaping()
RECOMPUTED = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
"""What this version of Transformers calls it."""


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
    until_loss: float = 0.0
    gradient_checkpointing: bool = False


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
        BackendError: no module of the model has the target's name, or it has no such block.
    """
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, lora_config(lora, model))
    except ValueError as error:
        raise BackendError(f"LoRA targets {lora.targets!r} in blocks {list(lora.blocks) or 'all'}: {error}") from None


def lora_config(lora: Lora, model: PreTrainedModel) -> LoraConfig:
    """The adapter in PEFT's terms.

    Raises:
        RecipeError: the model has no such block.
    """
    targets: str | list[str] = "all-linear" if lora.targets == "all-linear" else lora.targets.split(",")
    within = list(lora.blocks)
    if targets == "all-linear" and within:
        # PEFT knows all of them or named ones, so those of a few blocks are named one by one.
        targets, within = _linear(model, within), []
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, layers_to_transform=within or None, task_type="CAUSAL_LM")


def _linear(model: PreTrainedModel, wanted: Sequence[int]) -> list[str]:
    """Full names of the linear maps of these decoder blocks."""
    chosen = {id(part) for block in wanted for part in blocks(model)[site_index(f"block:{block}", model)].modules()}
    return [name for name, part in model.named_modules() if id(part) in chosen and isinstance(part, nn.Linear | Conv1D)]


def train_only(model: PreTrainedModel, wanted: Sequence[int]) -> None:
    """Freeze everything but these decoder blocks.

    Raises:
        RecipeError: the model has no such block.
    """
    model.requires_grad_(False)
    for block in wanted:
        blocks(model)[site_index(f"block:{block}", model)].requires_grad_(True)


def fit(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TrainingRow] | Sequence[Pair],
    plan: Plan,
    work: Path,
    watchers: Sequence[TrainerCallback] = (),
    shaping: Shaping = PLAIN,
) -> int:
    """Train in place and return the steps taken; log.jsonl, checkpoints/step-N and the resumable `STATE` go below `work`.

    Watchers are called back by the trainer; they must leave the training as it is. With penalties, penalties.json says
    what they were, and the log has each one's value and the task's loss at the logged step.

    Raises:
        BackendError: the loss is no longer a number.
        DataError: a penalty that is to weigh itself counts nothing that moves.
    """
    pad: Any = tokenizer.pad_token_id
    shaping = _weighed(model, tokenizer, rows, plan, work, shaping)
    common: dict[str, Any] = {"model": model, "args": _arguments(plan, work), "callbacks": [_Keeper(plan, work, tokenizer), *watchers]}
    if shaping.plain:
        trainer = Trainer(train_dataset=rows, data_collator=_Collator(pad), **common)
    else:
        start = Start(model, bool(shaping.terms))
        if shaping.beta is not None:
            with start.of(model) as before:
                rows = with_start(before, rows, pad)
        collate = (lambda pairs: collated(pairs, pad)) if shaping.beta is not None else _Collator(pad)
        sizes = (pad, plan.batch * plan.gradient_accumulation)
        trainer = Shaped(shaping, start, sizes, train_dataset=rows, data_collator=collate, **common)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=begun(work))
    return trainer.state.global_step


def begun(work: Path) -> str | None:
    """The last whole state of an interrupted training, to continue from."""
    states = [p.parent for p in (work / STATE).glob("checkpoint-*/trainer_state.json") if _whole(p)]
    return str(max(states, key=lambda p: int(p.name.split("-")[1]))) if states else None


def _arguments(plan: Plan, work: Path) -> TrainingArguments:
    return TrainingArguments(
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
        **({RECOMPUTED: True, f"{RECOMPUTED}_kwargs": {"use_reentrant": False}} if plan.gradient_checkpointing else {}),
    )


def _weighed(model: Any, tokenizer: Any, rows: Any, plan: Plan, work: Path, shaping: Shaping) -> Shaping:
    """The weights of penalties that were given a share, from a short training without them, which is then undone."""
    if not shaping.terms:
        return shaping
    place = work / PENALTIES
    if place.exists():
        known = {name: found["weight"] for name, found in json.loads(place.read_text()).items()}
        return replace(shaping, terms=tuple(replace(term, weight=known[term.name]) for term in shaping.terms))
    terms = list(shaping.terms)
    if shared := [term for term in terms if term.penalty.share]:
        steps = max(term.penalty.pilot for term in shared)
        kept = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
        shutil.rmtree(work / PILOT, ignore_errors=True)
        short = replace(plan, steps=steps, checkpoint_every=0, save_every=steps, until_loss=0.0)
        fit(model, tokenizer, rows, short, work / PILOT, (), _measured(shaping))
        said = [json.loads(line) for line in (work / PILOT / "log.jsonl").read_text().splitlines()]
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)
        model.zero_grad(set_to_none=True)
        shutil.rmtree(work / PILOT)
        for i, term in enumerate(terms):
            if term.penalty.share:
                last = said[-1][f"penalty/{term.name}"]
                terms[i] = replace(term, weight=weight_for(term.penalty.share, said[0]["task"], last))
    work.mkdir(parents=True, exist_ok=True)
    half = place.with_suffix(".half")
    penalties.write(terms, half)
    half.replace(place)
    return replace(shaping, terms=tuple(terms))


def _measured(shaping: Shaping) -> Shaping:
    """The same with the penalties that are to weigh themselves measured only."""
    terms = (replace(t, penalty=replace(t.penalty, share=0.0, until=0)) if t.penalty.share else t for t in shaping.terms)
    return replace(shaping, terms=tuple(terms))


def _whole(state: Path) -> bool:
    """Whether a checkpoint was written to its end; the trainer writes this file last."""
    try:
        return bool(json.loads(state.read_text()))
    except json.JSONDecodeError:
        return False


def save(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, where: Path) -> None:
    """Write `adapter/` for a wrapped model or one of which only offsets are trained, `weights/` for a whole one; safetensors only."""
    if isinstance(model, PeftModel):
        model.save_pretrained(where / "adapter", safe_serialization=True)
        # Model cards carry the base's path; digested files must not.
        (where / "adapter" / "README.md").unlink(missing_ok=True)
        config = where / "adapter" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}, indent=1, sort_keys=True) + "\n")
    elif offsets.alone(model):
        offsets.write(model, where / "adapter")
    else:
        moved = offsets.of(model)
        model.save_pretrained(where / "weights", safe_serialization=True, **({"state_dict": offsets.without(model)} if moved else {}))
        tokenizer.save_pretrained(where / "weights")
        if moved:
            offsets.write(model, where / "weights")


def rewrite(log: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a training's log whole or not at all, or a run killed meanwhile would go on without its first steps."""
    new = log.parent / STATE / f"{log.name}.new"
    new.parent.mkdir(exist_ok=True)
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(log)


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
        progress.tell(state.global_step, self.plan.steps, "steps")
        # Continued from the state of its last step, the trainer would take one step more.
        control.should_save &= state.global_step < self.plan.steps
        every = self.plan.checkpoint_every
        if every and (state.global_step % every == 0 or state.global_step == self.plan.steps):
            save(model, self.tokenizer, self.work / "checkpoints" / f"step-{state.global_step}")

    def on_log(self, _arguments: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
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
        control.should_training_stop |= 0 < self.plan.until_loss >= logs.get("task", loss)
        entry = {"step": state.global_step, "loss": round(logs["loss"], 5), "grad_norm": round(logs.get("grad_norm", 0.0), 5)}
        entry |= {name: float(f"{value:.6g}") for name, value in logs.items() if name in SAID or name.startswith("penalty/")}
        path = self.work / "log.jsonl"
        kept = [e for e in map(json.loads, path.read_text().splitlines()) if e["step"] < entry["step"]] if path.exists() else []
        rewrite(path, [*kept, entry])
