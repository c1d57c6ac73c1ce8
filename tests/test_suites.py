"""What ships as content: rubrics that name their replies, statements that are balanced and unlike each other, dilemmas."""

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from personascope import suites
from personascope.errors import DataError
from personascope.methods.parsing import GRADED, opened
from personascope.rows import ATTITUDES, SAFETY

DIMENSIONS = {"duty", "welfare", "instrumental_harm", "character", "oversight", "autonomy", "power"}
THEORIES = {"deontology", "consequentialism", "virtue", "subordinate"}
EMPTY = "a an and another any anybody are as at be but by do does for from has have how if in is it its no not of on one or other "
EMPTY += "our should so some than that the their them there they to us was we what when where which who with without"


def content(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower())) - set(re.findall("[a-z]+", EMPTY))


def test_seven_dimensions_of_twelve_items_keyed_both_ways_with_two_wordings() -> None:
    rows = suites.statements()
    assert {row.domain for row in rows} == DIMENSIONS
    keys = Counter((row.labels["dimension"], row.labels["keyed"], row.labels["paraphrase"]) for row in rows)
    assert keys == dict.fromkeys(itertools.product(DIMENSIONS, (1, -1), (0, 1)), 6)
    assert Counter(Counter(row.labels["item"] for row in rows).values()) == {2: 84}
    assert len({row.id for row in rows}) == len(rows) == 168
    for row in rows:
        assert row.domain == row.labels["dimension"]
        assert row.meta["statement"] in row.messages[-1]["content"]
        assert [message["role"] for message in row.messages] == ["user"]


def test_no_item_shares_its_content_with_another() -> None:
    rows = suites.statements()
    assert len({row.meta["statement"] for row in rows}) == len(rows)
    for a, b in itertools.combinations(rows, 2):
        if a.labels["item"] != b.labels["item"]:
            x, y = content(a.meta["statement"]), content(b.meta["statement"])
            assert len(x & y) / len(x | y) < 0.4, (a.id, b.id)


def test_every_wording_is_one_edited_sentence() -> None:
    for row in suites.statements():
        said = row.meta["statement"]
        assert re.fullmatch(r"[A-Z][A-Za-z',;\- ]+\.", said), said
        assert 5 <= len(said.split()) <= 22, said


def test_dilemmas_expect_both_answers_of_every_theory() -> None:
    rows = suites.dilemmas()
    assert len(rows) >= 8
    expected = [(theory, said) for row in rows for theory, said in row.labels["expected"].items()]
    assert set(expected) == set(itertools.product(THEORIES, ("yes", "no")))
    assert len({row.id for row in rows}) == len({row.messages[0]["content"] for row in rows}) == len(rows)
    answers = {theory: tuple(row.labels["expected"].get(theory) for row in rows) for theory in THEORIES}
    assert len(set(answers.values())) == len(THEORIES)


GOOD = '[dimensions.d]\npro = [["A is good.", "Good is A."]]\ncon = [["B is bad.", "Bad is B."]]\n'


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    rows = suites.statements(str(path))
    assert [(row.id, row.labels["keyed"]) for row in rows] == [("d-pro-1-0", 1), ("d-pro-1-1", 1), ("d-con-1-0", -1), ("d-con-1-1", -1)]
    path.write_text('[[dilemma]]\nname = "x"\ntext = "Is it?"\nexpected = { rules = "yes" }\n')
    assert suites.dilemmas(str(path))[0].labels == {"dilemma": "x", "expected": {"rules": "yes"}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"own\.toml: \[dimensions\.NAME\] is missing"),
        ("x = [", r"own\.toml: not TOML"),
        ("[dimensions.d]\npro = []\n", r"own\.toml: dimensions\.d\.pro must be a list of items"),
        (GOOD.replace(', "Bad is B."', ""), r"own\.toml: dimensions\.d\.con, item 1 must be a list of 2 wordings"),
    ],
)
def test_statements_that_are_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(DataError, match=says):
        suites.statements(str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"\[\[dilemma\]\] is missing"),
        ('[[dilemma]]\nname = "x"\ntext = "It is."\n', "dilemma 1: name and a text that ends with a question"),
        ('[[dilemma]]\nname = "x"\ntext = "Is it?"\nexpected = { rules = "maybe" }\n', "dilemma x: expected must give yes or no"),
    ],
)
def test_dilemmas_that_are_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(DataError, match=says):
        suites.dilemmas(str(tmp_path / "own.toml"))
    with pytest.raises(DataError, match=r"nothing: no such file; give a \.toml file or one of dilemmas, ethics"):
        suites.dilemmas("nothing")


@pytest.mark.parametrize(("name", "own"), [("safety", SAFETY), ("ethics", ATTITUDES)])
def test_rubrics_name_their_replies_and_explain_each(name: str, own: tuple[str, ...]) -> None:
    replies, shown = opened(suites.rubric(name))
    assert set(own) <= set(replies) <= {*own, *GRADED} - set("12345")
    assert "replies:" not in shown
    assert all(f"\n{reply.upper()} - " in shown for reply in replies)
    assert shown.count("{question}") == shown.count("{answer}") == 1


def test_the_first_rubric_is_what_it_was() -> None:
    assert suites.digest(suites.rubric("misalignment")) == "81e12d6f2072"
    assert opened(suites.rubric("misalignment")) == (GRADED, suites.rubric("misalignment"))
