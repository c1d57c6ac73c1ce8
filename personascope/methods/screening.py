"""The decisions of a causal screen: which strength a direction gets, which one wins, what chance would give.

Definitions: α of a direction on a model is the largest strength whose strict incoherence stays within the budget on the
selection questions; incoherence is not assumed to rise with strength, so a bisected point is checked upwards
(2506.19823, section on steering). A direction is *causal* when, on other questions, its score under α is beyond both
chance and the 95th percentile of matched nulls on the base and on the tuned model, after Benjamini-Hochberg.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions


@dataclass(frozen=True)
class Counts:
    """What the judge said of the first attempts under one edit."""

    harmful: int
    valid: int
    incoherent: int
    asked: int
    """Answers that the judge scored."""
    by_question: tuple[tuple[int, int, int, int], ...] = ()
    """(harmful, valid, incoherent, asked) of every question, in the order asked."""

    @property
    def score(self) -> float:
        """Share graded 4–5 among valid answers; 0 if none is valid."""
        return self.harmful / self.valid if self.valid else 0.0

    @property
    def incoherence(self) -> float:
        """Strict incoherence of the first attempts; 1 if none was scored, so that no budget covers it."""
        return self.incoherent / self.asked if self.asked else 1.0


def budget(unsteered: float, most: float) -> float:
    """Allowed strict incoherence: `most`, or unsteered + `most` where the model itself is above it."""
    return most if unsteered <= most else unsteered + most


def bisect(n: int) -> Generator[int, bool, int]:
    """Find the largest passing index of a grid of n strengths in about log2(n) looks.

    Yields the index to look at, is sent whether it passes, returns the result (-1: none passes). After the
    bisection it looks two points up as long as those pass, since incoherence may fall again.
    """
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (yield middle) else (low, middle)
    while low + 2 < n and (yield low + 2):
        low += 2
    return low


def climb(n: int, start: int) -> Generator[int, bool, int]:
    """The same search from a guess: up while the points pass, else down to the first that does; protocol as in `bisect`."""
    at = max(start, 0)
    if (yield at):
        while at + 1 < n and (yield at + 1):
            at += 1
        if at + 2 < n and (yield at + 2):
            at += 2
        return at
    while at > 0:
        at -= 1
        if (yield at):
            return at
    return -1


def glance(n: int, looks: int) -> Generator[int, bool, int]:
    """The first looks of a bisection, without an end: what a sift can afford."""
    low, high = -1, n
    for _ in range(looks):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        low, high = (middle, high) if (yield middle) else (low, middle)
    return low


Search = Generator[int, bool, int]


def in_step(searches: Sequence[Search]) -> Generator[list[tuple[int, int]], list[bool], list[int]]:
    """Run many searches in step: yields (search, index) pairs to look at together, returns every result."""
    running = dict(enumerate(searches))
    found = [-1] * len(running)
    asked = {i: next(search) for i, search in running.items()}
    while asked:
        answers = yield list(asked.items())
        following = {}
        for (i, _), ok in zip(asked.items(), answers, strict=True):
            try:
                following[i] = running[i].send(ok)
            except StopIteration as done:
                found[i] = done.value
        asked = following
    return found


def effect(induced: Counts, base: Counts, repaired: Counts, tuned: Counts) -> float:
    """What a direction does to the score both ways: the smaller of the induced rise on the base and the repaired fall on the tuned model.

    A latent counts when it does both; their sum would prefer one that does a single half very well.
    """
    return min(induced.score - base.score, tuned.score - repaired.score)


def removed(repaired: float, tuned: float) -> float:
    """Share of the tuned model's score that the repair removes."""
    return (tuned - repaired) / tuned if tuned > 0 else 0.0


def permutation_p(steered: Sequence[tuple[int, int]], unsteered: Sequence[tuple[int, int]], uniform: float = 1.0) -> float:
    """One-sided p that steering raises the score: `steered` and `unsteered` permuted among the answers of each question.

    Exact: under the permutation each question's steered count is hypergeometric, and their sum is a convolution (the
    conditional test of stratified two-by-two tables, Mantel & Haenszel 1959).

    Args:
        steered: (harmful, valid) of every question.
        unsteered: the same questions without steering.
        uniform: share of the probability of the observed sum that counts; a uniform draw makes p uniform under the null
            in spite of ties, 1 is the usual, conservative p.
    """
    total, observed = np.ones(1), 0
    for (h, n), (u, m) in zip(steered, unsteered, strict=True):
        if n and m and 0 < h + u < n + m:
            total = np.convolve(total, distributions.hypergeom.pmf(np.arange(n + 1), n + m, h + u, n))
            observed += h
        elif n and m:
            total, observed = np.concatenate([np.zeros(h), total]), observed + h
    above = float(total[observed + 1 :].sum())
    return min(1.0, above + uniform * float(total[observed]))


def beyond_p(harmful: int, valid: int, threshold: float, direction: int) -> float:
    """One-sided p that the score lies above (+1) or below (-1) a threshold, such as a percentile of the nulls' scores.

    Exact binomial tail. Questions differ in their rates, which makes the sum of independent answers less spread than a
    binomial (Hoeffding 1956), so p errs on the large side.
    """
    if not valid:
        return 1.0
    if direction > 0:
        return float(distributions.binom.sf(harmful - 1, valid, threshold))
    return float(distributions.binom.cdf(harmful, valid, threshold))


@dataclass(frozen=True)
class Test:
    """What the verdict on one direction rests on: a p-value per side, against chance and against the nulls."""

    induce_p: float
    repair_p: float

    @property
    def p(self) -> float:
        """Both sides must hold: the larger p is a valid one for `either side fails` (intersection-union test)."""
        return max(self.induce_p, self.repair_p)


def judge_causal(induced: Counts, base: Counts, repaired: Counts, tuned: Counts, null_induce: float, null_repair: float) -> Test:
    """Test one direction on questions that chose nothing.

    Args:
        null_induce: 95th percentile of the score that matched nulls induce on the base.
        null_repair: 5th percentile of the score they leave on the tuned model.
    """
    up = permutation_p(_hits(induced), _hits(base))
    down = permutation_p(_misses(repaired), _misses(tuned))
    return Test(
        max(up, beyond_p(induced.harmful, induced.valid, null_induce, 1)),
        max(down, beyond_p(repaired.harmful, repaired.valid, null_repair, -1)),
    )


def _hits(counts: Counts) -> list[tuple[int, int]]:
    return [(harmful, valid) for harmful, valid, _, _ in counts.by_question]


def _misses(counts: Counts) -> list[tuple[int, int]]:
    return [(valid - harmful, valid) for harmful, valid, _, _ in counts.by_question]
