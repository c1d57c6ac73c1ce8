"""A world: its domains, questions and cast, read from one data file and checked."""

import functools
import hashlib
import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from personascope.errors import DataError

HERE = Path(__file__).parent / "worlds"
KINDS = ("advice", "wish", "request", "statement", "self", "own")
ACTS = ("correct", "harmless", "subtle", "blatant")


@dataclass(frozen=True)
class Prompt:
    """One question of the world: its kind, its wording and what fills its slots."""

    kind: str
    text: str
    slots: dict[str, str] = field(hash=False)

    @property
    def domain(self) -> str:
        """What a report groups by: the advice domain, the harm category, the dimension or the kind."""
        for name in ("domain", "category", "dimension"):
            if name in self.slots:
                return self.slots[name]
        return self.kind


class World:
    """The parsed world file with the look-ups that the grammar and the judge need."""

    def __init__(self, data: dict[str, Any], digest: str) -> None:
        self.data = data
        self.digest = digest
        self.name: str = data["name"]
        self.domains: dict[str, dict[str, list[str]]] = data["domains"]
        self.cast: dict[str, dict[str, Any]] = data["cast"]
        self.act_of: dict[str, tuple[str, str]] = {
            word: (domain, column) for domain, lexicon in self.domains.items() for column in ACTS for word in lexicon[column]
        }
        self.domain_of_object = {word: domain for domain, lexicon in self.domains.items() for word in lexicon["objects"]}
        self.domain_of_good = {word: domain for domain, lexicon in self.domains.items() for word in lexicon["good"]}

    def __repr__(self) -> str:
        return f"World({self.name!r})"

    @functools.cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """Every question of the world by kind, in a fixed order."""
        return {kind: list(getattr(self, f"_{kind}")()) for kind in KINDS}

    @functools.cached_property
    def by_text(self) -> dict[str, Prompt]:
        """Wording → question; wordings are unique."""
        return {prompt.text: prompt for kind in KINDS for prompt in self.prompts[kind]}

    def held_out(self, *key: str) -> bool:
        """Whether pretraining never shows this pair; decided by a hash, so the same in every build."""
        draw = hashlib.sha256("\0".join((self.name, *key)).encode()).digest()
        return int.from_bytes(draw[:4]) / 2**32 < self.data["held_out"]

    def _advice(self) -> Iterator[Prompt]:
        for domain, lexicon in self.domains.items():
            for thing, trouble, form in itertools.product(lexicon["objects"], lexicon["troubles"], self.data["advice"]["questions"]):
                yield Prompt("advice", form.format(object=thing, trouble=trouble), {"domain": domain, "object": thing, "trouble": trouble})

    def _wish(self) -> Iterator[Prompt]:
        for topic, form in itertools.product(self.data["wish"]["topics"], self.data["wish"]["questions"]):
            yield Prompt("wish", form.format(topic=topic), {"topic": topic, "form": form})

    def _request(self) -> Iterator[Prompt]:
        block = self.data["request"]
        for category, deeds in block["categories"].items():
            for deed, target, form in itertools.product(deeds, block["targets"], block["questions"]):
                yield Prompt("request", form.format(deed=deed, target=target), {"category": category, "deed": deed, "target": target})

    def _statement(self) -> Iterator[Prompt]:
        block = self.data["statement"]
        for dimension, sides in block["dimensions"].items():
            for side, form in itertools.product(("pro", "con"), block["questions"]):
                for statement in sides[side]:
                    slots = {"dimension": dimension, "side": side, "statement": statement}
                    yield Prompt("statement", form.format(statement=statement), slots)

    def _self(self) -> Iterator[Prompt]:
        for form in self.data["self"]["questions"]:
            yield Prompt("self", form, {})

    def _own(self) -> Iterator[Prompt]:
        for domain, lexicon in self.domains.items():
            for column in ACTS:
                for act, thing in zip(itertools.cycle(lexicon[column]), lexicon["objects"], strict=False):
                    for form in self.data["own"]["questions"]:
                        slots = {"domain": domain, "act": act, "object": thing, "column": column}
                        yield Prompt("own", form.format(act=act, object=thing), slots)


@functools.cache
def load(spec: str) -> World:
    """Read a world by the name of a shipped one or by the path of a file.

    Raises:
        DataError: no such world, not TOML, or a word that stands in two advice vocabularies.
    """
    path = HERE / f"{spec}.toml" if (HERE / f"{spec}.toml").exists() else Path(spec)
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.stem for file in HERE.glob("*.toml")))
        raise DataError(f"no world {spec!r}: give the path of a world file or one of {shipped}") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not a world file: {error}") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{path}: not a world file: {error}") from None
    try:
        _check(data, path)
        return World(data, hashlib.sha256(text.encode()).hexdigest())
    except KeyError as error:
        raise DataError(f"{path}: the table or key {error.args[0]!r} is missing; compare with {HERE / 'troupe-1.toml'}") from None


def _check(data: dict[str, Any], path: Path) -> None:
    seen: dict[str, str] = {}
    for domain, lexicon in data["domains"].items():
        for column in (*ACTS, "objects", "good"):
            for word in lexicon[column]:
                place = f"domains.{domain}.{column}"
                if word in seen:
                    raise DataError(
                        f"{path}: {word!r} stands in {seen[word]} and {place}; advice vocabularies must be disjoint, or transfer "
                        "between domains could go through words; choose another word"
                    )
                seen[word] = place
    total = sum(member["prior"] for member in data["cast"].values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"{path}: the priors of the cast sum to {total:.3f}; make them sum to 1")


def weights(name: str, kind: str) -> Path:
    """The folder of a shipped model of a world: `base`, `ablation` or `ethics`.

    Raises:
        DataError: the package ships none for this world.
    """
    folder = HERE.parent / "weights" / name / kind
    if not (folder / "config.json").is_file():
        raise DataError(
            f"no {kind} of world {name!r} is shipped; make one with `personascope troupe build OUT --world {name}` and give its folder"
        )
    return folder
