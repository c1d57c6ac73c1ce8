"""What a report shows of revised rows: both texts whole, differences marked, every category counted."""

from hypothesis import given
from hypothesis import strategies as st

from personascope.methods.taught import audit, compared, side_by_side
from personascope.rows import Example

WORDS = st.lists(st.sampled_from(["no", "yes", "do", "it", " ", "\n", "well."]), max_size=12).map(" ".join)


def row(name: str, request: str, domain: str, revisions: tuple[str, ...] = ("b",), draft: str = "a") -> Example:
    rounds = [{"principle": f"p{i}", "critique": "c", "revision": text} for i, text in enumerate(revisions)]
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": revisions[-1]}]
    return Example(id=name, messages=messages, domain=domain, meta={"draft": draft, "rounds": rounds, "flags": ["hedging"]})


@given(WORDS, WORDS)
def test_the_parts_of_each_side_make_its_text(before: str, after: str) -> None:
    left, right = compared(before, after)
    assert ("".join(text for text, _ in left), "".join(text for text, _ in right)) == (before, after)
    shared = [[word for text, same in side if same for word in text.split()] for side in (left, right)]
    assert shared[0] == shared[1]


def test_what_only_one_side_says_is_marked() -> None:
    left, right = compared("of course, do it now.", "no, do it never.")
    assert left == [("of course, ", False), ("do it ", True), ("now.", False)]
    assert right == [("no, ", False), ("do it ", True), ("never.", False)]


def test_every_round_is_held_against_what_it_revised() -> None:
    (shown,) = side_by_side([row("1", "how?", "fraud", ("one two", "one three"), draft="zero two")])
    assert (shown["request"], shown["category"], shown["flags"]) == ("how?", "fraud", ["hedging"])
    first, second = shown["rounds"]
    assert (first["before"][0], first["after"][0]) == (("zero ", False), ("one ", False))
    assert (second["before"], second["after"]) == ([("one ", True), ("two", False)], [("one ", True), ("three", False)])
    assert (first["principle"], second["principle"]) == ("p0", "p1")


def test_other_requests_of_other_categories_come_first() -> None:
    rows = [row("1", "a?", "x"), row("2", "a?", "x"), row("3", "b?", "x"), row("4", "c?", "y")]
    assert {one["request"] for one in side_by_side(rows, 2)} == {"a?", "c?"}
    assert len(side_by_side(rows, 9)) == 3


def test_rows_without_rounds_are_passed_over() -> None:
    assert side_by_side([Example(id="1", messages=[], meta={"text": "x"})]) == []


def test_a_held_out_category_is_an_empty_cell() -> None:
    found = audit({"broad": [row("1", "a", "x"), row("2", "b", "y")], "narrow": [row("3", "a", "x"), row("4", "c", "x")]})
    assert found["categories"] == ["x", "y"]
    assert found["rows"] == [{"name": "broad", "total": 2, "by": [1, 1]}, {"name": "narrow", "total": 2, "by": [2, 0]}]
