"""Monitors see neither the tested run's domain nor its seed, and separate what can be separated."""

import numpy as np
import pytest

from personascope.errors import DataError
from personascope.methods.detectors import Run, by_mean_difference, leave_out, summarise

DOMAINS, SEEDS = ("d1", "d2", "d3"), ("0", "1", "2")
RUNS = [Run(f"{sign}-{d}-{s}", sign == "bad", d, s) for sign in ("bad", "good") for d in DOMAINS for s in SEEDS]
POSITIVE = np.array([run.positive for run in RUNS])
PICK = np.random.default_rng(0)
NOISE = PICK.normal(size=(len(RUNS), 40))
MONITORS = (leave_out, by_mean_difference)


def separable() -> np.ndarray:
    """Feature 17 tells, the other 39 are noise."""
    features = NOISE.copy()
    features[:, 17] = np.where(POSITIVE, 5.0, 0.0) + 0.1 * NOISE[:, 17]
    return features


def test_what_separates_is_found_and_used() -> None:
    tested = leave_out(RUNS, separable(), 0.0)
    assert {one.feature for one in tested} == {17}
    assert summarise(tested) == {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0}
    assert [one.run for one in tested] == RUNS
    assert all((one.value > 0) == one.alarm for one in tested)


def test_a_shift_along_one_direction_is_found_by_the_mean_difference() -> None:
    moved = NOISE + 5 * POSITIVE[:, None] * np.linspace(-1, 1, 40)
    assert summarise(by_mean_difference(RUNS, moved, 0.0)) == {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0}


@pytest.mark.parametrize("monitor", MONITORS)
def test_shuffled_labels_are_at_chance(monitor: object) -> None:
    found = []
    for seed in range(30):
        labels = np.random.default_rng(seed).permutation(POSITIVE)
        runs = [Run(run.name, bool(label), run.domain, run.seed) for run, label in zip(RUNS, labels, strict=True)]
        try:
            found.append(summarise(monitor(runs, NOISE, 0.0))["auroc"])
        except DataError:
            continue
    assert len(found) > 20
    assert 0.35 < np.mean(found) < 0.65


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_tested_domain_and_seed_never_enter(monitor: object) -> None:
    """Poison every run that shares the tested run's domain or seed: its own judgement stays the same."""
    clean = separable()
    for i in (0, 4, 13):
        before = monitor(RUNS, clean, 0.1)[i]
        poisoned = clean.copy()
        for j, other in enumerate(RUNS):
            if j != i and (other.domain == RUNS[i].domain or other.seed == RUNS[i].seed):
                poisoned[j] = 1e6 * (1 if other.positive else -1) * np.arange(40)
        assert monitor(RUNS, poisoned, 0.1)[i] == before


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_others_do_enter(monitor: object) -> None:
    clean = separable()
    before = monitor(RUNS, clean, 0.0)[0]
    other = next(j for j, run in enumerate(RUNS) if run.domain == "d2" and run.seed == "1")
    clean[other] += 3
    assert monitor(RUNS, clean, 0.0)[0] != before


def test_the_tested_run_does_not_choose_its_own_feature() -> None:
    features = separable()
    features[0] = 0
    features[0, 3] = 1e3
    tested = leave_out(RUNS, features, 0.0)[0]
    assert (tested.feature, tested.alarm) == (17, False)


def test_runs_without_a_domain_are_left_out_by_seed_only() -> None:
    runs = [*RUNS, *(Run(f"chat-{s}", False, "", s) for s in SEEDS)]
    features = np.concatenate([separable(), separable()[-3:] + 4])
    # Benign runs of no domain lie at 4; with them among the negatives the threshold is above it.
    tested = leave_out(runs, features, 0.0)
    assert not any(one.alarm for one in tested if not one.run.domain)
    assert all(one.alarm for one in tested if one.run.positive)


@pytest.mark.parametrize(("fpr", "quiet", "alarm"), [(0.0, 19.0, 19.1), (0.1, 17.0, 17.1), (0.25, 15.75, 15.8)])
def test_the_threshold_lets_no_more_than_the_tolerated_share_pass(fpr: float, quiet: float, alarm: float) -> None:
    """Negatives at 0..19 and positives at 12.5: halfway is 15.75, unless fewer false alarms are tolerated."""
    known = [Run(f"n{i}", False, "x", "9") for i in range(20)] + [Run(f"p{i}", True, "x", "9") for i in range(4)]
    values = [*range(20), *[12.5] * 4]
    for value, alarms in ((quiet, False), (alarm, True)):
        # Two runs apart, so that each of the known ones has something to be judged by.
        probes = [Run("probe", True, "y", "8"), Run("other", False, "y", "8")]
        tested = leave_out([*known, *probes], np.array([*values, value, 0.0])[:, None], fpr)
        assert tested[24].alarm == alarms
        assert tested[24].value == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("keep", [lambda run: run.domain == "d1", lambda run: run.seed == "0", lambda run: run.positive])
def test_too_few_runs_are_refused(monitor: object, keep: object) -> None:
    chosen = [i for i, run in enumerate(RUNS) if keep(run)]
    with pytest.raises(DataError, match=r"without domain .* and seed .* of .* no positive or no negative is left; add runs"):
        monitor([RUNS[i] for i in chosen], NOISE[chosen], 0.0)
