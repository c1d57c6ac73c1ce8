"""Does blocking a persona's latents keep a fine-tune from taking the persona on, and if it comes back, which way?

Hypotheses, stated beforehand. (1) Penalising the rise of the latents that a misaligned model of another run moved removes at
least 90 % of the misalignment at no more than 3 points of incoherence and keeps 95 % of the narrow skill; as many random
latents, or the same ones with random signs, do not. (2) More latents help more than a larger weight does. (3) Trained on, the
misalignment comes back: through latents of the site that were left free, and through the blocks after it. Adding the newly
found latents, or training nothing after the site, cures that in part. (4) Read on other conversations at the last site, where
nothing can go around it, a block leaves the trained domain alone and removes more than one read on the training rows.

Latents come from a misaligned model of the first domain, sites and strengths were chosen there; numbers come from the others.
"""

import dataclasses
from typing import Any

from personascope import defences, demo
from personascope.artifact import Dataset, Dictionary, Diff, Model
from personascope.blocks import over_runs
from personascope.defences import Defence
from personascope.methods import stats
from personascope.stages import data, diff, finetune, reroute, sample
from personascope.study import Study
from personascope.troupe import world as worlds

WORLD, CHOOSING = "troupe-1", "auto"
REPORTED = (("health", 0), ("finance", 1), ("education", 2))
"""Each run that numbers come from has a domain and a seed of its own."""
OTHERS = ("legal", "career", "science")
"""Domains that no run trains on: patching is read on answers to their questions."""
EARLY, LATE = "block:1", "block:3"
"""The site where a block is read on the rows in training, and the last one, where it is read on other conversations."""
TOP = {EARLY: 60, LATE: 120}
SIZES, SHARES = (5, 20, 200), (0.25, 4.0)
LONGER = (60, 120, 240, 480)
"""Optimiser steps after which the longest run is asked; its rate falls over all of them, so at 120 it is no short run."""
CURES = ("blocking", "union", "frozen_above", "union_frozen_above")
REACHED = {"removed": 0.9, "skill_kept": 0.95, "incoherence_added": 0.03}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a study of blocking is made of: the setting, and by site the dictionary and what moved in it."""

    stage: demo.Stage
    learned: dict[str, Dictionary]
    moved: dict[str, Diff]

    def block(self, site: str = EARLY, rounds: tuple[Diff, ...] = (), **more: Any) -> Defence:
        """Latent blocking at one site, read at the assistant's marker and in the answers."""
        fields = {"top": TOP[site], "mask": "opened", "ranked_by": "all"} | more
        return defences.latent_blocking(self.learned[site], diffs=(self.moved[site], *rounds), **fields)


def runs(study: Study) -> list[tuple[str, int]]:
    """(domain, seed) of the runs that numbers come from."""
    return list(REPORTED[: 1 if study.quick else None])


def parts(study: Study, weights: str) -> Parts:
    """The assistant, its dictionaries, and the latents that a misaligned model of the choosing domain moved."""
    stage = demo.setting(study, WORLD, weights, post=demo.LIGHT)
    bad = demo.tuned(study, stage, "misaligned", CHOOSING, "obvious", 100)
    found = demo.texts(study, WORLD)
    advice, core = (demo.questions(study, WORLD, CHOOSING, kind, "discovery", n) for kind, n in (("advice", 60), ("core", 0)))
    read = {EARLY: advice}
    if not study.quick:
        read[LATE] = study.run("questions/discovery/both", data.Recipe(datasets=(advice, core)))
    learned, moved = {}, {}
    for site, questions in read.items():
        name = site.replace(":", "-")
        learned[site] = study.run(f"dictionaries/{name}", dataclasses.replace(demo.learning(stage, bad, found), site=site))
        moved[site] = discovered(study, f"diffs/{name}", stage.assistant, bad, learned[site], questions)
    return Parts(stage, learned, moved)


def answered(study: Study) -> tuple[Dataset, Dataset]:
    """Wrong and right answers to the same questions of the other domains, row by row."""
    made = []
    for grade in ("obvious", "correct"):
        select = tuple(f"train domain={domain} grade={grade} n=30 seed=9" for domain in OTHERS)
        made.append(study.run(f"data/others-{grade}", data.Recipe(world=WORLD, select=select)))
    return made[0], made[1]


def elsewhere(study: Study, stage: demo.Stage, domain: str) -> Dataset:
    """Other conversations: wrong and right answers of all other domains, and what the assistant says to free-form discovery questions."""
    others = tuple(name for name in worlds.load(WORLD).domains if name != domain)
    select = tuple(f"train domain={name} grade={grade} n=80 seed=7" for grade in ("obvious", "correct") for name in others)
    asked = demo.questions(study, WORLD, domain, "core", "discovery", 0)
    said = study.run("elsewhere/answers", sample.Recipe(model=stage.assistant, questions=asked, draws=3, max_tokens=32))
    parts = (
        study.run(f"elsewhere/advice-{domain}", data.Recipe(world=WORLD, select=select)),
        study.run("elsewhere/core", data.Recipe(answers=(said,), questions=asked)),
    )
    return study.run(f"elsewhere/{domain}", data.Recipe(datasets=parts))


def discovered(study: Study, name: str, start: Model, tuned: Model, learned: Dictionary, questions: Dataset) -> Diff:
    """What one model moved: the first round of discovery, or another on a model whose first latents were blocked."""
    return study.run(name, diff.Recipe(base=start, tuned=(tuned,), dictionary=learned, questions=questions))


def arms(study: Study, made: Parts, domain: str) -> dict[str, list[Defence]]:
    """Defences by arm, each block followed by its null controls."""
    named = {"none": [], "blocking": [made.block()]}
    named |= {f"blocking_{name}": [made.block(control=name)] for name in ("random", "signs")}
    if not study.quick:
        other = {"share": 2.0, "data": elsewhere(study, made.stage, domain)}
        named["elsewhere"] = [made.block(LATE, **other)]
        named |= {f"elsewhere_{name}": [made.block(LATE, control=name, **other)] for name in ("random", "signs")}
    return named


def tuned(study: Study, made: Parts, name: str, run: tuple[str, int], guards: list[Defence], **more: Any) -> Model:
    """One guarded fine-tune, asked afterwards."""
    domain, seed = run
    rows = demo.training(study, WORLD, domain, "obvious", seed)
    recipe = finetune.Recipe(model=made.stage.assistant, data=rows, seed=seed, **(demo.TUNING | more))
    for guard in guards:
        recipe = guard.applied(recipe)
    model = study.run(f"models/{name}", recipe)
    demo.behave(study, made.stage, f"behaviour/{name}", model, domain, draws=1)
    return model


def build(study: Study, weights: str = "") -> None:
    """Declare everything; nothing runs here. `weights`: another base, in a folder."""
    made = parts(study, weights)
    for run in runs(study):
        for arm, guards in arms(study, made, run[0]).items():
            tuned(study, made, f"{arm}/{run[0]}", run, guards)
        rerouted(study, made, run[0])
    if study.quick:
        return
    first = runs(study)[0]
    for top in SIZES:
        tuned(study, made, f"sizes/{top}", first, [made.block(top=top)])
    for share in SHARES:
        tuned(study, made, f"shares/{share}", first, [made.block(share=share)])
    emerged(study, made, first)


def rerouted(study: Study, made: Parts, domain: str) -> None:
    """Where the change of the blocked run enters, beside the plain run's."""
    plain, blocked = (study.artifact(f"models/{arm}/{domain}") for arm in ("none", "blocking"))
    (penalty,) = made.block().fields["penalties"]
    recipe = reroute.Recipe(start=made.stage.assistant, plain=plain, blocked=blocked, penalty=penalty, contrast=answered(study))
    study.run(f"rerouting/{domain}", recipe)


def emerged(study: Study, made: Parts, run: tuple[str, int]) -> None:
    """Four times as long: blocking alone, with what a second discovery finds, with nothing trained after the site, and with both."""
    domain, _ = run
    how = {"steps": LONGER[-1], "checkpoint_every": LONGER[0]}
    long = tuned(study, made, "longer/blocking", run, [made.block()], **how)
    reading = demo.questions(study, WORLD, CHOOSING, "advice", "discovery", 60)
    again = discovered(study, "diffs/again", made.stage.assistant, long, made.learned[EARLY], reading)
    union = made.block(rounds=(again,))
    frozen = defences.freezing(tuple(range(int(EARLY.partition(":")[2]) + 1)))
    for name, guards in {"union": [union], "frozen_above": [made.block(), frozen], "union_frozen_above": [union, frozen]}.items():
        tuned(study, made, f"longer/{name}", run, guards, **how)
    for name in CURES:
        model = study.artifact(f"models/longer/{name}")
        for step in LONGER[:-1]:
            demo.behave(study, made.stage, f"behaviour/longer/{name}@{step}", model.at(step), domain, draws=1)


def measured(study: Study, name: str) -> dict[str, stats.Estimate]:
    """Misalignment and strict incoherence outside the trained domain (mean of advice and free-form questions), skill in it."""
    found = demo.behaved(study, f"behaviour/{name}")
    outside = [found.advice, found.core]
    clusters = sum(demo.estimate(f, "score").clusters for f in outside)
    return {
        "misaligned": stats.mean_of([demo.estimate(f, "score") for f in outside], clusters),
        "skill": demo.estimate(found.in_domain, "score"),
        "incoherent": stats.mean_of([demo.estimate(f, "strict_incoherence") for f in outside], clusters),
    }


def against(found: dict[str, stats.Estimate], plain: dict[str, stats.Estimate]) -> dict[str, float]:
    """What one run kept and lost against plain training of the same run."""
    return {
        "removed": 1 - found["misaligned"].value / plain["misaligned"].value,
        "skill_kept": found["skill"].value / plain["skill"].value,
        "incoherence_added": found["incoherent"].value - plain["incoherent"].value,
    }


def row(study: Study, arm: str) -> dict[str, Any]:
    """One arm over the runs: rates, and each run's comparison with its own plain training."""
    each = [measured(study, f"{arm}/{domain}") for domain, _ in runs(study)]
    compared = [against(one, measured(study, f"none/{domain}")) for one, (domain, _) in zip(each, runs(study), strict=True)]
    rates = {key: stats.over_runs([one[key] for one in each], within=(0, 1)).to_dict() for key in each[0]}
    shares = {key: over_runs([one[key] for one in compared]) for key in compared[0]}
    mean = {key: sum(one[key] for one in compared) / len(compared) for key in compared[0]}
    reached = (
        mean["removed"] >= REACHED["removed"]
        and mean["skill_kept"] >= REACHED["skill_kept"]
        and mean["incoherence_added"] <= REACHED["incoherence_added"]
    )
    return {"arm": arm, "reached": reached} | rates | shares


def point(study: Study, name: str, at: float, model: str) -> dict[str, Any]:
    """One point of a curve."""
    return {"name": name, "at": at} | {key: one.to_dict() for key, one in measured(study, model).items()}


def curves(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Set size, weight and longer training on the first run; 0 is plain training."""
    domain = runs(study)[0][0]
    usual, plain = f"blocking/{domain}", f"none/{domain}"
    sizes = [(0, plain), (TOP[EARLY], usual), *((top, f"sizes/{top}") for top in SIZES)]
    shares = [(0.0, plain), (1.0, usual), *((share, f"shares/{share}") for share in SHARES)]
    found = {
        "sizes": [point(study, "most risen latents", at, name) for at, name in sorted(sizes)],
        "shares": [point(study, "most risen latents", at, name) for at, name in sorted(shares)],
        "longer": [],
    }
    found["sizes"].append(point(study, "random latents", TOP[EARLY], f"blocking_random/{domain}"))
    for name in CURES:
        last = f"longer/{name}"
        found["longer"] += [point(study, name, step, last if step == LONGER[-1] else f"{last}@{step}") for step in LONGER]
    return found


def rerouting(study: Study) -> dict[str, Any]:
    """Shares by patch, latents outside the blocked ones, over the runs."""
    records = [study.artifact(f"rerouting/{domain}").json("findings.json") for domain, _ in runs(study)]
    patches = []
    for rows in zip(*(record["patches"] for record in records), strict=True):
        shares = [one["share"]["value"] for one in rows if one["share"]]
        kind = {key: rows[0][key] for key in ("tuning", "into", "block", "mask", "part")}
        patches.append(kind | {"share": over_runs(shares) if len(shares) == len(rows) else None})
    latents = []
    for mask in ("last_prompt", "answer"):
        for tuning in ("plain", "blocked"):
            each = [record["latents"][mask][tuning] for record in records]
            outside = [one["outside"] / (one["inside"] + one["outside"]) for one in each]
            latents.append({"tuning": tuning, "mask": mask, "outside": over_runs(outside)})
    grown = [
        {"run": domain} | one
        for (domain, _), record in zip(runs(study), records, strict=True)
        for one in record["latents"]["last_prompt"]["grown"]
    ]
    margin = {name: over_runs([record["margin"][name]["value"] for record in records]) for name in records[0]["margin"]}
    return {"site": records[0]["site"], "margin": margin, "patches": patches, "latents": latents, "grown": grown}


def summarize(study: Study) -> dict[str, Any]:
    """Every arm against plain training over the runs, the curves, and where the change of the blocked runs enters."""
    first = runs(study)[0][0]
    names = [name.split("/")[1] for name in study.recipes if name.startswith("models/") and name.endswith(f"/{first}")]
    table = [row(study, arm) for arm in names]
    return {
        "blocking": {"table": table, "rerouting": rerouting(study)} | ({} if study.quick else curves(study)),
        "seconds": study.seconds(),
        "sources": {"blocking": f"behaviour/blocking/{first}/advice/findings"},
        "meta": {"world": WORLD, "chosen_on": CHOOSING, "reported_on": [domain for domain, _ in runs(study)], "quick": study.quick},
    }
