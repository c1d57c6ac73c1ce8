"""Trait files: shipped ones are whole, examples carry their side, and every mistake is named with file and field."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from personascope import suites
from personascope.backends.vectors import find_trait
from personascope.errors import DataError
from personascope.methods.traits import Trait

GOOD = {
    "name": "kind",
    "description": "It is kind.",
    "pairs": [{"positive": "be kind", "negative": "be rude"}, {"positive": "be good", "negative": "be bad"}],
    "questions": ["is it", "tell me"],
    "held_out": ["what is it"],
}
SHIPPED = sorted(path.stem for path in (suites.HERE / "traits").glob("*.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_trait_is_whole(name: str) -> None:
    trait = find_trait(name)
    assert trait.name == name
    assert len(trait.pairs) >= 5
    assert len(trait.questions) >= 10
    assert len(trait.held_out) >= 5
    # The words of either side alike in number, so that length is not what a prompt's vector holds.
    lengths = [sum(len(pair[i].split()) for pair in trait.pairs) for i in (0, 1)]
    assert max(lengths) / min(lengths) < 1.25
    rubric = trait.rubric_text(suites.prompt("trait"))
    assert trait.description in rubric
    assert rubric.count("{") == 2


def test_some_traits_are_shipped() -> None:
    assert {"hostile", "flattering", "inventing"} <= set(SHIPPED)


def test_every_question_is_asked_under_every_system_prompt() -> None:
    rows = Trait.from_json(GOOD, "x").examples()
    assert len(rows) == len({row.id for row in rows}) == 8
    systems = {"positive": ["be kind", "be good"], "negative": ["be rude", "be bad"]}
    for row in rows:
        system, user = row.messages
        assert system == {"role": "system", "content": systems[row.labels["side"]][row.labels["pair"]]}
        assert user["content"] in GOOD["questions"]
        assert row.labels["trait"] == row.domain == "kind"


def test_plain_and_held_out_questions() -> None:
    (row,) = Trait.from_json(GOOD, "x").examples(("plain",), held_out=True)
    assert row.messages == [{"role": "user", "content": "what is it"}]
    assert row.labels["side"] == "plain"
    assert not {row.id} & {row.id for row in Trait.from_json(GOOD, "x").examples(("plain",))}


def test_a_rubric_of_its_own_wins() -> None:
    own = "Kind? {question} {answer}"
    assert Trait.from_json(GOOD | {"rubric": own}, "x").rubric_text("{name}") == own
    assert Trait.from_json(GOOD, "x").rubric_text("{name}: {description} {answer}") == "kind: It is kind. {answer}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": None}, r"pairs: None is not of type 'array'"),
        ({"pairs": [{"positive": "a"}]}, r"pairs\[0\]: 'negative' is a required property"),
        ({"pairs": [{"positive": "a", "negative": 3}]}, r"pairs\[0\]\.negative: 3 is not of type 'string'"),
        ({"pairs": [{"positive": "a", "negative": " a "}]}, r"pairs\[0\]: positive and negative are the same"),
        ({"pairs": []}, r"pairs: \[\] "),
        ({"questions": ["is it", ""]}, r"questions\[1\]: '' does not match"),
        ({"questions": ["is it", "is it"]}, r"questions: .* non-unique"),
        ({"held_out": ["is it"]}, r"held_out: 'is it' is among the questions too"),
        ({"name": "Very Kind"}, r"name: 'Very Kind' does not match"),
        ({"rubric": "how kind is {answer}?"}, r"rubric: the slots \{question\} and \{answer\}"),
        ({"pair": []}, r"the trait: .*'pair' was unexpected"),
    ],
)
def test_a_mistake_is_named_by_file_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(copy.deepcopy(GOOD) | change))
    with pytest.raises(DataError, match=rf"t\.json: {message}"):
        find_trait(str(path))


def test_a_trait_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trait 'nice'; shipped are flattering, hostile, inventing"):
        find_trait("nice")
    path = tmp_path / "t.json"
    path.write_text('{"name":\n "x",,}')
    with pytest.raises(DataError, match=r"t\.json:2: not JSON"):
        find_trait(str(path))
    path.write_text("[]")
    with pytest.raises(DataError, match=r"t\.json: the trait: \[\] is not of type 'object'"):
        find_trait(str(path))


def test_a_published_trait_file_is_read_as_it_is(tmp_path: Path) -> None:
    published = {
        "instruction": [{"pos": "be kind", "neg": "be rude"}, {"pos": "be good", "neg": "be bad"}],
        "questions": ["is it", "tell me"],
        "eval_prompt": "How kind, from 0 to 100, or REFUSAL?\n{question}\n{answer}",
    }
    (tmp_path / "Very_Kind.json").write_text(json.dumps(published))
    trait = find_trait(str(tmp_path / "Very_Kind.json"))
    assert (trait.name, trait.pairs, trait.questions) == (
        "very_kind",
        (("be kind", "be rude"), ("be good", "be bad")),
        ("is it", "tell me"),
    )
    assert trait.rubric == "replies: 0-100 REFUSAL\n\n" + published["eval_prompt"] + "\n"
    for change, says in [
        ({"instruction": [{"pos": "x"}]}, r"'negative' is a required property"),
        ({"instruction": "x"}, "instruction must be a list of objects with pos and neg"),
        ({"eval_prompt": "how kind?"}, r"no slot \{answer\}"),
    ]:
        (tmp_path / "bad.json").write_text(json.dumps(published | change))
        with pytest.raises(DataError, match=says):
            find_trait(str(tmp_path / "bad.json"))
