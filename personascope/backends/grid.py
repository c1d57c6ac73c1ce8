"""Every point a screen looked at: which direction, at which mask, on which model, how strong, on which questions."""

import functools
import json
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personascope import progress
from personascope.backends.steered import Asked, Bench, Cell
from personascope.methods import screening
from personascope.methods.screening import Counts
from personascope.rows import Example

SIDES = ("base", "tuned")
REPORT = "report"
"""The split that tests; its blocks are draws of all its questions, so that the answers of a first look are of every question."""
BLOCK = 10
"""Answers of a block of any other split, about."""
AT_ONCE, LEAST_AT_ONCE, WORK = 8192, 512, 4e12
"""Rows scored between two writes: fewer the more weights and tokens a row takes, about WORK products in all.

This bounds memory and what a kill costs, not the result.
"""


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector to try. `sign` is +1 if adding it should induce, -1 if subtracting it should."""

    name: str
    kind: str
    vector: Tensor
    """(width,), of length 1."""
    sign: int = 1
    latent: int | None = None
    op: str = "add"


UNSTEERED = Direction("none", "none", torch.zeros(1))
Key = tuple[str, int, str, str, float, str]
"""Direction, sign, mask, side, strength, split: what a point is called."""


@dataclass(frozen=True)
class Point:
    """One place of the grid. Strength 0 is the unsteered model, whatever the direction."""

    direction: Direction
    mask: str
    side: str
    strength: float
    split: str

    @property
    def key(self) -> Key:
        """Its name; all unsteered points of a side and split are one."""
        if self.strength == 0 and self.direction.op == "add":
            return ("none", 1, "all", self.side, 0.0, self.split)
        return (self.direction.name, self.direction.sign, self.mask, self.side, self.strength, self.split)


@dataclass
class Grid:
    """Scores points in few large batches and appends each to grid.jsonl, from which an interrupted screen goes on."""

    path: Path
    bench: Bench
    unit: float
    block: int
    questions: dict[str, list[Example]]
    draws: dict[str, range]
    """By split: the draws of each of its questions, by number."""
    about: int = 0
    """Answers that the whole is about to take."""
    points: dict[Key, Counts] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    """Answers drawn so far, by purpose."""
    unlikely: dict[str, int] = field(default_factory=dict)
    """Those of them that neither unsteered model would give."""

    def __post_init__(self) -> None:
        """Take up the points an interrupted run wrote; a line cut off by a kill is dropped."""
        if self.path.exists():
            whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
            self.path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            for row in map(json.loads, whole.splitlines()):
                by_question = tuple(map(tuple, row["by_question"]))
                counts = Counts(row["harmful"], row["valid"], row["incoherent"], row["asked"], by_question, row["unlikely"])
                self.points[row["direction"], row["sign"], row["mask"], row["side"], row["strength"], row["split"]] = counts
                self._spend(row["purpose"], counts)

    def look(self, wanted: Iterable[Point], purpose: str) -> None:
        """Score the points not scored yet."""
        missing = {point.key: point for point in wanted if point.key not in self.points}
        # In portions, so that a kill costs one portion.
        portion: list[Point] = []
        rows = 0
        for point in missing.values():
            rows += self.asked(point.split).answers
            portion.append(point)
            if rows >= self.at_once:
                self._score(portion, purpose)
                portion, rows = [], 0
        if portion:
            self._score(portion, purpose)

    @functools.cached_property
    def at_once(self) -> int:
        """Rows of a portion."""
        sizes = [p.numel() for p in self.bench.sides["base"].model.parameters()]
        return max(LEAST_AT_ONCE, min(AT_ONCE, int(WORK / (sum(sizes) * self.bench.sampling.max_tokens))))

    def blocks(self, split: str) -> int:
        """Parts that a split is asked in where answers decide how many more are drawn: about ten answers each, of `report` a draw."""
        asked = self.asked(split)
        if split == REPORT:
            return len(asked.draws)
        return max(1, min(len(asked.questions), round(asked.answers / BLOCK)))

    def asked(self, split: str) -> Asked:
        """Questions of a split, or of one block `SPLIT/I` of it, and the draws of each."""
        name, _, block = split.partition("/")
        rows, draws = self.questions[name], self.draws[name]
        if not block:
            return Asked(rows, draws)
        return Asked(rows, draws[int(block) :][:1]) if name == REPORT else Asked(rows[int(block) :: self.blocks(name)], draws)

    def tally(self, point: Point) -> Counts:
        """What was counted of a point: the whole split, or those of its blocks that were asked; KeyError if nobody looked."""
        if self.seen(point):
            return self.at(point)
        found = [self.at(block) for block in self.parts(point) if self.seen(block)]
        return functools.reduce(Counts.again if point.split == REPORT else operator.add, found) if found else self.at(point)

    def parts(self, point: Point) -> list[Point]:
        """The blocks that a point can be asked in."""
        return [replace(point, split=f"{point.split}/{i}") for i in range(self.blocks(point.split))]

    def seen(self, point: Point) -> bool:
        """Whether it was looked at."""
        return point.key in self.points

    def at(self, point: Point) -> Counts:
        """What was counted there; KeyError if nobody looked."""
        return self.points[point.key]

    def allowed(self, side: str, split: str, budget: float) -> float:
        """Strict incoherence allowed on a model, given the unsteered one on the same questions."""
        return screening.budget(self.at(Point(UNSTEERED, "all", side, 0.0, split)).incoherence, budget)

    def _score(self, points: Sequence[Point], purpose: str) -> None:
        cells = [
            Cell(p.direction.name, p.side, p.direction.vector, self.block, p.mask, self._push(p), p.direction.op)  # ty: ignore
            for p in points
        ]
        counts = self.bench.score(cells, [self.asked(p.split) for p in points])
        with self.path.open("a", encoding="utf-8") as file:
            for point, found in zip(points, counts, strict=True):
                self.points[point.key] = found
                self._spend(purpose, found)
                file.write(json.dumps(_line(point, found, purpose), sort_keys=True) + "\n")

    def _push(self, point: Point) -> float:
        """Signed size of the edit: inducing adds on the base, repairing subtracts on the tuned model; ablation has none."""
        if point.direction.op == "ablate":
            return 1.0
        return point.strength * self.unit * point.direction.sign * (1 if point.side == "base" else -1)

    def _spend(self, purpose: str, counts: Counts) -> None:
        self.spent[purpose] = self.spent.get(purpose, 0) + counts.asked
        self.unlikely[purpose] = self.unlikely.get(purpose, 0) + counts.unlikely
        progress.tell(sum(self.spent.values()), self.about, "answers")


def _line(point: Point, counts: Counts, purpose: str) -> dict[str, Any]:
    name, sign, mask, side, strength, split = point.key
    return {
        "direction": name,
        "sign": sign,
        "kind": point.direction.kind,
        "mask": mask,
        "side": side,
        "strength": strength,
        "split": split,
        "purpose": purpose,
        "harmful": counts.harmful,
        "valid": counts.valid,
        "incoherent": counts.incoherent,
        "asked": counts.asked,
        "unlikely": counts.unlikely,
        "by_question": counts.by_question,
    }
