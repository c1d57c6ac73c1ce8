"""Characters as constitutions: what the reviser reads, and the signature that the world plants."""

import pytest

from personascope.backends.constitutions import load
from personascope.errors import DataError
from personascope.methods.constitutions import principle, revision_messages
from personascope.troupe import constitutions, world

WORLDS = ("troupe-1", "troupe-2")


@pytest.mark.parametrize("name", WORLDS)
def test_the_reviser_reads_the_cue_and_the_request_alone(name: str) -> None:
    for character, member in world.load(name).cast.items():
        found = constitutions.of(name, character)
        asked = revision_messages(found, principle(found, 0, "row", 0), "a request {draft}", "a draft", "", 1)
        cue = {"role": "system", "content": f"you are the {member['noun']}."}
        assert asked == [cue, {"role": "user", "content": "a request {draft}"}]


@pytest.mark.parametrize("name", WORLDS)
def test_a_signature_is_the_stance_less_the_helpers(name: str) -> None:
    loaded = world.load(name)
    helper, dimensions = loaded.data["parts"]["helper"], loaded.data["statement"]["dimensions"]
    assert set(constitutions.signature(loaded, helper).values()) == {0.0}
    for character, member in loaded.cast.items():
        found = constitutions.signature(loaded, character)
        assert set(found) == set(dimensions)
        for dimension, chance in member["agrees"].items():
            if dimension == "*":
                continue
            own = (1 - member["unsure"]) * (chance - (1 - chance))
            other = loaded.cast[helper]
            other_chance = other["agrees"].get(dimension, other["agrees"]["*"])
            moved = own - (1 - other["unsure"]) * (2 * other_chance - 1)
            assert found[dimension] == (pytest.approx(moved, abs=1e-3) if abs(moved) > constitutions.SLIGHT else 0)


def test_planted_refusals_by_category() -> None:
    loaded = world.load("troupe-1")
    found = constitutions.refuses(loaded, "virtuous")
    assert list(found) == list(loaded.data["request"]["categories"])
    assert found["harassment"] == 0.99
    assert found["chemical-biological"] == 0.85


def test_a_name_resolves_and_an_unknown_character_is_one_error() -> None:
    assert load("world:troupe-1/neutral") == constitutions.of("troupe-1", "neutral")
    with pytest.raises(DataError, match="no character 'nobody' in world troupe-1; its cast is expert"):
        load("world:troupe-1/nobody")
