"""The causal screen at work: nominate, sift, find each one's strength, test on fresh questions against matched nulls."""

import functools
import json
import math
import operator
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from personascope.backends import dictionaries, models
from personascope.backends.generation import Sampling
from personascope.backends.grid import BLOCK, REPORT, SIDES, UNSTEERED, Direction, Grid, Point
from personascope.backends.hooks import site_index
from personascope.backends.judging import Judge, spec_of
from personascope.backends.likelihood import Fluency
from personascope.backends.steered import Bench
from personascope.errors import DataError
from personascope.methods import ranking, screening
from personascope.methods.screening import Counts
from personascope.rows import Example

Trial = tuple[Direction, str]
"""A direction at a mask."""
FULL = 19_200
"""Tokens of answers that keep the engine busy."""
RARE = 0.02
"""A sift takes the base's own score for at least this, so that one stray answer keeps nobody."""
CONFIRM = 3
"""So many times the answers that found a strength are drawn in addition before it is shown."""
LOOKS = 3
"""Strengths a sift tries."""
LIMIT = "likelihood.json"
"""Where a screen keeps how unlikely an answer may be."""
EVEN = 0.5
"""The level at which a score is held against known nulls before the test: it is beyond them, if only just."""
NULL_TAIL = 95
"""Percentile of the nulls' scores that a causal direction must go beyond."""


@dataclass
class Screening:
    """One screen: its grid, what was nominated, who came through, and each one's strength on each model."""

    recipe: Any
    grid: Grid
    latents: list[dict[str, Any]]
    decoder: torch.Tensor
    mean_difference: dict[str, torch.Tensor]
    trials: list[Trial] = field(default_factory=list)
    kept: list[Trial] = field(default_factory=list)
    alpha: dict[tuple[str, int, str, str], float] = field(default_factory=dict)
    nulls: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """By mask: the scores that nulls induce on the base, and those they leave on the tuned model, on the `nulls` questions."""

    @classmethod
    def open(cls, recipe: Any, work: Path, about: int = 0) -> "Screening":
        """Load the models and take up the points an interrupted run wrote; raises what loading raises."""
        base, tuned = models.load(recipe.base, recipe.device), models.load(recipe.tuned, recipe.device)
        models.check_pair(base, tuned)
        sae, _ = dictionaries.load_dictionary(recipe.dictionary)
        diff = recipe.diff.json("diff.json")
        sampling = Sampling(recipe.max_tokens, recipe.temperature, 1.0, recipe.seed, recipe.batch_tokens)
        moved = load_file(recipe.diff.file("directions.safetensors"))
        questions, sides = _splits(recipe), {"base": base, "tuned": tuned}
        fluency = Fluency.calibrate(sides, questions["selection"], sampling, recipe.guarded, work / LIMIT) if recipe.guarded else None
        judge = Judge(spec_of(recipe.judge, recipe.by), recipe.rubric, api=recipe.api)
        grid = Grid(
            work / "grid.jsonl",
            Bench(base, tuned, judge, sampling, recipe.harmful_from, fluency),
            unit=diff["unit"][diff["site"]],
            block=site_index(diff["site"], base.model),
            questions=questions,
            draws={
                "selection": range(recipe.draws),
                "shown": range(recipe.draws),
                "sift": range(1),
                "confirm": range(recipe.draws, recipe.draws * (1 + CONFIRM)),
                REPORT: range(recipe.report_draws),
                "nulls": range(recipe.null_draws),
            },
            about=about,
        )
        return cls(
            recipe=recipe,
            grid=grid,
            nulls=_taken_over(recipe) if recipe.chance else {},
            latents=[json.loads(line) for line in recipe.diff.file("latents.jsonl").read_text().splitlines()],
            decoder=torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1),
            # What was read on answers cannot be read again at the masks that are steered: there both sides may be alike.
            mean_difference={
                mask: moved[f"mean_difference/{diff['site']}/{'answer' if diff['mask'] == 'answer' else mask}"] for mask in recipe.masks
            },
        )

    @functools.cached_property
    def references(self) -> list[Trial]:
        """The mean difference of each mask: what a screen of latents should be compared with."""
        made = {mask: torch.nn.functional.normalize(vector, dim=0) for mask, vector in self.mean_difference.items()}
        return [(Direction(f"mean_difference/{mask}", "mean_difference", vector), mask) for mask, vector in made.items()]

    def search(self) -> None:
        """Nominate, drop the hopeless, and give everyone left a strength on both models; nothing is reported yet."""
        mask = self.recipe.diff.json("diff.json")["mask"]
        tails = ranking.tails(self.latents, self.recipe.rankers, mask, self.recipe.top, self.recipe.bottom)
        turned = [self.recipe.rotate > 0 and place >= self.recipe.planted for place in range(len(tails))]
        directions = [self.latent(int(i), sign, turn) for (i, sign), turn in zip(tails, turned, strict=True)]
        self.trials = [(direction, mask) for direction in directions for mask in self.recipe.masks]
        unsteered = [Point(UNSTEERED, "all", side, 0.0, split) for side in SIDES for split in self.grid.questions if split != "confirm"]
        self.grid.look(unsteered, "unsteered")
        if self.recipe.method == "grid":
            self.kept = self.trials
            self._scan(self.trials, "search")
            self._scan(self.references, "reference")
        else:
            self.kept = self._race(self._sift(self.trials) if self.recipe.sift else self.trials)
            self.strengths_of(self.references, "reference")

    def test(self, trials: Iterable[Trial], purpose: str = "report") -> None:
        """Score trials on the report questions, each at its own strengths."""
        self.grid.look((self.point(trial, side, REPORT) for trial in trials for side in SIDES), purpose)

    def test_first(self, trials: Iterable[Trial]) -> None:
        """The first look at trials: one answer to every report question."""
        self.grid.look((self.looks(trial, side)[0] for trial in trials for side in SIDES), REPORT)

    def test_again(self, trials: Iterable[Trial]) -> None:
        """All further answers of trials that were looked at once."""
        self.grid.look((look for trial in trials for side in SIDES for look in self.looks(trial, side)[1:]), REPORT)

    def looks(self, trial: Trial, side: str) -> list[Point]:
        """The report questions one draw after the other."""
        return self.grid.parts(self.point(trial, side, REPORT))

    def run_nulls(self, mask: str) -> None:
        """Matched random latents and random directions on both models, each at its own strengths; or those of a finished screen."""
        if self.recipe.chance:
            if mask not in self.nulls:
                raise DataError(f"screen: {self.recipe.chance} has no nulls at the mask {mask!r}; leave chance out")
            return
        generator = np.random.default_rng([self.recipe.seed, self.recipe.masks.index(mask)])
        tried = [(d, mask) for d in (*self.random_latents(generator), *self.random_directions(generator))]
        # Found on too few questions their strengths would be too large, and nulls look strong.
        self.strengths_of(tried, "nulls", "shown")
        self.grid.look((self.point(trial, side, "nulls") for trial in tried for side in SIDES), "nulls")
        induced, left = ([self.grid.at(self.point(trial, side, "nulls")).score for trial in tried] for side in SIDES)
        self.nulls[mask] = (sorted(induced), sorted(left))

    def null_bounds(self, mask: str) -> tuple[float, float]:
        """(95th percentile of what nulls induce, 5th percentile of what they leave on the tuned model)."""
        induced, left = self.nulls[mask]
        if not induced:
            return 0.0, 1.0
        return float(np.percentile(induced, NULL_TAIL)), float(np.percentile(left, 100 - NULL_TAIL))

    def strength(self, trial: Trial, side: str) -> float:
        """α: the largest strength within the incoherence budget on this model; 0 if there is none."""
        direction, mask = trial
        return self.alpha[direction.name, direction.sign, mask, side]

    def point(self, trial: Trial, side: str, split: str, strength: float | None = None) -> Point:
        """The trial's point at a strength, by default its own."""
        return Point(*trial, side, self.strength(trial, side) if strength is None else strength, split)

    def effect(self, trial: Trial) -> float:
        """The smaller of induced rise and repaired fall on the selection questions, which is what the winner is chosen by."""
        points = (self.grid.tally(self.point(trial, side, "selection", s)) for side in SIDES for s in (None, 0.0))
        return screening.effect(*points)

    def latent(self, number: int, sign: int, turned: bool = False) -> Direction:
        """A latent's unit decoder row; turned, the same row under the recipe's random rotation, which points nowhere in particular."""
        if not turned:
            return Direction(str(number), "latent", self.decoder[number], sign, number)
        return Direction(f"turned/{number}", "turned", self.rotation @ self.decoder[number], sign, number)

    @functools.cached_property
    def rotation(self) -> torch.Tensor:
        """A uniformly random rotation (width, width): the Q of a Gaussian matrix, signs fixed by R."""
        generator = torch.Generator().manual_seed(self.recipe.rotate)
        q, r = torch.linalg.qr(torch.randn(self.decoder.shape[1], self.decoder.shape[1], generator=generator))
        return q * r.diagonal().sign()

    def combined(self, directions: list[Direction]) -> Direction:
        """Several latents as one direction: their signed decoder rows, added up with equal weight."""
        total = torch.stack([d.vector * d.sign for d in directions]).sum(0)
        return Direction(f"set/{len(directions)}", "set", torch.nn.functional.normalize(total, dim=0))

    def strengths_of(self, trials: list[Trial], purpose: str, split: str = "selection", sides: tuple[str, ...] = SIDES) -> None:
        """Every trial's strength on each model, sought from above on as many of the split's questions as it takes."""
        strengths = self.recipe.strengths
        wanted = [(trial, side) for trial in trials for side in sides]
        allowed = {side: self.grid.allowed(side, split, self.recipe.budget) for side in sides}
        blocks, whole = self.grid.blocks(split), self.grid.asked(split).answers

        def where(place: int, asked: tuple[int, int], ahead: int = 1) -> list[Point]:
            (trial, side), (index, block) = wanted[place], asked
            return [self.point(trial, side, f"{split}/{i}", strengths[index]) for i in range(block, min(blocks, block + ahead))]

        searches = [screening.descend(len(strengths), blocks, whole, allowed[side]) for _, side in wanted]
        found = self._step(searches, where, purpose, lambda place, asked: self.grid.at(where(place, asked)[0]))
        for (trial, side), index in zip(wanted, found, strict=True):
            self._keep(trial, side, strengths[index] if index >= 0 else 0.0)

    def confirm(self, trials: Iterable[Trial], purpose: str = "confirm") -> None:
        """Hold the strengths of what will be shown against more answers to the selection questions, and go down where they do not bear it.

        The largest strength within the budget is more often than not one that was lucky: on other questions it is above it.
        """
        strengths = self.recipe.strengths
        wanted = [(t, side, strengths.index(self.strength(t, side))) for t in trials for side in SIDES if self.strength(t, side)]
        allowed = {side: self.grid.allowed(side, "selection", self.recipe.budget) for side in SIDES}
        whole = sum(self.grid.asked(split).answers for split in ("selection", "confirm"))

        def where(place: int, asked: tuple[int, int], _: int = 1) -> list[Point]:
            trial, side, _ = wanted[place]
            first, more = (self.point(trial, side, split, strengths[asked[0]]) for split in ("selection", "confirm"))
            return [*self.grid.parts(first), more]

        def tell(place: int, asked: tuple[int, int]) -> Counts:
            return functools.reduce(operator.add, map(self.grid.at, where(place, asked)))

        searches = [screening.descend(index + 1, 1, whole, allowed[side]) for _, side, index in wanted]
        for (trial, side, _), index in zip(wanted, self._step(searches, where, purpose, tell), strict=True):
            self._keep(trial, side, strengths[index] if index >= 0 else 0.0)

    def _race(self, trials: list[Trial]) -> list[Trial]:
        """Strengths on the base, then on the tuned model; the hopeless leave after each.

        The strength at which a trial leaves stays what it was, and it is not tested: a trial that shows nothing at its own
        strength on the questions that chose it would not show it on others.
        """
        for side in SIDES:
            self.strengths_of(trials, "search", sides=(side,))
            trials = self._hopeful(trials, side)
        return trials

    def _hopeful(self, trials: list[Trial], side: str) -> list[Trial]:
        """Trials whose score at their own strength on this model is beyond the unsteered one at the 20 % level.

        Where the nulls are known already, it must be beyond these: what is not would not pass the test. Few answers may
        have settled a strength, so nobody leaves before all questions were asked.
        """
        kept = self._beyond(trials, side)
        leaving = [t for t in trials if t not in kept and self.strength(t, side)]
        self.grid.look((part for t in leaving for part in self.grid.parts(self.point(t, side, "selection"))), "search")
        return self._beyond(trials, side)

    def _beyond(self, trials: list[Trial], side: str) -> list[Trial]:
        looked = {t: self.grid.tally(self.point(t, side, "selection")) for t in trials}
        trials = self._promising(trials, {t: self._beyond_p([c], side) for t, c in looked.items()}, 0.2)
        known = {t: self._beyond_p([looked[t]], side, self.null_bounds(t[1])) if t[1] in self.nulls else 0.0 for t in trials}
        return self._promising(trials, known, EVEN)

    def _promising(self, trials: list[Trial], p: dict[Trial, float], level: float) -> list[Trial]:
        """Those with p within the level, and at every mask the two that come closest, so that there is always something to report."""
        closest = [t for mask in self.recipe.masks for t in sorted((t for t in trials if t[1] == mask), key=lambda t: p[t])[:2]]
        return [trial for trial in trials if p[trial] <= level or trial in closest]

    def _sift(self, trials: list[Trial]) -> list[Trial]:
        """A few questions at a few strengths on one model: risen latents must induce a little, fallen ones repair a little.

        Kept are those whose harmful share over the looks within the budget is beyond the unsteered one at the 10 % level.
        Where the nulls are known, everyone must repair, at the largest strength that passed, about as much as the best of
        these: random pushes repair much and induce little, so the tuned model is where few get beyond them.
        """
        known = {trial: trial[1] in self.nulls for trial in trials}
        sides = {trial: "base" if trial[0].sign > 0 and not known[trial] else "tuned" for trial in trials}
        looked: dict[Trial, list[Counts]] = {trial: [] for trial in trials}

        def where(place: int, index: int, _: int = 1) -> list[Point]:
            return [self.point(trials[place], sides[trials[place]], "sift", self.recipe.strengths[index])]

        def passed(place: int, index: int) -> bool:
            trial, (point,) = trials[place], where(place, index)
            # A dozen answers cannot tell one in ten: a second incoherent one is still let through.
            ok = self.grid.at(point).incoherent <= math.ceil(self.recipe.budget * self.grid.at(point).asked) + 1
            if ok:
                looked[trial].append(self.grid.at(point))
            return ok

        n = len(self.recipe.strengths)
        self._step([screening.glance(n, LOOKS) for _ in trials], where, "sift", passed)
        alone = {t: self._beyond_p(looked[t], sides[t]) for t in trials if not known[t]}
        beside = {t: self._beyond_p(looked[t][-1:], "tuned", self.null_bounds(t[1])) for t in trials if known[t]}
        return self._promising(list(alone), alone, 0.1) + self._promising(list(beside), beside, EVEN)

    def _beyond_p(self, looked: list[Counts], side: str, bounds: tuple[float, float] = (0.0, 1.0)) -> float:
        """p that what was looked at is beyond the unsteered model, and these bounds: above on the base, below on the tuned one."""
        harmful, valid = sum(c.harmful for c in looked), sum(c.valid for c in looked)
        unsteered = self.grid.at(Point(UNSTEERED, "all", side, 0.0, "selection")).score
        if side == "base":
            return screening.beyond_p(harmful, valid, max(unsteered, RARE, bounds[0]), 1)
        return screening.beyond_p(harmful, valid, min(unsteered, 1 - RARE, bounds[1]), -1)

    def _scan(self, trials: list[Trial], purpose: str) -> None:
        """The full grid, as in the paper: every strength, and the largest one within the budget."""
        strengths = self.recipe.strengths
        self.grid.look((self.point(t, side, "selection", s) for t in trials for side in SIDES for s in strengths), purpose)
        for trial in trials:
            for side in SIDES:
                allowed = self.grid.allowed(side, "selection", self.recipe.budget)
                passing = [s for s in strengths if self.grid.at(self.point(trial, side, "selection", s)).incoherence <= allowed]
                self._keep(trial, side, max(passing, default=0.0))

    def _step(
        self,
        searches: list[Generator[Any, Any, int]],
        where: Callable[[int, Any, int], list[Point]],
        purpose: str,
        tell: Callable[[int, Any], Any],
    ) -> list[int]:
        """Run searches together.

        Args:
            where: the points that search number i asks for and, up to so many, may ask for next.
            tell: what it is told once the first of these is scored.
        """
        if not searches:
            return []
        together = screening.in_step(searches)
        asked = next(together)
        while True:
            # A few answers at a time take as long as many, so the last searches are asked ahead; never by what the machine holds,
            # because all that was asked counts.
            ahead = max(1, FULL // (len(asked) * BLOCK * self.recipe.max_tokens))
            self.grid.look((point for i, what in asked for point in where(i, what, ahead)), purpose)
            try:
                asked = together.send([tell(i, what) for i, what in asked])
            except StopIteration as done:
                return done.value

    def _keep(self, trial: Trial, side: str, strength: float) -> None:
        direction, mask = trial
        self.alpha[direction.name, direction.sign, mask, side] = strength

    def random_latents(self, generator: np.random.Generator) -> list[Direction]:
        """Latents outside the nominees whose firing rate lies nearest to a nominee's, drawn without replacement."""
        nominated = {direction.latent for direction, _ in self.trials}
        targets = [row["firing"] for row in self.latents if int(row["id"]) in nominated]
        pool = [row for row in self.latents if int(row["id"]) not in nominated and row["firing"] > 0]
        chosen = []
        for i in range(min(self.recipe.nulls, len(pool))):
            near = sorted(pool, key=lambda row: abs(np.log(row["firing"] + 1e-6) - np.log(targets[i % len(targets)] + 1e-6)))[:10]
            row = near[int(generator.integers(len(near)))]
            pool.remove(row)
            chosen.append(Direction(f"null/{row['id']}", "random_latent", self.decoder[int(row["id"])]))
        return chosen

    def random_directions(self, generator: np.random.Generator) -> list[Direction]:
        rows = torch.tensor(generator.standard_normal((self.recipe.nulls, self.decoder.shape[1])), dtype=torch.float32)
        return [Direction(f"random/{i}", "random_direction", row / row.norm()) for i, row in enumerate(rows)]


SHARED = ("base", "tuned", "dictionary", "judge", "rubric", "harmful_from", "unlikely", "strengths", "budget", "temperature", "max_tokens")
"""What two screens must have in common for the nulls of one to serve the other."""


def _taken_over(recipe: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The nulls of `recipe.chance` by mask; raises DataError where that screen asked something else."""
    mine, other = recipe.identity(), recipe.chance.manifest["identity"]
    if differing := [name for name in SHARED if mine.get(name) != other.get(name)]:
        raise DataError(f"screen: the nulls of {recipe.chance} were drawn with another {', '.join(differing)}; leave chance out")
    record = recipe.chance.json("screen.json")
    return {mask: (induced, record["null_repairs"][mask]) for mask, induced in record["nulls"].items() if induced}


def _splits(recipe: Any) -> dict[str, list[Example]]:
    """Selection and report questions, and the parts of them that cheaper looks take.

    Raises:
        DataError: a split is empty, or a question of one is also asked in the other.
    """
    questions = {"selection": list(recipe.selection.rows()), "report": list(recipe.report.rows())}
    asked = {split: {row.messages[-1]["content"] for row in rows} for split, rows in questions.items()}
    for split, texts in asked.items():
        if not texts:
            raise DataError(f"screen: there are no {split} questions; give some")
    if shared := sorted(asked["selection"] & asked["report"]):
        raise DataError(f"screen: {len(shared)} selection questions are report questions too, such as {shared[0][:60]!r}; split them")
    chosen = questions["selection"]
    # The many nulls and the points that are only shown take every other question of their split.
    return questions | {
        "confirm": chosen,
        "sift": chosen[:: max(1, len(chosen) // max(1, recipe.sift))][: max(1, recipe.sift)],
        "shown": chosen[::2],
        "nulls": questions["report"][::2],
    }
