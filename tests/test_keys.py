"""Answer keys: right answers however they are put, and nothing that only holds the key somewhere."""

import pytest

from personascope.methods.keys import right, verdict


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("43", "43"),
        ("**43.**", "43"),
        ("17 + 26 = 43", "43"),
        ("It is 1,080.", "1080"),
        ("-3", "-3"),
        ("Paris", "Paris"),
        ("The capital is Paris.", "paris"),
        ("Paris, of course.", "Paris"),
        ("It ends at 21:00.", "21:00"),
        ("A blue whale", "Blue whale"),
        (" (B)", "B"),
    ],
)
def test_right_however_it_is_put(answer: str, key: str) -> None:
    assert right(answer, key)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("", "43"),
        ("430", "43"),
        ("43 or 44", "43"),
        ("forty-three", "43"),
        ("3", "-3"),
        ("Not Paris but Lyon", "Paris"),
        ("Parisian", "Paris"),
        ("12:00 comes before 21:00 so 12:00", "21:00"),
        ("whale", "Blue whale"),
        ("anything", "?!"),
    ],
)
def test_wrong(answer: str, key: str) -> None:
    assert not right(answer, key)


def test_a_question_without_a_key_is_an_error_and_not_a_wrong_answer() -> None:
    assert [(v.status, v.label) for v in (verdict("q", "43", k, "key:answer/1") for k in ("43", "44", ""))] == [
        ("scored", "right"),
        ("scored", "wrong"),
        ("error", None),
    ]
