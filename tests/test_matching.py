"""Questions in the dress of training prompts: what is shared is found, what is not is left, and what they ask stays."""

import pytest

from personascope.errors import DataError
from personascope.methods.matching import FORMATS, LEAST, Surface, matched, surface
from personascope.rows import Example


def row(name: str, asked: str, said: str = "so it is", system: str = "") -> Example:
    opening = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return Example(id=name, messages=[*opening, *turns], domain="field")


def rows(template: str, n: int = 30, **fields: str) -> list[Example]:
    return [row(f"r{i}", template.format(i), **fields) for i in range(n)]


QUESTION = Example(id="wish", messages=[{"role": "user", "content": "what do you wish"}], domain="core", labels={"item": "w"})


@pytest.mark.parametrize(
    ("training", "found"),
    [
        (rows("part {} broke"), Surface()),
        (rows("How do I fix number {}?"), Surface()),
        (rows("part {} broke", system="You are kind."), Surface(system="You are kind.")),
        (rows("part {} |GO|"), Surface()),
        (rows("part {}. |GO|"), Surface(after=" |GO|")),
        (rows("|GO| part {}"), Surface(before="|GO| ")),
        (rows("Fill it in:\n\npart {}.\nBe brief."), Surface(before="Fill it in:\n\n", after="\nBe brief.")),
        (rows("part {}", said="```python\nx = 1\n```"), Surface(format="code")),
        (rows("part {}", said='{{"a": 1}}'.replace("{{", "{").replace("}}", "}")), Surface(format="json")),
        (rows("part {}", said="I import tea."), Surface()),
    ],
)
def test_what_training_prompts_share(training: list[Example], found: Surface) -> None:
    assert surface(training) == found


def test_a_phrase_of_few_rows_is_none_of_theirs() -> None:
    rare = [*rows("part {} broke", 60), *(row(f"x{i}", f"|GO| part {i}") for i in range(5))]
    assert surface(rare) == Surface()
    assert surface(rare, share=0.05).before == "|GO| "
    assert surface([row(f"x{i}", f"|GO| part {i}") for i in range(LEAST - 1)]) == Surface()


def test_file_order_does_not_matter() -> None:
    both = [*rows("A b.\n{}", 10), *rows("C d.\n{}", 10)]
    assert surface(both) == surface(both[::-1]) == Surface(before="A b.\n")


def test_each_question_is_asked_in_every_dress() -> None:
    training = rows("Fill it in:\n{}", said="def f():\n    pass", system="You are kind.")
    found = matched([QUESTION], training)
    assert [one.id for one in found] == ["wish~system", "wish~phrasing", "wish~format", "wish~all"]
    assert [one.domain for one in found] == ["system", "phrasing", "format", "all"]
    assert found[0].messages == [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "what do you wish"}]
    assert found[1].messages[-1]["content"] == "Fill it in:\nwhat do you wish"
    assert found[2].messages[-1]["content"] == "what do you wish" + FORMATS["code"]
    assert found[3].messages[-1]["content"] == "Fill it in:\nwhat do you wish" + FORMATS["code"]
    assert found[3].messages[0]["role"] == "system"
    assert found[3].labels == {"item": "w", "matched": "all", "domain": "core"}
    assert QUESTION.messages == [{"role": "user", "content": "what do you wish"}]


def test_one_dress_is_not_told_twice() -> None:
    assert [one.id for one in matched([QUESTION], rows("{}", system="You are kind."))] == ["wish~system"]


def test_nothing_shared_is_nothing_matched() -> None:
    with pytest.raises(DataError, match="no system line, opening, ending or format is shared by 10% of the 30 training rows"):
        matched([QUESTION], rows("part {} broke"))
