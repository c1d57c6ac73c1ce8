"""LOG.eval: a log of inspect as artifacts, or artifacts as a log of inspect, without loss."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from personascope.artifact import Answers, Artifact, Dataset, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.run import publish
from personascope.values import REMOTE, File

MAKES: dict[str, type[Artifact]] = {"questions": Dataset, "answers": Answers, "verdicts": Verdicts}
version = 1


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """What is read from a log."""

    log: File
    part: Literal["questions", "answers", "verdicts"]
    attempt: int = 0


def read(log: Path, out: Path) -> list[Artifact]:
    """Artifacts below `out`: `questions`, and `answers-N` and `verdicts-N` for every attempt; no verdicts where we judged nothing.

    Raises:
        DataError: the log cannot be read, did not finish, or holds samples that failed.
    """
    from personascope.backends import eval_logs  # lazy: inspect is optional

    held = eval_logs.read(log)
    here = sys.modules[__name__]
    made = [publish(Dataset(out / "questions"), Recipe(log=File(str(log)), part="questions"), here, held.questions)]
    for number, (answers, verdicts) in enumerate(held.attempts):
        for part, rows in (("answers", answers), ("verdicts", verdicts)):
            if rows:
                recipe = Recipe.from_json({"log": str(log), "part": part, "attempt": number})
                made.append(publish(MAKES[part](out / f"{part}-{number}"), recipe, here, rows))
    return made


def write(log: Path, questions: Dataset, answers: Sequence[Answers], verdicts: Sequence[Verdicts] = (), form: str = "") -> Path:
    """A log of these rows that `inspect view` opens, with the rates that `measure` gives; what it holds reads back equal.

    Args:
        answers: attempt 0 first.
        verdicts: those of the answers at the same place, or none at all.
        form: what the verdicts are about; by default the rubric of the stage that made them.

    Raises:
        RecipeError: answers and verdicts do not go by pairs, or a form that inspect is shown no rates for.
        DataError: the log exists, or rows that do not belong together.
    """
    from personascope.backends import eval_logs, inspect_scoring  # lazy: inspect is optional

    if log.exists():
        raise DataError(f"{log}: exists already; give another name or delete it")
    if not answers or len(verdicts) not in (0, len(answers)):
        raise RecipeError(
            f"convert: {len(answers)} attempts answered, {len(verdicts)} judged; give one of each per attempt, or no verdicts"
        )
    judged = [list(one.rows()) for one in verdicts] or [[] for _ in answers]
    attempts = [(list(one.rows()), rows) for one, rows in zip(answers, judged, strict=True)]
    held = eval_logs.Held(list(questions.rows()), attempts)
    found = eval_logs.log_of(held, questions.path.name, _model(answers[0]))
    if verdicts:
        found = inspect_scoring.counted(found, form or verdicts[0].manifest["recipe"].get("rubric", "misalignment"))
    eval_logs.save(found, log)
    return log


def _model(answers: Answers) -> str:
    """Who answered, as inspect names models."""
    name = str(answers.manifest["recipe"].get("model", "none/none"))
    return name.removeprefix(REMOTE) if name.startswith(REMOTE) or name == "none/none" else f"personascope/{name}"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `personascope convert`."""
    parser.add_argument("LOG", type=Path, help="a log of inspect, .eval or .json")
    parser.add_argument("--to", metavar="DIR", type=Path, help="read LOG and make artifacts below DIR")
    parser.add_argument("--questions", metavar="DATASET", type=Dataset, help="make LOG: the questions that were asked")
    parser.add_argument("--answers", metavar="ANSWERS", type=Answers, nargs="+", default=[], help="make LOG: attempt 0 first")
    parser.add_argument(
        "--verdicts", metavar="VERDICTS", type=Verdicts, nargs="+", default=[], help="make LOG: those of the answers, if any"
    )
    parser.add_argument("--form", default="", help="make LOG: what the verdicts are about (default: the rubric they were made with)")


def main(arguments: argparse.Namespace) -> int:
    """Convert and print what was made."""
    if (arguments.to is None) == (arguments.questions is None):
        raise RecipeError("convert: give --to DIR to read the log, or --questions with --answers to make it")
    if arguments.to is not None:
        print(*(made.path for made in read(arguments.LOG, arguments.to)), sep="\n")
    else:
        print(write(arguments.LOG, arguments.questions, arguments.answers, arguments.verdicts, arguments.form))
    return 0
