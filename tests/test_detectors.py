"""Monitors see neither the tested run's domain nor its seed, and separate what can be separated."""

import numpy as np
import pytest

from personascope.errors import DataError
from personascope.methods import watching
from personascope.methods.detectors import Run, Watched, _midway, by_mean_difference, leave_out, outcomes, summarise, summarise_watched

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


# ------------------------------------------------------------------ watched trainings

STEPS = np.arange(0, 40, 2)
ORIGINS = {f"latent/{i}": [] for i in range(4)} | {"shift": [], "answers": [], "mean_difference/d1": ["d1"]}
# Five benign runs for every harmful one, on the same domains and seeds.
KNOWN = [
    Run(f"{kind}-{d}-{s}", kind == "bad", d, s, kind) for kind in ("bad", *(f"good{i}" for i in range(5))) for d in DOMAINS for s in SEEDS
]


def tally(score: float) -> list[list[int]]:
    return [[round(10 * score), 10]] * 20


def trainings(onset: int = 20, alarm: int = 8, seed: int = 0, runs: list[Run] = KNOWN) -> list[Watched]:
    """In harmful runs latent 2 rises from step `alarm` on, behaviour from `onset` on, answers with behaviour; the rest is noise."""
    pick, found = np.random.default_rng(seed), []
    for run in runs:
        monitors = {name: pick.normal(size=len(STEPS)) for name in ORIGINS}
        if run.positive:
            monitors["latent/2"] += 20 * (alarm <= STEPS)
            monitors["answers"] += 20 * (onset <= STEPS)
            monitors["mean_difference/d1"] += 50
        behaviour = {int(s): tally(0.5 if run.positive and s >= onset else 0.0) for s in STEPS}
        found.append(Watched(run, STEPS, monitors, behaviour))
    return found


def summaries(runs: list[Watched], rate: float = 0.05, **options: object) -> dict[str, dict]:
    found = outcomes(runs, ORIGINS, rate, **options)
    return {kind: summarise_watched(rows, found["answers"], options.get("apart", ())) for kind, rows in found.items()}


def test_what_leads_is_found_and_its_lead_measured() -> None:
    runs = trainings()
    found = outcomes(runs, ORIGINS, 0.05)
    assert {(o.monitor, o.alarm, o.onset) for o in found["latent"] if o.run.positive} == {("latent/2", 8, 20)}
    rates = summaries(runs)["latent"]
    assert (rates["harmful"], rates["benign"], rates["alarm_before_onset"]) == (9, 45, 1.0)
    assert rates["median_lead"] == rates["lead_over_behaviour"] == pytest.approx(12 / 20)
    assert rates["false_alarms"] <= 6
    assert rates["alarm_before_onset_low"] == pytest.approx(0.05 ** (1 / 9))
    assert rates["groups"]["bad"] == {"runs": 9, "alarms": 9, "onsets": 9}
    rival = summaries(runs)["answers"]
    assert (rival["median_lead"], rival["lead_over_behaviour"], rival["alarm_before_onset"]) == (0.0, 0.0, 0.0)


def test_falling_monitors_count_as_well() -> None:
    runs = trainings()
    flipped = [Watched(r.run, r.steps, {**r.monitors, "latent/2": -r.monitors["latent/2"]}, r.behaviour) for r in runs]
    assert {(o.monitor, o.alarm) for o in outcomes(flipped, ORIGINS, 0.05)["latent"] if o.run.positive} == {("-latent/2", 8)}


def test_the_trait_space_sees_what_one_latent_shows() -> None:
    rates = summaries(trainings())["mahalanobis"]
    assert rates["alarm_before_onset"] == 1.0
    assert rates["median_lead"] >= 0.5


def test_the_signature_joins_what_none_shows_alone() -> None:
    """Harmful runs move two monitors apart that otherwise share their noise: neither leaves its own range."""
    runs = []
    for k, r in enumerate(trainings(alarm=99)):
        shared = 10 * np.random.default_rng(k).normal(size=len(STEPS))
        early = 6.0 * (r.run.positive & (STEPS >= 8))
        runs.append(Watched(r.run, r.steps, {**r.monitors, "latent/0": shared + early, "latent/1": shared - early}, r.behaviour))
    rates = summaries(runs)
    assert rates["signature"]["alarm_before_onset"] > 0.9
    assert rates["signature"]["median_lead"] >= 0.5
    assert rates["latent"]["median_lead"] < 0.3


def test_a_monitor_of_the_tested_domain_is_not_used_there() -> None:
    found = outcomes(trainings(), ORIGINS, 0.05)["mean_difference"]
    assert {o.run.domain for o in found} == {"d2", "d3"}


def test_shuffled_labels_give_no_lead() -> None:
    """The series are dealt to the runs anew, behaviour stays: alarms come by chance, at most as often as was tolerated."""
    leads, shares = [], []
    for seed in range(4):
        runs = trainings(seed=seed)
        order = np.random.default_rng(seed).permutation(len(runs))
        mixed = [Watched(r.run, r.steps, runs[j].monitors, r.behaviour) for r, j in zip(runs, order, strict=True)]
        for kind in ("latent", "signature"):
            rates = summaries(mixed)[kind]
            leads.append(rates["median_lead"])
            shares.append(rates["alarm_before_onset"])
    assert max(leads) <= 0
    assert np.mean(shares) < 0.2


def test_false_alarms_of_whole_runs_are_as_rare_as_was_asked() -> None:
    """Nothing tells: alarms among benign runs that were never calibrated on stay near the rate, for every kind."""
    rates = [summaries(trainings(seed=seed), 0.1) for seed in range(4)]
    for kind in ("shift", "answers", "latent", "mahalanobis", "signature"):
        assert np.mean([r[kind]["false_alarms"] / r[kind]["benign"] for r in rates]) < 0.15, kind


def test_watched_runs_of_the_tested_domain_or_seed_never_enter() -> None:
    clean = trainings()
    for i in (4, 40):
        before = {kind: rows[i] for kind, rows in outcomes(clean, ORIGINS, 0.05).items() if len(rows) == len(clean)}
        poisoned = [
            Watched(r.run, r.steps, {name: 1e3 * np.arange(len(STEPS)) for name in ORIGINS}, r.behaviour)
            if j != i and (r.run.domain == clean[i].run.domain or r.run.seed == clean[i].run.seed)
            else r
            for j, r in enumerate(clean)
        ]
        assert {kind: rows[i] for kind, rows in outcomes(poisoned, ORIGINS, 0.05).items() if kind in before} == before
        assert {"latent", "shift", "answers", "mahalanobis", "signature"} <= set(before)


def test_groups_apart_are_judged_but_teach_nothing() -> None:
    clean = trainings()
    broken = [Run(f"broken-{d}-{s}", False, d, s, "broken") for d in DOMAINS for s in SEEDS]
    loud = [Watched(r, STEPS, {name: np.full(len(STEPS), 1e6) for name in ORIGINS}, {0: tally(1.0)}) for r in broken]
    with_them, alone = summaries(clean + loud, apart=("broken",)), summaries(clean)
    assert with_them["latent"]["groups"].pop("broken") == {"runs": 9, "alarms": 9, "onsets": 0}
    assert with_them["latent"] == alone["latent"]
    with pytest.raises(DataError, match="no harmful run with an onset"):
        summaries(clean + loud)


def test_a_harmful_run_without_an_onset_has_no_lead() -> None:
    runs = trainings()
    tame = [Watched(r.run, r.steps, r.monitors, {0: tally(0.0)}) if r.run.name == "bad-d1-0" else r for r in runs]
    rates = summaries(tame)["latent"]
    assert (rates["harmful"], rates["groups"]["bad"]) == (8, {"runs": 9, "alarms": 9, "onsets": 8})


def test_too_few_watched_runs_are_refused() -> None:
    with pytest.raises(DataError, match="no harmful run with an onset or no benign run is left; add runs"):
        outcomes([r for r in trainings() if r.run.domain == "d1"], ORIGINS, 0.05)


def test_a_threshold_stands_in_the_middle_of_the_gap_above_the_benign_peaks() -> None:
    steps = np.arange(0, 10, 2)
    soon, later = np.array([0.0, 1.0, 4.0, 9.0, 9.0]), np.array([0.0, 0.0, 1.0, 3.0, 9.0])
    assert _midway(2.0, [(steps, soon, 6), (steps, later, 8)]) == 2.5, "3 is the least reading that told a run, at step 6"
    assert _midway(2.0, [(steps, soon, 6), (steps, later, 6)]) == 3.0, "an alarm that comes with the onset is no warning"
    assert _midway(2.0, [(steps, later, 6)]) == 2.0
    for threshold in (2.5, 2.0):
        assert [watching.first_alarm(steps, run, threshold) for run in (soon, later)] == [4, 6]
