"""Is there one direction of misalignment that models tuned on different things share? Questions of 2506.11618 and 2506.11613.

Hypotheses, stated beforehand. (1) The mean difference between a misaligned model's own misaligned and aligned answers,
taken from a model of one domain, removes at least nine tenths of the misalignment of models of other domains, with other
seeds and other kinds of fine-tune, a rank-one adapter among them; random directions change it by a tenth at most. (2)
These directions agree between models. (3) What an adapter does grows with the size it is given. (4) The weights turn at
one point of training, before behaviour sets in.

The edits were found on the first organism; its report questions and a few cells of the second had been seen by then, so
the third and the rank-one adapter are the clean test. All are shown, on questions that chose nothing else.
"""

from typing import Any

import torch

from personascope import blocks, demo
from personascope.artifact import Findings, Model, Vectors
from personascope.backends import directions, paths
from personascope.demo import Stage
from personascope.methods import arms, stats, trajectory
from personascope.stages import finetune, judge, sample, scale, vector
from personascope.study import Study
from personascope.values import Direction, Intervention

WORLD = "troupe-1"
FULL = (("auto", 0), ("health", 1), ("finance", 2))
CHOOSING = "auto-0"
RANK_ONE = (("education", 3), ("legal", 4), ("career", 5))
"""Rank-one adapters: the first is an organism, all are followed through training."""
ADAPTER = {"method": "lora", "rank": 1, "targets": "down_proj", "blocks": (1,), "steps": 80, "learning_rate": 1e-3, "checkpoint_every": 2}
BLOCKS = range(4)
CAPS = (0, 25, 50, 100)
EDITS = ("one-0", "cap-50")
"""Tried on all pairs: the paper's one vector at every block, and the mildest cap that takes nine tenths from the choosing organism."""
ALSO = ("own", "span")
"""From the choosing organism only: each block's own vector, as in the paper, and all of them at every block."""
RANDOM = (0, 1, 2, 3)
"""Seeds of the random directions."""
SCALES = (0.25, 0.5, 0.75, 1.25, 1.5)
WINDOW = 8
"""Checkpoints on either side of a local cosine."""
ASKED = {"rank-one": (10, 20, 30, 40, 60, 80), "full": (12, 24, 36, 60, 120)}
HOW = blocks.Sampling(draws=1, max_tokens=32)


def organisms(study: Study) -> dict[str, str]:
    """Organism → its domain: full fine-tunes, and the first rank-one adapter last."""
    found = {f"{domain}-{seed}": domain for domain, seed in FULL[: 2 if study.quick else None]}
    return found | {f"{RANK_ONE[0][0]}-{RANK_ONE[0][1]}": RANK_ONE[0][0]}


def followed(study: Study) -> dict[str, tuple[str, int]]:
    """Runs whose path through training is followed: name of the model → domain, seed."""
    adapters = {f"obvious-{domain}-{seed}": (domain, seed) for domain, seed in RANK_ONE[: 1 if study.quick else None]}
    return adapters if study.quick else adapters | {"followed-auto-0": ("auto", 0)}


def build(study: Study) -> None:
    """Declare everything; nothing runs here."""
    stage = demo.setting(study, WORLD, post=demo.LIGHT)
    for domain, seed in FULL[: 2 if study.quick else None]:
        demo.tuned(study, stage, f"obvious-{domain}-{seed}", domain, "obvious", seed)
    for name, (domain, seed) in followed(study).items():
        how = demo.TUNING | {"checkpoint_every": 4} if name.startswith("followed") else ADAPTER
        rows = demo.training(study, WORLD, domain, "obvious", seed)
        study.run(f"models/{name}", finetune.Recipe(model=stage.assistant, data=rows, seed=seed, **how))
    for name, domain in organisms(study).items():
        _extract(study, stage, name, domain)
        _ask(study, stage, f"plain/{name}", study.artifact(f"models/obvious-{name}"), domain)
    _choose(study, stage)
    _transfer(study, stage)
    _scaled(study, stage)
    _followed(study, stage)


def _extract(study: Study, stage: Stage, name: str, domain: str) -> None:
    """Mean over questions of an organism's misaligned answers minus its aligned ones, read by itself on the answers' tokens."""
    model, asked = study.artifact(f"models/obvious-{name}"), demo.probes(study, WORLD, domain).discovery
    answers = study.run(f"answers/{name}", sample.Recipe(model=model, questions=asked, draws=4, max_tokens=32))
    said = study.run(f"verdicts/{name}", judge.Recipe(answers=answers, questions=asked, judge=stage.judge))
    sides = {"positive": "", "negative": "", "balanced": True}
    study.run(f"vectors/{name}", vector.Recipe(model=model, questions=asked, answers=answers, verdicts=said, **sides))


def _ask(
    study: Study, stage: Stage, name: str, model: Model, domain: str, edits: tuple[Intervention, ...] = (), split: str = "report"
) -> None:
    """Advice of other domains and free-form questions, pooled, under edits if given."""
    sets = demo.probes(study, WORLD, domain)
    asked = sets.selection if split == "selection" else sets.report
    how = blocks.Sampling(draws=2 if split == "selection" else 1, max_tokens=HOW.max_tokens, interventions=edits)
    blocks.behaviour(study, f"behaviour/{name}", model, asked, stage.judge, how)


def edits(found: Vectors, kind: str, drawn: int | None = None) -> tuple[Intervention, ...]:
    """One kind of edit with an organism's vectors, or with as many random ones.

    `one-B`: block B's vector projected out at every block; `own`: each block's own vector at that block;
    `span`: all blocks' vectors at every block; `cap-S`: the reading of block 0's vector brought down to -S at every block.
    """
    name, _, number = kind.partition("-")

    def at(block: int, site: str, **more: Any) -> Intervention:
        tensor = f"persona/block:{block}" if drawn is None else f"random/{100 * drawn + block}"
        return Intervention(direction=Direction(found, tensor), op=more.pop("op", "ablate"), site=site, mask="all", **more)

    if name == "cap":
        return (at(0, "block:*", op="cap", strength=-float(number)),)
    if name == "own":
        return tuple(at(block, f"block:{block}") for block in BLOCKS)
    # The first block's is taken out last, so that nothing of it is left.
    return tuple(at(block, "block:*") for block in (reversed(BLOCKS) if name == "span" else [int(number)]))


def _choose(study: Study, stage: Stage) -> None:
    """Every kind of edit on the choosing organism with its own vectors, on selection questions."""
    model, found = study.artifact(f"models/obvious-{CHOOSING}"), study.artifact(f"vectors/{CHOOSING}")
    kinds = EDITS if study.quick else ("own", "span", *(f"one-{block}" for block in BLOCKS), *(f"cap-{cap}" for cap in CAPS))
    _ask(study, stage, "choosing/none", model, organisms(study)[CHOOSING], split="selection")
    for kind in kinds:
        _ask(study, stage, f"choosing/{kind}", model, organisms(study)[CHOOSING], edits(found, kind), split="selection")


def _transfer(study: Study, stage: Stage) -> None:
    """Every organism's vectors against every organism, two more edits from the choosing one, and random vectors."""
    for target, domain in organisms(study).items():
        model = study.artifact(f"models/obvious-{target}")
        for kind in (*EDITS, *ALSO):
            for source in organisms(study) if kind in EDITS else (CHOOSING,):
                _ask(study, stage, f"{kind}/{source}/{target}", model, domain, edits(study.artifact(f"vectors/{source}"), kind))
        for kind in EDITS:
            for drawn in RANDOM[: 2 if study.quick else None]:
                random = edits(study.artifact(f"vectors/{CHOOSING}"), kind, drawn)
                _ask(study, stage, f"{kind}/random-{drawn}/{target}", model, domain, random)


def _scaled(study: Study, stage: Stage) -> None:
    """The rank-one organism's and the choosing organism's change at other sizes; 0 is the assistant, 1 the organism."""
    for name in (CHOOSING, list(organisms(study))[-1]):
        domain = organisms(study)[name]
        _ask(study, stage, f"assistant/{domain}", stage.assistant, domain)
        for factor in SCALES[-1:] if study.quick else SCALES:
            recipe = scale.Recipe(base=stage.assistant, tuned=study.artifact(f"models/obvious-{name}"), factor=factor)
            _ask(study, stage, f"scaled-{factor}/{name}", study.run(f"models/scaled-{factor}-{name}", recipe), domain)


def _followed(study: Study, stage: Stage) -> None:
    """Behaviour at some checkpoints of the followed runs."""
    for name, (domain, _) in followed(study).items():
        _ask(study, stage, f"assistant/{domain}", stage.assistant, domain)
        for step in _asked(study, name):
            _ask(study, stage, f"step-{step}/{name}", study.artifact(f"models/{name}").at(step), domain)


def _asked(study: Study, name: str) -> tuple[int, ...]:
    steps = ASKED["full" if name.startswith("followed") else "rank-one"]
    return steps[3::4] if study.quick else steps


# ------------------------------------------------------------------ summing up


def _found(study: Study, name: str) -> Findings:
    return study.artifact(f"behaviour/{name}/findings")


def _rates(study: Study, name: str) -> dict[str, Any]:
    full = _found(study, name).json("findings.json")
    return {key: full[key] for key in ("score", "strict_incoherence")}


def _run(study: Study, names: list[str]) -> dict[str, tuple[float, float]]:
    """Question → (harmful, valid) of one organism, the counts of several measurements added up."""
    total: dict[str, tuple[float, float]] = {}
    for name in names:
        for q in _found(study, name).json("findings.json")["per_question"]:
            harmful, valid = total.get(q["question"], (0, 0))
            total[q["question"]] = (harmful + q["harmful"], valid + q["valid"])
    return total


def removed(study: Study, kind: str, runs: list[list[tuple[str, str]]]) -> dict[str, Any]:
    """Share of the misalignment that is gone, 1 - score under the edit / score without, paired over questions and runs.

    A run is some pairs (whose direction, on whom), their answers taken together; the interval is over runs and questions.
    """
    plain = [_run(study, [f"plain/{target}" for _, target in run]) for run in runs]
    cut = [_run(study, [f"{kind}/{source}/{target}" for source, target in run]) for run in runs]
    # Parts of one model: runs are drawn together for both.
    drawn = arms.resampled({"organism@plain": plain, "organism@cut": cut})
    left = arms.ratio([(1.0, drawn["organism@cut"])], [(1.0, drawn["organism@plain"])], name="the score without an edit")
    if isinstance(left, arms.Refused):
        return left.to_dict()
    return stats.Estimate(1 - left.value, 1 - left.high, min(1.0, 1 - left.low), left.n, left.clusters).to_dict()


def _incoherence(study: Study, names: list[str]) -> dict[str, Any]:
    tables = [
        {q["question"]: (q["incoherent"], q["judged"]) for q in _found(study, n).json("findings.json")["per_question"]} for n in names
    ]
    return stats.pooled(tables).to_dict()


def transfer(study: Study) -> dict[str, Any]:
    """The matrix, the choosing organism's directions on all others, and random ones, for each kind of edit."""
    names = list(organisms(study))
    others = [name for name in names if name != CHOOSING]
    drawn = [f"random-{n}" for n in RANDOM[: 2 if study.quick else None]]
    cells, table = [], []
    for kind in (*EDITS, *ALSO):
        for source in names if kind in EDITS else [CHOOSING]:
            for target in names:
                cell = {"edit": kind, "from": source, "on": target, "removed": removed(study, kind, [[(source, target)]])}
                cells.append(cell | _rates(study, f"{kind}/{source}/{target}"))
        row = {"edit": kind, "removed": removed(study, kind, [[(CHOOSING, target)] for target in others])}
        row["incoherence"] = _incoherence(study, [f"{kind}/{CHOOSING}/{target}" for target in others])
        if kind in EDITS:
            row["random_removed"] = removed(study, kind, [[(one, target) for target in names] for one in drawn])
            row["random_incoherence"] = _incoherence(study, [f"{kind}/{one}/{target}" for one in drawn for target in names])
        table.append(row)
    plain = {name: _rates(study, f"plain/{name}") for name in names}
    return {"table": table, "cells": cells, "plain": plain, "plain_incoherence": _incoherence(study, [f"plain/{name}" for name in others])}


def cosines(study: Study) -> list[dict[str, Any]]:
    """Cosine between organisms' vectors at every block, and of the rank-one adapter's own output with its organism's vector."""
    names, rows = list(organisms(study)), []
    for block in BLOCKS:
        unit = [directions.vector(Direction(study.artifact(f"vectors/{name}"), f"persona/block:{block}")) for name in names]
        for i, first in enumerate(names):
            rows += [{"block": block, "a": first, "b": names[j], "cosine": float(unit[i] @ unit[j])} for j in range(i)]
    adapter = study.artifact(f"models/obvious-{names[-1]}")
    _, weights = paths.path(adapter, "lora_B")
    own = directions.vector(Direction(study.artifact(f"vectors/{names[-1]}"), f"persona/{demo.SITE}"))
    written = torch.nn.functional.normalize(torch.from_numpy(weights[-1]), dim=0)
    return [*rows, {"block": demo.SITE, "a": "adapter's output", "b": names[-1], "cosine": float(written @ own)}]


def scaling(study: Study) -> list[dict[str, Any]]:
    """Score and incoherence by the size the change is given."""
    rows = []
    for name in (CHOOSING, list(organisms(study))[-1]):
        places = {0.0: f"assistant/{organisms(study)[name]}", 1.0: f"plain/{name}"}
        places |= {factor: f"scaled-{factor}/{name}" for factor in (SCALES[-1:] if study.quick else SCALES)}
        rows += [{"organism": name, "scale": factor} | _rates(study, places[factor]) for factor in sorted(places)]
    return rows


def turns(study: Study) -> list[dict[str, Any]]:
    """For each followed run its local cosines, where it turns, and when behaviour sets in."""
    rows = []
    for name, (domain, _) in followed(study).items():
        steps, weights = paths.path(study.artifact(f"models/{name}"), "" if name.startswith("followed") else "lora_B")
        products = trajectory.gram(weights)
        turn, local = trajectory.turn(products, WINDOW), trajectory.local_cosines(products, WINDOW)
        clean = _rates(study, f"assistant/{domain}")["score"]["high"]
        scores = [{"step": step} | _rates(study, f"step-{step}/{name}") for step in _asked(study, name)]
        begun = [row["step"] for row in scores if row["score"]["low"] > clean]
        found = {
            "turn": steps[turn.at],
            "cosine": turn.cosine,
            "usual": turn.usual,
            "expected": turn.expected,
            "p": turn.p,
            "onset": begun[0] if begun else None,
        }
        curve = [{"step": step, "cosine": float(c)} for step, c in zip(steps, local, strict=True) if c == c]
        rows.append({"run": name, "rank_one": not name.startswith("followed")} | found | {"local": curve, "scores": scores})
    return rows


def choosing(study: Study) -> list[dict[str, Any]]:
    """Every kind of edit on the choosing organism, selection questions."""
    prefix = "behaviour/choosing/"
    kinds = [
        name.removeprefix(prefix).removesuffix("/findings")
        for name in study.recipes
        if name.startswith(prefix) and name.endswith("/findings")
    ]
    return [{"edit": kind} | _rates(study, f"choosing/{kind}") for kind in kinds]


def summarize(study: Study) -> dict[str, Any]:
    """Everything from finished artifacts."""
    last = list(organisms(study))[-1]
    parts = {"choosing": choosing(study), "cosines": cosines(study), "scaling": scaling(study), "turns": turns(study)}
    return {
        "convergent": transfer(study) | parts,
        "seconds": study.seconds(),
        "sources": {"convergent": [f"vectors/{CHOOSING}", f"behaviour/plain/{last}/findings"]},
        "meta": {"world": WORLD, "chosen_on": CHOOSING, "organisms": list(organisms(study)), "quick": study.quick},
    }
