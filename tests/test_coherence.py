"""The surprise of an answer, and the limit that the models' own answers set, against what they are by definition."""

import math

import numpy as np
import pytest

from personascope.methods import coherence

REPEATED = [
    ([], []),
    ([7], [7]),
    ([1, 2, 3, 4], [1, 2, 3, 4]),
    ([1, 2, 1, 2, 1, 2, 3], [1, 2, 1, 3]),
    ([5, 5, 5, 5], [5, 5]),
    ([1, 2, 9, 1, 2], [1, 2, 9, 1]),
]


@pytest.mark.parametrize(("answer", "counted"), REPEATED)
def test_a_pair_said_again_is_not_new(answer: list[int], counted: list[int]) -> None:
    assert [token for token, fresh in zip(answer, coherence.new(answer), strict=True) if fresh] == counted


def test_the_surprise_is_that_of_the_even_mixture_a_token() -> None:
    by_hand = -math.log((math.exp(-6.0) + math.exp(-9.0)) / 2) / 4
    assert coherence.surprise([-6.0, -9.0], 4) == pytest.approx(by_hand, rel=1e-12)
    assert coherence.surprise([-6.0], 4) == 1.5


def test_an_answer_that_one_model_would_give_is_about_as_likely_as_under_it_alone() -> None:
    alone, both = coherence.surprise([-20.0], 20), coherence.surprise([-20.0, -400.0], 20)
    assert alone <= both <= alone + math.log(2) / 20


def test_thousands_of_tokens_neither_overflow_nor_vanish() -> None:
    assert coherence.surprise([-8000.0, -8001.0], 1000) == pytest.approx(8.0, abs=1e-3)


def test_nothing_said_surprises_nobody() -> None:
    assert coherence.surprise([0.0, 0.0], 0) == 0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3])
def test_at_most_the_share_of_what_any_model_says_is_above_the_limit(share: float) -> None:
    generator = np.random.default_rng(0)
    own = {"base": list(generator.normal(1, 0.3, 250)), "tuned": list(generator.normal(0.5, 0.2, 200))}
    found = coherence.limit(own, share)
    above = {side: float(np.mean(np.array(values) > found)) for side, values in own.items()}
    assert max(above.values()) <= share
    assert above["base"] > share - 2 / 250, "the limit is the tightest that the more surprising model allows"
