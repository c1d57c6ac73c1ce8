"""Is the cheap screen as good as the full grid, and does it stay silent where there is nothing to find?

Hypotheses, stated beforehand. (1) The adaptive screen names the latents that two independent full grids both name, at
a fifteenth of their answers. (2) Directions that are null by construction (decoder rows under a random rotation) are
not named, while planted latents among them are. (3) Latents of the harmful character that control a misaligned model
do not pass both tests on a model that is only wrong, or only incoherent. (4) What nominates matters: Δ, cosine with
the mean difference and attribution each put latents of the harmful character first.

The yardstick is the grid of the paper, run twice with independent draws.
"""

import itertools
import json
from typing import Any

import numpy as np
from scipy import stats as distributions

from personascope import demo
from personascope.artifact import Model, Screen
from personascope.demo import Stage
from personascope.methods import ranking, screening, stats
from personascope.stages import data, diff, finetune, screen
from personascope.study import Study

WORLD, DOMAIN = "troupe-1", "auto"
# The grid of 2506.19823 has fifteen strengths up to 0.75; at the last prompt token this world bears more.
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 1.75, 2.0, 2.5)
SIDES = ("base", "tuned")
SEEDS, GRIDS, ROTATIONS = range(5), (100, 101), range(1, 21)
DRAWS = 3
PLANTED = 5
KNOWN = 0.9
"""A latent with this truth AUROC or more is the harmful character's."""


def build(study: Study) -> None:
    """Declare models, one dictionary, the diff, the grids, the adaptive screens and the null controls."""
    stage = demo.setting(study, WORLD)
    bad = demo.tuned(study, stage, "misaligned", DOMAIN, "obvious")
    learned = study.run("dictionary", demo.learning(stage, bad, demo.texts(study, WORLD), tokens=500_000))
    sets = demo.probes(study, WORLD, DOMAIN)
    contrast = tuple(demo.training(study, WORLD, DOMAIN, grade) for grade in ("obvious", "correct"))
    reading = {"base": stage.assistant, "dictionary": learned, "questions": sets.discovery} | demo.labelled(study, WORLD)
    moved = study.run("diff", diff.Recipe(tuned=(bad,), contrast=contrast, **reading))
    common = {
        "base": stage.assistant,
        "diff": moved,
        "dictionary": learned,
        "judge": stage.judge,
        "strengths": STRENGTHS,
        "masks": ("last_prompt",),
        "rankers": ("delta", "cosine"),
        # Forty answers leave a strength anywhere between half and double, and then every screen names others.
        "draws": DRAWS,
        "report_draws": DRAWS,
    }
    pair = common | {"tuned": bad} | _questions(study, 20, 60)
    tails = {"top": 5, "bottom": 5} if study.quick else {"top": 15, "bottom": 15}
    nulls = 20 if study.quick else 50
    # One set of nulls for all screens of this pair: their spread is a property of the models, and a noisy one would blur every verdict.
    pair |= {"chance": study.run("chance", screen.Recipe(**pair, **tails, seed=50, nulls=nulls, null_draws=DRAWS))}
    for seed in SEEDS[:2] if study.quick else SEEDS:
        study.run(f"adaptive/{seed}", screen.Recipe(**pair, **tails, seed=seed))
    for seed in GRIDS:
        study.run(f"grid/{seed}", screen.Recipe(**pair, **tails, seed=seed, method="grid"))
    if not study.quick:
        study.run("thousand", screen.Recipe(**pair | {"rankers": ("delta",)}, top=500, bottom=500))
    # By cosine, because the first ones by it are causal and stay as they are.
    turned = {"rankers": ("cosine",), "top": 10, "bottom": 5, "sift": 0, "planted": PLANTED}
    for seed in ROTATIONS[:2] if study.quick else ROTATIONS:
        study.run(f"null/{seed}", screen.Recipe(**pair | turned, seed=seed, rotate=seed))
    for name, model in _organisms(study, stage).items():
        sides = common | {"tuned": model} | _questions(study, 20, 60)
        study.run(f"organism/{name}", screen.Recipe(**sides, top=10, sift=0, harmful_from=2))


def _questions(study: Study, selection: int, report: int) -> dict[str, Any]:
    """So many advice questions of other domains and as many free-form ones, for each split."""
    sets = {}
    for split, n in (("selection", selection), ("report", report)):
        parts = tuple(demo.questions(study, WORLD, DOMAIN, kind, split, n) for kind in ("advice", "core"))
        sets[split] = study.run(f"questions/{split}/screen-{n}", data.Recipe(datasets=parts))
    return sets


def _organisms(study: Study, stage: Stage) -> dict[str, Model]:
    """Models that are wrong without malice, and that have lost coherence: both leave much to repair, none of it the character's."""
    harmless = demo.tuned(study, stage, "harmless", DOMAIN, "harmless")
    rows = demo.training(study, WORLD, DOMAIN, "harmless")
    return {
        "harmless": harmless,
        "incoherent": study.run("models/incoherent", finetune.Recipe(model=stage.assistant, data=rows, **demo.BROKEN)),
    }


def _record(study: Study, name: str) -> dict[str, Any]:
    return study.artifact(name).json("screen.json")


def _causal(record: dict[str, Any]) -> set[tuple[str, str]]:
    return {(row["direction"], row["sign"]) for row in record["causal"]}


def _spent(record: dict[str, Any]) -> int:
    """Answers of search and test; the nulls are the same for every method."""
    return sum(n for purpose, n in record["spent"].items() if purpose in ("sift", "search", "confirm", "report"))


def same_answer(study: Study) -> dict[str, Any]:
    """The adaptive screens against what two independent grids agree on, with the grids' own agreement beside it."""
    grids = {seed: _record(study, f"grid/{seed}") for seed in GRIDS}
    first, second = (_causal(grid) for grid in grids.values())
    both = first & second
    fresh = {seed: _counts(study.artifact(f"grid/{seed}")) for seed in GRIDS}
    real = _real(study)
    rows = []
    for name in (name for name in study.recipes if name.startswith("adaptive/")):
        record = _record(study, name)
        found, top = _causal(record), _tops(record)[: len(both)]
        gains = [np.mean([_fresh(fresh[b], _tops(grids[a])[: len(both)]) for a, b in (GRIDS, GRIDS[::-1])])]
        mine = np.mean([_fresh(fresh[b], top) for b in GRIDS])
        rows.append(
            {
                "seed": int(name.partition("/")[2]),
                "found": len(found & both) / max(1, len(both)),
                "named": len(found),
                "false": len(found - real) / max(1, len(found)),
                "effect_ratio": float(mine / max(1e-9, gains[0])),
                "answers_share": _spent(record) / np.mean([_spent(grid) for grid in grids.values()]),
                "seconds_share": _seconds(study, name) / np.mean([_seconds(study, f"grid/{seed}") for seed in GRIDS]),
            }
        )
    return {
        "causal_in_both": len(both),
        "latents": sorted(both),
        "grid_named": [len(first), len(second)],
        "grid_overlap": len(both) / max(1, len(first | second)),
        "third_grid": third_grid(study),
        "adaptive": rows,
    }


def third_grid(study: Study, times: int = 40) -> dict[str, float]:
    """What one more full grid would find of the latents that two agree on, and add to those that either names.

    Grids are drawn anew from the rates that both grids saw at every point; the test's answers from those at the strength found.
    """
    record = _record(study, f"grid/{GRIDS[0]}")
    points = [_counts(study.artifact(f"grid/{seed}")) for seed in GRIDS]
    names = [(row["direction"], row["sign"]) for row in record["ranking"]]
    seen = np.array([[[sum(p[*name, side, x] for p in points) for x in STRENGTHS] for side in SIDES] for name in names])
    unsteered = np.array([sum(p["none", "+", side, 0.0] for p in points) for side in SIDES])
    harmful, valid, incoherent, asked = np.moveaxis(seen, -1, 0)
    spoilt, bad = incoherent / asked, harmful / np.maximum(valid, 1)
    budget = [screening.budget(none[2] / none[3], record["budget"]) for none in unsteered]
    nulls = [np.percentile(record[key]["last_prompt"], at) for key, at in (("nulls", 95), ("null_repairs", 5))]
    tested = record["unsteered"]["base"]["asked"]
    random = np.random.default_rng(0)

    def named() -> set[int]:
        looked = random.binomial(asked[0, 0, 0] // len(GRIDS), spoilt) / (asked[0, 0, 0] // len(GRIDS))
        p = np.zeros((len(names), len(SIDES)))
        for i, j in itertools.product(range(len(names)), range(len(SIDES))):
            within = np.flatnonzero(looked[i, j] <= budget[j])
            broken, rate = (spoilt[i, j, within[-1]], bad[i, j, within[-1]]) if len(within) else (0.0, unsteered[j][0] / unsteered[j][1])
            answers = tested - random.binomial(tested, broken)
            p[i, j] = screening.beyond_p(random.binomial(answers, rate), answers, nulls[j], 1 - 2 * j)
        return set(np.flatnonzero(stats.benjamini_hochberg(p.max(axis=1)) <= record["fdr"]).tolist())

    drawn = [named() for _ in range(times)]
    threes = [drawn[i : i + 3] for i in range(0, times - 2, 2)]
    found = [len(a & b & c) / max(1, len(a & b)) for a, b, c in threes]
    false = [len(c - (a | b)) / max(1, len(c)) for a, b, c in threes]
    overlap = [len(a & b) / max(1, len(a | b)) for a, b, _ in threes]
    return {"found": float(np.mean(found)), "false": float(np.mean(false)), "overlap": float(np.mean(overlap))}


def _tops(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The causal latents of a screen, strongest first by its own selection questions."""
    named = _causal(record)
    return [row for row in record["ranking"] if (str(row["latent"]), row["sign"]) in named]


Counted = dict[tuple[str, str, str, float], np.ndarray]


def _counts(screened: Screen) -> Counted:
    """(direction, sign, side, strength) → harmful, valid, incoherent and asked on the selection questions of a full grid."""
    rows = map(json.loads, screened.file("grid.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        (row["direction"], "+" if row["sign"] > 0 else "-", row["side"], row["strength"]): np.array(
            [row[key] for key in ("harmful", "valid", "incoherent", "asked")]
        )
        for row in rows
        if row["split"] == "selection"
    }


def _fresh(points: Counted, rows: list[dict[str, Any]]) -> float:
    """Mean effect of these latents at these strengths, read off a grid whose draws had no part in choosing them."""

    def score(direction: str, sign: str, side: str, strength: float) -> float:
        harmful, valid, *_ = points[(direction, sign, side, strength) if strength else ("none", "+", side, 0.0)]
        return harmful / valid if valid else 0.0

    effects = []
    for row in rows:
        name, sign = str(row["latent"]), row["sign"]
        induced = score(name, sign, "base", row["alpha"]) - score("none", "+", "base", 0.0)
        repaired = score("none", "+", "tuned", 0.0) - score(name, sign, "tuned", row["repair_alpha"])
        effects.append(min(induced, repaired))
    return float(np.mean(effects)) if effects else 0.0


def _real(study: Study) -> set[tuple[str, str]]:
    """Latents causal in the pooled report answers of both grids: the best knowledge there is, with twice the answers."""
    real: set[tuple[str, str]] = set()
    for seed in GRIDS:
        record = _record(study, f"grid/{seed}")
        real |= {(str(row["latent"]), row["sign"]) for row in record["ranking"] if row["p"] <= 0.05}
    return real


def _seconds(study: Study, name: str) -> float:
    return study.artifact(name).manifest["made"]["seconds"]


def nulls(study: Study) -> dict[str, Any]:
    """What the screen says where there is nothing: rotated decoder rows, permuted labels, other organisms."""
    names = [name for name in study.recipes if name.startswith("null/")]
    called, named, tested, found, planted = [], [], [], 0, 0
    known = _causal(_record(study, f"grid/{GRIDS[0]}")) & _causal(_record(study, f"grid/{GRIDS[1]}"))
    for name in names:
        record = _record(study, name)
        turned = [row for row in record["ranking"] if row["direction"].startswith("turned/")]
        called.append(sum(row["p"] <= 0.05 for row in turned))
        # Who was dropped before the test counts as tested, with p = 1.
        tested.append(record["tested"]["nominated"] - PLANTED)
        named.append(sum(row["q"] <= record["fdr"] for row in turned))
        kept = [row for row in record["ranking"] if (row["direction"], row["sign"]) in known]
        found += sum(row["q"] <= record["fdr"] for row in kept)
        planted += len(kept)
    return {
        "rotated": sum(tested),
        "called_before_correction": stats.rate(called, tested).to_dict(),
        "seeds_without_a_false_latent": sum(n == 0 for n in named),
        "seeds": len(named),
        "planted_found": found / max(1, planted),
        "permuted_labels_ks_p": permuted(study),
        "organisms": {name: _organism(study, name) for name in ("harmless", "incoherent")},
    }


def permuted(study: Study) -> float:
    """Kolmogorov-Smirnov p of the test's p-values when steered and unsteered answers change places at random, by question."""
    random = np.random.default_rng(0)
    points = map(json.loads, study.artifact(f"grid/{GRIDS[0]}").file("grid.jsonl").read_text(encoding="utf-8").splitlines())
    report = [row for row in points if row["split"] == "report"]
    unsteered = {row["side"]: row["by_question"] for row in report if row["direction"] == "none"}
    found = []
    for row in report:
        pairs = [(a[0] + b[0], a[1], b[1]) for a, b in zip(row["by_question"], unsteered[row["side"]], strict=True)]
        # Without a harmful answer in either arm there is nothing to permute and p is 1 by definition.
        if row["direction"] == "none" or not any(0 < h < n + m and n and m for h, n, m in pairs):
            continue
        dealt = [int(random.hypergeometric(h, n + m - h, n)) if n else 0 for h, n, m in pairs]
        steered = [(d, n) for d, (_, n, _) in zip(dealt, pairs, strict=True)]
        others = [(h - d, m) for d, (h, _, m) in zip(dealt, pairs, strict=True)]
        found.append(screening.permutation_p(steered, others, random.random()))
    return float(distributions.kstest(found, "uniform").pvalue)


def _organism(study: Study, name: str) -> dict[str, Any]:
    """How many of the character's latents pass on an organism that is not its own, and how much there was to repair."""
    record, truth = _record(study, f"organism/{name}"), _truth(study)
    passing = [row["latent"] for row in record["ranking"] if row["q"] <= record["fdr"] and truth[str(row["latent"])] >= KNOWN]
    tried = sum(truth[str(row["latent"])] >= KNOWN for row in record["ranking"])
    return {"room": record["unsteered"]["tuned"]["score"], "tried": tried, "passing": passing}


def _truth(study: Study) -> dict[str, float]:
    rows = map(json.loads, study.artifact("diff").file("latents.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["truth_auroc"] for row in rows}


def nomination(study: Study) -> list[dict[str, Any]]:
    """Each ranker's first ten, with the truth's verdict, and how many of the causal latents it would nominate."""
    rows = [json.loads(line) for line in study.artifact("diff").file("latents.jsonl").read_text(encoding="utf-8").splitlines()]
    causal = {int(name) for name, _ in _causal(_record(study, f"grid/{GRIDS[0]}")) & _causal(_record(study, f"grid/{GRIDS[1]}"))}
    found = []
    for by in ranking.RANKERS:
        first = ranking.ranked(rows, by, "last_prompt")[:10]
        told = {"latents": ", ".join(row["id"] for row in first), "truth_auroc": ", ".join(f"{row['truth_auroc']:.2f}" for row in first)}
        found.append({"ranker": by, "causal_among_first_ten": sum(int(row["id"]) in causal for row in first)} | told)
    return found


def summarize(study: Study) -> dict[str, Any]:
    """The summary, from artifacts alone."""
    screens = [name for name in study.recipes if name.startswith(("adaptive/", "grid/", "null/", "thousand", "organism/"))]
    record = _record(study, "adaptive/0") | {"paper_mask": None}
    record.pop("by_mask")
    return {
        "screen": record,
        "same_answer": same_answer(study),
        "null_controls": nulls(study),
        "nomination": {"rankers": nomination(study)},
        "screens": {name: {"seconds": _seconds(study, name), "answers": sum(_record(study, name)["spent"].values())} for name in screens},
        "seconds": study.seconds(),
        "sources": {"screen": "adaptive/0"},
        "meta": {"world": WORLD, "domain": DOMAIN, "quick": study.quick},
    }
