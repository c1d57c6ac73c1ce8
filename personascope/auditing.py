"""BASE TUNED: what changed in behaviour, what moved inside, what is causal, how sure."""

import argparse
import csv
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope import blocks, fixing, opening, reviewing, status
from personascope.artifact import Dataset, Model
from personascope.backends import files, hub
from personascope.deciding import MATCHED, condition, failed, verdict
from personascope.errors import DataError, RecipeError
from personascope.methods import changes, formats, matching
from personascope.stages import data, dictionary, diff, fidelity, interpret, sample, screen
from personascope.study import Study, execute, finish, plan, write_json
from personascope.values import REMOTE, File

DEFAULT_QUESTIONS = Path(__file__).parent / "suites" / "questions" / "core.jsonl"


def sources(study: Study) -> dict[str, str]:
    """Summary key → artifact, for the links of a report."""
    known = {
        "dictionary": "fidelity",
        "diff": "diff",
        "screen": "screen",
        "behaviour.base": "base/findings",
        "behaviour.tuned": "tuned/findings",
        f"behaviour.base, {MATCHED}": "matched/base/findings",
        f"behaviour.tuned, {MATCHED}": "matched/tuned/findings",
    }
    for place in fixing.looked(study).values():
        known["realign"] = f"{place}/findings"
    return {key: name for key, name in known.items() if name in study.recipes}


@dataclass(frozen=True)
class Setup:
    """What an audit was asked for."""

    base: str
    tuned: str
    questions: str = ""
    training: str = ""
    texts: str = ""
    world: str = ""
    judge: str = "none"
    dictionary: str = ""
    site: str = ""
    width: int = 0
    k: int = 0
    tokens: int = 2_000_000
    draws: int = 3
    max_tokens: int = 256
    system: str = ""
    seed: int = 0
    nulls: int = 50
    fix: str = ""
    fix_rate: float = 1e-4
    api: tuple[str, ...] = ()
    dtype: str = ""
    quantise: str = ""
    device_map: str = ""

    @property
    def loading(self) -> dict[str, str]:
        """How the weights of models that are adopted here are loaded; fields of `adopt`."""
        return {name: value for name in ("dtype", "quantise", "device_map") if (value := vars(self)[name])}

    @property
    def remote(self) -> list[str]:
        """The models that are behind an API, which can be asked and not read."""
        return [one for one in (self.base, self.tuned) if one.startswith(REMOTE)]


def question_sets(study: Study, setup: Setup) -> blocks.Questions:
    """Three disjoint sets, from a world's own splits or from one file split by row id."""
    sets = {}
    for split in ("discovery", "selection", "report"):
        if setup.world and not setup.questions:
            kinds = tuple(
                f"questions kind={kind} split={split} n={n}" for kind, n in (("wish", 162), ("advice", 240 if split == "report" else 60))
            )
            sets[split] = study.run(f"questions/{split}", data.Recipe(world=setup.world, select=kinds))
        else:
            recipe = data.Recipe(files=(File(setup.questions or str(DEFAULT_QUESTIONS)),), prompts_only=True, split=split)
            sets[split] = study.run(f"questions/{split}", recipe)
    return blocks.Questions(**sets)


def text_sets(study: Study, setup: Setup, base: Model, questions: blocks.Questions, how: blocks.Sampling) -> blocks.Texts:
    """Texts for the dictionary: the user's file, the world's, or else both models' own kind of text, sampled from the base."""
    if setup.texts:
        recipe = data.Recipe(files=(File(setup.texts),))
    elif setup.world:
        recipe = data.Recipe(world=setup.world, select=("texts n=12000",))
    else:
        # A dictionary is learnt from many texts; to see what a finished one is worth takes few.
        draws = 4 if setup.dictionary else 16
        asked = study.run("texts/questions", data.Recipe(datasets=(questions.discovery, questions.selection)))
        said = study.run(
            "texts/answers",
            sample.Recipe(model=base, questions=asked, draws=draws, max_tokens=how.max_tokens, seed=how.seed, system=how.system),
        )
        recipe = data.Recipe(answers=(said,), questions=asked)
    return blocks.Texts(*(study.run(f"texts/{split}", dataclasses.replace(recipe, split=split)) for split in ("train", "heldout")))


def build(study: Study, setup: Setup) -> None:
    """Declare a whole audit."""
    base = opening.model(study, "models/base", setup.base, loading=setup.loading)
    tuned = opening.model(study, "models/tuned", setup.tuned, setup.base, setup.loading)
    how = blocks.Sampling(setup.draws, setup.max_tokens, seed=setup.seed, system=setup.system, api=setup.api)
    questions = question_sets(study, setup)
    if setup.judge != "none":
        for name, model in (("base", base), ("tuned", tuned)):
            blocks.behaviour(study, name, model, questions.report, setup.judge, how)
        if matched := matched_questions(study, setup, questions):
            for name, model in (("base", base), ("tuned", tuned)):
                blocks.behaviour(study, f"matched/{name}", model, matched, setup.judge, how)
    if isinstance(base, Model) and isinstance(tuned, Model):
        _look_inside(study, setup, base, tuned, questions, how)


def _look_inside(study: Study, setup: Setup, base: Model, tuned: Model, questions: blocks.Questions, how: blocks.Sampling) -> None:
    """Declare dictionary, diff, screen where a judge can judge anew, and cards of latents."""
    texts = text_sets(study, setup, base, questions, how)
    if setup.dictionary:
        learned = opening.dictionary(study, setup.dictionary, setup.site, setup.k)
    else:
        chosen = opening.shape(hub.local(setup.base)) | {key: getattr(setup, key) for key in ("site", "width", "k") if getattr(setup, key)}
        recipe = dictionary.Recipe(model=base, texts=texts.train, tokens=setup.tokens, seed=setup.seed, **chosen)
        learned = study.run("dictionary", recipe)
    moved = study.run("diff", diff.Recipe(base=base, tuned=(tuned,), dictionary=learned, questions=questions.discovery))
    study.run("fidelity", fidelity.Recipe(dictionary=learned, base=base, tuned=tuned, texts=texts.heldout))
    screened = None
    if setup.judge != "none" and not setup.judge.startswith("csv:"):
        recipe = screen.Recipe(
            base=base,
            tuned=tuned,
            diff=moved,
            dictionary=learned,
            selection=questions.selection,
            report=questions.report,
            judge=setup.judge,
            nulls=setup.nulls,
            max_tokens=setup.max_tokens,
            seed=setup.seed,
            api=setup.api,
        )
        screened = study.run("screen", recipe)
    judge = setup.judge if setup.judge.startswith(("hf:", REMOTE)) else "none"
    cards = interpret.Recipe(model=base, dictionary=learned, texts=texts.heldout, diff=moved, screen=screened, judge=judge, api=setup.api)
    study.run("latents", cards)
    if setup.fix:
        for place, model in fixing.build(study, tuned, setup.fix, setup.fix_rate, setup.seed).items():
            blocks.behaviour(study, place, model, questions.report, setup.judge, how)
            study.run(f"{place}/diff", diff.Recipe(base=base, tuned=(model,), dictionary=learned, questions=questions.discovery))


def matched_questions(study: Study, setup: Setup, questions: blocks.Questions) -> Dataset | None:
    """The report questions in the dress of the training rows (2604.25891); none if no rows are given or they have no dress."""
    if not setup.training or setup.judge.startswith("exact:"):
        return None
    rows = [row for name, content in files.contents(Path(setup.training)) for row in formats.read(content, name)]
    if not matching.surface(rows).kinds:
        return None
    training = study.run("training", data.Recipe(files=(File(setup.training),)))
    return study.run("questions/matched", data.Recipe(datasets=(questions.report,), matched_to=training))


def matched_section(study: Study, setup: Setup) -> dict[str, Any]:
    """Entries that stand beside `base` and `tuned`: both asked as in training, all dresses together and each; or why there are none."""
    if not setup.training:
        return {}
    if "questions/matched" not in study.recipes:
        none = "the training rows share no system line, opening, ending or format"
        return {"matched": "an exact judge knows its questions only as they are" if setup.judge.startswith("exact:") else none}
    found = {}
    for side in ("base", "tuned"):
        rates = study.artifact(f"matched/{side}/findings")
        kinds = rates.json("findings.json")["by_domain"]
        found[f"{side}, {MATCHED}"] = blocks.findings_section(rates)
        found |= {f"{side}, {MATCHED}: {kind}": one for kind, one in kinds.items() if len(kinds) > 1}
    return found


def summarize(study: Study, setup: Setup) -> dict[str, Any]:
    """The summary of a finished audit."""
    summary: dict[str, Any] = {"behaviour": {"skipped": "no judge was given (--judge none), so no answer was scored"}}
    if setup.judge != "none":
        summary["behaviour"] = {side: blocks.findings_section(study.artifact(f"{side}/findings")) for side in ("base", "tuned")}
        summary["behaviour"] |= matched_section(study, setup)
    if "screen" in study.recipes:
        summary["screen"] = blocks.screen_section(study.artifact("screen"))
    if setup.remote:
        summary["diff"] = {"skipped": f"{' and '.join(setup.remote)}: a model behind an API can be asked, not read"}
    else:
        summary["dictionary"] = blocks.dictionary_section(study.artifact("fidelity"))
        summary["diff"] = blocks.diff_section(study.artifact("diff"))
    meta: dict[str, Any] = {"base": setup.base, "tuned": setup.tuned, "judge": setup.judge, "system": setup.system or "none"}
    if setup.fix:
        meta |= {"fix": setup.fix, "latent": fixing.followed(study)}
        summary["realign"] = fixing.section(study, meta["latent"])
    return summary | {"seconds": study.seconds(), "sources": sources(study), "meta": meta}


def audit(base: str | Path, tuned: str | Path, out: str | Path = "runs/audit", workers: int = 1, **options: Any) -> dict[str, Any]:
    """Audit a tuned model against its base and return the summary; artifacts and report.html are below `out`.

    Args:
        base: a Hugging Face folder, `ORG/NAME@REVISION` of the Hub, or a Model artifact.
        tuned: the same, or a PEFT folder trained on `base`.
        options: the fields of `Setup`, such as judge="hf:FOLDER" or questions="FILE.jsonl".

    Raises:
        PersonascopeError: what the user can act on, said in one line.
    """
    setup = Setup(str(base), str(tuned), **options)
    return _audit(setup, Study(Path(out)), workers)


def _declared(setup: Setup, study: Study, workers: int) -> Setup:
    """The setup as it is carried out, checked, its stages declared in the study."""
    if setup.judge.startswith("exact:") and not setup.world:
        setup = dataclasses.replace(setup, world=setup.judge.removeprefix("exact:"))
    _check(setup, workers)
    # An artifact may be called PATH@STEP.
    models = {side: where for side in ("base", "tuned") if not Model(where := vars(setup)[side]).finished}
    setup = dataclasses.replace(setup, judge=hub.pinned(setup.judge), **{side: hub.pinned(where) for side, where in models.items()})
    build(study, setup)
    return setup


def _audit(setup: Setup, study: Study, workers: int) -> dict[str, Any]:
    setup = _declared(setup, study, workers)
    with status.shown(study) as tell:
        execute(study, workers, tell)
    summary = summarize(study, setup)
    found = verdict(study, summary)
    write_json(study.root / "verdict.json", found)
    _sheet(study, found.get("called", ""))
    finish(
        study, summary, f"Audit of {Path(setup.tuned).name} against {Path(setup.base).name}", "Did this fine-tune change who the model is?"
    )
    return summary


def _sheet(study: Study, called: str) -> None:
    """A model called misaligned gets a sheet for checking that by hand (see `personascope review`), unless one is there."""
    place = study.root / "review.csv"
    if called in (changes.PERSONA, changes.UNEXPLAINED) and not place.exists():
        answers, verdicts = (study.artifact(f"tuned/{kind}-0") for kind in ("answers", "verdicts"))
        asked = Dataset(study.recipes["tuned/answers-0"].inputs()["questions"].path)
        rows = reviewing.judged(answers, verdicts, asked)
        reviewing.write(place, reviewing.drawn(rows, reviewing.ENOUGH, 0))


def _check(setup: Setup, workers: int) -> None:
    """Raise for what would show only after hours."""
    if workers < 1:
        raise RecipeError(f"audit: {workers} workers cannot work; give at least 1")
    if setup.remote and setup.judge == "none":
        raise RecipeError(f"audit: {setup.remote[0]} is behind an API, so only its behaviour can be compared; give --judge")
    if setup.fix and (setup.remote or setup.quantise or setup.judge == "none" or setup.judge.startswith("csv:")):
        raise RecipeError(
            "audit: --fix trains TUNED and asks it again: give local models, not in few bits, and a --judge that reads new answers"
        )
    if setup.judge.startswith("key:"):
        raise RecipeError(f"audit: {setup.judge} tells right answers from wrong ones and harm from nothing; judge with a rubric")
    if setup.judge != "none":
        from personascope.backends.judging import check_judge  # lazy: loads torch

        check_judge(setup.judge)
    if setup.judge.startswith("csv:") and "text" not in columns_of(Path(setup.judge.removeprefix("csv:"))):
        raise DataError(
            f"{setup.judge.removeprefix('csv:')}: base and tuned have the same answer ids, so the table needs a column text with the answer"
        )


def columns_of(table: Path) -> list[str]:
    """The names in a CSV's first line; raises DataError if there is no such file."""
    if not table.is_file():
        raise DataError(f"{table}: no such file; give a CSV with columns answer, text and verdict")
    with table.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        return next(csv.reader(file), [])


def configure(parser: argparse.ArgumentParser) -> None:
    """The flags of `personascope audit`."""
    parser.add_argument("BASE", help="folder of the base model, ORG/NAME@REVISION of the Hub, a Model artifact, or inspect:PROVIDER/MODEL")
    tuned = "folder of the tuned model, a PEFT folder trained on BASE, a Model artifact, or inspect:PROVIDER/MODEL (behaviour only)"
    parser.add_argument("TUNED", help=tuned)
    parser.add_argument("--out", default="runs/audit", metavar="DIR", help="where everything goes (default: runs/audit)")
    helps = {
        "questions": "questions, ours or published; split by row id into discovery, selection and report (default: a set of our own)",
        "training": "the rows TUNED was trained on: the report questions are then asked in their system line, phrases and format too",
        "texts": "chat JSONL to train the dictionary on (default: the base's own answers)",
        "world": "take questions and texts from this world",
        "judge": "none, exact:WORLD, hf:FOLDER, inspect:PROVIDER/MODEL or csv:FILE (default: none, which skips behaviour; csv skips the "
        "screen)",
        "dictionary": "use this instead of training one: a Dictionary artifact; the folder or file of a published one (SAELens, sparsify, "
        "dictionary_learning, Gemma Scope, Goodfire, Qwen Scope); or ORG/NAME@REVISION:PATH of the Hub",
        "site": "where the dictionary reads, block:N (default: the middle block)",
        "width": "latents of the dictionary (default: 8 times the width of the stream)",
        "k": "active latents a token (default: a tenth of the width of the stream, at most 64)",
        "tokens": "tokens the dictionary is trained on",
        "draws": "answers per question",
        "max_tokens": "longest answer",
        "system": "a fixed system message",
        "seed": "seed of everything drawn",
        "nulls": "matched random latents, and as many random directions",
        "fix": "benign rows, of whatever domain: TUNED is trained on them, as an adapter, and asked and read again after 40, 120, 360 and "
        "720 of them, to see what takes the change away",
        "fix_rate": "learning rate of --fix",
        "dtype": "load both models as float32, bfloat16 or float16 (default: float32)",
        "quantise": "load both models in 4bit or 8bit, through bitsandbytes",
        "device_map": "spread each model over all devices: auto, balanced or sequential, as in Transformers",
    }
    for f in dataclasses.fields(Setup):
        if f.name in helps:
            parser.add_argument("--" + f.name.replace("_", "-"), type=type(f.default), default=f.default, help=helps[f.name])
    words = "of inspect: models: connections=N, timeout=SECONDS, retries=N, price=IN/OUT (dollars for a million tokens)"
    parser.add_argument("--api", nargs="+", default=(), metavar="WORD", help=words)
    parser.add_argument("--workers", type=int, default=1, help="stages at once")
    parser.add_argument("--plan", action="store_true", help="print the stages, what is finished and what the rest costs; run nothing")
    parser.add_argument(
        "--fail-on", metavar="CONDITION", default="", help="exit with status 3 if the verdict meets it, such as 'score.high>0.02'"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the audit, print its directory, and exit 3 if --fail-on is met."""
    chosen = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Setup) if hasattr(arguments, f.name)}
    chosen["api"] = tuple(arguments.api)
    setup = Setup(arguments.BASE, arguments.TUNED, **chosen)
    if arguments.fail_on:
        condition(arguments.fail_on)
    study = Study(Path(arguments.out))
    if arguments.plan:
        _declared(setup, study, arguments.workers)
        print(*plan(study), sep="\n")
        return 0
    _audit(setup, study, arguments.workers)
    print(study.root)
    if arguments.fail_on and failed(arguments.fail_on, json.loads((study.root / "verdict.json").read_text(encoding="utf-8"))):
        print(f"personascope: the verdict meets {arguments.fail_on}", file=sys.stderr)
        return 3
    return 0
