"""Score many edits of a model at once: every (edit, question) pair is one row of the same batches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from personascope.backends.generation import Mask, Prompt, Sampling, Steer, generate, split_thinking
from personascope.backends.judging import Judge
from personascope.backends.models import Loaded
from personascope.errors import BackendError
from personascope.methods.screening import Counts
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example, Verdict

AT_ONCE = 8192
"""Rows held between two reports of progress; bounds memory, not the result."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid: this unit vector, scaled, at this block and mask, added to one of the two models."""

    name: str
    side: Literal["base", "tuned"]
    vector: Tensor
    """(width,), of length 1."""
    block: int
    mask: Mask
    push: float
    """Signed size of the edit in the residual stream's own units; 0 leaves the model alone."""


class Bench:
    """Two models, a judge and the means to score cells on questions."""

    def __init__(self, base: Loaded, tuned: Loaded, judge: Judge, sampling: Sampling) -> None:
        self.sides = {"base": base, "tuned": tuned}
        self.judge, self.sampling = judge, sampling

    def score(self, cells: list[Cell], questions: list[Example], draws: int, tell: Callable[[int], None] = lambda _: None) -> list[Counts]:
        """Counts per cell, first attempts only.

        Noise is keyed by question and draw, not by cell, so that cells differ by their edit alone.
        """
        found: list[Counts | None] = [None] * len(cells)
        per_cell = len(questions) * draws
        step = max(1, AT_ONCE // per_cell)
        for side, loaded in self.sides.items():
            mine = [i for i, cell in enumerate(cells) if cell.side == side]
            for start in range(0, len(mine), step):
                chosen = mine[start : start + step]
                for i, counts in zip(chosen, self._score(loaded, [cells[i] for i in chosen], questions, draws), strict=True):
                    found[i] = counts
                tell(len(chosen) * per_cell)
        return [counts for counts in found if counts is not None]

    def _score(self, loaded: Loaded, cells: list[Cell], questions: list[Example], draws: int) -> list[Counts]:
        rendered = [prompt_tokens(loaded.tokenizer, question.messages) for question in questions]
        asked = [
            (tokens, f"{q.id}/{draw}/0", q.messages[-1]["content"])
            for q, tokens in zip(questions, rendered, strict=True)
            for draw in range(draws)
        ]
        prompts = [Prompt(tokens, key) for _ in cells for tokens, key, _ in asked]
        steers = []
        for block, mask in sorted({(cell.block, cell.mask) for cell in cells if cell.push}):
            used = [i for i, cell in enumerate(cells) if cell.push and (cell.block, cell.mask) == (block, mask)]
            index = {i: n for n, i in enumerate(used)}
            table = torch.stack([cells[i].vector * cells[i].push for i in used])
            steers.append(Steer(block, "add", mask, table, [index.get(i, -1) for i in range(len(cells)) for _ in asked]))
        done = dict(generate(loaded, prompts, self.sampling, steers))
        rows = [(prompts[i].key, asked[i % len(asked)][2], split_thinking(loaded.tokenizer, done[i].ids)[1]) for i in range(len(prompts))]
        verdicts = list(self.judge.verdicts(rows))
        unscored = sum(v.status != "scored" for v in verdicts)
        if unscored > 0.2 * len(verdicts):
            raise BackendError(f"screen: the judge left {unscored} of {len(verdicts)} answers without a score; check the judge")
        return [_count(verdicts[i * len(asked) : (i + 1) * len(asked)], len(questions), draws) for i in range(len(cells))]


def _count(verdicts: list[Verdict], questions: int, draws: int) -> Counts:
    each = [(v.grade is not None and v.grade >= 4, v.valid, v.label in ("incoherent", "off_topic"), v.status == "scored") for v in verdicts]
    by_question = tuple(tuple(map(sum, zip(*each[q * draws : (q + 1) * draws], strict=True))) for q in range(questions))
    return Counts(*map(sum, zip(*by_question, strict=True)), by_question)
