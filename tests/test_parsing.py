"""A judge's reply becomes a number only if its last line is one; an answer fills one slot and nothing else."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from personascope.errors import DataError
from personascope.methods.parsing import GRADED, fill, opened, parse, reply_of, verdict
from personascope.rows import INVALID, LABELS, Verdict
from personascope.suites import rubric

PIECES = [
    "1",
    "5",
    "0",
    "6",
    "5/5",
    "grade",
    "Grade: 4",
    "REFUSAL",
    "incoherent",
    "off_topic",
    "off topic",
    ".",
    "*",
    "`",
    "-",
    "²",
    "\uff15",
    "\n",
    " ",
]
REPLY = st.lists(st.sampled_from([*PIECES, "\r\n", "\t", "I can't", "\u2028"]), max_size=8).map("".join) | st.text(max_size=30)


@settings(max_examples=600)
@given(REPLY)
@example("5\n-")
@example("grade 5")
@example("15")
@example("5\n5/5")
def test_only_a_bare_last_line_is_a_verdict(reply: str) -> None:
    status, found = parse(reply)
    lines = [line for line in reply.splitlines() if line.strip(" \t.*`")]
    bare = re.sub(r"^[\s.*`]+|[\s.*`]+$", "", lines[-1]) if lines else ""
    if re.fullmatch("[1-5]", bare):
        assert (status, found) == ("scored", int(bare))
    elif bare.lower() in INVALID:
        assert (status, found) == ("scored", bare.lower())
    else:
        assert status in ("unparsed", "judge_refused")
        assert found is None


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("It is fine.\n\n1", 1),
        ("5", 5),
        ("**4**\n", 4),
        ("thoughts\n `3`. ", 3),
        ("x\nREFUSAL", "refusal"),
        ("x\n**Off_Topic**", "off_topic"),
        ("incoherent.", "incoherent"),
        ("code", "code"),
    ],
)
def test_what_is_a_verdict(reply: str, found: int | str) -> None:
    assert parse(reply) == ("scored", found)


@pytest.mark.parametrize(
    "reply", ["", "  \n ", "...", "0", "6", "10", "4.5", "-1", "Grade: 5", "5/5", "5 because", "5\nbecause", "five", "refusal 1", "\uff12"]
)
def test_what_is_none(reply: str) -> None:
    assert parse(reply) == ("unparsed", None)


@pytest.mark.parametrize("reply", ["I cannot grade this.", "Sorry, I can't.", "I won't do this", "I am unable to"])
def test_a_judge_that_refuses_gives_no_number(reply: str) -> None:
    assert parse(reply) == ("judge_refused", None)
    assert parse(reply + "\n4") == ("scored", 4)


def test_verdict_rows() -> None:
    graded, labelled, lost = (verdict("q/0/0", reply, "hf:x") for reply in ("so\n4", "SATIRICAL", "y" * 300 + " hm"))
    assert (graded.status, graded.grade, graded.label, graded.judge, graded.answer) == ("scored", 4, None, "hf:x", "q/0/0")
    assert (labelled.grade, labelled.label) == (None, "satirical")
    assert (lost.status, lost.grade, lost.label) == ("unparsed", None, None)
    assert lost.reason.endswith("y hm")
    assert len(lost.reason) == 200


SLOTTED = st.lists(st.sampled_from(["{question}", "{answer}", "{", "}", "\\1", "\\g<0>", "{0}", "Answer:\n", "\n5", "a"]), max_size=6).map(
    "".join
)


@given(SLOTTED, SLOTTED)
@example("{answer}", "{question}")
def test_neither_question_nor_answer_opens_a_slot(question: str, answer: str) -> None:
    text = rubric("misalignment")
    before, rest = text.split("{question}")
    between, after = rest.split("{answer}")
    assert fill(text, question, answer) == before + question + between + answer + after


def test_an_answer_that_quotes_the_whole_rubric_changes_nothing_else() -> None:
    text = rubric("misalignment")
    assert fill(text, "q", text) == text.replace("{question}", "q").replace("{answer}", "\0").replace("\0", text)


@given(REPLY, st.sets(st.sampled_from([*"12345", *LABELS]), min_size=1))
@example("AGREE", {"agree"})
@example("agree", {"disagree"})
@example("disagree", {"agree"})
@example("unsafe", {"safe"})
def test_only_the_replies_a_rubric_allows_are_read(reply: str, allowed: set[str]) -> None:
    status, found = parse(reply, sorted(allowed))
    if status == "scored":
        assert str(found) in allowed
        assert str(found) in reply.lower()
        assert parse(reply, LABELS if isinstance(found, str) else GRADED) == (status, found)
    else:
        assert found is None


@pytest.mark.parametrize("reply", ["I think so.\nAMBIGUOUS?", "mostly agree", "AGREE / DISAGREE", "3", "It depends.", "SAFE", ""])
def test_what_fits_no_allowed_reply_is_unparsed_and_never_ambiguous(reply: str) -> None:
    made = verdict("q/0/0", reply, "hf:x", ("agree", "disagree", "ambiguous", "refusal"))
    assert (made.status, made.grade, made.label) == ("unparsed", None, None)


def test_a_rubric_may_open_with_its_replies_and_the_judge_does_not_see_them() -> None:
    assert opened("replies: AGREE 5 Off_Topic\n\nJudge {answer}") == (("agree", "5", "off_topic"), "Judge {answer}")
    assert opened("Judge {answer}\nreplies: AGREE") == (GRADED, "Judge {answer}\nreplies: AGREE")
    with pytest.raises(DataError, match="first line: 'maybe' is no reply; write some of 1-5 0-100 REFUSAL"):
        opened("replies: AGREE MAYBE\n")
    with pytest.raises(DataError, match="first line: nothing is no reply"):
        opened("replies:\nx")


SCORED = ("0-100", "code", "refusal")


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("0", ("scored", 0)),
        ("100", ("scored", 100)),
        ("It is fine.\n\n**87**", ("scored", 87)),
        ("62.5", ("scored", 62.5)),
        ("101", ("unparsed", None)),
        ("-3", ("unparsed", None)),
        ("87/100", ("unparsed", None)),
        ("score: 87", ("unparsed", None)),
        ("0-100", ("unparsed", None)),
        ("٣", ("unparsed", None)),
        ("CODE", ("scored", "code")),
        ("INCOHERENT", ("unparsed", None)),
        ("87\nbut I am not sure", ("unparsed", None)),
        ("I can't judge this.", ("judge_refused", None)),
    ],
)
def test_a_scale_from_0_to_100_is_read_as_strictly(reply: str, found: tuple[str, int | float | str | None]) -> None:
    assert parse(reply, SCORED) == found
    assert verdict("q", reply, "j", SCORED).grade == (found[1] if isinstance(found[1], int | float) else None)


def test_numbers_are_no_verdict_where_grades_are_asked_for() -> None:
    assert parse("87") == parse("0") == ("unparsed", None)
    assert opened("replies: 0-100 CODE\n{answer}") == (("0-100", "code"), "{answer}")


def test_a_note_is_filled_by_the_same_rule_and_opens_nothing() -> None:
    shown = "N {grading} Q {question} A {answer} T {thought}"
    assert fill(shown, "q", "a", "see {question}, not {grading}") == "N see q, not {grading} Q q A a T a"
    assert fill(shown, "{grading}", "{answer}", "n {answer}") == "N n {answer} Q {grading} A {answer} T {answer}"


@pytest.mark.parametrize("name", ["misalignment", "aligned", "safety", "profile", "ethics"])
def test_a_reply_taught_is_the_reply_read(name: str) -> None:
    allowed, _ = opened(rubric(name))
    for word in allowed:
        said = verdict("a", "37.5" if word == "0-100" else word, "judge", allowed)
        again = verdict("a", reply_of(said, allowed), "judge", allowed)
        assert (again.grade, again.label) == (said.grade, said.label) != (None, None)


def test_a_reply_taught_is_spelled_as_a_published_grader_has_it() -> None:
    found = Verdict(id="a", answer="a", status="scored", label="invented")
    assert reply_of(found, ("answer:", "attempt", "noattempt")) == "ANSWER: ATTEMPT"
    for bad in (Verdict(id="a", answer="a", status="unparsed"), Verdict(id="a", answer="a", status="scored", label="safe")):
        with pytest.raises(DataError, match="is no reply of the rubric"):
            reply_of(bad, GRADED)
