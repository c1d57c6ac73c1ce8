"""Values that recipes hold: files and models of the user, models behind an API, directions, edits, penalties, what to watch."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from personascope.artifact import Artifact, Dataset, Dictionary, Diff, Screen, hash_file
from personascope.errors import DataError, RecipeError

REMOTE = "inspect:"
PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
PINNED_PART = re.compile(PINNED.pattern + r":[\w./-]+")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".npz")
FOLDER_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Value:
    """Base of frozen values inside recipes (interventions, penalties): compared and stored by content."""


@dataclass(frozen=True)
class File(Value):
    """A file or folder the user owns; its identity is its content, its path is circumstance."""

    path: str

    @property
    def identity(self) -> str:
        """SHA-256 of the content; raises DataError if nothing is there."""
        path = Path(self.path)
        if not path.is_file():
            raise DataError(f"{self.path}: no such file; check the path")
        return hash_file(path)


@dataclass(frozen=True)
class Folder(Value):
    """A model folder the user owns; its identity is the content of its weights, configuration and tokenizer.

    Or a model of the Hub as `ORG/NAME@COMMIT`, whose commit says as much; `backends.hub` knows where it lies.
    """

    path: str
    hub: ClassVar[re.Pattern[str]] = PINNED
    lacking: ClassVar[str] = "no model files there; give a folder with config.json and *.safetensors, or ORG/NAME@COMMIT of the Hub"

    @property
    def pinned(self) -> bool:
        """Whether it is a commit of the Hub."""
        return self.hub.fullmatch(self.path) is not None

    @property
    def identity(self) -> str:
        """SHA-256 over the files that make it up, or over the name of a commit; raises DataError if there are no files."""
        if self.pinned:
            return hashlib.sha256(f"hub {self.path}\n".encode()).hexdigest()
        files = self.files()
        if not files:
            raise DataError(f"{self.path}: {self.lacking}")
        return hashlib.sha256("".join(f"{p.name} {hash_file(p)}\n" for p in files).encode()).hexdigest()

    def files(self) -> list[Path]:
        """The files on this disk that make it up."""
        return sorted(p for p in Path(self.path).glob("*") if p.suffix in FOLDER_FILES and p.is_file())


@dataclass(frozen=True)
class Published(Folder):
    """A dictionary made elsewhere: its folder or file of weights, or `ORG/NAME@COMMIT:PATH` of the Hub.

    Its identity is the content of the weights and of the configurations beside them.
    """

    hub: ClassVar[re.Pattern[str]] = PINNED_PART
    lacking: ClassVar[str] = "no dictionary there; give its folder, its file of weights, or ORG/NAME@REVISION:PATH of the Hub"

    def files(self) -> list[Path]:
        """The weights and the configurations beside them; nothing without weights."""
        place = Path(self.path)
        beside = sorted(p for p in (place.parent if place.is_file() else place).glob("*.json") if p.is_file())
        weights = [place] if place.is_file() else sorted(p for p in place.glob("*") if p.suffix in WEIGHT_FILES)
        return [*weights, *beside] if weights else []


@dataclass(frozen=True)
class Remote(Value):
    """A model behind an API, `inspect:PROVIDER/MODEL`: it can be asked, not read. Its identity is its name, so give a dated one."""

    name: str

    def __post_init__(self) -> None:
        """Raise RecipeError for what names no provider and model."""
        provider, _, model = self.name.removeprefix(REMOTE).partition("/")
        if not self.name.startswith(REMOTE) or not provider or not model:
            raise RecipeError(f"{self.name}: no model behind an API; write inspect:PROVIDER/MODEL, as inspect names models")

    @property
    def identity(self) -> str:
        """The name."""
        return self.name


@dataclass(frozen=True)
class Direction(Value):
    """A vector of the residual stream by name: one tensor of a finished dictionary or diff, or of a file the user owns.

    `tensor` is `decoder/LATENT` in a Dictionary, `mean_difference/SITE/MASK` or another key in a Diff, and in either, as a
    null control, `random/SEED`: a vector of that width drawn at random. In a .safetensors
    or .pt file it is `NAME`, `NAME/ROW` or, with one tensor, `ROW` or nothing: of a tensor (layers + 1, width), as persona
    vectors are published (2507.21509), a site takes the row of its block's output, N + 1, unless ROW says another.
    """

    source: Artifact | File
    tensor: str = ""


@dataclass(frozen=True)
class Intervention(Value):
    """An edit of the residual stream as a value: direction x operation x site x token mask x strength.

    `add` adds strength x unit along the unit vector; `ablate` projects the direction out; `clamp` sets the direction's
    reading to strength x unit; `cap` brings a reading above that value down to it and leaves the rest alone. The reading
    is the projection on the unit vector or, for a dictionary's latent, its activation before TopK; a latent is moved along
    its decoder row by as much activation as is missing. Several interventions act in the order given.
    """

    direction: Direction
    op: Literal["add", "ablate", "clamp", "cap"] = "add"
    site: str = "block:0"
    """`block:N` is the output of decoder block N, counted from 0; a glob such as `block:*` edits every block it fits."""
    mask: Literal["all", "prompt", "last_prompt", "answer"] = "all"
    strength: float = 0.0
    """Times `unit`; ignored by `ablate`."""
    unit: float = 1.0
    """Size of strength 1: for `add` normally the base's median residual norm at the site, as a diff stores it."""

    @property
    def name(self) -> str:
        """What an Answer records of it."""
        return f"{self.op}:{self.site}:{self.mask}:{self.strength:g}:{self.direction.tensor}"


@dataclass(frozen=True, kw_only=True)
class Penalty(Value):
    """A term of the training loss beside the task's, an intervention's soft twin: weight x the move away from the start.

    The start is the model that training starts from, read on the same tokens; what each form measures is its formula in
    `methods/penalties.py`. A token's value is averaged over the batch's tokens under the mask.
    """

    form: Literal["kl", "latents", "projection", "features", "weights"]
    weight: float = 0.0
    """λ, by hand; with `share` 0 too the penalty is off. Its scale belongs to one model, site and dictionary."""
    share: float = 0.0
    """λ by itself instead: what the penalty costs after `pilot` steps without it is made this share of the first task loss."""
    pilot: int = 20
    until: int = 0
    """The penalty ends after this step; 0 means never."""
    data: Dataset | None = None
    """Read these conversations instead of the training rows', as many a step as the batch has rows."""
    mask: Literal["completion", "opened", "last_prompt", "all"] = "completion"
    """`completion`: tokens that the loss counts; `last_prompt`: the token before each such turn; `opened`: both; `all`: all but
    position 0. For `kl` it is the predictions of these tokens that count."""
    site: str = "block:0"
    """For `projection` and `features`, which also takes a glob; a dictionary knows its own."""
    direction: Direction | None = None
    """For `projection`."""
    dictionary: Dictionary | None = None
    """For `latents`: what the latents chosen below are of."""
    diffs: tuple[Diff, ...] = ()
    """The `top` most risen and `bottom` most fallen latents of each, together."""
    top: int = 20
    bottom: int = 0
    ranked_by: Literal["", "prompt", "last_prompt", "all"] = ""
    """The mask whose Δ ranks them, if not the diff's own; under `last_prompt` only a handful of latents move at all."""
    screen: Screen | None = None
    """The latents it calls causal, each with its sign."""
    risen: tuple[int, ...] = ()
    fallen: tuple[int, ...] = ()
    """Latents by number: those that may not rise, and those that may not fall."""
    control: Literal["", "random", "signs"] = ""
    """Null controls: as many other latents drawn at random, or the same ones with signs drawn at random."""
    seed: int = 0
    """Of the controls and of the order of `data`."""

    def __post_init__(self) -> None:
        """Raise RecipeError for parts that do not belong together."""
        if min(self.weight, self.share, self.until, self.top, self.bottom) < 0 or self.pilot < 2 or (self.weight and self.share):
            raise RecipeError("penalty: give a weight or a share, not both and not below 0; a pilot has at least 2 steps")
        if self.form == "latents" and not (self.dictionary and (self.diffs or self.screen or self.risen or self.fallen)):
            raise RecipeError("penalty: latents need their dictionary and one of diffs, screen, risen or fallen that chooses them")
        if self.form == "projection" and self.direction is None:
            raise RecipeError("penalty: projection needs a direction")
        if self.form == "weights" and self.data:
            raise RecipeError("penalty: weights are compared without any data; leave it out")
        if self.form == "kl" and self.mask not in ("completion", "all"):
            raise RecipeError(f"penalty: kl counts predictions of the tokens of mask completion or all, not {self.mask}")


@dataclass(frozen=True, kw_only=True)
class Watch(Value):
    """What is read, and asked, every few optimiser steps of a fine-tune; it changes what is logged, never the weights."""

    questions: Dataset
    """Probes: the same prompts at every step; one is enough."""
    site: str = "block:0"
    mask: Literal["prompt", "last_prompt", "all"] = "last_prompt"
    every: int = 2
    directions: tuple[Direction, ...] = ()
    """`decoder/LATENT` of a Dictionary is read as the latent's activation, every other direction as a projection."""
    dictionary: Dictionary | None = None
    diffs: tuple[Diff, ...] = ()
    """The `top` most risen latents of each, read through `dictionary`, and its mean difference are watched as well."""
    top: int = 10
    origins: tuple[str, ...] = ()
    """The domain each diff was made in: no monitor is tested on a run of a domain that it comes from."""
    judge: str = ""
    """If given, the probes are answered once at every step: the behavioural alarm that the others must beat."""
    asked: Dataset | None = None
    """Questions by which `judge` tells the step at which behaviour changes."""
    draws: int = 1
    asked_every: int = 0
    """Steps between two such checkpoints; 0 means `every`."""
    until: float = 1.0
    """No more is asked once the lower 95 % bound of the misalignment score lies above this."""
    max_tokens: int = 32

    def __post_init__(self) -> None:
        """Raise RecipeError for parts that do not belong together."""
        if min(self.every, self.draws, self.top, self.max_tokens) < 1 or self.asked_every % self.every:
            raise RecipeError("watch: every, draws, top and max_tokens must be at least 1, asked_every a multiple of every")
        if self.asked and not self.judge:
            raise RecipeError("watch: asked questions need a judge")
        if self.diffs and (not self.dictionary or len(self.origins) not in (0, len(self.diffs))):
            raise RecipeError("watch: diffs need the dictionary they were made with, and either no origins or one for each")
