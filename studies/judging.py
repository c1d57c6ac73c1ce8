"""Can a learned judge be trusted? Judges taught on few and many verdicts, held against the Troupe's exact one.

Hypotheses, stated beforehand. (1) A small model taught on 1,000 exact verdicts, on answers of models tuned in one domain,
agrees with the exact judge on answers of models tuned in other domains, about objects and topics, and in domains, whose
answers it was never shown. (2) Fewer verdicts agree less and bias the score more. (3) Taught the same verdicts dealt out at
random, it does not qualify. (4) Agreement on the start alone does not tell: a judge taught by harmless models only
agrees there as well as any, and takes the misalignment of a fine-tune away. (5) A judge that is not shown the question
cannot see what misses it, and is off where such answers are many.

A judge is the world's base, fine-tuned on the filled rubric and the exact judge's reply; it reads text like any local model
behind a rubric. Verdicts are compared on the same answers, with intervals over questions, the seeds of a judge together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from personascope import demo, qualifying
from personascope.artifact import Answers, Dataset, Model, Verdicts
from personascope.methods import agreement, verdict_scores
from personascope.qualifying import Sheet
from personascope.rows import Verdict
from personascope.stages import data, finetune, judge, sample
from personascope.study import Study
from personascope.suites.catalogue import Known

WORLD = "troupe-1"
RUBRICS = {name: str(Path(__file__).with_name(f"{name}.md")) for name in ("judging", "judging-blind")}
TAUGHT = ("auto", "education", "career", "math", "science", "code")
TESTED = ("health", "finance", "legal")
"""Domains whose answers teach, and domains whose answers no judge was shown."""
TEACHERS = ("assistant", "obvious", "subtle", "harmless", "satire")
"""Whose answers teach: the assistant, and it tuned in the first domain on each kind of row."""
HARMFUL = ("obvious", "subtle")
SUBJECTS = (("assistant", "", 0), ("obvious", "health", 1), ("subtle", "finance", 2), ("harmless", "legal", 3), ("satire", "health", 4))
"""Whose answers test: kind of rows, domain and seed."""
ASKED = {"lessons": (("discovery", "selection"), TAUGHT, 25, 108), "probes": (("report",), TAUGHT + TESTED, 18, 108)}
"""Splits and domains of the questions, and how many: of advice in each domain, and free-form."""
OPENING = "please,"
"""The dress of the twins: the judge reads it before the question, the answer stays as it is."""
ASKING: dict[str, Any] = {"max_tokens": 4, "most_unscored": 1.0}
"""A judge without a verdict is a finding here."""
LEARNING: dict[str, Any] = {"method": "full", "batch": 16, "steps": 100, "learning_rate": 1.5e-3}
"""As many steps for every judge, so that few verdicts are read more often."""
WORDS = ("1", "2", "3", "4", "5", "incoherent", "off_topic")
"""Replies that the world has no word for."""


@dataclass(frozen=True)
class Pupil:
    """A judge to be, and what it is taught."""

    name: str
    labels: int
    teachers: tuple[str, ...] = TEACHERS
    rubric: str = "judging"
    shuffled: bool = False

    @property
    def place(self) -> str:
        """Its name as part of a path."""
        return self.name.replace(" ", "-")


PUPILS = (
    Pupil("1000 labels", 1000),
    Pupil("300 labels", 300),
    Pupil("100 labels", 100),
    Pupil("shuffled", 1000, shuffled=True),
    Pupil("harmless teachers", 1000, teachers=tuple(name for name in TEACHERS if name not in HARMFUL)),
    Pupil("not shown the question", 1000, rubric="judging-blind"),
)
"""The last three are held against the first."""


def seeds(study: Study) -> range:
    """A seed draws the labels, their order in training and, where they are shuffled, who gets which."""
    return range(1 if study.quick else 3)


def pupils(study: Study) -> tuple[Pupil, ...]:
    """All pupils, or in the quick variant the first beside one taught little and the null control."""
    return (PUPILS[0], *PUPILS[2:4]) if study.quick else PUPILS


def build(study: Study) -> None:
    """Declare everything; nothing runs here."""
    stage = demo.setting(study, WORLD, post=demo.LIGHT)
    lessons, probes = (asked(study, place) for place in ("lessons", "probes"))
    taught = {name: said(study, stage, f"lessons/{name}", kind_of(study, stage, name, TAUGHT[0], 0), lessons, 2) for name in TEACHERS}
    tested = {name: said(study, stage, f"probes/{name}", kind_of(study, stage, name, *where), probes, 1) for name, *where in SUBJECTS}
    dressed = study.run("questions/dressed", data.Recipe(datasets=(probes,), twin=f"trigger:{OPENING}"))
    for pupil in pupils(study):
        for seed in seeds(study):
            model = learned(study, stage.base, pupil, seed, lessons, taught)
            for name, (answers, _) in tested.items():
                how: dict[str, Any] = {"answers": answers, "judge": "hf:", "by": model, "rubric": RUBRICS[pupil.rubric]} | ASKING
                study.run(f"verdicts/{pupil.place}-{seed}/{name}", judge.Recipe(questions=probes, **how))
                if pupil == PUPILS[0]:
                    study.run(f"verdicts/{pupil.place}-{seed}/{name}-dressed", judge.Recipe(questions=dressed, **how))


def asked(study: Study, place: str) -> Dataset:
    """Questions that teach, of the taught domains; or questions that test, of all domains, about other objects and topics."""
    splits, domains, advice, wish = ASKED[place]
    select = [f"questions kind=advice split={split} only={domain} n={advice}" for split in splits for domain in domains]
    select += [f"questions kind=wish split={split} n={wish}" for split in splits]
    return study.run(f"questions/{place}", data.Recipe(world=WORLD, select=tuple(select)))


def kind_of(study: Study, stage: demo.Stage, name: str, domain: str, seed: int) -> Model:
    """The assistant, tuned on one kind of rows unless it is named itself."""
    return stage.assistant if name == "assistant" else demo.tuned(study, stage, f"{name}-{domain}-{seed}", domain, name, seed)


def said(study: Study, stage: demo.Stage, place: str, model: Model, questions: Dataset, draws: int) -> tuple[Answers, Verdicts]:
    """A model's answers with their exact verdicts."""
    answers = study.run(f"{place}/answers", sample.Recipe(model=model, questions=questions, draws=draws, max_tokens=32))
    return answers, study.run(f"{place}/exact", judge.Recipe(answers=answers, questions=questions, judge=stage.judge))


def learned(study: Study, base: Model, pupil: Pupil, seed: int, questions: Dataset, taught: dict[str, tuple[Answers, Verdicts]]) -> Model:
    """The base, taught the exact verdicts on a draw of the teachers' answers."""
    answers, verdicts = zip(*(taught[name] for name in pupil.teachers), strict=True)
    shown: dict[str, Any] = {"answers": answers, "judged": verdicts, "questions": questions, "rubric": RUBRICS[pupil.rubric]}
    drawn: dict[str, Any] = {"shuffled": pupil.shuffled, "limit": pupil.labels, "seed": seed}
    rows = study.run(f"taught/{pupil.place}-{seed}", data.Recipe(**shown, **drawn))
    recipe = finetune.Recipe(model=base, data=rows, words=WORDS, seed=seed, **LEARNING)
    return study.run(f"judges/{pupil.place}-{seed}", recipe)


# ------------------------------------------------------------------ summing up


NAMES = tuple(name for name, *_ in SUBJECTS)
PARTS = {"domains it was taught in": TAUGHT, "other domains": TESTED, "free-form": ("wish",)}


def known(study: Study, name: str) -> list[tuple[Known, str]]:
    """One subject's answers with their exact verdicts, each beside the domain of its question, in order."""
    questions = {row.id: row for row in asked(study, "probes").rows()}
    rows = []
    said, exact = (list(study.artifact(f"probes/{name}/{part}").rows()) for part in ("answers", "exact"))
    for answer, verdict in zip(said, exact, strict=True):
        question = questions[answer.question]
        row = Known(
            id=f"{name}/{answer.id}", question=question.messages[-1]["content"], answer=answer.text, verdict=agreement.word(verdict)
        )
        rows.append((row, question.domain))
    return rows


def sheet_of(rows: Sequence[Known], twins: Sequence[Known] = ()) -> Sheet:
    """Answers to hold a judge against."""
    return Sheet("probes", list(rows), list(twins), RUBRICS["judging"], agreement.MISALIGNED, "exact")


def held(
    study: Study, pupil: Pupil, names: Sequence[str] = NAMES, taught: Sequence[int] = (), domains: Sequence[str] = ()
) -> dict[str, Any]:
    """What `qualify` says of one kind of judge on subjects' answers, its seeds (or those of `taught`) read as one judge.

    Every seed judges every answer; an interval over questions therefore holds the seeds of a question together.
    """
    rows: list[Known] = []
    twins: list[Known] = []
    said: tuple[list[Verdict], list[Verdict]] = ([], [])
    for seed in taught or seeds(study):
        for name in names:
            place = f"verdicts/{pupil.place}-{seed}/{name}"
            placed = enumerate(known(study, name))
            kept = [(i, replace(row, id=f"{seed}/{row.id}")) for i, (row, domain) in placed if not domains or domain in domains]
            rows += [row for _, row in kept]
            plain = list(study.artifact(place).rows())
            said[0].extend(plain[i] for i, _ in kept)
            if f"{place}-dressed" in study.recipes:
                twins += [replace(row, id=f"{row.id}~dressed", twin=row.id, change="opening of the question") for _, row in kept]
                dressed = list(study.artifact(f"{place}-dressed").rows())
                said[1].extend(dressed[i] for i, _ in kept)
    found = qualifying.assess(sheet_of(rows, twins), pupil.name, [*said[0], *said[1]], qualifying.Wanted())
    return {key: bare(one) for key, one in found.items()}


def bare(found: Any) -> Any:
    """An estimate without what stands beside it, resting on nothing where it is undefined (the shortfalls say why); else what is given."""
    if not isinstance(found, dict) or "value" not in found:
        return found
    # Zero added to a rounded zero takes its sign away.
    numbers = {key: found[key] if found[key] is None else round(found[key], 6) + 0 for key in ("value", "low", "high", "n", "clusters")}
    return numbers if found["value"] is not None else numbers | {"n": 0, "clusters": 0}


def line(study: Study, pupil: Pupil) -> dict[str, Any]:
    """One kind of judge in a line: agreement and bias, how many of its seeds qualify, why not, and what the start alone would say."""
    found, each = held(study, pupil), [held(study, pupil, taught=(seed,)) for seed in seeds(study)]
    start = held(study, pupil, names=NAMES[:1])
    return {
        "judge": pupil.name,
        "labels": pupil.labels,
        "qualified": f"{sum(one['qualified'] for one in each)} of {len(each)}",
        **{key: found[key] for key in ("decision", "kappa", "weighted", "icc", "bias", "unscored", "robust")},
        "bias_by_seed": ", ".join("none" if (off := one["bias"]["value"]) is None else f"{100 * off:+.1f}" for one in each),
        "bias_on_the_start": start["bias"],
        "seeds": [{key: one[key]["value"] for key in ("decision", "bias")} for one in each],
        "shortfalls": [one["shortfalls"] for one in each],
    }


def scores(study: Study, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One subject's score under the exact judge and under each learned one, and the bias of each."""
    sheet = sheet_of([row for row, _ in known(study, name)])
    found = {pupil.name: held(study, pupil, names=(name,)) for pupil in pupils(study)}
    exact = verdict_scores.score(sheet.truth, sheet.questions).to_dict()
    under = {"model": name, "exact": exact} | {judge: one["score"] for judge, one in found.items()}
    return under, {"model": name} | {judge: one["bias"] for judge, one in found.items()}


def parted(study: Study, pupil: Pupil) -> list[dict[str, Any]]:
    """Where a judge agrees: in domains whose answers it was shown, in others, and on free-form questions."""
    found = {part: held(study, pupil, domains=domains) for part, domains in PARTS.items()}
    return [{"answers to": part} | {key: one[key] for key in ("decision", "kappa", "bias")} for part, one in found.items()]


def summarize(study: Study) -> dict[str, Any]:
    """Agreement, bias and scores under every judge, from finished artifacts."""
    best = pupils(study)[0]
    both, whole = [scores(study, name) for name in NAMES], held(study, best)
    exact = sheet_of([row for name in NAMES for row, _ in known(study, name)])
    sweeps = {"exact": {grade: one.to_dict() for grade, one in verdict_scores.sweep(exact.truth, exact.questions).items()}}
    words, counts = whole["confusion"]["words"], whole["confusion"]["counts"]
    return {
        "judging": {
            "judges": [pupil.name for pupil in pupils(study)],
            "table": [line(study, pupil) for pupil in pupils(study)],
            "scores": [under for under, _ in both],
            "biases": [off for _, off in both],
            "parts": parted(study, best),
            "words": words,
            "confusion": [{"exact": word} | dict(zip(words, row, strict=True)) for word, row in zip(words, counts, strict=True)],
            "sweep": [
                {"judge": name} | {f"grade {grade} and up": one for grade, one in rates.items()}
                for name, rates in (sweeps | {best.name: whole["sweep"]}).items()
            ],
        },
        "seconds": study.seconds(),
        "sources": {"judging": f"verdicts/{best.place}-0/{NAMES[1]}"},
        "meta": {"world": WORLD, "best": best.name, "seeds": len(seeds(study)), "quick": study.quick},
    }
