"""Projectability: hand-computed changes and ratios, refusals, coverage, and orders that agree by chance and no more."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from personascope.errors import DataError
from personascope.methods import projectability as pj
from personascope.methods.arms import Arm, Quantity, Refused, Run, combined, interval, ratio, resampled
from personascope.methods.projectability import matched

RUNS = 3


def run(*safe: float, of: float = 4, name: str = "q") -> Run:
    """A run with so many safe answers of four to each question."""
    return {f"{name}{i}": (many, of) for i, many in enumerate(safe)}


def world(rng: np.random.Generator, rate: float, questions: np.ndarray, runs: int = RUNS, draws: int = 2, wobble: float = 0.3) -> list[Run]:
    """Runs whose questions share their ease, each run a little off."""
    found = []
    for _ in range(runs):
        chance = 1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + questions + rng.normal(0, wobble))))
        found.append({f"q{i}": (int(rng.binomial(draws, p)), draws) for i, p in enumerate(chance)})
    return found


def truth(rate: float, wobble: float = 0.3) -> float:
    """The mean of such rates over questions and runs."""
    z = np.random.default_rng(0).normal(0, math.sqrt(1 + wobble**2), 200_000)
    return float((1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + z)))).mean())


def quantity(value: float, spread: float = 0.05, seed: int = 0, df: int = 20) -> Quantity:
    """A number with normal replicates."""
    draws = value + spread * np.random.default_rng(seed).standard_normal(2000)
    return Quantity(value, value - 2 * spread, value + 2 * spread, draws, spread, df, 100, 50)


def test_changes_and_transfer_by_hand() -> None:
    source, broad, narrow = [run(0, 1, 0, 1, 0)], [run(4, 3, 4, 4, 4)], [run(2, 2, 3, 2, 1)]
    found = pj.transfer(source, broad, {"one": narrow})
    assert found.narrow.value == pytest.approx(10 / 20 - 2 / 20)
    assert found.broad.value == pytest.approx(19 / 20 - 2 / 20)
    assert found.gap.value == pytest.approx(10 / 20 - 19 / 20)
    assert found.ratio.value == pytest.approx(8 / 17)
    assert (found.narrow.n, found.narrow.clusters) == (40, 5)
    assert set(found.to_dict()) == {"narrow", "broad", "gap", "transfer"}
    for one in (found.narrow, found.broad, found.gap, found.ratio):
        assert isinstance(one, Quantity)
        assert one.low < one.value < one.high


def test_conditions_are_compared_on_their_own_questions_and_weigh_alike() -> None:
    asked = [run(0, 0, of=4) | run(2, 2, 2, 2, of=4, name="z")]
    broad = [run(4, 4, of=4) | run(4, 4, 4, 4, of=4, name="z")]
    narrow = {"a": [run(2, 2)], "b": [run(3, 3, 3, 3, name="z")]}
    found = pj.transfer(asked, broad, narrow)
    assert found.narrow.value == pytest.approx((0.5 + 0.25) / 2)
    assert found.broad.value == pytest.approx((1.0 + 0.5) / 2)


def test_small_and_uncertain_denominators_are_refused_and_raw_changes_stay() -> None:
    low = [run(*[0, 1] * 20)]
    uncertain = pj.transfer(low, [run(*[1, 0] * 20)], {"n": [run(*[4] * 40)]})
    assert isinstance(uncertain.ratio, Refused)
    assert uncertain.ratio.value is None
    assert "the broad change is 0.000" in uncertain.ratio.reason
    assert "may be zero" in uncertain.ratio.reason
    assert uncertain.to_dict()["transfer"] == {"refused": uncertain.ratio.reason}
    assert uncertain.narrow.value == pytest.approx(0.875)
    base, up = [run(*[400] * 40, of=1000)], [run(*[450] * 40, of=1000)]
    small = pj.transfer(base, up, {"n": up})
    assert isinstance(small.ratio, Refused)
    assert small.ratio.reason.endswith("smaller than 0.1")
    assert isinstance(pj.transfer(base, up, {"n": up}, bound=0.01).ratio, Quantity)


def test_runs_widen_what_questions_alone_would_say() -> None:
    base = [run(*[1] * 30)] * 3
    same, apart = [run(*[2] * 30)] * 3, [run(*[k] * 30) for k in (1, 2, 3)]
    steady, shaky = (pj.transfer(base, base, {"n": runs}).narrow for runs in (same, apart))
    assert steady.value == shaky.value == pytest.approx(0.25)
    assert shaky.high - shaky.low > 5 * (steady.high - steady.low)
    assert shaky.sd == pytest.approx(0.25 / math.sqrt(3), rel=0.05), "the standard error of three runs, unbiased"
    assert (shaky.df, shaky.clusters) == (2, 3)


def test_an_extreme_rate_is_not_certain() -> None:
    found = pj.transfer([run(*[0] * 30)], [run(*[4] * 30)], {"n": [run(*[4] * 30)]})
    assert found.narrow.value == 1.0
    assert 0.85 < found.narrow.low < 0.95
    assert found.narrow.high == 1.0
    assert isinstance(found.ratio, Quantity)
    assert found.ratio.low < 0.97 < 1.03 < found.ratio.high


@pytest.mark.parametrize("runs", [1, RUNS])
def test_intervals_cover_the_truth(runs: int) -> None:
    rng, rates, wobble = np.random.default_rng(10 + runs), (0.1, 0.85, 0.5), 0.3 * (runs > 1)
    s0, sb, sn = (truth(rate, wobble) for rate in rates)
    wanted = {"narrow": sn - s0, "broad": sb - s0, "ratio": (sn - s0) / (sb - s0)}
    hits = dict.fromkeys(wanted, 0)
    for trial in range(60):
        ease = rng.standard_normal(40)
        source, broad, narrow = (world(rng, rate, ease, runs, wobble=wobble) for rate in rates)
        found = pj.transfer(source, broad, {"n": narrow}, seed=trial)
        for name, value in wanted.items():
            one = getattr(found, name)
            hits[name] += isinstance(one, Quantity) and one.low <= value <= one.high
    assert all(many >= 53 for many in hits.values()), hits


def test_a_combination_of_one_arm_has_the_variance_of_its_questions() -> None:
    rng = np.random.default_rng(3)
    hits = rng.binomial(5, rng.beta(2, 2, 200))
    arm = resampled({"m": [{f"q{i}": (int(k), 5) for i, k in enumerate(hits)}]}, replicates=4000)["m"]
    found = combined([(1.0, arm)])
    assert found.value == hits.mean() / 5
    assert found.sd == pytest.approx((hits / 5).std(ddof=1) / math.sqrt(200), rel=0.05)
    assert interval(found, 0.9)[0] > found.low


def test_a_ratio_of_independent_means_is_fiellers() -> None:
    rng = np.random.default_rng(4)
    top, bottom = rng.normal(1.0, 0.1, 30), rng.normal(2.0, 0.1, 30)
    found = ratio([(1.0, matched(top, model="a"))], [(1.0, matched(bottom, model="b"))])
    a, b, va, vb = top.mean(), bottom.mean(), top.var(ddof=1) / 30, bottom.var(ddof=1) / 30
    grid = np.linspace(0.3, 0.7, 40_001)
    assert isinstance(found, Quantity)
    t = scipy_stats.t.ppf(0.975, found.df)
    inside = grid[(a - grid * b) ** 2 <= t**2 * (va + grid**2 * vb)]
    assert (found.low, found.high) == pytest.approx((inside.min(), inside.max()), abs=0.002)


def test_persona_retention_and_specificity_by_hand() -> None:
    narrow, broad = matched([0.5, 0.7, 0.6], model="n"), matched([0.9, 1.0, 0.8], model="b")
    kept = pj.retention(narrow, broad)
    assert kept.value == pytest.approx(0.6 / 0.9)
    assert isinstance(pj.retention(narrow, matched([0.3, -0.3, 0.0], model="b")), Refused)
    own, one, two = matched([0.9, 0.8]), matched([0.1, 0.5]), matched([0.3, 0.2])
    apart = pj.beyond(own, [one, two])
    assert apart.values == pytest.approx([0.6, 0.3])
    assert combined([(1.0, apart)]).value == pytest.approx(0.45)


def test_replicates_over_items_enter_a_match() -> None:
    draws = 0.8 + 0.1 * np.random.default_rng(5).standard_normal((1, 2000))
    found = combined([(1.0, matched([0.8], draws, items=60))])
    assert found.sd == pytest.approx(0.1, rel=0.05)
    assert (found.n, found.clusters, found.df) == (60, 60, 59)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=9), st.randoms())
def test_kendall_is_scipys(first: list[int], rng: "np.random.Generator") -> None:
    second = [rng.randint(0, 3) for _ in first]
    wanted = scipy_stats.kendalltau(first, second).statistic if len(set(first)) > 1 and len(set(second)) > 1 else 0.0
    assert float(pj.kendall(first, second)) == pytest.approx(wanted)


def test_the_planted_order_is_recovered_and_a_refused_name_is_left_out() -> None:
    planted = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 0}
    found = {name: quantity(0.2 * place, seed=i) for i, (name, place) in enumerate(zip("abcd", (1, 2, 4, 3), strict=True))}
    ranked = pj.ranking(planted, found | {"e": Refused("too small")})
    assert ranked.tau.value == pytest.approx(5 / math.sqrt(6 * 5))
    assert (ranked.order, ranked.left_out) == (("a", "b", "d", "c"), ("e",))
    assert ranked.p == pytest.approx(2 / 24), "two of the 24 orders agree as well"
    assert ranked.tau.low <= ranked.tau.value <= ranked.tau.high
    turned = pj.ranking({name: -place for name, place in planted.items()}, found)
    assert turned.tau.value == pytest.approx(-ranked.tau.value)
    with pytest.raises(DataError, match="2 names have a number on both sides"):
        pj.ranking({"a": 1, "b": 2}, found)


def test_clear_orders_are_sure_and_equal_ones_are_not() -> None:
    places = dict(zip("abcd", range(4), strict=True))
    clear = pj.ranking(places, {name: quantity(place, seed=place) for name, place in places.items()})
    assert (clear.tau.value, clear.tau.low) == (1.0, 1.0)
    blurred = pj.ranking(places, {name: quantity(place / 1000, seed=place) for name, place in places.items()})
    assert blurred.tau.value == 1.0
    assert blurred.tau.low < 0


def test_shuffled_constitutions_agree_by_chance_alone() -> None:
    rng = np.random.default_rng(6)
    taus, covered, small = [], 0, 0
    for trial in range(150):
        sides = [
            {name: quantity(0.5 + 0.05 * rng.standard_normal(), seed=2000 * trial + 10 * k + i) for i, name in enumerate("abcde")}
            for k in (0, 1)
        ]
        ranked = pj.ranking(*sides)
        taus.append(ranked.tau.value)
        covered += ranked.tau.low <= 0 <= ranked.tau.high
        small += ranked.p <= 0.05
    assert abs(np.mean(taus)) < 3 * np.std(taus) / math.sqrt(150)
    assert covered >= 135
    assert small <= 0.05 * 150 + 3 * math.sqrt(150 * 0.05 * 0.95)


def test_more_names_than_can_be_listed_are_shuffled() -> None:
    names = {f"n{i}": i for i in range(10)}
    ranked = pj.ranking(names, {name: quantity(place, seed=place) for name, place in names.items()})
    assert ranked.p == pytest.approx(1e-4)


def test_pairs_are_compared_with_multiplicity() -> None:
    found = {"a": quantity(0.2, seed=1), "b": quantity(0.9, seed=2), "c": quantity(0.25, seed=3), "d": Refused("x")}
    rows = pj.compared(found)
    assert [(row["a"], row["b"]) for row in rows] == list(itertools.combinations("abc", 2))
    p = 2 * scipy_stats.t.sf(0.7 / math.sqrt(2 * 0.05**2), 20)
    assert rows[0]["p"] == pytest.approx(p, rel=1)
    assert rows[0]["q"] == pytest.approx(min(3 * rows[0]["p"], 1.5 * rows[2]["p"]) if rows[0]["p"] < rows[2]["p"] else 1.5 * rows[0]["p"])
    assert rows[1]["q"] == rows[1]["p"] > 0.3
    assert rows[0]["difference"]["high"] < 0 < rows[1]["difference"]["high"]
    assert pj.compared({"a": found["a"]}) == []


def test_what_models_share_cancels_in_a_pair() -> None:
    ease = np.random.default_rng(7).standard_normal(60)
    rng = np.random.default_rng(8)
    source, broad = world(rng, 0.1, ease), world(rng, 0.9, ease)
    one, other = (pj.transfer(source, broad, {"n": world(rng, rate, ease)}).narrow for rate in (0.4, 0.6))
    (row,) = pj.compared({"one": one, "other": other})
    alone = math.sqrt(one.sd**2 + other.sd**2)
    width = row["difference"]["high"] - row["difference"]["low"]
    assert width < 2 * scipy_stats.t.ppf(0.975, min(one.df, other.df)) * alone


@pytest.mark.parametrize(("value", "spread", "inside"), [(0.0, 0.05, True), (0.03, 0.05, False), (0.0, 0.07, False), (-0.2, 0.01, False)])
def test_equivalence_needs_the_whole_interval(value: float, spread: float, inside: bool) -> None:
    found = pj.equivalent(quantity(value, spread, df=1000), bound=0.1)
    assert found["inside"] is inside
    half = scipy_stats.t.ppf(0.95, 1000) * spread
    assert (found["low"], found["high"]) == pytest.approx((value - half, value + half), abs=0.01)


@pytest.mark.parametrize(
    ("models", "says"),
    [({"m": []}, "m needs runs"), ({"m": [{"q": (0, 0)}]}, "m needs runs"), ({"m": [{"q": (3, 2)}]}, "no sum may exceed its count")],
)
def test_runs_that_are_none_are_refused(models: dict[str, Sequence[Run]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        resampled(models)


def test_arms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="one run without replicates"):
        matched([0.5])
    with pytest.raises(DataError, match="give finite values"):
        matched([0.5, float("nan")])
    with pytest.raises(DataError, match="no narrow condition"):
        pj.transfer([run(1)], [run(1)], {})
    with pytest.raises(DataError, match="at least one other signature"):
        pj.beyond(matched([0.5, 0.6]), [])
    two, three = matched([0.1, 0.2], model="m"), matched([0.1, 0.2, 0.3], model="m")
    with pytest.raises(DataError, match="model 'm' has other runs in its parts"):
        combined([(1.0, two), (-1.0, three)])
    assert isinstance(two, Arm)
