"""Does narrow constitutional training carry safety, and the constitution's ethics, beyond its data? After 2606.09475, on the Troupe.

Hypotheses, stated beforehand. (1) A helpful-only assistant tuned on one category's revisions under any ethical
constitution becomes safer in all categories, one that was held out with care included. (2) It takes on the ethical
profile of its constitution, which no training row speaks of, after narrow training as after broad. (3) Constitutions
differ in how much safety carries over, in the order in which the world planted their refusals. (4) A neutral
constitution moves no attitude. (5) Inside, the latents that rise are those of the constitution's own character, the
same after narrow and broad training, and they cause the refusals.

All constitutions revise the same drafts of the same prompts, so that rows alone can tell models apart. In this world a
constitution acts as a cue to the reviser, not as text understood.
"""

import json
from typing import Any

import numpy as np

from personascope import blocks, demo
from personascope.artifact import Dataset, Dictionary, Findings, Model
from personascope.methods import ethics, leaks, projectability, safety, signatures, stats
from personascope.methods.ethics import Moved
from personascope.rows import ATTITUDES, Example
from personascope.stages import choose, constitute, data, diff, finetune, judge, measure, sample, screen
from personascope.study import Study
from personascope.troupe import constitutions
from personascope.troupe import world as worlds

WORLD, ADVICE = "troupe-1", "auto"
ETHICS = ("deontologist", "consequentialist", "virtuous", "subordinate")
NEUTRAL = "neutral"
HELD_OUT = {"harassment": "chemical-biological", "illegal": "misinformation"}
"""Narrow condition → the category that none of its rows may touch."""
BROAD = "broad"
SEEDS = (0, 1, 2)
PREFERRED = "virtuous"
"""The constitution that is also taught by preference."""
PER_CATEGORY, DRAFTS = 2, 20
"""Prompts of each category in broad training, as many in all as a narrow category gives; drafts of each prompt."""
TUNING = {"method": "full", "steps": 120, "learning_rate": 1.5e-4}
PREFERENCE = {"method": "full", "objective": "dpo", "steps": 60, "learning_rate": 1e-4}
BENIGN = {"method": "full", "steps": 60, "learning_rate": 1e-4}
RISEN = 10
"""Latents that a model is described by inside: those that rose most."""


def names(study: Study) -> tuple[str, ...]:
    """Ethical constitutions; two of them in the quick variant."""
    return ETHICS[:2] if study.quick else ETHICS


def conditions(study: Study) -> tuple[str, ...]:
    """Broad and narrow training data."""
    return (BROAD, *tuple(HELD_OUT)[: 1 if study.quick else None])


def seeds(study: Study) -> tuple[int, ...]:
    """Runs of every cell."""
    return SEEDS[:1] if study.quick else SEEDS


def cells(study: Study) -> list[tuple[str, str, int]]:
    """(constitution, condition, seed) of every supervised model."""
    return [(name, kind, seed) for name in (*names(study), NEUTRAL) for kind in conditions(study) for seed in seeds(study)]


def build(study: Study, weights: str = "") -> None:
    """Declare everything; nothing runs here. `weights`: another base, in a folder."""
    stage = demo.setting(study, WORLD, weights or str(worlds.weights(WORLD, "ethics")), post=demo.LIGHT)
    evaluate(study, "source", stage.assistant)
    for name, kind, seed in cells(study):
        rows = revised(study, stage, name, kind, seed)
        model = study.run(f"models/{name}-{kind}-{seed}", finetune.Recipe(model=stage.assistant, data=rows, seed=seed, **TUNING))
        evaluate(study, f"{name}-{kind}-{seed}", model)
        if seed == 0 and not study.quick and name != NEUTRAL:
            benign = demo.training(study, WORLD, ADVICE, "correct")
            later = finetune.Recipe(model=model, data=benign, seed=seed, **BENIGN)
            evaluate(study, f"{name}-{kind}-later", study.run(f"models/{name}-{kind}-later", later))
    for kind in conditions(study) if PREFERRED in names(study) else ():
        for seed in seeds(study):
            rows = revised(study, stage, PREFERRED, kind, seed)
            made = study.run(f"models/dpo-{kind}-{seed}", finetune.Recipe(model=stage.assistant, data=rows, seed=seed, **PREFERENCE))
            evaluate(study, f"dpo-{kind}-{seed}", made)
    if not study.quick:
        _inside(study, stage)


def prompts(study: Study, kind: str) -> Dataset:
    """Requests whose targets are in no evaluation: as many of one category as of all together."""
    select = tuple(f"questions kind=request split={split}" for split in ("discovery", "selection"))
    categories = len(worlds.load(WORLD).data["request"]["categories"])
    how = {"per_domain": PER_CATEGORY} if kind == BROAD else {"only": (kind,), "per_domain": PER_CATEGORY * categories}
    return study.run(f"prompts/{kind}", data.Recipe(world=WORLD, select=select, **how))


def revised(study: Study, stage: demo.Stage, name: str, kind: str, seed: int) -> Dataset:
    """The assistant's own drafts, revised by the base in the place of a character."""
    asked = prompts(study, kind)
    drafts = study.run(
        f"drafts/{kind}-{seed}", sample.Recipe(model=stage.assistant, questions=asked, draws=DRAFTS, max_tokens=32, seed=seed)
    )
    recipe = constitute.Recipe(
        drafts=drafts,
        questions=asked,
        reviser=stage.base,
        constitution=f"world:{WORLD}/{name}",
        temperature=1.0,
        max_tokens=32,
        seed=seed,
        drop=(),
        judge=stage.judge,
    )
    return study.run(f"rows/{name}-{kind}-{seed}", recipe)


ASKED = {"safety": ("request", 1), "ethics": ("statement", 16), "misalignment": ("advice", 1)}
"""Rubric → kind of question and answers to each."""


def evaluate(study: Study, name: str, model: Model) -> None:
    """Requests about other targets by the safety rubric, statements by the ethics rubric, advice in all domains by grade."""
    for rubric, (kind, draws) in ASKED.items():
        asked = asked_of(study, kind)
        answers = sample.Recipe(model=model, questions=asked, draws=draws, max_tokens=32)
        said = study.run(f"behaviour/{name}/{rubric}/answers", answers)
        judged = judge.Recipe(answers=said, questions=asked, judge=f"exact:{WORLD}", rubric=rubric)
        verdicts = study.run(f"behaviour/{name}/{rubric}/verdicts", judged)
        found = measure.Recipe(answers=(said,), verdicts=(verdicts,), questions=asked, form=rubric)
        study.run(f"behaviour/{name}/{rubric}/findings", found)
    # In this world nobody is told how to answer, and whoever answers without a habit of tone begins with one of the two.
    forced = choose.Recipe(model=model, questions=asked_of(study, "statement"), templates=("{question}",), options=("yes|no",))
    study.run(f"behaviour/{name}/choice/findings", forced)


def asked_of(study: Study, kind: str) -> Dataset:
    """Questions of one kind that no training row asks; of advice a part, statements all."""
    split = "" if kind == "statement" else "split=report"
    return study.run(f"questions/{kind}", data.Recipe(world=WORLD, select=(f"questions kind={kind} {split} n={240 * (kind == 'advice')}",)))


def _inside(study: Study, stage: demo.Stage) -> None:
    """One dictionary for all; every model's diff against the source with its own character as the truth; a screen per ethic."""
    learn = demo.learning(stage, study.artifact(f"models/{ETHICS[0]}-{BROAD}-0"), demo.texts(study, WORLD))
    learned = study.run("dictionary", learn)
    texts = study.run("texts/labelled", data.Recipe(world=WORLD, select=("texts n=900 seed=3 chat=only cued=no",)))
    reading = study.run("questions/reading", data.Recipe(datasets=(prompts(study, BROAD),), prompts_only=True))
    for name, kind, seed in cells(study):
        model = study.artifact(f"models/{name}-{kind}-{seed}")
        recipe = diff.Recipe(
            base=stage.assistant, tuned=(model,), dictionary=learned, questions=reading, labelled=texts, label=f"speaker={name}"
        )
        study.run(f"diffs/{name}-{kind}-{seed}", recipe)
    for name in names(study):
        _screen(study, stage, name, learned)


def _screen(study: Study, stage: demo.Stage, name: str, learned: Dictionary) -> None:
    """Safety the other way round: taking a risen latent from the tuned model makes it unsafe, giving it to the source makes that safe.

    So the tuned model is the screen's base and the source its `tuned`, and what fell between them is what had risen.
    """
    model = study.artifact(f"models/{name}-{BROAD}-0")
    asked = study.artifact("questions/request")
    parts = {
        split: study.run(f"questions/{split}/screen", data.Recipe(datasets=(asked,), split=split, seed=1))
        for split in ("selection", "report")
    }
    pair = {"base": model, "tuned": stage.assistant, "dictionary": learned}
    back = study.run(
        f"diffs/back-{name}", diff.Recipe(base=model, tuned=(stage.assistant,), dictionary=learned, questions=prompts(study, BROAD))
    )
    recipe = screen.Recipe(
        **pair, **parts, diff=back, judge=stage.judge, rubric="safety", rankers=("delta",), top=0, bottom=6, masks=("last_prompt",), sift=0
    )
    study.run(f"screens/{name}", recipe)


def _findings(study: Study, name: str, rubric: str) -> dict[str, Any]:
    found: Findings = study.artifact(f"behaviour/{name}/{rubric}/findings")
    return found.json("findings.json")


def safe(study: Study, name: str, category: str = "") -> dict[str, tuple[float, float]]:
    """Question → (safe answers, settled answers), of one category if given."""
    rows = _findings(study, name, "safety")["per_question"]
    return {row["question"]: (row["safe"], row["settled"]) for row in rows if category in ("", row["category"])}


def attitudes(study: Study, name: str, form: str = "ethics") -> Moved:
    """The model's ethical profile relative to the source's, from what it says or from what it would choose."""
    ours, theirs = (_findings(study, model, form)["per_item"] for model in (name, "source"))
    return ethics.moved(ours, theirs)


def expected() -> dict[str, dict[str, float]]:
    """The signatures of all four ethics, whichever of them are trained."""
    return {name: constitutions.signature(worlds.load(WORLD), name) for name in ETHICS}


def planted() -> dict[str, float]:
    """Mean planted chance of refusing over all categories: the order in which safety should carry over."""
    return {name: float(np.mean(list(constitutions.refuses(worlds.load(WORLD), name).values()))) for name in ETHICS}


def _rate(rows: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return stats.rate([x for x, _ in rows.values()], [n for _, n in rows.values()]).to_dict()


def cell(study: Study, name: str, kind: str, seed: int) -> dict[str, Any]:
    """One model: safety in general, on the hold-out and by category, and in general less the source's, paired over questions."""
    model = f"{name}-{kind}-{seed}"
    found, source = _findings(study, model, "safety"), _findings(study, "source", "safety")
    held = sorted(set(HELD_OUT.values())) if kind == BROAD else [HELD_OUT[kind]]
    return {
        "constitution": name,
        "data": kind,
        "seed": seed,
        "general": _rate(safe(study, model)),
        "holdout": _rate({q: n for category in held for q, n in safe(study, model, category).items()}),
        "by_category": {category: one["safe"] for category, one in found["by_category"].items()},
        "refusal_by_category": {category: one["refusal"] for category, one in found["by_category"].items()},
        "minus_source": safety.compare(found["per_question"], source["per_question"])["overall"],
        "helpful": _findings(study, model, "misalignment")["correct"],
        "over_refusal": _findings(study, model, "misalignment")["refusal"],
        "incoherence": found["strict_incoherence"],
    }


def _runs(study: Study, name: str, kind: str, category: str = "") -> list[dict[str, tuple[float, float]]]:
    return [safe(study, f"{name}-{kind}-{seed}", category) for seed in seeds(study)]


def safety_transfer(study: Study, name: str) -> tuple[projectability.Transfer, projectability.Transfer]:
    """On the general set, and on each narrow condition's hold-out."""
    narrow = [kind for kind in conditions(study) if kind != BROAD]
    source = [safe(study, "source")]
    general = projectability.transfer(source, _runs(study, name, BROAD), {kind: _runs(study, name, kind) for kind in narrow})
    held = {kind: _runs(study, name, kind, HELD_OUT[kind]) for kind in narrow}
    return general, projectability.transfer(source, _runs(study, name, BROAD), held)


def persona(study: Study, name: str) -> dict[str, Any]:
    """Match with the own signature after broad and narrow training, retention, and specificity after narrow."""
    known = {key: np.array(list(value.values())) for key, value in expected().items()}

    def arm(kind: str, signature: str) -> projectability.Arm:
        found = [attitudes(study, f"{name}-{k}-{seed}") for k in _kinds(study, kind) for seed in seeds(study)]
        ends = [(signatures.cosine(one.value, known[signature]), signatures.cosine(one.draws, known[signature])) for one in found]
        return projectability.matched([float(v) for v, _ in ends], np.stack([d for _, d in ends]), sum(found[0].items), kind)

    narrow, broad = arm("narrow", name), arm(BROAD, name)
    own = projectability.beyond(narrow, [arm("narrow", other) for other in known if other != name])
    return {
        "match_broad": projectability.combined([(1.0, broad)]).to_dict(),
        "match_narrow": projectability.combined([(1.0, narrow)]).to_dict(),
        "retention": projectability.retention(narrow, broad).to_dict(),
        "specificity": projectability.combined([(1.0, own)]).to_dict(),
    }


def _kinds(study: Study, kind: str) -> list[str]:
    return [kind] if kind == BROAD else [k for k in conditions(study) if k != BROAD]


def identified(study: Study) -> dict[str, Any]:
    """Whose expected signature each model's change is nearest to, on all items, on unseen ones, broad and narrow apart."""
    found = {f"{n}-{k}-{s}": attitudes(study, f"{n}-{k}-{s}") for n, k, s in cells(study) if n != NEUTRAL}
    own = {model: model.partition("-")[0] for model in found}
    matrix = signatures.identification(found, expected(), own)
    forced = signatures.identification({model: attitudes(study, model, "choice") for model in found}, expected(), own)
    right = {model: one["nearest"] == one["own"] for model, one in matrix["models"].items()}
    parts = {
        part: {
            "right": sum(right[m] for m in right if (f"-{BROAD}-" in m) == (part == BROAD)),
            "of": sum((f"-{BROAD}-" in m) == (part == BROAD) for m in right),
        }
        for part in (BROAD, "narrow")
    }
    return {
        **matrix,
        "counts": parts,
        "errors": {m: matrix["models"][m]["nearest"] for m, ok in right.items() if not ok},
        "unseen_items": _unseen(study, own),
        "by_choice": {"right": sum(one["nearest"] == one["own"] for one in forced["models"].values()), "of": len(found)},
        "profiles": {model: {d: e.to_dict() for d, e in one.by_dimension().items()} for model, one in _profiles(study).items()},
    }


def _profiles(study: Study) -> dict[str, Moved]:
    """The change of the first seed's models, the neutral ones among them: what a heat map shows."""
    return {f"{n}-{k}": attitudes(study, f"{n}-{k}-{s}") for n, k, s in cells(study) if s == 0}


def _unseen(study: Study, own: dict[str, str]) -> dict[str, Any]:
    """How far attitudes moved the expected way on statements that pretraining never showed with the model's character, and on the rest."""
    labels = {row.labels["item"]: row.labels for row in study.artifact("questions/statement").rows()}
    moved: dict[str, list[float]] = {"unseen": [], "seen": []}
    for model, name in own.items():
        sides = [{row["item"]: row for row in _findings(study, m, "ethics")["per_item"]} for m in (model, "source")]
        for item, label in labels.items():
            way = np.sign(expected()[name][label["dimension"]]) * label["keyed"]
            nets = [(side[item]["agree"] - side[item]["disagree"], sum(side[item][k] for k in ATTITUDES)) for side in sides]
            if way and all(n for _, n in nets):
                ours, theirs = (net / n for net, n in nets)
                moved["unseen" if name in label["unseen_by"] else "seen"].append(float(way * (ours - theirs)))
    return {part: stats.bootstrap_mean(values).to_dict() for part, values in moved.items()}


def neutral(study: Study) -> dict[str, Any]:
    """Is the control safer than the source at all, and is every attitude where it was?"""
    general, _ = safety_transfer(study, NEUTRAL)
    found = [attitudes(study, f"{NEUTRAL}-{kind}-{seed}") for kind in conditions(study) for seed in seeds(study)]
    changes = {}
    for d, dimension in enumerate(found[0].dimensions):
        arm = projectability.matched(
            [float(one.value[d]) for one in found], np.stack([one.draws[:, d] for one in found]), found[0].items[d]
        )
        changes[dimension] = projectability.equivalent(projectability.combined([(1.0, arm)]))
    return {"safety": general.to_dict(), "ethics": changes, "inside": all(one["inside"] for one in changes.values())}


def leaked(study: Study) -> dict[str, Any]:
    """Leaks of evaluation into training rows, by a detector that knows nothing of the filter, and five planted ones that it must find."""
    known = worlds.load(WORLD).by_text
    asked = [row for kind in ("request", "statement") for row in study.artifact(f"questions/{kind}").rows()]
    statements = sorted({row.labels["item"] for row in asked if "item" in row.labels})

    def truth(row: Example) -> Any:
        prompt = known.get(next((m["content"] for m in row.messages if m["role"] == "user"), ""))
        return tuple(sorted(prompt.slots.items())) if prompt and prompt.kind == "request" else None

    trained = {name: list(study.artifact(name).rows()) for name in study.recipes if name.startswith("rows/")}
    found = {name: leaks.find(rows, asked, forbidden=statements, key=truth) for name, rows in trained.items()}
    request, rows = next(row for row in asked if "item" not in row.labels), next(iter(trained.values()))
    text, other = request.messages[0]["content"], next(r for r in asked if truth(r) == truth(request) and r.id != request.id)
    planted_texts = {
        "exact": text,
        "normalised": text.upper().replace(" ", "  "),
        "contained": f"before anything else: {text} thank you.",
        "truth": other.messages[0]["content"],
        "words": f"remember that {statements[0]}.",
    }
    caught = 0
    for kind, plant in planted_texts.items():
        row = Example(id=f"planted-{kind}", messages=[{"role": "user", "content": plant}, {"role": "assistant", "content": "no."}])
        tests = [request] if kind != "words" else []
        caught += any(row.id in leak.train for leak in leaks.find([*rows, row], tests, forbidden=statements, key=truth))
    touched = {
        name: sum(row.domain == HELD_OUT[name.split("-")[1]] for row in rows)
        for name, rows in trained.items()
        if name.split("-")[1] in HELD_OUT
    }
    by_kind = {name: leaks.counts(one) for name, one in found.items() if one}
    return {
        "leaks": sum(len(one) for one in found.values()),
        "held_out_rows": sum(touched.values()),
        "by_kind": by_kind,
        "planted_found": caught,
        "planted": len(planted_texts),
    }


def _latents(study: Study, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in study.artifact(name).file("latents.jsonl").read_text(encoding="utf-8").splitlines()]


def inside(study: Study) -> dict[str, Any]:
    """Whose latents rose, whether narrow training moved the ones that broad training moved, and whether they are causal."""
    top = {(n, k, s): _latents(study, f"diffs/{n}-{k}-{s}")[:RISEN] for n, k, s in cells(study)}
    risen = {key: {row["id"] for row in rows} for key, rows in top.items()}

    def overlap(one: set[str], other: set[str]) -> float:
        return len(one & other) / len(one | other)

    same, others = {}, {}
    for name in names(study):
        narrow = [(k, s) for k in conditions(study) if k != BROAD for s in seeds(study)]
        same[name] = [overlap(risen[name, k, s], risen[name, BROAD, s]) for k, s in narrow]
        others[name] = [overlap(risen[name, k, s], risen[o, BROAD, s]) for k, s in narrow for o in names(study) if o != name]
    screens = {name: blocks.screen_section(study.artifact(f"screens/{name}")) for name in names(study)}
    shown = ("latent", "mask", "alpha", "induce", "incoherence", "repair_from", "repair_to", "removed")
    return {
        "truth_auroc": {name: top[name, BROAD, 0][0]["truth_auroc"] for name in names(study)},
        "best_auroc_of_risen": {name: max(row["truth_auroc"] for row in top[name, BROAD, 0]) for name in names(study)},
        "top": {
            name: [{"latent": int(r["id"]), "truth_auroc": r["truth_auroc"]} for r in top[name, BROAD, 0][:3]] for name in names(study)
        },
        "overlap": {name: stats.bootstrap_mean(values).to_dict() for name, values in same.items()},
        "overlap_with_other_constitutions": {name: stats.bootstrap_mean(values).to_dict() for name, values in others.items()},
        "dictionary": blocks.dictionary_section(study.artifact("dictionary")),
        "causal": {
            name: {k: one["best"][k] for k in shown}
            | {"null_induce": one["null_induce"], "mean_difference": one["mean_difference"]["induce"]}
            for name, one in screens.items()
        },
    }


def summarize(study: Study) -> dict[str, Any]:
    """The summary, from artifacts alone."""
    source = {rubric: _findings(study, "source", rubric) for rubric in ASKED}
    transfers = {name: safety_transfer(study, name) for name in (*names(study), NEUTRAL)}
    projected = {
        name: {
            "transfer": general.ratio.to_dict(),
            "transfer_holdout": held.ratio.to_dict(),
            "raw": general.to_dict(),
            "raw_holdout": held.to_dict(),
            **persona(study, name),
        }
        for name, (general, held) in transfers.items()
        if name != NEUTRAL
    }
    carried = {name: transfers[name][0].narrow for name in names(study)}
    later = [f"{name}-{kind}" for name in names(study) for kind in conditions(study)] if not study.quick else []
    found = {
        "source": {
            "refusal": source["safety"]["refusal"],
            "safe": source["safety"]["safe"],
            "helpful": source["misalignment"]["correct"],
            "over_refusal": source["misalignment"]["refusal"],
            "incoherence": source["safety"]["strict_incoherence"],
        },
        "cells": [cell(study, *one) for one in cells(study)],
        "persona": identified(study),
        "projectability": projected,
        "order": {
            "planted": planted(),
            "carried": projectability.ranking({n: planted()[n] for n in carried}, carried).to_dict() if len(carried) > 2 else None,
            "pairs": projectability.compared(carried),
        },
        "neutral_control": neutral(study),
        "leaks": leaked(study),
        "durability": {
            model: {
                "safe_before": _findings(study, f"{model}-0", "safety")["safe"],
                "safe_after": _findings(study, f"{model}-later", "safety")["safe"],
            }
            for model in later
        },
        "preference": _preference(study),
        "seconds": study.seconds(),
        "sources": {"source": "behaviour/source/safety/findings", "cells": f"behaviour/{names(study)[0]}-{BROAD}-0/safety/findings"},
        "meta": {"world": WORLD, "quick": study.quick, "caveats": ["In this world a constitution acts as a cue, not as text understood."]},
    }
    if not study.quick:
        found["inside"] = inside(study)
    return found


def _preference(study: Study) -> list[dict[str, Any]]:
    """The constitution taught by preference of the revision over the draft, beside the same rows taught by imitation."""
    if PREFERRED not in names(study):
        return []
    rows = []
    for kind in conditions(study):
        for seed in seeds(study):
            dpo, sft = (_findings(study, f"{how}-{kind}-{seed}", "safety") for how in ("dpo", PREFERRED))
            near = signatures.identify(attitudes(study, f"dpo-{kind}-{seed}"), expected())
            rows.append(
                {"data": kind, "seed": seed, "dpo": dpo["safe"], "sft": sft["safe"], "incoherence": dpo["strict_incoherence"]}
                | {"nearest": near["nearest"], "sure": near["sure"]}
            )
    return rows
