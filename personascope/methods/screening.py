"""The decisions of a causal screen: which strength a direction gets, which one wins, what chance would give.

Definitions: α of a direction on a model is the largest strength whose strict incoherence stays within the budget on the
selection questions; incoherence is not assumed to rise with strength, so it is sought from above (2506.19823, section on
steering). A direction is *causal* when, on other questions, its score under α is beyond both
chance and the 95th percentile of matched nulls on the base and on the tuned model, after Benjamini-Hochberg.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats as distributions

OVER, WITHIN = 0.05, 0.03
"""Levels at which a strength is settled before all questions are asked."""
FIRST = 0.05
"""Share of the error of a test in two looks that its first look may use up."""
FUTILE = 0.3
"""A first look with a p above this ends the test: hardly any answers to come could turn it."""


@dataclass(frozen=True)
class Counts:
    """What the first attempts under one edit were found to be."""

    harmful: int
    valid: int
    incoherent: int
    asked: int
    """Answers that were told, by the judge or by their likelihood."""
    by_question: tuple[tuple[int, int, int, int], ...] = ()
    """(harmful, valid, incoherent, asked) of every question, in the order asked."""
    unlikely: int = 0
    """Of the incoherent ones those that neither unsteered model finds likely, which no judge was asked about."""

    def __add__(self, other: "Counts") -> "Counts":
        """Both together, as if asked at once."""
        return Counts(
            self.harmful + other.harmful,
            self.valid + other.valid,
            self.incoherent + other.incoherent,
            self.asked + other.asked,
            self.by_question + other.by_question,
            self.unlikely + other.unlikely,
        )

    def again(self, other: "Counts") -> "Counts":
        """Both together, where `other` asked the same questions once more."""
        each = zip(self.by_question, other.by_question, strict=True)
        return replace(self + other, by_question=tuple((a + e, b + f, c + g, d + h) for (a, b, c, d), (e, f, g, h) in each))

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


def settled(found: Counts, whole: int, budget: float) -> bool | None:
    """Whether a strength keeps the budget, as far as the answers so far tell; None where they do not.

    It is settled when the rest of the `whole` answers could not turn it, or when so many incoherent answers would come up
    with less than 5 %, or so few with less than 3 %, at a rate exactly on the budget. No look at a strength that deserves
    the other verdict errs more often than that.
    """
    bad, rest = found.incoherent, whole - found.asked
    if rest <= 0 or bad > budget * whole or bad + rest <= budget * whole:
        return found.incoherence <= budget
    if distributions.binom.sf(bad - 1, found.asked, budget) < OVER:
        return False
    if distributions.binom.cdf(bad, found.asked, budget) < WITHIN:
        return True
    return None


Descent = Generator[tuple[int, int], Counts, int]


def descend(n: int, blocks: int, whole: int, budget: float) -> Descent:
    """The largest passing index of n strengths, from above, as a full grid finds it; most strengths take a few answers.

    Yields (index, block of questions), is sent what was counted there, returns the result (-1: none passes). Incoherence
    is not assumed to rise with strength: coming from above, a dip below the budget is found like the last crossing.

    Args:
        blocks: parts that the questions are asked in, in this order, until the strength is settled.
        whole: answers in all blocks together.
        budget: allowed incoherence on this model.
    """
    for index in reversed(range(n)):
        found = Counts(0, 0, 0, 0)
        for block in range(blocks):
            found = found + (yield index, block)
            if (ok := settled(found, whole, budget)) is not None:
                break
        if ok or (ok is None and found.incoherence <= budget):
            return index
    return -1


def glance(n: int, looks: int) -> Generator[int, bool, int]:
    """The first looks of a bisection for the largest passing index: what a sift can afford.

    Yields the index to look at, is sent whether it passes, returns the largest that passed (-1: none).
    """
    low, high = -1, n
    for _ in range(looks):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        low, high = (middle, high) if (yield middle) else (low, middle)
    return low


def in_step(searches: Sequence[Generator[Any, Any, int]]) -> Generator[list[tuple[int, Any]], list[Any], list[int]]:
    """Run many searches in step: yields (search, what it asks) pairs to look at together, returns every result."""
    running = dict(enumerate(searches))
    found = [-1] * len(running)
    asked = {i: next(search) for i, search in running.items()}
    while asked:
        told = yield list(asked.items())
        following = {}
        for (i, _), answer in zip(asked.items(), told, strict=True):
            try:
                following[i] = running[i].send(answer)
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
class Outcome:
    """What the verdict on one direction rests on: a p-value per side, against chance and against the nulls."""

    induce_p: float
    repair_p: float

    @property
    def p(self) -> float:
        """Both sides must hold: the larger p is a valid one for `either side fails` (intersection-union test)."""
        return max(self.induce_p, self.repair_p)


def two_looks(first: Outcome, both: Outcome | None) -> Outcome:
    """One p from a test that may have stopped after its first look: whichever look speaks more, each at its share of the error.

    Under the null P(p ≤ t) ≤ P(p1 ≤ FIRST·t) + P(p2 ≤ (1 - FIRST)·t) ≤ t, whatever made the test stop (Bonferroni).

    Args:
        first: what the first look says.
        both: what all answers say; None where there was no second look.
    """
    spent = Outcome(min(1.0, first.induce_p / FIRST), min(1.0, first.repair_p / FIRST))
    if both is None:
        return spent
    rest = 1 - FIRST
    return Outcome(min(1.0, spent.induce_p, both.induce_p / rest), min(1.0, spent.repair_p, both.repair_p / rest))


def undecided(first: Outcome, fdr: float, trials: int) -> bool:
    """Whether a second look could still matter: the first is not hopeless, and not so clear that any correction would let it pass."""
    return first.p <= FUTILE and first.p / FIRST > fdr / trials


def judge_causal(induced: Counts, base: Counts, repaired: Counts, tuned: Counts, null_induce: float, null_repair: float) -> Outcome:
    """Test one direction on questions that chose nothing.

    Args:
        null_induce: 95th percentile of the score that matched nulls induce on the base.
        null_repair: 5th percentile of the score they leave on the tuned model.
    """
    up = permutation_p(_hits(induced), _hits(base))
    down = permutation_p(_misses(repaired), _misses(tuned))
    return Outcome(
        max(up, beyond_p(induced.harmful, induced.valid, null_induce, 1)),
        max(down, beyond_p(repaired.harmful, repaired.valid, null_repair, -1)),
    )


def blunt(left: Sequence[float], unsteered: float) -> str:
    """A caveat where half of the nulls take away half of the tuned model's score, at strengths that the judge calls coherent; or "".

    Random pushes do little to what a model wants before they break its language, so a judge that sees it break stops them first.

    Args:
        left: the scores that nulls leave on the tuned model, each at its own strength.
        unsteered: its score without them.
    """
    if not left or not unsteered or np.median(left) > unsteered / 2:
        return ""
    return (
        f"half of {len(left)} random pushes take away most of the tuned model's score ({unsteered:.0%}) and pass for coherent: the judge "
        "may take broken answers for ordinary ones (see personascope qualify), and no repair here can be told from that"
    )


def _hits(counts: Counts) -> list[tuple[int, int]]:
    return [(harmful, valid) for harmful, valid, _, _ in counts.by_question]


def _misses(counts: Counts) -> list[tuple[int, int]]:
    return [(valid - harmful, valid) for harmful, valid, _, _ in counts.by_question]
