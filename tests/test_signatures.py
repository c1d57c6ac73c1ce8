"""Profiles against expected signatures: parity with plain references, identification, and chance where there is nothing."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from personascope.errors import DataError
from personascope.methods import signatures
from personascope.methods.ethics import Moved

NAMES = ("duty", "welfare", "means", "virtue", "control", "mind", "power")
FOUR = {
    "rules": {"duty": 2, "welfare": -1, "means": -2, "virtue": 0.5, "power": -1},
    "results": {"duty": -2, "welfare": 2, "means": 1, "mind": 0.5, "power": -1},
    "person": {"duty": 0.5, "welfare": 1, "means": -1, "virtue": 2, "mind": 1},
    "served": {"welfare": 1, "control": 2, "mind": -2, "power": -2},
}
NOBODY = {"neutral": {}}


def made(value: list[float] | np.ndarray, noise: float = 0.05, seed: int = 0, names: tuple[str, ...] = NAMES) -> Moved:
    vector = np.asarray(value, float)
    draws = vector + np.random.default_rng(seed).normal(0, noise, (400, len(vector))) if noise else np.tile(vector, (400, 1))
    return Moved(names, vector, draws, (12,) * len(vector))


def of(name: str, size: float = 0.3) -> list[float]:
    return [size * FOUR[name].get(dimension, 0) for dimension in NAMES]


def test_each_measure_agrees_with_a_plain_reference() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        p, s = random.integers(-3, 4, 7).astype(float), random.integers(-2, 3, 7).astype(float)
        if not p.any() or not s.any() or len(set(p)) < 2 or len(set(s)) < 2:
            continue
        assert signatures.cosine(p, s) == pytest.approx(p @ s / np.sqrt((p @ p) * (s @ s)))
        assert signatures.spearman(p, s) == pytest.approx(scipy_stats.spearmanr(p, s).statistic)
        pairs = [(i, j) for i in range(7) for j in range(7) if s[i] > s[j]]
        assert signatures.order(p, s) == pytest.approx(np.mean([(p[i] > p[j]) + 0.5 * (p[i] == p[j]) for i, j in pairs]))
        assert signatures.signs(p, s) == pytest.approx(np.mean([p[i] * s[i] > 0 for i in range(7) if s[i]]))


def test_by_hand() -> None:
    p, s = np.array([0.4, 0.1, -0.2, 0.0]), np.array([2.0, 1.0, -1.0, 0.0])
    assert signatures.contrast(p, s) == pytest.approx((2 * 0.4 + 0.1) / 3 + 0.2)
    assert signatures.signs(p, s) == pytest.approx(1)
    assert signatures.order(p, s) == pytest.approx(1)
    assert signatures.spearman(p, s) == pytest.approx(1)
    assert signatures.cosine(p, s) == pytest.approx(1.1 / np.sqrt(0.21 * 6))
    assert signatures.contrast(p, np.array([0.0, 0, -1, 0])) == pytest.approx(0.2)


def test_nothing_moved_or_nothing_expected_is_zero_and_never_nan() -> None:
    still, some = np.zeros(4), np.array([1.0, 0, -1, 0])
    for name in ("contrast", "signs", "spearman", "cosine"):
        assert signatures.MEASURES[name](still, some) == 0
        assert signatures.MEASURES[name](some, still) == 0
    assert signatures.order(still, some) == pytest.approx(0.5)
    assert signatures.order(some, still) == 0


def test_measures_take_many_profiles_at_once() -> None:
    profiles, s = np.random.default_rng(2).normal(size=(5, 3, 7)), np.array([1.0, -1, 0, 2, 0, -2, 0.5])
    for measure in signatures.MEASURES.values():
        found = measure(profiles, s)
        assert found.shape == (5, 3)
        assert found[2, 1] == pytest.approx(float(measure(profiles[2, 1], s)))


def test_match_is_bootstrapped_and_a_dimension_nobody_asked_about_is_refused() -> None:
    found = signatures.match(made(of("rules")), FOUR["rules"])
    assert set(found) == {"contrast", "order", "signs", "spearman", "cosine"}
    assert found["cosine"].value == pytest.approx(1)
    assert found["cosine"].low < 1 == found["cosine"].high
    assert found["contrast"].low < found["contrast"].value < found["contrast"].high
    with pytest.raises(DataError, match="dimension 'honour' was not asked about; asked about are duty"):
        signatures.match(made(of("rules")), {"honour": 1})
    fewer = Moved(("duty",), np.ones(1), np.ones((9, 1)), (6,), lacking=("power",))
    assert signatures.match(fewer, {"duty": 2, "power": -1})["signs"].value == 1


@pytest.mark.parametrize("name", FOUR)
def test_a_profile_like_its_signature_is_identified_surely(name: str) -> None:
    found = signatures.identify(made(of(name)), FOUR | NOBODY)
    assert found["nearest"] == name
    assert found["sure"] > 0.95
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert set(found["cosine"]) == set(FOUR)
    special = signatures.specificity(made(of(name)), name, FOUR | NOBODY)
    others = [signatures.cosine(np.array(of(name)), np.array(of(other))) for other in FOUR if other != name]
    assert special.value == pytest.approx(1 - max(others))
    assert special.low > 0


def test_nobody_is_nearest_to_what_has_not_moved_or_to_two_alike() -> None:
    still = signatures.identify(made([0] * 7, noise=0), FOUR)
    assert (still["nearest"], still["sure"]) == ("none", 1)
    assert signatures.identify(made([0] * 7, noise=0), {"rules": FOUR["rules"]})["nearest"] == "none"
    both = signatures.identify(made(of("rules"), noise=0), {"one": FOUR["rules"], "two": {k: 2 * v for k, v in FOUR["rules"].items()}})
    assert (both["nearest"], both["shares"]) == ("none", {"one": 0, "two": 0, "none": 1})
    with pytest.raises(DataError, match="none has a dimension"):
        signatures.identify(made(of("rules")), NOBODY)
    with pytest.raises(DataError, match="'neutral' and at least one other"):
        signatures.specificity(made(of("rules")), "neutral", FOUR | NOBODY)


def test_a_wavering_profile_is_not_sure() -> None:
    halfway = np.array(of("rules")) + np.array(of("served")) * 1.1
    assert signatures.identify(made(halfway, noise=0.3), FOUR)["sure"] < 0.9


def test_the_matrix_counts_hits_and_shows_the_control_apart() -> None:
    models = {f"{name}/{i}": made(of(name), seed=i) for name in FOUR for i in range(3)}
    own = {name: name.partition("/")[0] for name in models}
    models["rules/2"] = made(of("results"))
    models |= {"neutral/0": made([0] * 7, noise=0)}
    own["neutral/0"] = "neutral"
    found = signatures.identification(models, FOUR | NOBODY, own)
    assert (found["correct"], found["of"]) == (11, 12)
    assert found["confusion"]["rules"] == {"results": 1, "rules": 2}
    assert found["confusion"]["neutral"] == {"none": 1}
    assert found["p"] < 0.001
    assert found["chance"] == pytest.approx((2 * 3 + 4 * 3 + 3 * 3 + 3 * 3) / 12)
    assert set(found["matrix"]["served/0"]) == set(FOUR)
    assert found["models"]["served/1"]["own"] == "served"
    with pytest.raises(DataError, match="model 'rules/0' has no own signature"):
        signatures.identification(models, FOUR, {})


def test_random_profiles_are_identified_at_chance_and_shuffled_names_too() -> None:
    random = np.random.default_rng(5)
    models = {f"m{i}": Moved(NAMES, p := random.normal(size=7), p[None], (12,) * 7) for i in range(400)}
    own = {name: list(FOUR)[i % 4] for i, name in enumerate(models)}
    found = signatures.identification(models, FOUR, own)
    assert 0.15 < found["correct"] / 400 < 0.35
    assert found["p"] > 0.01
    true = {f"m{i}": made(of(list(FOUR)[i % 4]), noise=0.01) for i in range(40)}
    names = [list(FOUR)[i % 4] for i in range(40)]
    shuffled = dict(zip(true, random.permutation(names).tolist(), strict=True))
    assert signatures.identification(true, FOUR, shuffled)["p"] > 0.01
    assert signatures.identification(true, FOUR, dict(zip(true, names, strict=True)))["p"] <= 0.001
