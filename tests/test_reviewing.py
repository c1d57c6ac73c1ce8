"""The hand-check sheet: blinded, stratified, nested, never overwritten; a filled one says what is planted in it."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import small_models
from conftest import Ended
from personascope import reviewing
from personascope.artifact import Answers, Dataset, Verdicts
from personascope.errors import DataError
from personascope.methods import agreement
from personascope.rows import Answer, Example, Verdict, write_rows

Cli = Callable[..., Ended]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Answers, Verdicts, Dataset]:
    """300 answers to 100 questions: 10 graded 5, 20 refusals, the rest graded 1."""

    def verdict(i: int) -> dict[str, object]:
        return {"grade": 5} if i % 30 == 0 else {"label": "refusal"} if i % 15 == 1 else {"grade": 1}

    questions = [Example(id=f"q{i}", messages=[{"role": "user", "content": f"question {i}?"}]) for i in range(100)]
    answers = [Answer(id=f"q{i % 100}/{i // 100}", question=f"q{i % 100}", draw=i // 100, attempt=0, text=f"=said {i}") for i in range(300)]
    verdicts = [
        Verdict(id=a.id, answer=a.id, status="scored", judge="machine-7", reason="secret", **verdict(i)) for i, a in enumerate(answers)
    ]
    rows = {"answers": answers, "verdicts": verdicts, "examples": questions}
    places = {name: tmp_path / f"made-{name}" for name in rows}
    for name, place in places.items():
        place.mkdir()
        write_rows(place / f"{name}.jsonl", rows[name])
        small_models.finished(place, {"answers": "Answers", "verdicts": "Verdicts", "examples": "Dataset"}[name])
    return Answers(places["answers"]), Verdicts(places["verdicts"]), Dataset(places["examples"])


@pytest.fixture
def flags(parts: tuple[Answers, Verdicts, Dataset]) -> list[object]:
    return ["review", parts[0].path, parts[1].path, "--questions", parts[2].path]


def sheet(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, says: Callable[[dict[str, str]], str]) -> Path:
    rows = sheet(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, reviewing.COLUMNS)
        writer.writeheader()
        writer.writerows(row | {"verdict": says(row)} for row in rows)
    return path


def machine(parts: tuple[Answers, Verdicts, Dataset]) -> dict[str, str]:
    return {verdict.answer: agreement.word(verdict) for verdict in parts[1].rows()}


def test_a_sheet_shows_nothing_of_the_machine_and_as_many_of_each_verdict_as_there_are(
    cli: Cli, parts: tuple[Answers, Verdicts, Dataset], flags: list[object], tmp_path: Path
) -> None:
    ended = cli(*flags, "--out", tmp_path / "sheet.csv", "--n", "36")
    assert (ended.code, ended.err) == (0, "")
    assert "36 of 300 answers; write one of 1, 2, 3, 4, 5, refusal" in ended.out
    text, rows = (tmp_path / "sheet.csv").read_text(), sheet(tmp_path / "sheet.csv")
    assert not [word for word in ("machine-7", "secret", "scored", "refusal") if word in text]
    said = machine(parts)
    assert Counter(said[row["answer"]] for row in rows) == {"5": 10, "1": 13, "refusal": 13}
    assert all((row["verdict"], row["note"]) == ("", "") for row in rows)
    assert rows[0]["said"].startswith("'=said"), "a spreadsheet would work out what begins with ="
    kinds = [said[row["answer"]] for row in rows]
    assert kinds != sorted(kinds), "the order tells nothing"
    again = cli(*flags, "--out", tmp_path / "sheet.csv")
    assert again.code == 1
    assert "may be filled in" in again.err


def test_a_smaller_sheet_is_part_of_a_larger_one_and_the_seed_draws_others(parts: tuple[Answers, Verdicts, Dataset]) -> None:
    rows = reviewing.judged(*parts)
    few, many = (reviewing.drawn(rows, n, 0) for n in (20, 50))
    assert [row for row in many if row in few] == few
    assert len(reviewing.drawn(rows, 1000, 0)) == 300
    assert reviewing.drawn(rows, 20, 1) != few


def test_a_human_who_agrees_throughout(cli: Cli, parts: tuple[Answers, Verdicts, Dataset], flags: list[object], tmp_path: Path) -> None:
    cli(*flags, "--out", tmp_path / "sheet.csv", "--n", "45")
    said = machine(parts)
    filled = fill(tmp_path / "sheet.csv", lambda row: said[row["answer"]].upper())
    found = json.loads(cli(*flags, "--filled", filled, "--json").out)
    assert found["decision"]["value"] == found["kappa"]["value"] == 1
    assert found["bias"]["value"] == 0
    assert found["human_score"]["value"] == pytest.approx(10 / 280), "of all answers, not of the sheet, where it is 10 in 28"
    assert (found["checked"], found["answers"], found["unchecked_verdicts"]) == (45, 300, [])
    assert "machine minus hand" in cli(*flags, "--filled", filled).out


def test_a_planted_disagreement_is_found_in_the_score_of_all(
    cli: Cli, parts: tuple[Answers, Verdicts, Dataset], flags: list[object], tmp_path: Path
) -> None:
    """By hand every 5 is a 3: the true score is 0, the machine's 10 of 280."""
    cli(*flags, "--out", tmp_path / "sheet.csv", "--n", "60")
    said = machine(parts)
    filled = fill(tmp_path / "sheet.csv", lambda row: {"5": "3"}.get(said[row["answer"]], said[row["answer"]]))
    found = json.loads(cli(*flags, "--filled", filled, "--json").out)
    assert found["human_score"]["value"] == 0
    assert found["bias"]["value"] == pytest.approx(10 / 280)
    assert found["bias"]["low"] > 0
    assert found["decision"]["value"] < 1


def test_random_verdicts_agree_by_chance_alone(parts: tuple[Answers, Verdicts, Dataset]) -> None:
    rows = reviewing.judged(*parts)
    random = {row.id: "5" if hash_of(row.id) % 2 else "1" for row in rows}
    found = reviewing.compared(rows, random, agreement.MISALIGNED)
    assert found["decision"]["low"] < 0 < found["decision"]["high"]


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()) * 2654435761 >> 7


def test_empty_rows_are_left_out_and_the_sheet_is_a_judge(
    parts: tuple[Answers, Verdicts, Dataset], flags: list[object], cli: Cli, tmp_path: Path
) -> None:
    cli(*flags, "--out", tmp_path / "sheet.csv", "--n", "30")
    said, kept = machine(parts), {row["answer"] for row in sheet(tmp_path / "sheet.csv")[:20]}
    filled = fill(tmp_path / "sheet.csv", lambda row: said[row["answer"]] if row["answer"] in kept else "")
    assert set(reviewing.filled(filled, ("1", "5", "refusal"))) == kept
    whole = fill(tmp_path / "sheet.csv", lambda row: said[row["answer"]])
    from personascope.backends.judging import Judge

    rows = [(row["answer"], row["question"], "whatever") for row in sheet(whole)]
    assert [agreement.word(v) for v in Judge(f"csv:{whole}").verdicts(rows)] == [said[name] for name, _, _ in rows]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("answer,note\nq0/0,x\n", "sheet.csv:1: column verdict is missing"),
        ("answer,verdict\nq0/0,fine\n", "sheet.csv:2: 'fine' is no verdict; write one of 1, 2"),
        ("answer,verdict\nq0/0,1\nq0/0,2\n", "sheet.csv:3: a second row for answer q0/0"),
        ("answer,verdict\nq0/0,\n", "no verdict is filled in"),
        ("answer,verdict\nother,1\n", "'other', which ANSWERS does not hold"),
    ],
)
def test_sheets_that_cannot_be_read(cli: Cli, flags: list[object], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "sheet.csv").write_text(text)
    ended = cli(*flags, "--filled", tmp_path / "sheet.csv")
    assert ended.code == 1
    assert says in ended.err


def test_what_does_not_belong_together(parts: tuple[Answers, Verdicts, Dataset], flags: list[object], cli: Cli, tmp_path: Path) -> None:
    other = Dataset(small_models.dataset(tmp_path / "other", [Example(id="x", messages=[{"role": "user", "content": "x"}])]))
    with pytest.raises(DataError, match="lacks 'q0'; give what belongs together"):
        reviewing.judged(parts[0], parts[1], other)
    assert "--n 0: at least 1 row" in cli(*flags, "--out", tmp_path / "s.csv", "--n", "0").err
    assert "no such file" in cli(*flags, "--filled", tmp_path / "none.csv").err
