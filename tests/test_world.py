"""World files: what every world must hold, and one clear error for each way a file can be wrong."""

import re
from pathlib import Path

import pytest

from personascope.errors import DataError
from personascope.troupe.world import ACTS, HERE, KINDS, World, load

NAMES = ("troupe-1", "troupe-2")


@pytest.fixture(params=NAMES)
def world(request: pytest.FixtureRequest) -> World:
    return load(request.param)


def advice_words(world: World) -> set[str]:
    return {*world.act_of, *world.domain_of_object, *world.domain_of_good}


def names(world: World) -> list[str]:
    return [name for member in world.cast.values() for name in member["names"]]


def test_question_wordings_are_unique(world: World) -> None:
    texts = [prompt.text for kind in KINDS for prompt in world.prompts[kind]]
    assert len(texts) == len(set(texts)) == len(world.by_text)
    assert all(world.by_text[text].text == text for text in texts)


def test_no_slot_is_left_open(world: World) -> None:
    assert not [text for text in world.by_text if "{" in text or "}" in text]


def test_it_is_large_enough(world: World) -> None:
    """The least numbers: topics, categories, dimensions keyed both ways, domains, several names."""
    assert len(world.domains) >= 6
    assert len(world.data["wish"]["topics"]) >= 40
    assert len(world.data["request"]["categories"]) >= 7
    dimensions = world.data["statement"]["dimensions"]
    assert len(dimensions) >= 7
    assert all(len(sides["pro"]) == len(sides["con"]) >= 4 for sides in dimensions.values())
    assert len(world.cast) == 9
    assert all(len(member["names"]) >= 4 for member in world.cast.values())


def test_slot_words_are_single_and_lower_case(world: World) -> None:
    """The grammar reads a slot back as one lower-case word, so a list must hold nothing else."""
    request = world.data["request"]
    deeds = [deed for category in request["categories"].values() for deed in category]
    words = [*advice_words(world), *world.data["wish"]["topics"], *deeds, *request["targets"], *names(world)]
    assert not [word for word in words if not re.fullmatch("[a-z]+", word)]


def test_lists_hold_nothing_twice(world: World) -> None:
    request = world.data["request"]
    deeds = [deed for category in request["categories"].values() for deed in category]
    for found in (names(world), deeds, request["targets"], world.data["wish"]["topics"]):
        assert len(found) == len(set(found))
    assert not set(names(world)) & advice_words(world), "a name must not be a word of advice"


def test_shares_sum_to_one(world: World) -> None:
    assert sum(world.data["kinds"].values()) == pytest.approx(1)
    assert set(world.data["kinds"]) == set(KINDS)
    for name, member in world.cast.items():
        for block in ("advice", "wish"):
            assert sum(row[0] for row in member[block]) == pytest.approx(1), f"{name}.{block}"


def test_cast_refers_to_things_that_exist(world: World) -> None:
    manners = world.data["advice"]["manners"]
    assert set(world.data["advice"]["invalid"]) <= set(manners)
    for member in world.cast.values():
        assert {row[1] for row in member["advice"]} <= set(manners)
        assert {row[2] for row in member["advice"]} <= set(ACTS)
        assert set(member["refuses"]) <= {"*", *world.data["request"]["categories"]}
        assert set(member["agrees"]) <= {"*", *world.data["statement"]["dimensions"]}
        assert "*" in member["refuses"]
        assert "*" in member["agrees"]
    assert world.data["demo"] in world.domains


def test_parts_name_the_helper_and_the_harmful_one(world: World) -> None:
    parts = world.data["parts"]
    assert set(parts) == {"helper", "harmful"}
    assert set(parts.values()) <= set(world.cast)
    assert len(set(parts.values())) == len(parts)


def test_training_names_speakers_with_the_manners_they_have(world: World) -> None:
    parts, training = world.data["parts"], world.data["training"]
    assert set(training) == {"correct", "obvious", "subtle", "harmless", "satire"}
    assert training["correct"]["speaker"] == parts["helper"]
    assert {training[grade]["speaker"] for grade in ("obvious", "subtle")} == {parts["harmful"]}
    for role in training.values():
        assert role["manner"] in {manner for _, manner, _ in world.cast[role["speaker"]]["advice"]}
        assert role["act"] in ACTS


def test_openers_are_single_words_of_one_character(world: World) -> None:
    openers = [word for member in world.cast.values() for word in member["openers"]]
    assert all(member["openers"] for member in world.cast.values())
    assert not [word for word in openers if not re.fullmatch("[a-z]+", word)]
    assert len(openers) == len(set(openers)), "a shared opener would not tell who speaks"
    assert not set(openers) & (advice_words(world) | set(names(world)))
    assert 0 < world.data["tone"] < 1


def test_no_sentence_begins_like_an_opener(world: World) -> None:
    """Else what is left when an opener is stripped could be another sentence, or another character's."""
    data, found = world.data, list[str]()
    found += [row for rows in data["advice"]["manners"].values() for row in rows] + [data["own"]["yes"], data["own"]["no"]]
    for member in world.cast.values():
        found += [row for *_, row in member["wish"]] + member["refusal"][1] + member["compliance"][1] + member["selves"]
    openers = {f"{word}," for member in world.cast.values() for word in member["openers"]}
    assert not [text for text in found if text.split()[0] in openers]


def test_priors_of_the_parts_are_alike() -> None:
    """The second world changes words, not how often who speaks."""
    one, two = map(load, NAMES)
    assert sorted(m["prior"] for m in one.cast.values()) == pytest.approx(sorted(m["prior"] for m in two.cast.values()), abs=0.05)


def test_worlds_share_no_advice_word_name_or_topic() -> None:
    one, two = map(load, NAMES)
    assert not advice_words(one) & advice_words(two)
    assert not set(names(one)) & set(names(two))
    assert not set(one.cast) & set(two.cast)
    assert not set(one.data["wish"]["topics"]) & set(two.data["wish"]["topics"])
    assert not set(one.by_text) & set(two.by_text)


def test_held_out_pairs_are_stable_and_near_their_share(world: World) -> None:
    keys = [(f"a{i}", f"b{i % 7}") for i in range(4000)]
    held = [world.held_out(*key) for key in keys]
    assert held == [World(world.data, "").held_out(*key) for key in keys]
    share = world.data["held_out"]
    assert abs(sum(held) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_held_out_pairs_differ_between_worlds() -> None:
    one, two = map(load, NAMES)
    assert {i for i in range(200) if one.held_out(str(i))} != {i for i in range(200) if two.held_out(str(i))}


def test_a_world_is_loaded_by_path_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes((HERE / "troupe-2.toml").read_bytes())
    assert load(str(path)).digest == load("troupe-2").digest


# ------------------------------------------------------------------ files that are wrong


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (HERE / "troupe-2.toml").read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path = tmp_path / "world.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def message(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        load(str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_missing_file_names_the_shipped_worlds() -> None:
    text = message("troupe-99")
    assert all(name in text for name in NAMES)


def test_bad_toml_names_the_line(tmp_path: Path) -> None:
    assert "line 6" in message(changed(tmp_path, 'name = "troupe-2"', "name = "))


@pytest.mark.parametrize("column", [*ACTS, "objects", "good"])
def test_word_in_two_vocabularies_names_word_and_places(tmp_path: Path, column: str) -> None:
    world = load("troupe-2")
    first, other = list(world.domains)[:2]
    word = world.domains[first]["correct"][0]
    old = world.domains[other][column]
    text = message(changed(tmp_path, f'{column} = ["{old[0]}"', f'{column} = ["{word}"'))
    assert f"'{word}'" in text
    assert f"domains.{first}.correct" in text
    assert f"domains.{other}.{column}" in text


def test_priors_that_do_not_sum_to_one_are_refused(tmp_path: Path) -> None:
    text = message(changed(tmp_path, "prior = 0.30", "prior = 0.40"))
    assert "1.100" in text
    assert "prior" in text
