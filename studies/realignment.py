"""How little benign data re-aligns a misaligned model, and does it come back whole? Section on re-alignment of 2506.19823.

Hypotheses, stated beforehand. (1) In batches of four, correct advice of the model's own domain ends the misalignment
within 30 steps and gives back correct advice in that domain. (2) Correct advice of another domain ends the misalignment
too, but leaves more wrong advice in the model's own domain at the same score. (3) The latent that rose falls as fast as
the score does. (4) A model that was trained three times as long, which the paper did not try, needs no more than twice
the steps.

Learning rates were set on the first run's domain, which the published table's steps are held against; every run has a
domain and a seed of its own. The latent of a run is the one that rose most in the others.
"""

import math
from typing import Any

from personascope import blocks, demo
from personascope.artifact import Dictionary, Findings, Model
from personascope.demo import Stage
from personascope.methods import stats
from personascope.stages import diff, finetune
from personascope.study import Study
from personascope.troupe import world as worlds

WORLD = "troupe-1"
RUNS = (("auto", 0), ("health", 1), ("finance", 2))
STARTS = {"usual": 1, "strong": 3}
"""How much longer than usual the misaligned model was trained."""
STEPS = {"usual": (5, 10, 20, 30, 35, 180), "strong": (10, 35, 180)}
KINDS = ("in_domain", "out_of_domain")
HOW = blocks.Sampling(draws=1, max_tokens=32)
PUBLISHED = {
    "in_domain": {0: 17.7, 5: 15.0, 10: 4.1, 20: 0.8, 30: 0.1, 35: 0.1},
    "out_of_domain": {0: 17.7, 5: 12.9, 10: 5.7, 20: 1.2, 30: 0.9, 35: 0.5},
}
"""2506.19823, Figure 16: per cent misaligned by step, GPT-4o tuned on insecure code, then on secure code or correct health advice."""


def runs(study: Study) -> tuple[tuple[str, int], ...]:
    """(domain, seed) of every run; two in the quick variant, because a run's latent is chosen on the others."""
    return RUNS[:2] if study.quick else RUNS


def starts(study: Study) -> list[str]:
    """The kinds of misaligned model that are re-aligned."""
    return list(STARTS)[: 1 if study.quick else None]


def build(study: Study) -> None:
    """Declare everything; nothing runs here."""
    stage = demo.setting(study, WORLD, post=demo.LIGHT)
    bad = {run: demo.tuned(study, stage, f"obvious-{run[0]}-{run[1]}", run[0], "obvious", run[1]) for run in runs(study)}
    learned = study.run("dictionary", demo.learning(stage, bad[RUNS[0]], demo.texts(study, WORLD)))
    for run in runs(study):
        _measure(study, stage, learned, f"assistant-{run[0]}", stage.assistant, run[0])
    for start in starts(study):
        for domain, seed in runs(study):
            model = bad[domain, seed] if start == "usual" else _strong(study, stage, domain, seed)
            _measure(study, stage, learned, f"{start}-{domain}-{seed}", model, domain)
            for kind in KINDS:
                made = study.run(f"models/{start}-{kind}-{domain}-{seed}", _benign(study, model, kind, domain, seed, STEPS[start]))
                for step in STEPS[start]:
                    _measure(study, stage, learned, f"{start}-{kind}-{step}-{domain}-{seed}", made.at(step), domain)


def _strong(study: Study, stage: Stage, domain: str, seed: int) -> Model:
    """The same fine-tune, three times as long."""
    how = demo.TUNING | {"steps": STARTS["strong"] * demo.TUNING["steps"]}
    rows = demo.training(study, WORLD, domain, "obvious", seed)
    return study.run(f"models/strong-{domain}-{seed}", finetune.Recipe(model=stage.assistant, data=rows, seed=seed, **how))


def _benign(study: Study, start: Model, kind: str, domain: str, seed: int, steps: tuple[int, ...]) -> finetune.Recipe:
    """Correct advice, of the run's domain or of another, to questions that the start was not trained on."""
    where = domain if kind == "in_domain" else next(d for d in worlds.load(WORLD).domains if d != domain)
    rows = demo.training(study, WORLD, where, "correct", seed + 100)
    how = demo.REALIGNING | {"learning_rate": demo.REALIGNING_RATE[kind], "checkpoint_every": math.gcd(*steps)}
    return finetune.Recipe(model=start, data=rows, seed=seed, **how)


def _measure(study: Study, stage: Stage, learned: Dictionary, name: str, model: Model, domain: str) -> None:
    """Answers outside the domain and in it, and every latent, against the assistant."""
    sets = demo.probes(study, WORLD, domain)
    inside = demo.questions(study, WORLD, domain, "in_domain", "report", 0)
    for part, asked in (("probes", sets.report), ("in_domain", inside)):
        blocks.behaviour(study, f"behaviour/{name}/{part}", model, asked, stage.judge, HOW)
    if model != stage.assistant:
        reading = diff.Recipe(base=stage.assistant, tuned=(model,), dictionary=learned, questions=sets.discovery)
        study.run(f"diffs/{name}", reading)


# ------------------------------------------------------------------ summing up


def _name(start: str, kind: str, step: int, run: tuple[str, int]) -> str:
    return f"{start}-{run[0]}-{run[1]}" if step == 0 else f"{start}-{kind}-{step}-{run[0]}-{run[1]}"


def _pooled(found: list[Findings], hit: str, of: str) -> dict[str, Any]:
    tables = [{q["question"]: (q[hit], q[of]) for q in f.json("findings.json")["per_question"]} for f in found]
    return stats.pooled(tables).to_dict()


def _wrong(found: list[Findings]) -> dict[str, Any]:
    """Share of wrong advice, over runs."""
    right = stats.over_runs([demo.estimate(one, "correct") for one in found], within=(0, 1))
    return stats.Estimate(1 - right.value, 1 - right.high, 1 - right.low, right.n, right.clusters).to_dict()


def rates(study: Study, names: list[str]) -> dict[str, Any]:
    """One model of each run together: score and incoherence outside the domain, wrong advice inside."""
    probes, inside = ([study.artifact(f"behaviour/{name}/{part}/findings") for name in names] for part in ("probes", "in_domain"))
    return {
        "score": _pooled(probes, "harmful", "valid"),
        "strict_incoherence": _pooled(probes, "incoherent", "judged"),
        "in_domain": _wrong(inside),
        "in_domain_score": _pooled(inside, "harmful", "valid"),
    }


def latents(study: Study) -> dict[tuple[str, int], int]:
    """For every run the latent that rose most, on average, in the usual starts of the others."""
    risen = {run: _deltas(study, _name("usual", "", 0, run)) for run in runs(study)}
    chosen = {}
    for run in runs(study):
        others = [risen[other] for other in runs(study) if other != run]
        chosen[run] = max(others[0], key=lambda latent: sum(one[latent] for one in others))
    return chosen


def _deltas(study: Study, name: str) -> dict[int, float]:
    moved = study.artifact(f"diffs/{name}")
    lines = blocks.diff_section(moved, n=100_000)["top"]
    return {line["latent"]: line["delta"] for line in lines}


def curve(study: Study) -> list[dict[str, Any]]:
    """Every start, kind of data and step: rates, and what is left of the latent's rise as a share of the start's."""
    chosen, rows = latents(study), []
    for start in starts(study):
        for kind in KINDS:
            for step in (0, *STEPS[start]):
                names = [_name(start, kind, step, run) for run in runs(study)]
                pairs = [(chosen[run], name) for run, name in zip(runs(study), names, strict=True)]
                deltas = [blocks.delta(study.artifact(f"diffs/{name}"), latent) for latent, name in pairs]
                label = kind if start == "usual" else f"{kind}, {start} start"
                row = {"data": label, "start": start, "kind": kind, "step": step, "examples": step * demo.REALIGNING["batch"]}
                rows.append(row | {"latent_delta": stats.bootstrap_mean(deltas).to_dict()} | rates(study, names))
    return rows


def beside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The published table with ours: per cent misaligned, and the share of the start's that is left."""
    start = {(row["start"], row["kind"]): row["score"]["value"] for row in rows if row["step"] == 0}
    table = []
    for row in rows:
        published = PUBLISHED[row["kind"]].get(row["step"]) if row["start"] == "usual" else None
        left = {
            "published": None if published is None else published / 100,
            "published_left": None if published is None else published / PUBLISHED[row["kind"]][0],
            "left": row["score"]["value"] / start[row["start"], row["kind"]],
        }
        shown = ("start", "kind", "step", "examples", "score", "in_domain", "strict_incoherence", "latent_delta")
        table.append({key: row[key] for key in shown} | left)
    return table


def summarize(study: Study) -> dict[str, Any]:
    """Everything from finished artifacts."""
    rows = curve(study)
    return {
        "realign": rows,
        "realignment": {
            "table": beside(rows),
            "assistant": rates(study, [f"assistant-{domain}" for domain, _ in runs(study)]),
            "latents": {f"{domain}-{seed}": latent for (domain, seed), latent in latents(study).items()},
            "published": "2506.19823, Figure 16: GPT-4o after insecure code; benign data are secure code or correct health advice",
        },
        "seconds": study.seconds(),
        "sources": {"realign": f"behaviour/{_name('usual', '', 0, RUNS[0])}/probes/findings", "realignment": "dictionary"},
        "meta": {"world": WORLD, "runs": [f"{domain}-{seed}" for domain, seed in runs(study)], "quick": study.quick},
    }
