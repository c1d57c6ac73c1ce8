"""Penalties and interventions of a recipe as things that act on a batch in training: terms of the loss, edits of the stream."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional as F

from personascope.artifact import Diff
from personascope.backends.dictionaries import load_dictionary
from personascope.backends.directions import steers_of, vector
from personascope.backends.hooks import Edit, capturing, run_to_site, site_index, site_indices
from personascope.backends.models import Loaded, evaluating
from personascope.backends.preference import padded
from personascope.backends.reading import site_of
from personascope.backends.steering import Steer
from personascope.errors import RecipeError
from personascope.methods import penalties
from personascope.methods.preference import IGNORED
from personascope.methods.tokens import TrainingRow, training_row
from personascope.values import Intervention, Penalty

MASKS = ("all", "last_prompt", "answer")


@dataclass(frozen=True)
class Read:
    """What one model says of a batch: logits (rows, positions, words) if wanted, streams by site (rows, positions, width)."""

    logits: Tensor | None
    streams: dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """One penalty, ready: `values(now, start, on)` gives a value for each token that `on` (rows, positions) picks.

    A weight of 0 is measured and logged, and costs nothing.
    """

    name: str
    weight: float
    penalty: Penalty
    sites: tuple[str, ...] = ()
    values: Callable[[Read, Read, Tensor], Tensor] | None = None
    """None for penalties on the weights themselves."""
    rows: tuple[TrainingRow, ...] = ()
    """Its own conversations, if it does not read the training rows."""
    signs: dict[int, int] = dataclasses.field(default_factory=dict)
    """Latent → sign."""

    @property
    def logits(self) -> bool:
        """Whether it compares predictions, which takes a whole forward."""
        return self.penalty.form == "kl"

    def on(self, inputs: dict[str, Tensor]) -> Tensor:
        """The positions (rows, positions) it looks at; of preference pairs only the chosen answers."""
        trained, there = inputs["labels"] != IGNORED, inputs["attention_mask"].bool()
        if "start" in inputs:
            chosen = (torch.arange(len(trained), device=trained.device) < len(trained) // 2)[:, None]
            trained, there = trained & chosen, there & chosen
        tokens = penalties.counted(self.penalty.mask, trained, there)
        return penalties.predicting(tokens) if self.logits else tokens


@dataclass(frozen=True)
class Shaping:
    """All that makes a training differ from plain supervised fine-tuning."""

    terms: tuple[Term, ...] = ()
    steers: tuple[Steer, ...] = ()
    beta: float | None = None
    """The rows are preference pairs."""

    @property
    def plain(self) -> bool:
        """Whether nothing differs."""
        return not self.terms and not self.steers and self.beta is None

    def edits(self, inputs: dict[str, Tensor]) -> list[Edit]:
        """The edits of a batch, their masks set."""
        trained, there = inputs["labels"] != IGNORED, inputs["attention_mask"].bool()
        made = [steer.edit([0] * len(there), there.device) for steer in self.steers]
        for edit, steer in zip(made, self.steers, strict=True):
            name = "completion" if steer.mask == "answer" else "last_prompt"
            edit.mask = there if steer.mask == "all" else penalties.counted(name, trained, there)
        return made


# ------------------------------------------------------------------ from a recipe


def shaping(
    found: Sequence[Penalty], interventions: Sequence[Intervention], unit: Diff | None, loaded: Loaded, last_only: bool, beta: float | None
) -> Shaping:
    """What a recipe asks for; penalties of weight and share 0 are off.

    Raises:
        RecipeError: a site, latent or direction that is not there.
        BackendError: a dictionary of another model.
    """
    named: dict[str, Term] = {}
    for penalty in found:
        if penalty.weight or penalty.share:
            number = sum(term.penalty.form == penalty.form for term in named.values())
            name = penalty.form + (f"-{number + 1}" if number else "")
            named[name] = _term(name, penalty, loaded, last_only)
    return Shaping(tuple(named.values()), tuple(_steers(interventions, unit, loaded.model)), beta)


def _term(name: str, penalty: Penalty, loaded: Loaded, last_only: bool) -> Term:
    rows: tuple[TrainingRow, ...] = ()
    if penalty.data:
        place = penalty.data.file("examples.jsonl")
        rows = tuple(
            training_row(loaded.tokenizer, example.messages, f"{place}:{i} (row {example.id})", last_only)
            for i, example in enumerate(penalty.data.rows(), 1)
        )
        if not rows:
            raise RecipeError(f"penalty: {penalty.data.path} has no rows to read")
    made = Term(name, penalty.weight, penalty, rows=rows)
    if penalty.form == "weights":
        return made
    if penalty.form == "kl":
        return dataclasses.replace(made, values=_kl)
    if penalty.form == "latents":
        return _latents(made, loaded)
    if penalty.form == "projection":
        assert penalty.direction is not None
        unit = vector(penalty.direction, site_index(penalty.site, loaded.model)).to(loaded.device)
        if unit.shape != (width := loaded.model.config.get_text_config().hidden_size,):
            raise RecipeError(f"penalty: direction {penalty.direction.tensor!r} has width {len(unit)}, the model's stream {width}")
        one = penalty.site
        return dataclasses.replace(
            made, sites=(one,), values=lambda now, start, on: penalties.projection(_at(now, one, on), _at(start, one, on), unit)
        )
    sites = tuple(f"block:{i}" for i in site_indices(penalty.site, loaded.model))

    def features(now: Read, start: Read, on: Tensor) -> Tensor:
        return penalties.features(*(torch.stack([_at(read, site, on) for site in sites]) for read in (now, start)))

    return dataclasses.replace(made, sites=sites, values=features)


def _at(read: Read, site: str, on: Tensor) -> Tensor:
    return read.streams[site][on].float()


def _kl(now: Read, start: Read, on: Tensor) -> Tensor:
    assert now.logits is not None
    assert start.logits is not None
    return penalties.kl(now.logits[on].float(), start.logits[on].float())


def _latents(made: Term, loaded: Loaded) -> Term:
    """Only the chosen rows of the encoder are computed."""
    assert made.penalty.dictionary is not None
    sae, config = load_dictionary(made.penalty.dictionary, loaded.device)
    site = site_of(config, sae, loaded)
    signs = penalties.controlled(chosen(made.penalty), made.penalty.control, len(sae.W_enc), made.penalty.seed)
    if not signs or max(signs) >= len(sae.W_enc):
        raise RecipeError(f"penalty: latents {list(signs)} of a dictionary of {len(sae.W_enc)}; choose some that are there")
    index = torch.tensor(list(signs), device=loaded.device)
    way = torch.tensor([float(sign) for sign in signs.values()], device=loaded.device)
    encoder, bias = sae.W_enc[index], sae.b_enc[index]

    def activations(read: Read, on: Tensor) -> Tensor:
        return F.linear(_at(read, site, on) * sae.scale - sae.b_pre, encoder, bias).relu()

    def values(now: Read, start: Read, on: Tensor) -> Tensor:
        return penalties.latents(activations(now, on), activations(start, on), way)

    return dataclasses.replace(made, sites=(site,), values=values, signs=signs)


def chosen(penalty: Penalty) -> dict[int, int]:
    """Latent → sign of a penalty, before its control; the first to name a latent gives its sign."""
    found: dict[int, int] = {}
    for moved in penalty.diffs:
        rows = [json.loads(line) for line in moved.file("latents.jsonl").read_text(encoding="utf-8").splitlines()]
        mask = penalty.ranked_by or moved.json("diff.json")["mask"]
        found = penalties.ranked(rows, mask, penalty.top, penalty.bottom) | found
    if penalty.screen:
        causal = penalty.screen.json("screen.json")["causal"]
        found = {row["latent"]: 1 if row["sign"] == "+" else -1 for row in causal if row["latent"] is not None} | found
    return dict.fromkeys(penalty.risen, 1) | dict.fromkeys(penalty.fallen, -1) | found


def _steers(interventions: Sequence[Intervention], unit: Diff | None, model: Any) -> Iterator[Steer]:
    """One steer per intervention and block; directions ablated one after the other at one place are put at right angles."""
    found: list[Steer] = []
    for edit in interventions:
        if edit.mask not in MASKS:
            raise RecipeError(f"finetune: an intervention at mask {edit.mask!r}; in training the masks are {', '.join(MASKS)}")
        for block in site_indices(edit.site, model):
            size = unit.json("diff.json")["unit"][f"block:{block}"] if unit else edit.unit
            found += steers_of((dataclasses.replace(edit, site=f"block:{block}", unit=size),), 1, model)
    places = dict.fromkeys((s.block, s.mask) for s in found if s.op == "ablate")
    square = {(b, m): iter(penalties.orthonormal(torch.cat([s.table for s in _ablated(found, b, m)]))) for b, m in places}
    for steer in found:
        yield dataclasses.replace(steer, table=next(square[steer.block, steer.mask])[None]) if steer.op == "ablate" else steer


def _ablated(steers: Sequence[Steer], block: int, mask: str) -> list[Steer]:
    return [steer for steer in steers if steer.op == "ablate" and (steer.block, steer.mask) == (block, mask)]


# ------------------------------------------------------------------ in training


class Start:
    """The model that training starts from: one with adapters turned off, or a frozen copy made before the first step."""

    def __init__(self, model: Any, needed: bool) -> None:
        lora = isinstance(model, PeftModel)
        self.copy = copy.deepcopy(model).eval().requires_grad_(False) if needed and not lora else None

    @contextmanager
    def of(self, model: Any) -> Iterator[Any]:
        """It, in evaluation mode and without gradient; the model in training is put back as it was.

        Without adapters and without a copy it is the model itself, which is right before the first step only.
        """
        with torch.no_grad():
            if self.copy is not None:
                yield self.copy
                return
            with evaluating(model), model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
                yield model

    def distance(self, model: Any) -> Tensor:
        """How far the weights have moved, as the L2-SP penalty."""
        if self.copy is not None:
            return penalties.weights(*((p.float() for p in one.parameters()) for one in (model, self.copy)))
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and layer.lora_A]
        return penalties.low_rank_weights(
            (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]) for layer in layers for name in layer.lora_A
        )


def read(model: Any, inputs: dict[str, Tensor], terms: Sequence[Term]) -> Read:
    """One forward for what these terms need, no further than it must go."""
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    sites = sites_of(terms)
    whole = any(term.logits for term in terms)
    if not sites:
        return Read(model(**tokens, use_cache=False).logits, {})
    with capturing(model, sites, stop=not whole) as seen:
        if not whole:
            run_to_site(model, **tokens)
        logits = model(**tokens, use_cache=False).logits if whole else None
    return Read(logits, dict(seen))


def sites_of(terms: Sequence[Term]) -> list[str]:
    """All the sites that these terms read."""
    return list(dict.fromkeys(site for term in terms for site in term.sites))


def own_batch(term: Term, size: int, step: int, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """The batch that a term with its own conversations reads at a step."""
    rows = [term.rows[i] for i in penalties.turn(len(term.rows), size, step, term.penalty.seed)]
    return {name: tensor.to(device) for name, tensor in padded(rows, pad_id).items()}


def write(terms: Sequence[Term], where: Path) -> None:
    """What the penalties were: weight by weight, and the latents with their signs."""
    record = {term.name: {"weight": term.weight} | ({"latents": term.signs} if term.signs else {}) for term in terms}
    where.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
