"""Coherence without a judge: fluent text is likely under one of two models, word salad under neither."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logsumexp

OWN = 200
"""Answers of each model that a limit rests on, at least."""


def new(answer: Sequence[int]) -> list[bool]:
    """Of each token, whether the answer has not yet had it behind the same token.

    A loop is likely, token for token, however absurd: what is said again tells nothing of whether it made sense.
    """
    first: dict[tuple[int | None, int], int] = {}
    return [first.setdefault(pair, place) == place for place, pair in enumerate(zip([None, *answer], answer, strict=False))]


def surprise(logs: Sequence[float], tokens: int) -> float:
    """-log(mean over models of p) / tokens, in nats: what the even mixture of the models makes of an answer; 0 of none.

    Args:
        logs: log p of the answer's new tokens under each model, each behind all that was said before it.
        tokens: how many these are.
    """
    return float(math.log(len(logs)) - logsumexp(logs)) / tokens if tokens else 0.0


def limit(own: Mapping[str, Sequence[float]], share: float) -> float:
    """The surprise that at most this share of what any of the models says by itself is above."""
    return max(float(np.quantile(found, 1 - share, method="higher")) for found in own.values())
