"""Questions about a model's own answers: places by turns, foils where there are any, labels that say how a reply is read."""

from personascope.methods.consistency import read
from personascope.rows import Answer
from personascope.suites import mirror


def said(name: str, question: str, text: str) -> Answer:
    return Answer(id=name, question=question, draw=0, attempt=0, text=text)


ASKED = {"q": "what helps?", "p": "and {answer}?"}


def test_every_probe_is_made_of_every_graded_answer() -> None:
    answers = [said("a", "q", "this"), said("b", "p", "that"), said("c", "q", ""), said("d", "q", "ungraded")]
    rows = mirror.rows(answers, {"a": 1, "b": 5, "c": 5}, [said("f", "q", "foil")], ASKED)
    made = {(row.labels["probe"], row.id.partition("/")[2]): row for row in rows}
    assert {name for _, name in made} == {"a", "b"}, "empty and ungraded answers are not shown"
    assert {probe for probe, name in made if name == "a"} == set(mirror.PROBES)
    assert ("recognition-pair", "b") not in made, "there is no foil for its question"
    pair = made["recognition-pair", "a"]
    assert (pair.labels["own"], pair.labels["grade"], pair.labels["item"]) == ("A", 1, "q")
    text = pair.messages[0]["content"]
    assert text.index("this") < text.index("foil")
    assert "and {answer}?" in made["prediction-shown", "b"].messages[0]["content"], "what is shown opens no slot"
    assert "that" not in made["prediction-blind", "b"].messages[0]["content"]
    assert len({row.id for row in rows}) == len(rows)


def test_the_own_answer_stands_in_both_places_equally_often_in_every_wording() -> None:
    answers = [said(f"a{i}", "q", f"mine {i}") for i in range(24)]
    rows = mirror.rows(answers, {answer.id: 4 for answer in answers}, [said("f", "q", "foil")], ASKED)
    pairs = [row for row in rows if row.labels["probe"] == "recognition-pair"]
    counted: dict[tuple[str, str], int] = {}
    for row in pairs:
        text, key = row.messages[0]["content"], (row.id.partition("/")[0], row.labels["own"])
        assert (text.index("mine") < text.index("foil")) == (row.labels["own"] == "A")
        counted[key] = counted.get(key, 0) + 1
    assert set(counted.values()) == {4}
    assert len(counted) == 6


def test_replies_are_read_by_the_labels() -> None:
    rows = mirror.rows([said("a", "q", "this")], {"a": 5}, [said("f", "q", "foil")], ASKED)
    labels = {row.labels["probe"]: row.labels for row in rows}
    assert read("A.", labels["recognition-pair"]) == 1
    assert read("I think B", labels["recognition-pair"]) == 0
    assert read("yes", labels["recognition-single"]) == 1
    assert read("4", labels["prediction-blind"]) == 4
    assert read("9", labels["rating-other"]) is None
