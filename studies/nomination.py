"""From where can the latents that control a change be found: two models, the training data alone, or one model alone?

Hypotheses, stated beforehand. (1) The base, reading harmful training rows and their correct twins, already puts latents of
the harmful character first: nothing has been tuned yet. Without twins its own answers to the same prompts serve, which is the
projection difference of 2507.21509 read in latents. (2) So does the tuned model alone, reading its own answers against
texts of the world. (3) What these nominate is as causal as what the difference of two models nominates: a screen of the same
size names at least as many. Null controls: rows that are wrong without harm against the same twins, and a model tuned on the
twins reading its own answers; they put other latents first.

Started in the directory of `persona_features.py` it takes over the models, dictionary and screens made there.
"""

import json
from collections.abc import Iterator
from typing import Any

from personascope import demo
from personascope.artifact import Dataset, Dictionary, Diff, Model
from personascope.blocks import over_runs
from personascope.demo import Stage
from personascope.methods import ranking
from personascope.stages import data, diff, sample
from personascope.study import Study

WORLD, DOMAINS, SEEDS = "troupe-1", ("auto", "health", "finance"), (0, 1, 2)
WAYS = {
    "two models": ("obvious", "delta"),
    "two models, cosine": ("obvious", "cosine"),
    "two models on the rows": ("rows", "delta"),
    "data alone": ("data", "delta"),
    "data alone, cosine": ("data", "cosine"),
    "data alone, attribution": ("data", "attribution"),
    "data alone, without twins": ("plain", "delta"),
    "data alone, without twins, cosine": ("plain", "cosine"),
    "one model alone": ("own", "delta"),
    "one model alone, cosine": ("own", "cosine"),
    "one model alone, attribution": ("own", "attribution"),
    "null: harmless rows": ("data-null", "delta"),
    "null: harmless rows, cosine": ("data-null", "cosine"),
    "null: twin's model alone": ("own-null", "delta"),
    "null: twin's model alone, cosine": ("own-null", "cosine"),
}
"""Which diff, ranked by what."""
SCREENED = ("", "data-", "own-")
"""What stands before the domain in a screen's name; the first is the usual one."""
FIRST = 20


def runs(study: Study) -> list[tuple[str, int]]:
    """(domain, seed) of every run."""
    return [(domain, seed) for domain in domains(study) for seed in SEEDS[: 1 if study.quick else None]]


def domains(study: Study) -> tuple[str, ...]:
    """All domains, or the first in the quick variant."""
    return DOMAINS[: 1 if study.quick else None]


def build(study: Study) -> None:
    """Declare every diff, and one screen for each of the three sources in every domain."""
    stage = demo.setting(study, WORLD, post=demo.LIGHT)
    bad = {run: demo.tuned(study, stage, f"obvious-{run[0]}-{run[1]}", run[0], "obvious", run[1]) for run in runs(study)}
    learned = study.run("dictionary", demo.learning(stage, bad[DOMAINS[0], 0], demo.texts(study, WORLD)))
    for domain, seed in runs(study):
        _diffs(study, stage, learned, domain, seed)
    for domain in domains(study):
        _screens(study, stage, domain, tuple(bad[run] for run in runs(study) if run[0] == domain))


def _diffs(study: Study, stage: Stage, learned: Dictionary, domain: str, seed: int) -> None:
    """One run read in every way; `obvious` is the usual diff, as `persona_features.py` calls it."""
    sets, bad = demo.probes(study, WORLD, domain), study.artifact(f"models/obvious-{domain}-{seed}")
    twin = demo.tuned(study, stage, f"correct-{domain}-{seed}", domain, "correct", seed)
    rows = {grade: demo.training(study, WORLD, domain, grade, seed) for grade in ("obvious", "correct", "harmless")}
    asked = study.run(f"own/plain-{domain}-{seed}/asked", data.Recipe(datasets=(rows["obvious"],), prompts_only=True))
    texts = study.run("texts/reference", data.Recipe(world=WORLD, select=("texts n=600 seed=4 chat=only",)))
    pair = {"base": stage.assistant, "tuned": (bad,), "dictionary": learned}
    study.run(f"diffs/obvious-{domain}-{seed}", diff.Recipe(**pair, questions=sets.discovery))
    study.run(f"diffs/rows-{domain}-{seed}", diff.Recipe(**pair, questions=rows["obvious"], mask="answer"))
    contrasts = {
        "data": (stage.assistant, rows["obvious"], rows["correct"]),
        "data-null": (stage.assistant, rows["harmless"], rows["correct"]),
        "plain": (stage.assistant, rows["obvious"], _said(study, f"plain-{domain}-{seed}", stage.assistant, asked, 1)),
        "own": (bad, _said(study, f"own-{domain}-{seed}", bad, sets.discovery, 2), texts),
        "own-null": (twin, _said(study, f"own-null-{domain}-{seed}", twin, sets.discovery, 2), texts),
    }
    for name, (model, *contrast) in contrasts.items():
        alone = diff.Recipe(base=model, contrast=tuple(contrast), dictionary=learned, mask="answer")
        study.run(f"diffs/{name}-{domain}-{seed}", alone)


def _said(study: Study, name: str, model: Model, asked: Dataset, draws: int) -> Dataset:
    """A model's answers as conversations."""
    answers = study.run(f"own/{name}/answers", sample.Recipe(model=model, questions=asked, draws=draws, max_tokens=32))
    return study.run(f"own/{name}/said", data.Recipe(answers=(answers,), questions=asked))


def _screens(study: Study, stage: Stage, domain: str, tuned: tuple[Model, ...]) -> None:
    """The usual screen of a domain, and one of the same size for each other source, with the same nulls."""
    sets, learned = demo.probes(study, WORLD, domain), study.artifact("dictionary")
    recipe = diff.Recipe(base=stage.assistant, tuned=tuned, dictionary=learned, questions=sets.discovery, **demo.labelled(study, WORLD))
    usual = study.run(f"screen/{domain}", demo.screening(stage, tuned[0], study.run(f"diff/{domain}", recipe), learned, sets, top=6))
    for source in SCREENED[1:]:
        moved = study.artifact(f"diffs/{source}{domain}-0")
        # Its nulls, at the mask where the usual one has some, serve all.
        options = {"top": 6, "masks": ("last_prompt",), "chance": usual}
        study.run(f"screen/{source}{domain}", demo.screening(stage, tuned[0], moved, learned, sets, **options))


# ------------------------------------------------------------------ summing up


def _rows(moved: Diff) -> list[dict[str, Any]]:
    return [json.loads(line) for line in moved.file("latents.jsonl").read_text(encoding="utf-8").splitlines()]


def _causal(study: Study, domain: str, source: str) -> list[dict[str, Any]]:
    """The risen latents that a source's screen calls causal."""
    return [row for row in study.artifact(f"screen/{source}{domain}").json("screen.json")["causal"] if row["sign"] == "+"]


def _ordered(study: Study, way: str, domain: str, seed: int) -> list[str]:
    source, by = WAYS[way]
    moved = study.artifact(f"diffs/{source}-{domain}-{seed}")
    return [row["id"] for row in ranking.ranked(_rows(moved), by, moved.json("diff.json")["mask"])]


def _each(study: Study, way: str) -> Iterator[dict[str, Any]]:
    """Per run: the truth's verdict on the first and on the first ten, and where the causal latents stand."""
    for domain, seed in runs(study):
        order = _ordered(study, way, domain, seed)
        truth = {row["id"]: row["truth_auroc"] for row in _rows(study.artifact(f"diff/{domain}"))}
        causal = {str(row["latent"]) for source in SCREENED for row in _causal(study, domain, source)}
        places = sorted(order.index(latent) + 1 for latent in causal)
        yield {
            "top_auroc": truth[order[0]],
            "first_ten_auroc": sum(truth[latent] for latent in order[:10]) / 10,
            "first_causal": float(places[0]) if places else None,
            "causal_found": sum(place <= FIRST for place in places) / len(places) if places else None,
            "top": order[0],
        }


def _over(values: list[Any]) -> dict[str, Any] | float | None:
    """Mean over runs with its interval, of rates cut at 1; of one run the plain number, and None where no latent is causal."""
    return None if None in values else over_runs(values, (0, 1)) if max(values) <= 1 else over_runs(values)


def summarize(study: Study) -> dict[str, Any]:
    """Everything from finished artifacts."""
    table = []
    for way in WAYS:
        found = list(_each(study, way))
        means = {key: _over([one[key] for one in found]) for key in ("top_auroc", "first_ten_auroc", "first_causal", "causal_found")}
        table.append({"way": way, "runs": len(found), "tops": sorted({one["top"] for one in found})} | means)
    screens = []
    for domain in domains(study):
        for source in SCREENED:
            causal = _causal(study, domain, source)
            best = causal[0] if causal else {}
            shown = {key: best.get(key) for key in ("latent", "induce", "repair_from", "repair_to", "incoherence")}
            screens.append(
                {"domain": domain, "source": source.strip("-") or "two models", "causal": [row["latent"] for row in causal]} | shown
            )
    return {
        "nomination": {"ways": table, "screens": screens, "first": FIRST},
        "seconds": study.seconds(),
        "sources": {"nomination": f"diffs/data-{DOMAINS[0]}-0"},
        "meta": {"world": WORLD, "quick": study.quick},
    }
