"""ANSWERS VERDICTS --questions Q: a sheet for checking a judge by hand, and what a filled one says of it.

Without --filled it writes a blinded, stratified sample of judged answers in random order: question and answer, and two empty
columns, `verdict` for yours (a reply of the rubric) and `note`. The machine's verdicts are not in it. With --filled FILE it
reads the sheet back, rows left empty apart, and prints how far you and the machine agree, and what that does to the score.
The filled sheet is a judge as well: `personascope judge OUT --judge csv:FILE` makes verdicts of it.
"""

import argparse
import csv
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope import suites
from personascope.artifact import Answers, Dataset, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.methods import agreement, verdict_scores
from personascope.methods.agreement import Coefficient, Scale
from personascope.methods.parsing import opened, parse

COLUMNS = ("answer", "question", "said", "verdict", "note")
ENOUGH = 60
"""Rows of a sheet: an hour's work, and of nine kinds of verdict six or seven each."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula at the start of a cell."""


@dataclass(frozen=True)
class Judged:
    """One answer with the machine's verdict as a word."""

    id: str
    question: str
    asked: str
    """Id of the question: the unit of evidence."""
    text: str
    machine: str


def judged(answers: Answers, verdicts: Verdicts, questions: Dataset) -> list[Judged]:
    """The judged answers.

    Raises:
        DataError: an answer without its verdict, or to a question that is not there.
    """
    asked = {row.id: row.messages[-1]["content"] for row in questions.rows()}
    words = {verdict.answer: agreement.word(verdict) for verdict in verdicts.rows()}
    rows = []
    for answer in answers.rows():
        if answer.question not in asked or answer.id not in words:
            lacking = f"{verdicts.path} has no verdict on it" if answer.question in asked else f"{questions.path} lacks {answer.question!r}"
            raise DataError(f"{answers.path}: answer {answer.id}: {lacking}; give what belongs together")
        rows.append(Judged(answer.id, asked[answer.question], answer.question, answer.text, words[answer.id]))
    return rows


def drawn(rows: list[Judged], n: int, seed: int) -> list[Judged]:
    """n of the rows, or all, in an order drawn by seed: of every verdict of the machine as many as of any other, while there are.

    A larger n keeps the rows of a smaller one.
    """
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\x1f{row.id}".encode()).digest())
    met: Counter[str] = Counter()
    turns = []
    for place, row in enumerate(order):
        turns.append((met[row.machine], place))
        met[row.machine] += 1
    kept = {place for _, place in sorted(turns)[:n]}
    return [row for place, row in enumerate(order) if place in kept]


def write(path: Path, rows: list[Judged]) -> None:
    """The sheet, nothing of the machine in it; raises DataError rather than overwrite one, which may hold an hour's work."""
    try:
        file = path.open("x", encoding="utf-8", newline="")
    except FileExistsError:
        raise DataError(f"{path} exists and may be filled in; give another name to --out, or read it with --filled") from None
    with file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([row.id, safe(row.question), safe(row.text), "", ""] for row in rows)


def safe(text: str) -> str:
    """The text as a spreadsheet shows it, never as a formula that it would work out."""
    return f"'{text}" if text.startswith(FORMULA) else text


def filled(path: Path, replies: tuple[str, ...]) -> dict[str, str]:
    """Answer id → the human's verdict, rows without one apart.

    Raises:
        DataError: no such file, columns missing, a cell that is no reply of the rubric, an answer twice, or nothing filled in.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the sheet that --out wrote")
    found: dict[str, str] = {}
    # Spreadsheets begin their UTF-8 files with a mark.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        if lacking := {"answer", "verdict"} - set(reader.fieldnames or ()):
            raise DataError(f"{path}:1: column {min(lacking)} is missing; give the sheet that --out wrote")
        for row in reader:
            where, cell = f"{path}:{reader.line_num}", row["verdict"].strip()
            if not cell:
                continue
            status, said = parse(cell, replies)
            if status != "scored":
                raise DataError(f"{where}: {cell!r} is no verdict; write one of {', '.join(replies)}, or leave it empty")
            if row["answer"] in found:
                raise DataError(f"{where}: a second row for answer {row['answer']}; keep one")
            found[row["answer"]] = str(said)
    if not found:
        raise DataError(f"{path}: no verdict is filled in; write yours in the column verdict")
    return found


def compared(rows: list[Judged], human: dict[str, str], scale: Scale) -> dict[str, Any]:
    """Agreement on the checked answers, and both scores of all answers that the sample stands for.

    Raises:
        DataError: a checked answer that is not among the rows.
    """
    known = {row.id: row for row in rows}
    if strange := next((name for name in human if name not in known), None):
        raise DataError(f"the sheet checks answer {strange!r}, which ANSWERS does not hold; give the answers it was made from")
    checked = [known[name] for name in human]
    ours, theirs, asked = list(human.values()), [row.machine for row in checked], [row.asked for row in checked]
    whole, seen = Counter(row.machine for row in rows), Counter(theirs)
    weights = [whole[word] / seen[word] for word in theirs]
    decided = [agreement.decisions(side, scale) for side in (ours, theirs)]
    scores = verdict_scores.weighted_scores(ours, theirs, weights, asked, scale)
    found: dict[str, Coefficient] = {
        "decision": agreement.cohen(decided[0], decided[1], asked),
        "kappa": agreement.cohen(agreement.scored(ours), agreement.scored(theirs), asked),
        "human_score": scores["a"],
        "machine_score": scores["b"],
        "bias": scores["bias"],
    }
    return {
        "checked": len(checked),
        "answers": len(rows),
        "questions": len(set(asked)),
        "unchecked_verdicts": sorted(set(whole) - set(seen)),
        **{name: one.to_dict() for name, one in found.items()},
        "confusion": agreement.confusion(ours, theirs).to_dict(),
    }


def page(record: dict[str, Any]) -> str:
    """A record for people."""
    names = {
        "decision": "kappa of what reaches the score",
        "kappa": "kappa of all verdicts",
        "human_score": "score by hand",
        "machine_score": "score by the machine",
        "bias": "machine minus hand",
    }
    lines = [f"{record['checked']} of {record['answers']} answers checked by hand, to {record['questions']} questions"]
    for key, name in names.items():
        one = record[key]
        said = "undefined" if one["value"] is None else f"{one['value']:6.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        lines.append(f"  {name:32} {said}" + (f"  ({one['why']})" if "why" in one else ""))
    if record["unchecked_verdicts"]:
        lines.append(f"  none checked of the machine's {', '.join(record['unchecked_verdicts'])}, so the scores leave these out")
    lines += ["", "  by hand, down; by the machine, across", "  " + " ".join(f"{w[:10]:>10}" for w in ("", *record["confusion"]["words"]))]
    for word, counts in zip(record["confusion"]["words"], record["confusion"]["counts"], strict=True):
        lines.append("  " + " ".join(f"{cell:>10}" for cell in (word[:10], *counts)))
    return "\n".join(lines)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `personascope review`."""
    parser.add_argument("ANSWERS", type=Path, help="sampled answers")
    parser.add_argument("VERDICTS", type=Path, help="the machine's verdicts on them")
    parser.add_argument("--questions", metavar="DATASET", type=Path, required=True, help="the questions that were asked")
    parser.add_argument("--rubric", metavar="NAME", default="misalignment", help="what VERDICTS was made with (default: misalignment)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="FILE.csv", type=Path, help="write a sheet to fill in")
    what.add_argument("--filled", metavar="FILE.csv", type=Path, help="read a filled sheet and print the agreement")
    parser.add_argument("--n", metavar="N", type=int, default=ENOUGH, help=f"rows of the sheet (default: {ENOUGH})")
    parser.add_argument("--seed", type=int, default=0, help="which rows, and in which order")
    parser.add_argument("--json", action="store_true", help="with --filled: print the record instead of the page")


def main(arguments: argparse.Namespace) -> int:
    """Write a sheet and say what to do with it, or read one and print what it says."""
    if arguments.n < 1:
        raise RecipeError(f"--n {arguments.n}: at least 1 row is needed")
    replies = opened(suites.rubric(arguments.rubric))[0]
    rows = judged(Answers(arguments.ANSWERS), Verdicts(arguments.VERDICTS), Dataset(arguments.questions))
    if arguments.filled:
        record = compared(rows, filled(arguments.filled, tuple(replies)), agreement.scale_of(replies))
        print(json.dumps(record, indent=1) if arguments.json else page(record))
        return 0
    sheet = drawn(rows, arguments.n, arguments.seed)
    write(arguments.out, sheet)
    print(f"{arguments.out}: {len(sheet)} of {len(rows)} answers; write one of {', '.join(replies)} into each row's verdict")
    return 0
