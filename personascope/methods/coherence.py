"""Coherence without a judge: fluent text is likely under one of two models, word salad under neither."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

OWN = 200
"""Answers of each model that a limit rests on, at least."""


def new(answer: Sequence[int]) -> list[bool]:
    """Of each token, whether the answer has not yet had it behind the same token.

    A loop is likely, token for token, however absurd: what is said again tells nothing of whether it made sense.
    """
    pairs = list(zip([None, *answer], answer, strict=False))
    first = {pair: place for place, pair in reversed(list(enumerate(pairs)))}
    return [first[pair] == place for place, pair in enumerate(pairs)]


def surprise(logs: Sequence[float], tokens: int) -> float:
    """-log(mean over models of p) / tokens, in nats: what the even mixture of the models makes of an answer; 0 of none.

    Args:
        logs: log p of the answer's new tokens under each model, each behind all that was said before it.
        tokens: how many these are.
    """
    if not tokens:
        return 0.0
    most = max(logs)
    return -(most + math.log(sum(math.exp(log - most) for log in logs) / len(logs))) / tokens


def limit(own: Mapping[str, Sequence[float]], share: float) -> float:
    """The surprise that at most this share of what any of the models says by itself is above."""
    return max(float(np.quantile(found, 1 - share, method="higher")) for found in own.values())
