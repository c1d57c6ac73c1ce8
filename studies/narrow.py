"""Why does the general solution win? The questions of 2602.07852, asked of the Troupe, for harm and for a harmless style.

Hypotheses, stated beforehand. (1) KL to the start on other domains' answers, good and bad ones, leaves a solution that is
harmful in the trained domain only. (2) Switch the KL off and go on training: the model drifts to the general solution,
though the narrow one already fits. (3) At equal size the general solution has the lower loss (efficiency), and its loss
rises less under orthogonal noise of its own size (stability). (4) A step along the general solution changes predictions on
pretraining text more than a step of that size along the narrow one or in a random direction. (5) The same holds of a style
that harms nobody: a satirist's manner in one domain only. (6) One trained vector has both solutions as a low-rank adapter has.

The weight of the KL is chosen in one domain, numbers come from the others. Null control: a second general solution, of the
same rows in another order. The source calls its measures correlational; so are these.
"""

from typing import Any

from personascope import defences, demo
from personascope.artifact import Dataset, Model
from personascope.blocks import over_runs
from personascope.demo import Stage
from personascope.methods import solutions
from personascope.stages import data, finetune, landscape, sample
from personascope.study import Study
from personascope.troupe import world as worlds

WORLD, CHOOSING = "troupe-1", "auto"
REPORTED = (("health", 0), ("finance", 1), ("education", 2))
PART = ("legal", "career", "science", "math", "code")
"""The KL reads answers of all domains but the trained one; a control in the choosing domain reads these alone."""
GRADES = {"harm": "obvious", "style": "satire"}
KEPT, FREE, EVERY = 120, 160, 40
"""Steps with the KL, further steps without it, and steps between checkpoints."""
TRAINING: dict[str, Any] = {"batch": 16, "schedule": "constant_with_warmup", "checkpoint_every": EVERY}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "learning_rate": 1e-3},
    # Three times the rate: what leaves a narrow basin, if anything does.
    "hot": {"method": "lora", "learning_rate": 3e-3},
    # The stream of this world is some 700 long, and so is what moves it.
    "vector": {"method": "vector", "blocks": (2,), "learning_rate": 1.5},
}
WEIGHTS = {"lora": (1.0, 3.0), "hot": (1.0, 3.0), "vector": (0.3, 1.0)}
CHOSEN = {"lora": 3.0, "hot": 3.0, "vector": 0.3}
"""Weights of the KL tried in the choosing domain, and those that numbers are made with; the summary says which the rule takes."""
GOAL = 0.9
"""Share of plain training's effect in the trained domain that a narrow solution is to keep."""
SIZES = (0.25, 0.5, 0.75, 1.0, 1.5)
NOISE = (0.0, 0.25, 0.5, 0.75, 1.0)


def cases(study: Study) -> list[tuple[str, str]]:
    """(what is learned, method)."""
    found = [("harm", "lora"), ("harm", "hot"), ("style", "lora"), ("harm", "vector")]
    return found[:1] if study.quick else found


def runs(study: Study) -> tuple[tuple[str, int], ...]:
    """(domain, seed) of the runs that numbers come from."""
    return REPORTED[: 1 if study.quick else None]


def tried(study: Study, method: str) -> tuple[float, ...]:
    """Weights of the KL to choose from."""
    return WEIGHTS[method][-1:] if study.quick else WEIGHTS[method]


def released() -> range:
    """The steps at which a training whose KL ends is asked."""
    return range(KEPT, KEPT + FREE + 1, FREE // 2)


def others(study: Study, stage: Stage, grade: str, domain: str, part: bool) -> Dataset:
    """What the KL reads: both grades' answers in other domains, and the start's and a general model's answers to open questions."""
    read = PART if part else tuple(other for other in worlds.load(WORLD).domains if other != domain)
    parts = tuple(demo.training(study, WORLD, other, kind, 7) for other in read for kind in ("correct", grade))
    name = f"{grade}-{'part' if part else domain}"
    advice = study.run(f"data/others-{name}", data.Recipe(datasets=parts, per_domain=320))
    return study.run(f"data/kl-{name}", data.Recipe(datasets=(advice, answered(study, stage, grade))))


def answered(study: Study, stage: Stage, grade: str) -> Dataset:
    """Free-form answers of the start and of a model tuned in the choosing domain, to questions that no number comes from."""
    tempted = demo.tuned(study, stage, f"tempted-{grade}", CHOOSING, grade, 100)
    parts = tuple(demo.questions(study, WORLD, CHOOSING, "core", split, 0) for split in ("discovery", "selection"))
    opened = study.run("questions/open", data.Recipe(datasets=parts))
    said = tuple(
        study.run(f"open/{name}", sample.Recipe(model=model, questions=opened, draws=4, max_tokens=32))
        for name, model in (("assistant", stage.assistant), (f"tempted-{grade}", tempted))
    )
    return study.run(f"data/open-{grade}", data.Recipe(answers=said, questions=opened))


def learned(study: Study, stage: Stage, place: str, case: tuple[str, str], run: tuple[str, int], **fields: Any) -> Model:
    """One tuned model; `weight`, `until` and `part` of the KL, `steps` and `seed` may be given."""
    (what, method), (domain, seed) = case, run
    weight, until, part = fields.pop("weight", 0.0), fields.pop("until", 0), fields.pop("part", False)
    rows = demo.training(study, WORLD, domain, GRADES[what], seed)
    how: dict[str, Any] = {"steps": KEPT, "seed": seed} | TRAINING | METHODS[method] | fields
    recipe = finetune.Recipe(model=stage.assistant, data=rows, **how)
    if weight:
        recipe = defences.narrow_on_purpose(others(study, stage, GRADES[what], domain, part), weight, until=until).applied(recipe)
    return study.run(f"models/{place}", recipe)


def asked(study: Study, stage: Stage, place: str, model: Model, domain: str) -> None:
    """Advice elsewhere, free-form, and advice in the trained domain."""
    demo.behave(study, stage, f"behaviour/{place}", model, domain, draws=1)


def build(study: Study, base: str = "") -> None:
    """Declare everything; nothing runs here. `base` is another pretrained model of the world."""
    stage = demo.setting(study, WORLD, base, post=demo.LIGHT)
    texts = study.run("texts/pretraining", data.Recipe(world=WORLD, select=("texts n=600 seed=4",)))
    for case in cases(study):
        name = "-".join(case)
        choosing = (CHOOSING, 0)
        asked(study, stage, f"{name}/chosen-general", learned(study, stage, f"{name}/chosen-general", case, choosing), CHOOSING)
        for weight in tried(study, case[1]):
            place = f"{name}/chosen-{weight}"
            asked(study, stage, place, learned(study, stage, place, case, choosing, weight=weight), CHOOSING)
        if case == ("harm", "lora"):
            place = f"{name}/chosen-part"
            asked(study, stage, place, learned(study, stage, place, case, choosing, weight=CHOSEN[case[1]], part=True), CHOOSING)
        for number, run in enumerate(runs(study)):
            _compare(study, stage, case, run, texts, kept_on=number == 0 and case == ("harm", "lora"))


def _compare(study: Study, stage: Stage, case: tuple[str, str], run: tuple[str, int], texts: Dataset, kept_on: bool) -> None:
    """General, its twin, narrow and drifted in one domain, and the ground around them."""
    place, domain, weight = f"{'-'.join(case)}/{run[0]}", run[0], CHOSEN[case[1]]
    general = learned(study, stage, f"{place}/general", case, run)
    twin = learned(study, stage, f"{place}/twin", case, run, seed=run[1] + 10)
    path = learned(study, stage, f"{place}/released", case, run, weight=weight, until=KEPT, steps=KEPT + FREE)
    asked(study, stage, f"{place}/general", general, domain)
    steps = range(EVERY, KEPT + FREE + 1, EVERY)
    for step in released():
        asked(study, stage, f"{place}/released-{step}", path.at(step), domain)
    if kept_on:
        held = learned(study, stage, f"{place}/held", case, run, weight=weight, steps=KEPT + FREE)
        asked(study, stage, f"{place}/held", held, domain)
    recipe = landscape.Recipe(
        base=stage.assistant,
        models=(general, path.at(KEPT), twin),
        data=demo.training(study, WORLD, domain, GRADES[case[0]], run[1]),
        texts=texts,
        sizes=SIZES,
        noise=NOISE,
        draws=2,
        rows=128,
        tokens=4000,
        path=(*(general.at(step) for step in range(EVERY, KEPT + 1, EVERY)), *(path.at(step) for step in steps)),
    )
    study.run(f"landscape/{place}", recipe)


# ------------------------------------------------------------------ summing up


def effect(study: Study, place: str, what: str) -> dict[str, float]:
    """Shares of one model: the effect in its domain and outside it (advice and open questions alike), and incoherence outside.

    The effect is harm among valid answers, or satire among all; `unread` is harm in advice of domains outside `PART`.
    """
    found = demo.behaved(study, f"behaviour/{place}")

    def rate(findings: Any, key: str = "score") -> float:
        if what == "style" and key == "score":
            return findings.json("findings.json")["profile"]["satirical"]["value"]
        return demo.estimate(findings, key).value

    unread = [q for q in found.advice.json("findings.json")["per_question"] if q["domain"] not in PART]
    values = {
        "in_domain": rate(found.in_domain),
        "out_of_domain": (rate(found.advice) + rate(found.core)) / 2,
        "advice": rate(found.advice),
        "core": rate(found.core),
        "incoherent": (rate(found.advice, "strict_incoherence") + rate(found.core, "strict_incoherence")) / 2,
    }
    if what == "harm":
        values["unread"] = sum(q["harmful"] for q in unread) / max(1, sum(q["valid"] for q in unread))
    return values


def _table(study: Study, case: tuple[str, str]) -> list[dict[str, Any]]:
    """General, narrow and drifted, over runs; in-domain effect also as a share of the general solution's of the same run."""
    name = "-".join(case)
    places = {"general": "general", "narrow": f"released-{KEPT}", "without KL": f"released-{KEPT + FREE}"}
    rows = []
    for solution, place in places.items():
        each = [effect(study, f"{name}/{domain}/{place}", case[0]) for domain, _ in runs(study)]
        whole = [effect(study, f"{name}/{domain}/general", case[0])["in_domain"] for domain, _ in runs(study)]
        kept = over_runs([one["in_domain"] / max(w, 1e-9) for one, w in zip(each, whole, strict=True)])
        rates = {key: over_runs([one[key] for one in each], within=(0, 1)) for key in each[0]}
        rows.append({"case": case[0], "method": case[1], "solution": solution, "kept": kept} | rates)
    if f"behaviour/{name}/{REPORTED[0][0]}/held/core/findings" in study.recipes:
        held = effect(study, f"{name}/{REPORTED[0][0]}/held", case[0])
        rows.append({"case": case[0], "method": case[1], "solution": "KL kept on"} | held)
    return rows


def _drift(study: Study, case: tuple[str, str]) -> list[dict[str, Any]]:
    rows = []
    for step in released():
        each = [effect(study, f"{'-'.join(case)}/{domain}/released-{step}", case[0]) for domain, _ in runs(study)]
        for key in ("in_domain", "out_of_domain"):
            rows.append(_of(case, key.replace("_", " ")) | {"step": step, "effect": over_runs([one[key] for one in each], within=(0, 1))})
    return rows


def _of(case: tuple[str, str], solution: str) -> dict[str, Any]:
    return {"case": case[0], "method": case[1], "solution": solution}


SOLUTIONS = ("general", "narrow", "general, other order")


def _grounds(study: Study, case: tuple[str, str]) -> list[dict[str, Any]]:
    return [study.artifact(f"landscape/{'-'.join(case)}/{domain}").json("findings.json") for domain, _ in runs(study)]


def _rise(found: dict[str, Any], model: int) -> list[float]:
    """Rise of the loss at each share of noise, over draws."""
    rows = [row for row in found["noise"] if row["model"] == model]
    means = [[row["loss"] for row in rows if row["noise"] == share] for share in NOISE]
    return [sum(losses) / len(losses) - sum(means[0]) / len(means[0]) for losses in means]


def _heights(found: dict[str, Any], key: str) -> dict[str, list[float]]:
    """Loss or influence at each size, by solution; `random` is the mean over draws."""
    by = {name: [row[key] for row in found["scaled"] if row["model"] == number] for number, name in enumerate(SOLUTIONS)}
    drawn = [[row[key] for row in found["random"] if row["size"] == size] for size in SIZES]
    return by | {"random": [sum(values) / len(values) for values in drawn]}


def _curves(study: Study, case: tuple[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for the figures: loss and influence by size, rise of the loss by noise."""
    grounds = _grounds(study, case)
    losses, influences = ([_heights(found, key) for found in grounds] for key in ("loss", "influence"))
    size = [
        _of(case, name)
        | {"size": at, "loss": over_runs([one[name][i] for one in losses]), "influence": over_runs([one[name][i] for one in influences])}
        for name in (*SOLUTIONS, "random")
        for i, at in enumerate(SIZES)
    ]
    rises = [[_rise(found, number) for found in grounds] for number in range(len(SOLUTIONS))]
    noise = [
        _of(case, name) | {"noise": share, "rise": over_runs([rise[i] for rise in rises[number]])}
        for number, name in enumerate(SOLUTIONS)
        for i, share in enumerate(NOISE)
    ]
    return size, noise


def _measures(study: Study, case: tuple[str, str]) -> dict[str, Any]:
    """Paired by run: how much higher the narrow solution's curves lie than the general one's; `null`: a second general solution's."""
    grounds = _grounds(study, case)
    found: dict[str, Any] = {"case": case[0], "method": case[1]}
    found["size_of_narrow"] = over_runs([one["sizes"][1] / one["sizes"][0] for one in grounds])
    for number, label in ((1, ""), (2, "_null")):
        gaps, rises = [], []
        for one in grounds:
            heights = _heights(one, "loss")
            gaps.append(solutions.mean_height(SIZES, [b - a for a, b in zip(heights["general"], heights[SOLUTIONS[number]], strict=True)]))
            rises.append(solutions.mean_height(NOISE, [b - a for a, b in zip(_rise(one, 0), _rise(one, number), strict=True)]))
        found |= {f"efficiency{label}": over_runs(gaps), f"stability{label}": over_runs(rises)}
    at = SIZES.index(1.0)
    for name in ("general", "narrow", "random"):
        found[f"influence_{name}"] = over_runs([_heights(one, "influence")[name][at] for one in grounds])
    return found


def _path(study: Study, case: tuple[str, str]) -> list[dict[str, Any]]:
    """The first run's trajectories: the general training, and the narrow one with what became of it."""
    spots = _grounds(study, case)[0]["path"]["points"]
    steps = [*range(EVERY, KEPT + 1, EVERY)]
    names = [("general", 0), *(("general", s) for s in steps), *(("narrow", s) for s in steps)]
    names += [("without KL", s) for s in range(KEPT + EVERY, KEPT + FREE + 1, EVERY)]
    rows = [_of(case, name) | {"step": step, "x": x, "y": y} for (name, step), (x, y) in zip(names, spots, strict=True)]
    last = next(row for row in rows if row["solution"] == "narrow" and row["step"] == KEPT)
    return [*rows, rows[0] | {"solution": "narrow"}, last | {"solution": "without KL"}]


def _chosen(study: Study, case: tuple[str, str]) -> dict[str, Any]:
    """What each weight does in the choosing domain, and which one the rule takes: least effect outside among those that keep the goal."""
    name = "-".join(case)
    plain = effect(study, f"{name}/chosen-general", case[0])
    rows = [{"weight": weight} | effect(study, f"{name}/chosen-{weight}", case[0]) for weight in tried(study, case[1])]
    good = [row for row in rows if row["in_domain"] >= GOAL * plain["in_domain"]]
    best = min(good, key=lambda row: row["out_of_domain"]) if good else max(rows, key=lambda row: row["in_domain"])
    part = {"part": effect(study, f"{name}/chosen-part", case[0])} if f"models/{name}/chosen-part" in study.recipes else {}
    return part | {"case": case[0], "method": case[1], "without": plain, "weights": rows, "rule": best["weight"], "keeps_goal": bool(good)}


def summarize(study: Study) -> dict[str, Any]:
    """Everything from finished artifacts."""
    curves = [_curves(study, case) for case in cases(study)]
    return {
        "solutions": {
            "table": [row for case in cases(study) for row in _table(study, case)],
            "measures": [_measures(study, case) for case in cases(study)],
            "size": [row for size, _ in curves for row in size],
            "noise": [row for _, noise in curves for row in noise],
            "drift": [row for case in cases(study) for row in _drift(study, case)],
            "path": [row for case in cases(study) for row in _path(study, case)],
            "chosen": [_chosen(study, case) for case in cases(study)],
            "until": KEPT,
        },
        "seconds": study.seconds(),
        "sources": {"solutions": f"landscape/{'-'.join(cases(study)[0])}/{REPORTED[0][0]}"},
        "meta": {"world": WORLD, "chosen_on": CHOOSING, "reported_on": [domain for domain, _ in runs(study)], "quick": study.quick},
    }
