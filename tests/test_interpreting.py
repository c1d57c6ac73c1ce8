"""What latents are, from numbers: bounded samples, labels, clusters and the corpus pass, each against a plain reference and chance."""

import itertools
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from personascope.artifact import Dataset, Model
from personascope.backends import interpreting as backend
from personascope.backends.models import load
from personascope.methods import interpreting, stats
from personascope.methods.interpreting import Context, Sample
from personascope.methods.sparse import TopK
from personascope.methods.tokens import render
from personascope.rows import Example
from small_models import adopted, dataset, model, texts


def context(number: int, value: float, text: str = "t") -> Context:
    return Context(f"{text}{number}", 0, (number, number + 1), (0.0, value))


def test_a_sample_keeps_the_same_whatever_the_order() -> None:
    contexts = [context(i % 40, (i * 7919) % 100 + 1.0, f"text{i}-") for i in range(200)]
    kept = []
    for seed in range(5):
        sample = Sample(6)
        for one in random.Random(seed).sample(contexts, len(contexts)):
            if sample.wants(rank := interpreting.chance(3, one.ids)):
                sample.add(rank, one)
        kept.append(sample.contexts())
    assert all(other == kept[0] for other in kept)
    assert [one.ids for one in kept[0]] == sorted({one.ids for one in contexts}, key=lambda ids: interpreting.chance(3, ids))[:6]
    single = Sample(1)
    for i in range(2000):
        if single.wants(rank := interpreting.chance(0, (i % 400, i % 400 + 1))):
            single.add(rank, context(i % 400, i + 1.0))
    assert single.contexts()[0].peak > 1600, "a stronger copy of a window that is kept replaces it, however late it comes"
    for one in kept[0]:
        assert one.peak == max(other.peak for other in contexts if other.ids == one.ids), "of equal windows the strongest"


def test_the_strongest_are_the_strongest_distinct_windows() -> None:
    contexts = [context(i % 50, float((i * 37) % 211 + 1)) for i in range(500)]
    sample = Sample(8)
    for one in contexts:
        if sample.wants(-one.peak):
            sample.add(-one.peak, one)
    best = {ids: max(c.peak for c in contexts if c.ids == ids) for ids in {c.ids for c in contexts}}
    assert [one.peak for one in sample.contexts()] == sorted(best.values(), reverse=True)[:8]


def test_the_draw_is_even_over_distinct_windows() -> None:
    drawn = []
    for seed in range(200):
        sample = Sample(5)
        for i in [*range(20), *[0] * 50]:
            sample.add(interpreting.chance(seed, (i, i + 1)), context(i, i + 1.0))
        drawn += [one.ids[0] for one in sample.contexts()]
    counts = np.bincount(drawn, minlength=20)
    assert abs(counts[0] - 50) < 20, "a window seen fifty times more often is not drawn more often"
    assert counts.min() > 25


@pytest.mark.parametrize(
    ("peak", "length", "wanted"), [(0, 5, (0, 5)), (0, 40, (0, 9)), (20, 40, (14, 23)), (39, 40, (31, 40)), (3, 9, (0, 9))]
)
def test_windows_hold_the_peak_and_stay_inside(peak: int, length: int, wanted: tuple[int, int]) -> None:
    assert interpreting.window(peak, length, 9) == wanted


def test_what_is_shown_is_not_held_out() -> None:
    top, spread, silent = Sample(4), Sample(60), Sample(60)
    for i in range(100):
        top.add(-(i + 1.0), context(i, i + 1.0))
        spread.add(interpreting.chance(0, (i, i + 1)), context(i, i + 1.0))
        silent.add(interpreting.chance(0, (i + 90, i + 91)), context(i + 90, 0.0))
    found = interpreting.pick(top, spread, silent, 4, 2, 9)
    assert [one.peak for one in found.top] == [100, 99, 98, 97]
    shown = [*found.top, *itertools.chain(*found.bands), *found.silent]
    held = [*found.heldout_active, *found.heldout_silent]
    assert len({one.ids for one in [*shown, *held]}) == len(shown) + len(held) == 4 + 8 + 2 + 18
    assert [len(part) for part in found.bands] == [2] * 4
    for low, high in itertools.pairwise(found.bands):
        assert max(one.peak for one in low) < min(one.peak for one in high)
    assert all(one.peak == 0 for one in (*found.silent, *found.heldout_silent))
    assert all(one.peak > 0 for one in found.heldout_active)
    active = {one.ids for one in (*found.top, *itertools.chain(*found.bands), *found.heldout_active)}
    assert not active & {one.ids for one in found.heldout_silent}


def planted(seed: int, n: int = 600) -> tuple[dict[str, np.ndarray], list[dict[str, object]], np.ndarray]:
    """Latent 0 rises with kind=b in its mean, latent 1 with deep=True in its maximum, latent 2 with nothing."""
    pick = np.random.default_rng(seed)
    labels = [{"kind": "abc"[pick.integers(3)], "deep": bool(pick.integers(2)), "own": i} for i in range(n)]
    maxima, means = pick.random((n, 3)), pick.random((n, 3))
    means[:, 0] += [2.0 * (one["kind"] == "b") for one in labels]
    maxima[:, 1] += [0.8 * bool(one["deep"]) for one in labels]
    return {"max": maxima, "mean": means}, labels, pick.random(n) < 0.5


def test_the_label_a_latent_tells_is_found_and_scored_on_the_other_half() -> None:
    scores, labels, half = planted(0)
    first, second, third = interpreting.best_labels(scores, labels, half, ())
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.key, first.value, first.statistic) == ("kind", "b", "mean")
    assert first.auroc.value == 1
    assert 0.9 < first.auroc.low < 1
    assert (second.key, second.value, second.statistic) == ("deep", "True", "max")
    on = ~half
    assert second.auroc.value == pytest.approx(
        stats.auroc(scores["max"][on, 1], [one["deep"] for one, use in zip(labels, on, strict=True) if use])
    )
    assert second.auroc.n == on.sum()
    assert second.next_value == "False"
    assert second.next_auroc == pytest.approx(1 - second.auroc.value, abs=1e-4)
    assert third.auroc.value < 0.62
    only = interpreting.best_labels(scores, labels, half, ("kind=a",))
    assert {(one.key, one.value) for one in only if one} == {("kind", "a")}
    assert interpreting.best_labels(scores, labels, half, ("own",)) == [None] * 3, "values of single texts are not tried"


def test_labels_dealt_at_random_are_told_no_better_than_chance() -> None:
    """Choosing among many labels makes the choosing half look good; the other half must not."""
    held, chosen = [], []
    for seed in range(40):
        scores, labels, half = planted(seed, 200)
        dealt = [labels[i] for i in np.random.default_rng(seed).permutation(len(labels))]
        for latent, one in enumerate(interpreting.best_labels(scores, dealt, half, ())):
            assert one is not None
            held.append(one.auroc.value)
            has = np.array([str(other[one.key]) == one.value for other in dealt])
            chosen.append(stats.auroc(scores[one.statistic][half, latent], has[half]))
    assert abs(np.mean(held) - 0.5) < 0.015
    assert np.mean(chosen) > 0.54


def test_the_interval_of_an_auroc_solves_its_equation_and_covers() -> None:
    one = interpreting.auroc_estimate(0.8, 30, 50)
    for theta in (one.low, one.high):
        variance = theta * (1 - theta) * (1 + 39 * (1 - theta) / (2 - theta) + 39 * theta / (1 + theta)) / 1500
        assert abs(0.8 - theta) == pytest.approx(1.959964 * variance**0.5, rel=1e-6)
    assert interpreting.auroc_estimate(1.0, 30, 30).low < 0.95
    pick, inside = np.random.default_rng(0), 0
    labels = np.arange(60) < 25
    for _ in range(400):
        found = interpreting.auroc_estimate(float(stats.auroc(pick.normal(labels * 1.5, 1), labels)), 25, 35)
        inside += found.low <= 0.8556 <= found.high
    assert 0.92 < inside / 400 < 0.985


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4, 0.8])
def test_clusters_are_those_of_scipy(threshold: float) -> None:
    rows = np.random.default_rng(int(10 * threshold)).normal(size=(25, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    found = interpreting.average_linkage(cosine, threshold)
    labels = fcluster(linkage(squareform(1 - cosine, checks=False), "average"), 1 - threshold, "distance")
    wanted = sorted((np.flatnonzero(labels == i).tolist() for i in set(labels)), key=lambda group: (-len(group), group))
    assert found == wanted
    assert interpreting.average_linkage(np.eye(3), 0.5) == [[0], [1], [2]]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_umbrella_stands_out_and_random_latents_do_not() -> None:
    pick = np.random.default_rng(0)
    pool = unit(pick.normal(size=(400, 40)))
    alike = unit(pick.normal(size=(8, 40)) + 9 * pool[0])
    found = interpreting.against_chance(alike, pool, 0.3, 0, 100)
    assert found["largest"]["value"] == 8
    for numbers in found.values():
        assert numbers["value"] > numbers["null_p95"] > 0 or numbers["null_p95"] == 0
    above = 0
    for seed in range(40):
        chosen = np.random.default_rng(seed).choice(400, 8, replace=False)
        numbers = interpreting.against_chance(pool[chosen], np.delete(pool, chosen, 0), 0.3, seed, 100)["pairwise"]
        above += numbers["value"] > numbers["null_p95"]
    assert above <= 6
    assert interpreting.against_chance(alike, pool[:3], 0.3, 0, 10)["largest"]["null_p95"] is None


def test_a_screen_is_quoted_wherever_it_speaks_of_the_latent() -> None:
    record = {
        "best": {"latent": 7, "induce": {"value": 0.5}, "direction": "7"},
        "by_mask": {"all": {"latent": 7, "induce": 0.1}, "prompt": {"latent": 8}},
        "ranking": [{"latent": 8}, {"latent": 7, "repair_to": 0.2, "by_question": [1, 2]}],
        "dose": [{"direction": "7", "score": 0.3}, {"direction": "77", "score": 0.9}],
        "nulls": {"all": [0.1, 0.2]},
    }
    found = interpreting.steered(record, 7)
    assert [row["where"] for row in found] == ["best", "by_mask.all", "ranking", "dose"]
    assert found[2] == {"where": "ranking", "latent": 7, "repair_to": 0.2}
    assert interpreting.steered({}, 7) == []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("corpus")
    rows = texts(120, 3)
    return {"model": Model(adopted(root / "base", model())), "texts": Dataset(dataset(root / "texts", [*rows, *rows[:30]]))}


def options(corpus: dict, **change: object) -> SimpleNamespace:
    known = {"window": 6, "strongest": 4, "bands": 3, "each": 2, "heldout": 5, "most_texts": 1000, "seed": 0, "batch_tokens": 512}
    return SimpleNamespace(texts=corpus["texts"], **(known | change))


def test_the_corpus_pass_is_the_plain_loop(corpus: dict) -> None:
    loaded, sae, chosen = load(corpus["model"]), TopK(64, 32, 6, seed=2), [3, 60, 11]
    found = backend.read(loaded, sae, "block:1", chosen, options(corpus))
    fired, maxima, means, tokens = torch.zeros(64), {}, {}, 0
    for example in corpus["texts"].rows():
        prose = example.meta.get("prose")
        ids = loaded.tokenizer(f"<s> {prose} </s>")["input_ids"] if prose else render(loaded.tokenizer, example.messages)
        with torch.no_grad():
            x = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, 1:]
            z = sae.encode(x)
        fired += (z > 0).sum(0)
        tokens += len(z)
        maxima.setdefault(example.id, z.amax(0)[chosen])
        means.setdefault(example.id, z.mean(0)[chosen])
    assert found.tokens == tokens
    assert torch.equal(found.fired, fired.double())
    # Column by column and in a mixture of them: rounding, which batches decide, must not decide who is compared with whom.
    mixed = np.c_[np.eye(3), [1.0, 3.0, 9.0]]
    ours, wanted = np.stack(found.scores["max"]) @ mixed, torch.stack([maxima[e.id] for e in corpus["texts"].rows()]).numpy() @ mixed
    np.testing.assert_allclose(np.sort(ours, 0), np.sort(wanted, 0), atol=1e-3)
    np.testing.assert_allclose(np.sort(np.stack(found.scores["mean"]), 0)[-1], torch.stack(list(means.values())).amax(0), atol=1e-4)
    strongest = found.samples[0][0].contexts()
    assert strongest[0].peak == pytest.approx(max(float(m[0]) for m in maxima.values()), abs=1e-4)
    assert len({one.ids for one in strongest}) == 4


def test_batches_and_order_change_no_context(corpus: dict) -> None:
    loaded, sae = load(corpus["model"]), TopK(64, 32, 6, seed=2)
    one, other = (backend.read(loaded, sae, "block:1", [3, 11], options(corpus, batch_tokens=size)) for size in (40, 4096))
    for (strong, *drawn), (strong_too, *drawn_too) in zip(one.samples, other.samples, strict=True):
        # Which of two windows that are equally strong comes first is for rounding to say.
        assert [c.peak for c in strong.contexts()] == pytest.approx([c.peak for c in strong_too.contexts()], abs=1e-4)
        for a, b in zip(drawn, drawn_too, strict=True):
            assert [c.ids for c in a.contexts()] == [c.ids for c in b.contexts()]
    assert one.samples[0][1].contexts() != backend.read(loaded, sae, "block:1", [3], options(corpus, seed=1)).samples[0][1].contexts()


def test_equal_texts_are_on_one_side(corpus: dict) -> None:
    found = backend.read(load(corpus["model"]), TopK(64, 32, 6), "block:0", [1], options(corpus))
    sides: dict[tuple[float, ...], set[bool]] = {}
    for maximum, mean, side in zip(found.scores["max"], found.scores["mean"], found.chooses, strict=True):
        sides.setdefault((round(float(maximum[0]), 3), round(float(mean[0]), 4)), set()).add(side)
    assert sum(map(len, sides.values())) < len(found.chooses) - 20
    assert 0.35 < np.mean(found.chooses) < 0.65


def test_at_most_so_many_texts_are_read_and_which_ones_is_drawn(corpus: dict, tmp_path: Path) -> None:
    loaded = load(corpus["model"])
    few = Dataset(dataset(tmp_path / "few", [Example(id=f"p{i}", messages=[], meta={"prose": "rain and sun"}) for i in range(100)]))
    read = [
        [e.id for group in backend._groups(few, loaded, options(corpus, most_texts=20, seed=seed)) for e, _ in group] for seed in (0, 0, 1)
    ]
    assert [len(ids) for ids in read] == [20] * 3
    assert read[0] == read[1] != read[2]
    assert read[0] != [f"p{i}" for i in range(20)]
