"""Watch a model while it trains: a Trainer callback that reads monitors on fixed probes, and may ask and judge."""

import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from personascope.artifact import Dataset, Dictionary
from personascope.backends import models
from personascope.backends.capture import pad, pad_id, plan_batches
from personascope.backends.dictionaries import load_dictionary, read_dictionary
from personascope.backends.directions import vector
from personascope.backends.generation import Prompt, Sampling, generate, split_thinking
from personascope.backends.hooks import capturing, run_to_site
from personascope.backends.judging import Judge
from personascope.backends.models import Loaded
from personascope.backends.reading import masks_of, site_of
from personascope.errors import DataError, RecipeError
from personascope.methods import watching
from personascope.methods.sparse import SparseAutoencoder
from personascope.methods.tokens import Message, prompt_tokens
from personascope.rows import Example
from personascope.values import Direction, Watch

BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Asking:
    """Questions to put to the model in training and the judge of its first attempts; noise is the same at every step."""

    judge: Judge
    questions: Sequence[Example]
    draws: int = 1
    max_tokens: int = 32

    def counts(self, loaded: Loaded) -> dict[str, Any]:
        """harmful (graded 4 or 5), valid, incoherent (or off topic) and asked, and (harmful, valid) by question."""
        rendered = [(q, prompt_tokens(loaded.tokenizer, q.messages)) for q in self.questions]
        asked = [(q, Prompt(tokens, f"{q.id}/{draw}/0")) for q, tokens in rendered for draw in range(self.draws)]
        done = dict(generate(loaded, [prompt for _, prompt in asked], Sampling(max_tokens=self.max_tokens, batch_tokens=BATCH_TOKENS)))
        texts = [split_thinking(loaded.tokenizer, done[i].ids)[1] for i in range(len(asked))]
        rows = [(prompt.key, q.messages[-1]["content"], text) for (q, prompt), text in zip(asked, texts, strict=True)]
        verdicts = list(self.judge.verdicts(rows))
        hits = [(v.grade is not None and v.grade >= 4, v.valid) for v in verdicts]
        groups = [hits[i : i + self.draws] for i in range(0, len(hits), self.draws)]
        by_question = [[int(sum(column)) for column in zip(*group, strict=True)] for group in groups]
        return {
            "harmful": sum(h for h, _ in by_question),
            "valid": sum(n for _, n in by_question),
            "incoherent": sum(v.label in ("incoherent", "off_topic") for v in verdicts),
            "asked": len(verdicts),
            "by_question": by_question,
        }


@dataclass(eq=False, kw_only=True)
class Watcher(TrainerCallback):
    """Log monitors of a model in training every `every` steps; give it to any Trainer: `callbacks=[Watcher(...)]`.

    A row {step, monitors} is appended to `log` at step 0, every `every` steps and at the end. Monitors: `shift` (norm of
    the probes' mean move from the start model in the stream at `site`), each direction (that move along it),
    `trait_space` (its length within all directions), `latent/N` (change of a latent's mean activation), and the trainer's
    last logged `loss` and `grad_norm`. Weights, optimiser, randomness and training mode are left as they were. A resumed
    training goes on with its log. The model must be whole in this process: plain, data-parallel or LoRA, not sharded.

    Raises:
        RecipeError: at once, for what cannot be read; when training starts, for a site or width the model does not have.
    """

    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[Sequence[Message]]
    """Conversations that end with the user's turn."""
    site: str
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → (width,); the length does not matter."""
    dictionary: SparseAutoencoder | Path | str | None = None
    """An autoencoder, or a folder in SAELens' format."""
    latents: Sequence[int] = ()
    mask: Literal["prompt", "last_prompt", "all"] = "last_prompt"
    every: int = 2
    log: Path | str = watching.LOG
    threshold: Mapping[str, float] = field(default_factory=dict)
    """Monitor → value above which a warning is given, once."""
    stop: bool = False
    """Whether crossing a threshold also ends training, after the step that is about to be taken."""
    answers: Asking | None = None
    """If given, the monitor `answers`: the share of harmful answers among the valid ones."""
    behaviour: Asking | None = None
    """If given, a row's `behaviour`: the counts that tell when behaviour changes."""
    behaviour_every: int = 0
    until: float = 1.0
    """Behaviour is asked until the lower 95 % bound of its harmful share lies above this."""

    def __post_init__(self) -> None:
        """Render the probes and check that the monitors can be what they are asked to be."""
        if not self.questions or self.every < 1:
            raise RecipeError("watch: at least one question, and every of at least 1, are needed")
        if bool(self.latents) != (self.dictionary is not None):
            raise RecipeError("watch: latents need a dictionary, and a dictionary the latents to watch")
        self._sae = read_dictionary(Path(self.dictionary))[0] if isinstance(self.dictionary, Path | str) else self.dictionary
        if self._sae is not None and (bad := [i for i in self.latents if not 0 <= i < len(self._sae.W_dec)]):
            raise RecipeError(f"watch: latent {bad[0]}: the dictionary has {len(self._sae.W_dec)}")
        self._names = [*self.directions, *(f"latent/{i}" for i in self.latents)]
        if len({*self._names, *watching.GENERAL}) < len(self._names) + len(watching.GENERAL):
            raise RecipeError(f"watch: names of monitors must differ, also from {', '.join(watching.GENERAL)}")
        if unknown := sorted({*self.threshold} - {*self._names, *watching.GENERAL}):
            raise RecipeError(f"watch: threshold of {unknown[0]!r}: the monitors are {', '.join([*self._names, *watching.GENERAL])}")
        self._prompts = [prompt_tokens(self.tokenizer, list(messages)) for messages in self.questions]
        self._start: tuple[Tensor, Tensor] | None = None
        self._rows: list[dict[str, Any]] = []
        self._crossed: set[str] = set()

    def on_init_end(self, _arguments: Any, _state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """Read the start model."""
        width = model.config.get_text_config().hidden_size
        for name, direction in self.directions.items():
            if direction.shape != (width,) or not direction.norm() > 0:
                raise RecipeError(f"watch: direction {name!r} is {tuple(direction.shape)}; a vector of length {width}, not 0, is needed")
        if self._sae is not None:
            if self._sae.W_dec.shape[1] != width:
                raise RecipeError(f"watch: the dictionary reads a stream of width {self._sae.W_dec.shape[1]}, the model's has {width}")
            self._sae = self._sae.to(model.device)
        units = [nn.functional.normalize(direction.float().cpu(), dim=0) for direction in self.directions.values()]
        self._units = torch.stack(units) if units else torch.zeros(0, width)
        self._start = self._read(model)

    def on_train_begin(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        """Keep the rows up to the step that training continues from; at step 0 begin a new log."""
        if self._start is None:
            raise RecipeError("watch: give the Watcher to the Trainer's `callbacks`, so that it sees the model before training")
        log = Path(self.log)
        found = watching.whole_lines(log.read_text(encoding="utf-8")) if log.exists() and state.global_step else []
        self._rows = [row for row in found if row["step"] <= state.global_step]
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(map(_line, self._rows)), encoding="utf-8")

    # At the beginning of the next step the loss of the last one is known, and a training resumed from a saved step
    # passes here before it takes another, so that no row can be missed.
    def on_step_begin(self, _arguments: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write a row if this step is watched."""
        if state.global_step % self.every == 0:
            self._write(state, control, model)

    def on_train_end(self, _arguments: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the last row."""
        self._write(state, control, model)

    def _write(self, state: Any, control: Any, model: Any) -> None:
        step = state.global_step
        if not state.is_world_process_zero or (self._rows and self._rows[-1]["step"] >= step):
            return
        with _aside(model):
            row = {"step": step, "monitors": self._monitors(model, state)} | self._behaviour(model, step)
        self._rows.append(row)
        with Path(self.log).open("a", encoding="utf-8") as file:
            file.write(_line(row))
        over = [n for n, limit in self.threshold.items() if row["monitors"].get(n, -np.inf) > limit and n not in self._crossed]
        for name in over:
            warnings.warn(f"watch: {name} is {row['monitors'][name]:g} at step {step}, above {self.threshold[name]:g}", stacklevel=2)
        self._crossed |= {*over}
        control.should_training_stop |= bool(over) and self.stop

    def _monitors(self, model: Any, state: Any) -> dict[str, float]:
        assert self._start is not None
        now, then = self._read(model), self._start
        moved, risen = now[0] - then[0], now[1] - then[1]
        found = dict(zip(self._names, [*(self._units @ moved).tolist(), *risen.tolist()], strict=True))
        found["shift"] = float(moved.norm())
        if self.directions:
            found["trait_space"] = watching.length_within(moved.numpy(), self._units.numpy())
        logged = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
        found |= {name: float(logged[name]) for name in ("loss", "grad_norm") if name in logged}
        if self.answers is not None:
            counts = self.answers.counts(Loaded(model, self.tokenizer))
            found["answers"] = counts["harmful"] / max(1, counts["valid"])
        return {name: round(value, 6) for name, value in found.items()}

    def _behaviour(self, model: Any, step: int) -> dict[str, Any]:
        if self.behaviour is None or step % (self.behaviour_every or 1):
            return {}
        if any("behaviour" in row and watching.lower(row["behaviour"]["by_question"]) > self.until for row in self._rows):
            return {}
        return {"behaviour": self.behaviour.counts(Loaded(model, self.tokenizer))}

    def _read(self, model: Any) -> tuple[Tensor, Tensor]:
        """Means over probes: the stream under the mask (width,), and the watched latents' activations (latents,)."""
        residual, latents = [], []
        with _aside(model), torch.no_grad(), capturing(model, [self.site]) as seen:
            for batch in plan_batches([len(p.ids) for p in self._prompts], BATCH_TOKENS):
                prompts = [self._prompts[i] for i in batch]
                ids, attention = pad([p.ids for p in prompts], pad_id(self.tokenizer))
                run_to_site(model, input_ids=ids.to(model.device), attention_mask=attention.to(model.device))
                on = masks_of(prompts, attention)[self.mask].to(model.device)
                x = seen[self.site].float()[on]
                row = on.nonzero()[:, 0]
                residual.append(_means(x, row, len(batch)))
                if self._sae is not None:
                    latents.append(_means(self._sae.encode(x)[:, list(self.latents)], row, len(batch)))
        return torch.cat(residual).mean(0).cpu(), torch.cat(latents).mean(0).cpu() if latents else torch.zeros(0)


def _means(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Means (rows, k) of the values (n, k) that belong to each row; 0 where there are none."""
    sums = torch.zeros(rows, values.shape[1], device=values.device).index_add_(0, row, values)
    return sums / torch.bincount(row, minlength=rows).clamp(min=1)[:, None]


@contextmanager
def _aside(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's mode and every source of randomness are put back afterwards."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), models.evaluating(model):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True) + "\n"


def of(watch: Watch, loaded: Loaded, work: Path) -> Watcher:
    """The Watcher a recipe asks for, logging to `work`; writes there, in watch.json, which monitors come from which domain.

    Raises:
        RecipeError: a direction that is not there, two dictionaries, or no questions.
        BackendError: the dictionary is of another site.
    """
    origins, directions = _nominated(watch)
    latents = [name for name in origins if name.startswith("latent/")]
    sae = _dictionary(watch, bool(latents), loaded)
    asking = None
    if watch.judge:
        asking = Asking(Judge(watch.judge), _examples(watch.questions), 1, watch.max_tokens)
    behaviour = Asking(Judge(watch.judge), _examples(watch.asked), watch.draws, watch.max_tokens) if watch.asked else None
    watcher = Watcher(
        tokenizer=loaded.tokenizer,
        questions=[example.messages for example in _examples(watch.questions)],
        site=watch.site,
        directions=directions,
        dictionary=sae,
        latents=[int(name.partition("/")[2]) for name in latents],
        mask=watch.mask,
        every=watch.every,
        log=work / watching.LOG,
        answers=asking,
        behaviour=behaviour,
        behaviour_every=watch.asked_every,
        until=watch.until,
    )
    general = [n for n in watching.GENERAL if (n != "answers" or asking) and (n != "trait_space" or (directions and not watch.diffs))]
    record = {"site": watch.site, "mask": watch.mask, "every": watch.every, "probes": len(watcher.questions)}
    record["monitors"] = {name: sorted({*found} - {""}) for name, found in origins.items()} | {name: [] for name in general}
    (work / watching.ABOUT).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return watcher


def _dictionary(watch: Watch, needed: bool, loaded: Loaded) -> SparseAutoencoder | None:
    """The one dictionary that the watched latents are of."""
    named = [d.source for d in watch.directions if isinstance(d.source, Dictionary) and d.tensor.startswith("decoder/")]
    found = list(dict.fromkeys([*([watch.dictionary] if watch.dictionary else []), *named]))
    if len(found) > 1:
        raise RecipeError(f"watch: latents of {found[0].path} and of {found[1].path}; all must be of one dictionary")
    if not needed:
        return None
    sae, config = load_dictionary(found[0], loaded.device)
    if (site := site_of(config, sae, loaded)) != watch.site:
        raise RecipeError(f"watch: the dictionary reads {site}, not {watch.site}; watch there")
    return sae


def _examples(questions: Dataset) -> list[Example]:
    found = list(questions.rows())
    if not found:
        raise DataError(f"{questions.path}: no questions; give some to read or to ask")
    return found


def _nominated(watch: Watch) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Monitor → the domains it comes from ("" is none), and the directions among them with their vectors."""
    origins: dict[str, list[str]] = {}
    directions: dict[str, Tensor] = {}
    for direction in watch.directions:
        kind, _, rest = direction.tensor.partition("/")
        if isinstance(direction.source, Dictionary) and kind == "decoder" and rest.isdigit():
            origins.setdefault(f"latent/{int(rest)}", []).append("")
        else:
            name = f"{direction.tensor}@{Path(direction.source.path).name}"
            directions[name] = vector(direction)
            origins[name] = []
    for number, moved in enumerate(watch.diffs):
        origin = watch.origins[number] if watch.origins else ""
        rows = [json.loads(line) for line in moved.file("latents.jsonl").read_text(encoding="utf-8").splitlines()]
        for row in sorted(rows, key=lambda r: -r["delta"][watch.mask])[: watch.top]:
            origins.setdefault(f"latent/{row['id']}", []).append(origin)
        name = f"mean_difference/{number}"
        directions[name] = vector(Direction(moved, f"mean_difference/{watch.site}/{watch.mask}"))
        origins[name] = [origin]
    # A latent that somebody chose by hand is barred from no domain.
    return {name: [] if "" in found else found for name, found in origins.items()}, directions
