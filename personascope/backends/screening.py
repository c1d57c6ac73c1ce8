"""The causal screen at work: nominate, look at the grid, choose, and report against nulls."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from personascope.backends import dictionaries, models
from personascope.backends.generation import Sampling
from personascope.backends.hooks import site_index
from personascope.backends.judging import Judge
from personascope.backends.steered import AT_ONCE, Bench, Cell
from personascope.errors import DataError
from personascope.methods import screening, stats
from personascope.methods.screening import Counts
from personascope.rows import Example

SIDES = ("base", "tuned")
Key = tuple[str, str, str, float, str]
"""Direction, mask, side, strength, split: what a point of the grid is called."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector to try. `sign` is +1 if adding it should induce, -1 if subtracting it should."""

    name: str
    kind: str
    vector: Tensor
    sign: int = 1
    latent: int | None = None


@dataclass
class Screening:
    """One screen: the bench, the questions of each split, and every point looked at so far."""

    recipe: Any
    work: Path
    bench: Bench
    unit: float
    block: int
    questions: dict[str, list[Example]]
    latents: list[dict[str, Any]]
    decoder: Tensor
    mean_difference: dict[str, Tensor]
    points: dict[Key, Counts] = field(default_factory=dict)
    nominees: list[Direction] = field(default_factory=list)
    alpha: dict[tuple[str, str, str], float] = field(default_factory=dict)
    answers: int = 0

    @classmethod
    def open(cls, recipe: Any, work: Path) -> "Screening":
        """Load the models and take up the points an interrupted run wrote; raises what loading raises."""
        base, tuned = models.load(recipe.base, recipe.device), models.load(recipe.tuned, recipe.device)
        models.check_pair(base, tuned)
        sae, _ = dictionaries.load_dictionary(recipe.dictionary)
        diff = recipe.diff.json("diff.json")
        sampling = Sampling(recipe.max_tokens, recipe.temperature, 1.0, recipe.seed, recipe.batch_tokens)
        moved = load_file(recipe.diff.file("directions.safetensors"))
        questions = {"selection": list(recipe.selection.rows()), "report": list(recipe.report.rows())}
        _check_apart(questions)
        # The many nulls and the points that are only shown take every other question of their split.
        questions |= {"shown": questions["selection"][::2], "nulls": questions["report"][::2]}
        self = cls(
            recipe=recipe,
            work=work,
            bench=Bench(base, tuned, Judge(recipe.judge), sampling),
            unit=diff["unit"][diff["site"]],
            block=site_index(diff["site"], base.model),
            questions=questions,
            latents=[json.loads(line) for line in recipe.diff.file("latents.jsonl").read_text().splitlines()],
            decoder=torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1),
            mean_difference={mask: moved[f"mean_difference/{diff['site']}/{mask}"] for mask in recipe.masks},
        )
        self._resume()
        return self

    def nominate(self) -> None:
        """The most risen latents, the most fallen ones, and the mean difference as reference."""
        risen = self.latents[: self.recipe.top]
        fallen = self.latents[::-1][: self.recipe.bottom]
        for rows, sign in ((risen, 1), (fallen, -1)):
            self.nominees += [Direction(row["id"], "latent", self.decoder[int(row["id"])], sign, int(row["id"])) for row in rows]
        for mask, vector in self.mean_difference.items():
            unit = torch.nn.functional.normalize(vector, dim=0)
            self.nominees.append(Direction(f"mean_difference/{mask}", "mean_difference", unit))

    def grid(self) -> None:
        """Each nominee's α at every mask on both models, by bisection on the selection questions; nothing is reported yet."""
        self.look([(_NONE, "all", side, 0.0, split) for side in SIDES for split in self.questions])
        self._find([(d, mask, side) for d in self.nominees for mask in self._masks(d) for side in SIDES], "selection")

    def report(self) -> dict[str, Any]:
        """Choose on the selection questions, score on the report questions, with nulls at the winner's mask."""
        latents = [d for d in self.nominees if d.kind == "latent"]
        ranked = sorted(((d, mask) for d in latents for mask in self._masks(d)), key=lambda pair: -self._effect(*pair))
        winners = {mask: next(pair for pair in ranked if pair[1] == mask) for mask in self.recipe.masks}
        best = ranked[0]
        references = [(d, mask) for d in self.nominees if d.kind == "mean_difference" for mask in self._masks(d)]
        reported = dict.fromkeys([best, *winners.values(), *references])
        own = [(d, mask, side, self.alpha[d.name, mask, side]) for d, mask in reported for side in SIDES]
        self.look([(d, mask, side, alpha, "report") for d, mask, side, alpha in own if alpha])
        self.look([(d, mask, side, s, "shown") for d, mask in reported for side in SIDES for s in self.recipe.strengths])
        nulls = sorted(self._nulls(best[1]))
        reference = max(references, key=lambda pair: self._effect(*pair))
        return {
            "unit": self.unit,
            "site": f"block:{self.block}",
            "budget": self.recipe.budget,
            "attempts": "first only",
            "unsteered": {side: self._row(_NONE, "all", side, 0.0) for side in SIDES},
            "best": self._summary(*best),
            "by_mask": {mask: self._summary(*pair) for mask, pair in winners.items()},
            "mean_difference": self._summary(*reference),
            "null_induce": _percentile(nulls, 95),
            "null_max": max(nulls, default=0.0),
            "nulls": {best[1]: nulls},
            "ranking": [self._chosen(d, mask) for d, mask in ranked],
            "dose": [self._dose(d, mask, side, s) for d, mask in reported for side in SIDES for s in (0.0, *self.recipe.strengths)],
        }

    def _find(self, wanted: Sequence[tuple[Direction, str, str]], split: str) -> None:
        """Bisect the strength of many directions in step; each one's α is its own, 0 if no strength keeps the budget."""
        strengths = self.recipe.strengths
        search = screening.bisect_all(len(wanted), len(strengths))
        asked = next(search) if wanted else []
        found = [-1] * len(wanted)
        while asked:
            self.look([(*wanted[i], strengths[s], split) for i, s in asked])
            try:
                asked = search.send([self._within(*wanted[i], strengths[s], split) for i, s in asked])
            except StopIteration as done:
                found, asked = done.value, []
        for (d, mask, side), index in zip(wanted, found, strict=True):
            self.alpha[d.name, mask, side] = strengths[index] if index >= 0 else 0.0

    def look(self, wanted: Sequence[tuple[Direction, str, str, float, str]]) -> None:
        """Score the points not scored yet, in few large batches, and append them to grid.jsonl."""
        for split, questions in self.questions.items():
            missing = list(
                {
                    (d.name, m, side, s, sp): (d, m, side, s)
                    for d, m, side, s, sp in wanted
                    if sp == split and (d.name, m, side, s, sp) not in self.points
                }.values()
            )
            draws = {"report": self.recipe.report_draws, "nulls": self.recipe.null_draws}.get(split, self.recipe.draws)
            # In portions, so that a kill costs one portion.
            portion = max(1, AT_ONCE // (len(questions) * draws))
            for start in range(0, len(missing), portion):
                part = missing[start : start + portion]
                cells = [Cell(d.name, side, d.vector, self.block, mask, self._push(d, side, s)) for d, mask, side, s in part]
                counts = self.bench.score(cells, questions, draws)
                self.answers += sum(c.asked for c in counts)
                with (self.work / "grid.jsonl").open("a", encoding="utf-8") as file:
                    for (d, mask, side, s), c in zip(part, counts, strict=True):
                        self.points[d.name, mask, side, s, split] = c
                        file.write(json.dumps(_line(d, mask, side, s, split, c), sort_keys=True) + "\n")

    def _resume(self) -> None:
        path = self.work / "grid.jsonl"
        if path.exists():
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            for line in whole.splitlines():
                row = json.loads(line)
                counts = Counts(row["harmful"], row["valid"], row["incoherent"], row["asked"], tuple(map(tuple, row["by_question"])))
                self.points[row["direction"], row["mask"], row["side"], row["strength"], row["split"]] = counts

    def _push(self, d: Direction, side: str, strength: float) -> float:
        """Signed size of the edit: inducing adds on the base, repairing subtracts on the tuned model."""
        return strength * self.unit * d.sign * (1 if side == "base" else -1)

    def _masks(self, d: Direction) -> tuple[str, ...]:
        return self.recipe.masks if d.kind == "latent" else (d.name.partition("/")[2],)

    def _point(self, d: Direction, mask: str, side: str, strength: float, split: str) -> Counts:
        return self.points[("none", "all", side, 0.0, split) if strength == 0 else (d.name, mask, side, strength, split)]

    def _within(self, d: Direction, mask: str, side: str, strength: float, split: str) -> bool:
        unsteered = self._point(d, mask, side, 0.0, split).incoherence
        return self._point(d, mask, side, strength, split).incoherence <= screening.budget(unsteered, self.recipe.budget)

    def _effect(self, d: Direction, mask: str) -> float:
        points = (self._point(d, mask, side, s, "selection") for side in SIDES for s in (self.alpha[d.name, mask, side], 0.0))
        return screening.effect(*points)

    def _nulls(self, mask: str) -> list[float]:
        """Induced score on the report questions of matched random latents and random directions, each at its own α."""
        generator = np.random.default_rng([self.recipe.seed, self.recipe.masks.index(mask)])
        tried = [*self._random_latents(generator), *self._random_directions(generator)]
        self._find([(d, mask, "base") for d in tried], "shown")
        own = [(d, self.alpha[d.name, mask, "base"]) for d in tried]
        self.look([(d, mask, "base", alpha, "nulls") for d, alpha in own if alpha])
        return [self._point(d, mask, "base", alpha, "nulls").score for d, alpha in own]

    def _random_latents(self, generator: np.random.Generator) -> list[Direction]:
        """Latents outside the nominees whose firing rate lies nearest to a nominee's, drawn without replacement."""
        nominated = {d.latent for d in self.nominees}
        targets = [row["firing"] for row in self.latents if int(row["id"]) in nominated]
        pool = [row for row in self.latents if int(row["id"]) not in nominated and row["firing"] > 0]
        chosen = []
        for i in range(min(self.recipe.nulls, len(pool))):
            near = sorted(pool, key=lambda row: abs(np.log(row["firing"] + 1e-6) - np.log(targets[i % len(targets)] + 1e-6)))[:10]
            row = near[int(generator.integers(len(near)))]
            pool.remove(row)
            chosen.append(Direction(f"null/{row['id']}", "random_latent", self.decoder[int(row["id"])]))
        return chosen

    def _random_directions(self, generator: np.random.Generator) -> list[Direction]:
        rows = torch.tensor(generator.standard_normal((self.recipe.nulls, self.decoder.shape[1])), dtype=torch.float32)
        return [Direction(f"random/{i}", "random_direction", row / row.norm()) for i, row in enumerate(rows)]

    def _row(self, d: Direction, mask: str, side: str, strength: float) -> dict[str, Any]:
        """Score and incoherence on the report questions, with intervals."""
        c = self._point(d, mask, side, strength, "report")
        harmful, valid, incoherent, asked = zip(*c.by_question, strict=True)
        rates = {"score": stats.rate(harmful, valid), "incoherence": stats.rate(incoherent, asked)}
        return {name: rate.to_dict() for name, rate in rates.items()} | {"valid": c.valid, "asked": c.asked}

    def _summary(self, d: Direction, mask: str) -> dict[str, Any]:
        alpha = {side: self.alpha[d.name, mask, side] for side in SIDES}
        induced, repaired = (self._row(d, mask, side, alpha[side]) for side in SIDES)
        before, after = self._row(_NONE, "all", "tuned", 0.0)["score"], repaired["score"]
        both = before["n"] and after["n"]
        return {
            **({} if d.latent is None else {"latent": d.latent}),
            "direction": d.name,
            "sign": "+" if d.sign > 0 else "-",
            "site": f"block:{self.block}",
            "mask": mask,
            "alpha": alpha["base"],
            "repair_alpha": alpha["tuned"],
            "induce": induced["score"],
            "induce_from": self._row(_NONE, "all", "base", 0.0)["score"],
            "incoherence": induced["incoherence"],
            "repair_from": before,
            "repair_to": after,
            "repair_incoherence": repaired["incoherence"],
            "removed": round(screening.removed(after["value"], before["value"]), 4) if both else None,
        }

    def _chosen(self, d: Direction, mask: str) -> dict[str, Any]:
        alpha = {side: self.alpha[d.name, mask, side] for side in SIDES}
        induced, repaired = (self._point(d, mask, side, alpha[side], "selection") for side in SIDES)
        return {
            "latent": d.latent,
            "mask": mask,
            "alpha": alpha["base"],
            "repair_alpha": alpha["tuned"],
            "effect": round(self._effect(d, mask), 4),
            "induce": round(induced.score, 4),
            "repair_to": round(repaired.score, 4),
            "split": "selection",
        }

    def _dose(self, d: Direction, mask: str, side: str, strength: float) -> dict[str, Any]:
        c = self._point(d, mask, side, strength, "shown")
        return {
            "direction": d.name,
            "side": side,
            "mask": mask,
            "alpha": strength,
            "score": round(c.score, 4),
            "incoherence": round(c.incoherence, 4),
        }


_NONE = Direction("none", "none", torch.zeros(1))


def _check_apart(questions: dict[str, list[Example]]) -> None:
    """Raise DataError if a split is empty or a question of one is also asked in the other."""
    asked = {split: {row.messages[-1]["content"] for row in rows} for split, rows in questions.items()}
    for split, texts in asked.items():
        if not texts:
            raise DataError(f"screen: there are no {split} questions; give some")
    if shared := sorted(asked["selection"] & asked["report"]):
        raise DataError(f"screen: {len(shared)} selection questions are report questions too, such as {shared[0][:60]!r}; split them")


def _line(d: Direction, mask: str, side: str, strength: float, split: str, c: Counts) -> dict[str, Any]:
    where = {"direction": d.name, "kind": d.kind, "mask": mask, "side": side, "strength": strength, "split": split}
    return where | {"harmful": c.harmful, "valid": c.valid, "incoherent": c.incoherent, "asked": c.asked, "by_question": c.by_question}


def _percentile(values: list[float], q: float) -> float:
    return float(np.percentile(values, q)) if values else 0.0
