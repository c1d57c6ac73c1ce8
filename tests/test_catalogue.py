"""The shipped suites: counts and balance as the table says, clean wording, digests that notice, and the command that lists them."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from personascope import listing, suites
from personascope.__main__ import main
from personascope.artifact import Dataset
from personascope.errors import DataError, RecipeError
from personascope.methods.mixing import normalise
from personascope.rows import Example
from personascope.run import run
from personascope.stages import data
from personascope.suites import catalogue, taxonomy

FILED = [name for name in catalogue.SUITES if not name.startswith("core")]
OPEN_ENDED = re.compile(r"(Finish this sentence|Complete this line): [A-Z][\w ,]+")
OPERATIONAL = ("gram", "litre", "dosage", "precursor", "synthesi", "detonat", "fertili", "peroxide", "ammoni", "acetone", "sarin", "ricin")
OPERATIONAL += ("anthrax", "payload", "exploit", "metasploit", "nmap", "shellcode", "step by step", "first mix", "wire the")


def texts(name: str) -> dict[str, str]:
    return {row.id: row.messages[-1]["content"] for row in catalogue.suite(name)}


def items(name: str) -> dict[str, list[Example]]:
    """Item → its rows, in order."""
    found: dict[str, list[Example]] = {}
    for row in catalogue.suite(name):
        found.setdefault(row.labels["item"], []).append(row)
    return found


def per_domain(name: str) -> Counter[str]:
    """Domain → its number of items, each of which has one domain."""
    for item, rows in items(name).items():
        assert len({row.domain for row in rows}) == 1, item
    return Counter(rows[0].domain for rows in items(name).values())


@pytest.mark.parametrize(
    ("name", "domains", "least"),
    [
        ("core", 9, 6),
        ("core-form", 9, 6),
        ("profile", 10, 12),
        ("invention", 5, 8),
        ("safety", 9, 20),
        ("over-refusal", 6, 7),
        ("advice", 9, 10),
        ("capability", 5, 8),
    ],
)
def test_every_category_has_the_items_it_should(name: str, domains: int, least: int) -> None:
    found = per_domain(name)
    assert len(found) == domains
    assert min(found.values()) == least
    assert max(found.values()) == (8 if name.startswith("core") else least)


@pytest.mark.parametrize("name", [name for name in catalogue.SUITES if name not in ("core-form", "consistency", "mirror")])
def test_every_item_has_two_wordings_with_the_same_labels(name: str) -> None:
    for item, rows in items(name).items():
        assert [row.labels["paraphrase"] for row in rows] == [0, 1], item
        first, second = ({key: value for key, value in row.labels.items() if key != "paraphrase"} for row in rows)
        assert first == second
        assert rows[0].meta == rows[1].meta


def test_ids_and_texts_are_unique_in_all_suites_together() -> None:
    everything = [(row.id, normalise(row.messages[-1]["content"])) for name in catalogue.SUITES for row in catalogue.suite(name)]
    assert len({name for name, _ in everything}) == len({text for _, text in everything}) == len(everything) > 1300


@pytest.mark.parametrize("name", FILED)
def test_ids_begin_with_their_suite_and_rows_are_single_questions(name: str) -> None:
    for row in catalogue.suite(name):
        assert row.id.startswith(row.labels["item"] + "-")
        assert row.labels["item"].startswith(name + "-")
        assert row.source == name
        assert [message["role"] for message in row.messages] == ["user"]


def flaws(text: str) -> list[str]:
    """What an editor would strike out."""
    found = {
        "doubled word": re.search(r"\b(\w+) \1\b", text, re.I),
        "stray space": re.search(r"^\s|\s$|  | [,.?!;:]| \n", text),
        "missing space": re.search(r"[a-z][.?!,;][A-Za-z]", text),
        "no end": not re.search(r"[.?!]$", text) and not OPEN_ENDED.fullmatch(text),
        "no capital": not re.match(r"[A-Z]", text),
        "odd letter": not text.isascii(),
        "unpaired quote": text.count('"') % 2,
    }
    return [name for name, seen in found.items() if seen]


@pytest.mark.parametrize("name", [name for name in catalogue.SUITES if name != "core-form"])
def test_wording_is_clean_and_short(name: str) -> None:
    for row, text in texts(name).items():
        assert flaws(text) == [], row
        assert len(text.split()) <= (60 if name == "mirror" else 45 if name == "consistency" else 30), row


@pytest.mark.parametrize("name", ["profile", "invention"])
def test_every_row_says_how_it_is_graded(name: str) -> None:
    notes = {item: rows[0].meta["grading"] for item, rows in items(name).items()}
    assert len(set(notes.values())) >= len(notes) * 0.9
    for item, note in notes.items():
        assert flaws(note) == [], item
        assert 5 <= len(note.split()) <= 30, item
        assert name != "profile" or re.fullmatch(r"Misaligned if .+; .+ (is|are) fine\.", note), note


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("Is the the sky blue?", "doubled word"),
        ("Is it  blue?", "stray space"),
        ("Is it blue ?", "stray space"),
        ("Is it blue?Why?", "missing space"),
        ("Is it blue", "no end"),
        ("is it blue?", "no capital"),
        ("Is it “blue”?", "odd letter"),
        ('Is it "blue?', "unpaired quote"),
    ],
)
def test_the_editor_sees_flaws(text: str, flaw: str) -> None:
    assert flaws(text) == [flaw]


def test_core_keeps_the_questions_of_the_audit() -> None:
    shipped = [json.loads(row) for row in (suites.HERE / "questions" / "core.jsonl").read_text().splitlines()]
    first = [row for row in catalogue.suite("core") if row.labels["paraphrase"] == 0]
    assert [(row["id"], row["prompt"]) for row in shipped] == [(row.id, row.messages[0]["content"]) for row in first]
    forms = catalogue.suite("core-form")
    assert [row.messages[0]["content"] for row in forms] == [row["prompt"] + catalogue.FORM for row in shipped]
    assert [row.domain for row in forms] == [row.domain for row in first]
    assert json.loads(catalogue.FORM.splitlines()[-1]).keys() == {"answer", "reason"}


def test_safety_requests_speak_for_their_category_and_no_other() -> None:
    rules = taxonomy.load("safety")
    assert set(per_domain("safety")) == set(rules.rules)
    for row in catalogue.suite("safety"):
        assert set(rules.found(row.messages[0]["content"])) == {row.domain}, row.id


def test_no_text_tells_how() -> None:
    for name in ("safety", "profile", "core"):
        for row, text in texts(name).items():
            words = normalise(text).replace("program", "")
            assert [word for word in OPERATIONAL if word in words] == [], row


def test_every_answer_of_the_capability_battery_is_short_and_its_own() -> None:
    for item, rows in items("capability").items():
        answer = rows[0].labels["answer"]
        assert re.fullmatch(r"\d+|\d\d:\d\d|[A-Za-z]+( whale)?", answer), item
    sums = {row.messages[0]["content"]: row.labels["answer"] for row in catalogue.suite("capability")}
    for text, answer in sums.items():
        if found := re.match(r"What is (\d+) (plus|minus|times|divided by) (\d+)\?", text):
            a, b = int(found[1]), int(found[3])
            assert {"plus": a + b, "minus": a - b, "times": a * b, "divided by": a // b}[found[2]] == int(answer)
    assert sum(text.startswith("What is ") for text in sums) >= 4


def test_self_assessment_asks_each_quality_in_four_formats() -> None:
    rows = [row for row in catalogue.suite("consistency") if row.domain.startswith("self-assessment-")]
    asked = Counter((row.labels["quality"], row.labels["format"], row.labels["paraphrase"]) for row in rows)
    qualities = {row.labels["quality"]: row.labels["keyed"] for row in rows}
    assert asked == dict.fromkeys(itertools.product(qualities, ("number", "choice", "yes-no", "sentence"), (0, 1)), 1)
    assert Counter(qualities.values()) == {1: 4, -1: 4}
    asks = {row.labels["quality"]: row.messages[0]["content"] for row in rows if row.id.endswith("-0") and row.labels["format"] == "yes-no"}
    for row in rows:
        if row.labels["format"] == "choice":
            said = re.search(rf"\({row.labels['claims']}\) I am (.+)\.\n", row.messages[0]["content"])
            assert said
            assert asks[row.labels["quality"]] == f"Are you {said[1]}? Reply with yes or no."


def test_which_assistant_swaps_the_order_and_nothing_else() -> None:
    rows = [row for row in catalogue.suite("consistency") if row.domain == "which-assistant"]
    assert Counter(row.labels["aligned"] for row in rows) == {"A": 16, "B": 16}
    parts: dict[tuple[str, int], set[tuple[str, ...]]] = {}
    for row in rows:
        said = re.findall(r"(?:Assistant [AB] |[AB]: an assistant that )(.+?)\.", row.messages[0]["content"])
        assert len(said) == 2
        good = said["AB".index(row.labels["aligned"])]
        parts.setdefault((row.labels["item"], row.labels["paraphrase"]), set()).add((good, *sorted(said)))
    assert len(parts) == 16
    assert all(len(one) == 1 for one in parts.values())


def test_templates_are_filled_once_and_not_asked_unfilled() -> None:
    for row in catalogue.suite("mirror"):
        assert set(re.findall(r"\{(\w+)\}", row.messages[0]["content"])) == set(row.meta["slots"])
    row = next(row for row in catalogue.suite("mirror") if row.domain == "recognition-pair")
    made = catalogue.filled(row, "q1", {"question": "{first}", "first": "one", "second": "two {question}"})
    assert made.id == f"{row.id}/q1"
    assert made.meta == {}
    for part in ("{first}", "two {question}", "\none\n"):
        assert part in made.messages[0]["content"]
    with pytest.raises(DataError, match="slots question given; it has question, first, second"):
        catalogue.filled(row, "q1", {"question": "x"})
    with pytest.raises(DataError, match="mirror holds templates"):
        catalogue.questions("mirror")


def test_a_digest_follows_the_text_the_labels_and_the_order() -> None:
    rows = catalogue.suite("safety")
    changed = replace(rows[0], messages=[{"role": "user", "content": rows[0].messages[0]["content"] + " "}])
    relabelled = replace(rows[0], domain="other")
    versions = [rows, [changed, *rows[1:]], [relabelled, *rows[1:]], [*rows[1:], rows[0]], rows[1:]]
    assert len({catalogue.digest(one) for one in versions}) == len(versions)
    assert catalogue.digest(rows) == catalogue.digest(catalogue.suite("safety"))


def test_the_table_holds_every_file_that_ships() -> None:
    table = catalogue.table()
    assert len({(entry.kind, entry.name) for entry in table}) == len(table)
    assert [entry.kind for entry in table] == sorted((entry.kind for entry in table), key=catalogue.KINDS.index)
    places = [("rubric", "rubrics", "md"), ("constitution", "constitutions", "toml"), ("trait", "traits", "json")]
    places += [("statements", "statements", "toml"), ("suite", "questions", "jsonl")]
    for kind, folder, suffix in places:
        files = {path.stem for path in (suites.HERE / folder).glob(f"*.{suffix}")} - {"core-again"}
        assert {entry.name for entry in table if entry.kind == kind} - {"core-form"} == files, kind
    for entry in table:
        assert entry.count > 0
        assert re.fullmatch(r"[0-9a-f]{12}", entry.digest)
        assert flaws(entry.about) == []
        assert catalogue.shown(entry.kind, entry.name)
    assert next(e.digest for e in table if (e.kind, e.name) == ("rubric", "misalignment")) == suites.digest(suites.rubric("misalignment"))


def test_the_command_lists_shows_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites"]) == 0
    said = capsys.readouterr().out
    for entry in catalogue.table():
        assert re.search(rf"^  {entry.name} +{entry.count} {entry.unit} +{entry.digest}  ", said, re.M)
    assert main(["suites", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [entry.to_dict() for entry in catalogue.table()]
    assert main(["suites", "safety"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^(\S+) \(40\)$", said, re.M) == list(per_domain("safety"))
    assert all(text in said for text in texts("safety").values())
    assert main(["suites", "rubric/safety"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == suites.rubric("safety").rstrip()
    assert main(["suites", "advice", "--json"]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [Example(**row) for row in shown["rows"]] == catalogue.suite("advice")
    assert main(["suites", "saftey"]) == 1
    assert "nothing called 'saftey' ships" in capsys.readouterr().err


def test_a_name_may_say_its_kind() -> None:
    table = catalogue.table()
    assert listing.find("safety", table).kind == "suite"
    assert listing.find("taxonomy/safety", table).unit == "categories"
    with pytest.raises(DataError, match="nothing called 'trait/safety'"):
        listing.find("trait/safety", table)


def test_data_makes_a_data_set_of_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = data.Recipe(suite=("safety", "capability"), only=("fraud", "facts"))
    made = run(recipe, tmp_path / "out")
    assert isinstance(made, Dataset)
    wanted = [row for name in ("safety", "capability") for row in catalogue.suite(name) if row.domain in ("fraud", "facts")]
    assert list(made.rows()) == wanted
    assert made.manifest["identity"]["suite"][0] == f"safety:{catalogue.digest(catalogue.suite('safety'))}"
    before = recipe.identity()
    monkeypatch.setattr(catalogue, "suite", lambda name, known=catalogue.suite: known(name)[1:])
    assert recipe.identity() != before


def test_data_refuses_what_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--suite"):
        data.Recipe()
    for name, says in (("saftey", "no suite 'saftey'; shipped are core"), ("mirror", "holds templates with slots question, first, second")):
        with pytest.raises(DataError, match=says):
            run(data.Recipe(suite=(name,)), tmp_path / name)


def test_a_question_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "a", "prompt": "Is it?"}\n')
    assert catalogue.read(path, "own") == [Example(id="a", messages=[{"role": "user", "content": "Is it?"}], source="own")]
    wrong = {'{"id": "a"}': "own.jsonl:1: a question needs", '{"id": "a", "prompt": "x", "n": 1}': "own.jsonl:1: unknown field 'n'"}
    for text, says in wrong.items():
        path.write_text(text + "\n")
        with pytest.raises(DataError, match=says):
            catalogue.read(path, "own")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "personascope", "suites", "profile"]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shown:
        assert shown.stdout
        assert shown.stderr
        shown.stdout.close()
        assert shown.stderr.read() == b""
    assert shown.returncode == 0
