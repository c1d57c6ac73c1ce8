"""Nominating latents, and the principal axes of a shift."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD

from personascope.errors import DataError
from personascope.methods import ranking

ROWS: list[dict[str, Any]] = [
    {"id": "a", "delta": {"all": 3.0}, "cosine": -0.5, "attribution": 0.1},
    {"id": "b", "delta": {"all": 2.0}, "cosine": 0.9, "attribution": -0.2},
    {"id": "c", "delta": {"all": 1.0}, "cosine": 0.1, "attribution": 0.3},
    {"id": "d", "delta": {"all": -4.0}, "cosine": 0.0, "attribution": 0.0},
]


@pytest.mark.parametrize(("by", "order"), [("delta", "abcd"), ("cosine", "bcda"), ("attribution", "cadb")])
def test_each_ranker_has_its_own_order(by: str, order: str) -> None:
    assert "".join(row["id"] for row in ranking.ranked(ROWS, by, "all")) == order


def test_tails_of_several_rankers_are_joined_by_best_rank() -> None:
    assert ranking.tails(ROWS, ["delta"], "all", 2, 1) == [("a", 1), ("d", -1), ("b", 1)]
    joined = ranking.tails(ROWS, ranking.RANKERS, "all", 1, 1)
    assert set(joined) == {("a", 1), ("b", 1), ("c", 1), ("d", -1), ("a", -1), ("b", -1)}
    assert len(joined) == len(set(joined))


def test_a_column_that_was_not_made_is_named() -> None:
    with pytest.raises(DataError, match=r"ranking by attribution.*contrast"):
        ranking.tails([{"id": "a", "delta": {"all": 1.0}}], ["attribution"], "all", 1, 0)


def test_principal_axes_are_those_of_a_reference() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 6)) * [5, 3, 2, 1, 0.5, 0.1] + [4, 0, 0, 0, 0, 0]
    reference = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(rows).components_
    found = ranking.principal(rows, 3)
    assert np.abs((found * reference).sum(1)) == pytest.approx(np.ones(3), abs=1e-6)
    assert (found @ rows.mean(0) >= 0).all()


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_rank_one_shifts_have_one_axis_along_them(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    direction = random.standard_normal(5)
    rows = np.outer(random.uniform(0.5, 2, 8), direction)
    (axis,) = ranking.principal(rows, n)
    assert axis == pytest.approx(direction / np.linalg.norm(direction), abs=1e-6)
