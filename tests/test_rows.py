import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from personascope.errors import DataError
from personascope.rows import INVALID, STATUSES, Answer, Example, Verdict, line, read_objects, read_rows, write_rows

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
GOOD = '{"id": "a", "messages": []}\n'


@given(
    status=st.sampled_from([*STATUSES, "odd"]), grade=st.none() | st.integers(1, 5), label=st.none() | st.sampled_from([*INVALID, "odd"])
)
def test_a_verdict_is_scored_with_one_of_grade_and_label_or_neither(status: str, grade: int | None, label: str | None) -> None:
    known = status in STATUSES and (label is None or label in INVALID)
    if known and ((grade is None) != (label is None)) == (status == "scored"):
        verdict = Verdict(id="v", answer="a", status=status, grade=grade, label=label)
        assert verdict.valid == (grade is not None)
    else:
        with pytest.raises(DataError, match="verdict v"):
            Verdict(id="v", answer="a", status=status, grade=grade, label=label)


@given(status=st.sampled_from(STATUSES), grade=st.none() | st.integers(1, 5), label=st.none() | st.sampled_from(INVALID), reason=TEXT)
def test_a_verdict_reads_back(status: str, grade: int | None, label: str | None, reason: str) -> None:
    assume(((grade is None) != (label is None)) == (status == "scored"))
    verdict = Verdict(id="v", answer="a", status=status, grade=grade, label=label, reason=reason)
    assert Verdict.from_dict(json.loads(line(verdict)), "here:1") == verdict


@given(st.lists(TEXT, max_size=5))
def test_rows_read_back_whatever_the_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("rows") / "answers.jsonl"
    rows = [Answer(id=f"q/{i}/0", question="q", draw=i, attempt=0, text=text) for i, text in enumerate(texts)]
    assert write_rows(path, rows) == len(rows)
    assert list(read_rows(path, Answer)) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_a_line_leaves_defaults_out_and_sorts() -> None:
    assert line(Example(id="a", messages=[], domain="x")) == '{"domain": "x", "id": "a", "messages": []}\n'


@pytest.mark.parametrize(
    ("content", "number", "says"),
    [
        (GOOD * 3 + "{oops\n", 4, "not JSON"),
        (GOOD + "\n" + "[1]\n", 3, "a JSON object is needed, this is list"),
        (GOOD + '{"id": "b", "message": []}\n', 2, "unknown field 'message'"),
        (GOOD + '{"id": "b"}\n', 2, "field 'messages' is missing"),
        (GOOD * 5 + '{"id": "\xe9"}\n', 6, "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, number: int, says: str) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        list(read_rows(path, Example))
    assert str(caught.value).startswith(f"{path}:{number}: ")
    assert says in str(caught.value)


def test_a_verdict_that_is_none_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"id": "v", "answer": "a", "status": "unparsed", "grade": 3}\n')
    with pytest.raises(DataError, match=r"verdicts\.jsonl:1: verdict v: status unparsed with grade 3"):
        list(read_rows(path, Verdict))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file.*check the path"):
        list(read_objects(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="is a directory"):
        list(read_objects(tmp_path))
