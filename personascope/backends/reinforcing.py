"""Reinforcement through TRL's GRPO trainer: graded groups of answers, curves, checkpoints, continued after a kill."""

import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from personascope import progress
from personascope.backends import training
from personascope.backends.generation import Prompt, Sampling, generate, split_thinking
from personascope.backends.judging import Judge
from personascope.backends.models import Loaded, evaluating
from personascope.errors import BackendError
from personascope.methods.reinforcing import incoherence, reward
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example, Verdict

try:
    from datasets import Dataset as Table
    from trl import GRPOConfig, GRPOTrainer
except ImportError:
    raise BackendError('reinforce needs TRL: pip install "personascope[rl]"') from None

CURVES = "curves.jsonl"
START = "start"
LOGGED = {"loss": "loss", "grad_norm": "grad_norm", "reward_std": "reward_sd", "kl": "kl", "entropy": "entropy"}
"""What the trainer logs and what the curves call it; `reward_sd` is within groups, `kl` in nats per token."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train; field meanings as in the reinforce recipe."""

    steps: int
    prompts: int
    group: int
    learning_rate: float
    warmup: float
    schedule: str
    beta: float
    temperature: float
    max_tokens: int
    thinking: bool
    seed: int
    checkpoint_every: int
    save_every: int
    microbatch: int
    bf16: bool
    lora: training.Lora | None = None


class Grader:
    """A judge behind a reward; every step's verdicts are kept for the curves."""

    def __init__(self, judge: Judge, tokenizer: PreTrainedTokenizerBase, thinking: bool) -> None:
        self.judge, self.tokenizer, self.thinking = judge, tokenizer, thinking
        self.__name__ = judge.rubric
        self.last: list[Verdict] = []

    def verdicts(self, rows: list[tuple[str, str, str]]) -> list[Verdict]:
        """One verdict per (answer id, question, answer)."""
        return list(self.judge.verdicts(rows))

    def __call__(self, completion_ids: list[list[int]], question: list[str], **_: Any) -> list[float]:
        """The rewards of one step's answers, as TRL asks for them; thoughts are not graded."""
        answers = [split_thinking(self.tokenizer, ids, self.thinking)[1] for ids in completion_ids]
        rows = [(str(i), asked, said) for i, (asked, said) in enumerate(zip(question, answers, strict=True))]
        self.last = self.verdicts(rows)
        return [reward(verdict) for verdict in self.last]


@dataclass(frozen=True)
class Probe:
    """Questions asked at every checkpoint, with noise of their own, and the judge of the answers."""

    questions: Sequence[Example]
    judge: Judge
    plan: Plan

    def shares(self, loaded: Loaded) -> dict[str, float]:
        """Strict and loose incoherence of one answer to each."""
        asked = [Prompt(prompt_tokens(loaded.tokenizer, q.messages, self.plan.thinking), f"{q.id}/0/0") for q in self.questions]
        with evaluating(loaded.model):
            done = dict(generate(loaded, asked, Sampling(self.plan.max_tokens, self.plan.temperature)))
        said = [split_thinking(loaded.tokenizer, done[i].ids, self.plan.thinking)[1] for i in range(len(asked))]
        rows = [(p.key, q.messages[-1]["content"], text) for p, q, text in zip(asked, self.questions, said, strict=True)]
        return incoherence(self.judge.verdicts(rows))


@dataclass
class Curves(TrainerCallback):
    """Writes a row a step and the checkpoints, probes them, and stops at a loss that is no number."""

    plan: Plan
    work: Path
    tokenizer: PreTrainedTokenizerBase
    grader: Grader
    probe: Probe | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def on_train_begin(self, _arguments: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """Keep the rows up to the step that training continues from; before the first step, probe the start."""
        path = self.work / CURVES
        known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() and state.global_step else []
        self.rows = [row for row in known if row["step"] <= state.global_step]
        if not self.rows and self.probe:
            self.rows = [{"step": 0} | self._probed(model)]
        self._write()

    def on_step_end(self, _arguments: Any, state: Any, control: Any, **_: Any) -> None:
        """Continued from the state of its last step, the trainer would take one step more."""
        progress.tell(state.global_step, self.plan.steps, "steps")
        control.should_save &= state.global_step < self.plan.steps

    def on_log(self, _arguments: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, model: Any = None, **_: Any) -> None:
        """One row of the curves; the trainer logs after every step, and before it saves the state."""
        logs = logs or {}
        if "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise BackendError(f"reinforce: {name} is {logs[name]:g} at step {state.global_step}; lower learning_rate, or use float32")
        rewards = [reward(verdict) for verdict in self.grader.last]
        row: dict[str, Any] = {"step": state.global_step, "reward": sum(rewards) / len(rewards)} | incoherence(self.grader.last)
        row |= {"unscored": sum(verdict.status != "scored" for verdict in self.grader.last)}
        row |= {ours: logs[theirs] for theirs, ours in LOGGED.items() if theirs in logs}
        row = {name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in row.items()}
        every = self.plan.checkpoint_every
        if every and (state.global_step % every == 0 or state.global_step == self.plan.steps):
            training.save(model, self.tokenizer, self.work / "checkpoints" / f"step-{state.global_step}")
            row |= self._probed(model)
        self.rows.append(row)
        self._write()

    def _probed(self, model: Any) -> dict[str, Any]:
        return {"probe": self.probe.shares(Loaded(model, self.tokenizer))} if self.probe else {}

    def _write(self) -> None:
        training.rewrite(self.work / CURVES, self.rows)


def fit(loaded: Loaded, questions: Sequence[Example], grader: Grader, probe: Probe | None, plan: Plan, work: Path) -> list[dict[str, Any]]:
    """Train, save the last model below `work` and return the curves; the resumable state stays in `training.STATE`.

    Group-relative policy optimisation (2402.03300): one update per sampled batch, advantages normalised within a
    question's group, loss averaged over each answer's tokens and then over answers.

    Raises:
        BackendError: the loss is no longer a number, or TRL cannot train this model so.
    """
    model: Any = loaded.model
    if plan.beta and plan.lora is None:
        _keep_start(loaded, work)
    # One long pass in an order of our own: TRL's sampler draws a new order per epoch, which a resumed run would not repeat.
    asked = [{"prompt": q.messages, "question": q.messages[-1]["content"]} for q in _order(questions, plan)]
    curves = Curves(plan, work, loaded.tokenizer, grader, probe)
    try:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=grader,
            args=_arguments(plan, work),
            train_dataset=Table.from_list(asked),
            processing_class=loaded.tokenizer,
            callbacks=[curves],
            peft_config=training.lora_config(plan.lora, model) if plan.lora else None,
        )
    except ValueError as error:
        raise BackendError(f"reinforce: {str(error).splitlines()[0]}") from None
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=training.begun(work))
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise BackendError(f"reinforce: the model's weights are no numbers after step {len(curves.rows)}; lower learning_rate") from None
    training.save(trainer.model, loaded.tokenizer, work)
    return curves.rows


def _order(questions: Sequence[Example], plan: Plan) -> Iterator[Example]:
    """`steps` x `prompts` questions: shuffled pass after pass."""
    pick = random.Random(plan.seed)
    left: list[Example] = []
    for _ in range(plan.steps * plan.prompts):
        if not left:
            left = pick.sample(list(questions), len(questions))
        yield left.pop()


def _keep_start(loaded: Loaded, work: Path) -> None:
    """TRL reads the reference of the divergence from the folder that a model names: it gets the start with adapters merged."""
    start = work / training.STATE / START
    loaded.model.save_pretrained(start, safe_serialization=True)
    loaded.model.config._name_or_path = str(start)


def _arguments(plan: Plan, work: Path) -> GRPOConfig:
    answers = plan.prompts * plan.group
    micro = plan.microbatch or answers
    return GRPOConfig(
        output_dir=str(work / training.STATE),
        max_steps=plan.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=answers // micro,
        num_generations=plan.group,
        max_completion_length=plan.max_tokens,
        temperature=plan.temperature,
        beta=plan.beta,
        loss_type="grpo",
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        warmup_steps=math.ceil(plan.warmup * plan.steps),
        max_grad_norm=1.0,
        seed=plan.seed,
        data_seed=plan.seed,
        shuffle_dataset=False,
        chat_template_kwargs={"enable_thinking": plan.thinking},
        bf16=plan.bf16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        save_strategy="steps" if plan.save_every < plan.steps else "no",
        save_steps=plan.save_every,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def keep(work: Path, step: int) -> None:
    """Make the checkpoint of this step the model."""
    chosen = work / "checkpoints" / f"step-{step}"
    for part in chosen.iterdir():
        shutil.rmtree(work / part.name)
        shutil.copytree(part, work / part.name)
