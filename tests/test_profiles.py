"""Signatures to profiles: ridge as a plain solver gives it, nothing learnt from what is held out, silence where there is no map."""

from typing import Any

import numpy as np
import pytest
from scipy import stats as reference
from sklearn.linear_model import Ridge

from personascope.errors import DataError
from personascope.methods import profiles
from personascope.methods.detectors import Run

CATEGORIES = ("harmful", "satirical")


def runs(kinds: int = 4, domains: int = 3, seeds: int = 3) -> list[Run]:
    known = [(k, d, s) for d in range(domains) for s in range(seeds) for k in range(kinds)]
    return [Run(f"{k}-{d}-{s}", k == 0, f"d{d}", str(s), f"k{k}") for k, d, s in known]


def planted(given: list[Run], noise: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signatures of 40 latents, of which two carry the rates of two categories, which no kind shares."""
    random = np.random.default_rng(seed)
    strength = random.uniform(0.1, 0.9, (len(given), 2))
    signatures = 0.2 * random.standard_normal((len(given), 40))
    signatures[:, [3, 7]] += 10 * strength
    return signatures, np.clip(strength + noise * random.standard_normal(strength.shape), 0, 1)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    given = runs()
    signatures, rates = planted(given)
    sources = {"latents": signatures, "noise": np.random.default_rng(9).standard_normal(signatures.shape)}
    return profiles.report(given, sources, CATEGORIES, rates)


def test_a_fold_is_plain_ridge_regression() -> None:
    given = runs()
    signatures, rates = planted(given)
    (first, *_) = profiles._folds(given, profiles.HOLD_OUTS["domain and seed"], signatures @ signatures.T)
    known = signatures[first.learnt]
    unit = ((known - known.mean(0)) ** 2).sum() / len(known)
    for predicted, penalty in zip(first.predictions(rates), profiles.PENALTIES, strict=True):
        plain = Ridge(alpha=penalty * unit).fit(known, rates[first.learnt]).predict(signatures[first.tested])
        assert predicted == pytest.approx(plain, abs=1e-8)


def test_the_penalty_is_the_one_that_predicts_left_out_domains_best() -> None:
    given = runs()
    signatures, rates = planted(given, noise=0.3)
    (first, *_) = profiles._folds(given, profiles.HOLD_OUTS["seed"], signatures @ signatures.T)
    domains = np.array([given[j].domain for j in first.learnt])
    costs = []
    for penalty in profiles.PENALTIES:
        cost = 0.0
        for domain in dict.fromkeys(domains):
            a, b = first.learnt[domains != domain], first.learnt[domains == domain]
            unit = ((signatures[a] - signatures[a].mean(0)) ** 2).sum() / len(a)
            cost += ((Ridge(alpha=penalty * unit).fit(signatures[a], rates[a]).predict(signatures[b]) - rates[b]) ** 2).sum()
        costs.append(cost)
    best = int(np.argmin(costs))
    guessed = profiles.held_out(given, signatures, rates, profiles.HOLD_OUTS["seed"])
    assert guessed[first.tested] == pytest.approx(np.clip(first.predictions(rates)[best], 0, 1), abs=1e-9)
    assert 0 < best < len(profiles.PENALTIES) - 1


@pytest.mark.parametrize("name", profiles.HOLD_OUTS)
def test_nothing_is_learnt_from_what_is_held_out(name: str) -> None:
    """Other rates of the runs held out change no prediction of theirs."""
    given = runs()
    signatures, rates = planted(given)
    allowed, tested = profiles.HOLD_OUTS[name], given[5]
    hidden = np.array([not allowed(run, tested) for run in given])
    other = np.where(hidden[:, None], 1 - rates, rates)
    before, after = (profiles.held_out(given, signatures, values, allowed)[5] for values in (rates, other))
    assert before == pytest.approx(after, abs=1e-12)
    assert hidden.sum() > 1


def test_a_planted_map_is_found_on_every_hold_out_and_noise_has_none(found: dict[str, dict[str, Any]]) -> None:
    assert set(found) == set(profiles.HOLD_OUTS)
    for held in found.values():
        good, bad = held["latents"], held["noise"]
        assert good["r2"]["value"] > 0.9
        assert good["r2"]["low"] < good["r2"]["value"] < good["r2"]["high"]
        assert good["p"] == pytest.approx(1 / (1 + profiles.SHUFFLES))
        assert good["null_r2"] < 0.2
        assert all(one["within"] > 0.9 for one in good["categories"].values())
        assert bad["r2"]["value"] < 0.2
        assert bad["p"] > 0.05


def test_r2_and_ranks_are_the_textbook_ones(found: dict[str, dict[str, Any]]) -> None:
    given = runs()
    _, rates = planted(given)
    for name, allowed in profiles.HOLD_OUTS.items():
        one = found[name]["latents"]
        means = np.array([rates[[j for j, run in enumerate(given) if allowed(run, tested)]].mean(0) for tested in given])
        errors, spread = (one["predicted"] - rates) ** 2, (means - rates) ** 2
        assert one["r2"]["value"] == pytest.approx(1 - errors.sum() / spread.sum())
        for i, category in enumerate(CATEGORIES):
            assert one["categories"][category]["r2"] == pytest.approx(1 - errors[:, i].sum() / spread[:, i].sum())
            rank = reference.spearmanr(one["predicted"][:, i], rates[:, i]).statistic
            assert one["categories"][category]["rank"] == pytest.approx(rank)


def test_what_only_tells_kinds_apart_says_nothing_within_them() -> None:
    """Rates that are one number per kind are predicted well, but for a kind never seen, and nothing is left within kinds."""
    given, random = runs(), np.random.default_rng(1)
    kind = np.array([int(run.group[1]) for run in given])
    rates = np.stack([0.2 * kind + 0.01 * random.standard_normal(len(given)), 0.1 + 0.2 * (kind == 2)], axis=1).clip(0, 1)
    signatures = 5 * np.eye(4)[kind] @ random.standard_normal((4, 30)) + 0.3 * random.standard_normal((len(given), 30))
    held = profiles.report(given, {"latents": signatures}, CATEGORIES, rates)
    one = held["domain and seed"]["latents"]
    assert one["r2"]["value"] > 0.9
    assert abs(one["categories"]["harmful"]["within"]) < 0.6
    assert held["kind"]["latents"]["r2"]["value"] < 0.3


def test_too_few_runs_are_refused_or_left_out() -> None:
    given = runs(kinds=3, domains=1, seeds=3)
    signatures, rates = planted(given)
    assert set(profiles.report(given, {"latents": signatures}, CATEGORIES, rates)) == {"seed", "kind"}
    with pytest.raises(DataError, match=r"profiles: 0 runs are left to predict 0-0-0 from; add runs"):
        profiles.held_out(given, signatures, rates, profiles.HOLD_OUTS["domain"])
