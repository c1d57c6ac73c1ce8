import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.artifact import Dataset, Dictionary
from personascope.errors import ArtifactError, DataError, RecipeError
from personascope.recipe import Recipe, coerce, differences, fingerprint
from personascope.values import Direction, File, Folder, Intervention
from toys import grow, tally

RECIPES = st.builds(
    grow.Recipe,
    count=st.integers(0, 9),
    word=st.text(max_size=5),
    mode=st.sampled_from(["plain", "loud"]),
    scale=st.floats(allow_nan=False, allow_infinity=False),
    twice=st.booleans(),
    notes=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    pause=st.floats(0, 1),
)


def test_identity_leaves_defaults_and_circumstance_out() -> None:
    assert grow.Recipe(count=3, word="leaf", pause=0.5).identity() == {"count": 3}
    assert fingerprint("grow", 1, grow.Recipe(count=3)) == fingerprint("grow", 1, grow.Recipe(count=3, pause=0.5))


def test_a_new_option_changes_no_fingerprint() -> None:
    newer = dataclasses.make_dataclass("Newer", [("option", str, "off")], bases=(grow.Recipe,), frozen=True, kw_only=True)
    assert fingerprint("grow", 1, newer(count=3)) == fingerprint("grow", 1, grow.Recipe(count=3))
    assert fingerprint("grow", 1, newer(count=3, option="on")) != fingerprint("grow", 1, grow.Recipe(count=3))


@given(RECIPES, RECIPES)
def test_fingerprints_are_equal_exactly_when_identities_are(one: grow.Recipe, two: grow.Recipe) -> None:
    same = dataclasses.replace(one, pause=0.0) == dataclasses.replace(two, pause=0.0)
    assert (fingerprint("grow", 1, one) == fingerprint("grow", 1, two)) == same
    assert (differences(one.identity(), two.identity()) == []) == same
    assert fingerprint("grow", 2, one) != fingerprint("grow", 1, one) != fingerprint("tally", 1, one)


@given(RECIPES)
def test_a_recipe_survives_json(recipe: grow.Recipe) -> None:
    assert grow.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_artifacts_values_and_files_survive_json_and_count_by_content(grown: Dataset, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    steer = Intervention(direction=Direction(source=grown, tensor="decoder/3"), strength=2.0)
    recipe = grow.Recipe(source=grown, file=File(str(tmp_path / "a.txt")), interventions=(steer,))
    assert grow.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe.inputs() == {"source": grown, "interventions[0].direction.source": grown}
    identity = recipe.identity()
    assert identity["source"] == grown.digest
    assert identity["interventions"][0]["direction"] == {"kind": "Direction", "source": grown.digest, "tensor": "decoder/3"}
    assert dataclasses.replace(recipe, file=File(str(tmp_path / "b.txt"))).identity() == identity
    (tmp_path / "b.txt").write_text("other")
    assert dataclasses.replace(recipe, file=File(str(tmp_path / "b.txt"))).identity() != identity


def test_a_folder_counts_by_its_model_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "two" / "README.md").write_text("no part of the model")
    one, two = Folder(str(tmp_path / "one")), Folder(str(tmp_path / "two"))
    assert one.identity == two.identity
    (tmp_path / "two" / "model.safetensors").write_bytes(b"w")
    assert one.identity != two.identity


@pytest.mark.parametrize("value", [File("nowhere"), Folder("nowhere")])
def test_files_that_are_not_there_are_named(value: File | Folder) -> None:
    with pytest.raises(DataError, match="nowhere: no "):
        _ = value.identity


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"cuont": 3}, "cuont: no such field; known are count, word"),
        ({"count": "three"}, "count: 'three' is no int"),
        ({"count": 1.5}, "count: 1.5 is no int"),
        ({"scale": "big"}, "scale: 'big' is no float"),
        ({"twice": "perhaps"}, "twice: 'perhaps' is no bool"),
        ({"mode": "quiet"}, "mode: 'quiet' is none of plain, loud"),
        ({"notes": ["a", 3]}, r"notes\[1\]: 3 is no str"),
        ({"interventions": [{"op": "add"}]}, r"interventions\[0\]\.direction: this field must be given"),
        ({"interventions": ["x"]}, r"interventions\[0\]\.: an object is needed"),
    ],
)
def test_a_field_that_is_wrong_is_named(data: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        grow.Recipe.from_json(data)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RecipeError, match="source: this field must be given"):
        tally.Recipe.from_json({})


def test_command_line_strings_become_what_the_field_asks_for() -> None:
    data = {"count": "4", "scale": "1e-3", "twice": "true", "source": "runs/x", "notes": ["a"], "file": "f.txt"}
    wanted = grow.Recipe(count=4, scale=1e-3, twice=True, source=Dataset("runs/x"), notes=("a",), file=File("f.txt"))
    assert grow.Recipe.from_json(data) == wanted
    assert coerce(float, 2, "x") == 2.0


def test_a_recipe_refuses_what_has_no_canonical_form() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Recipe):
        words: Any

    with pytest.raises(RecipeError, match="cannot hold a dict"):
        Odd(words={}).identity()


def test_a_plan_can_name_what_is_not_made_yet() -> None:
    later = tally.Recipe(source=Dataset("runs/later"))
    assert later.to_json() == {"source": "runs/later"}
    assert later.inputs() == {"source": Dataset("runs/later")}
    with pytest.raises(ArtifactError, match="no manifest"):
        later.identity()


def test_differences_name_fields_and_both_values() -> None:
    was, now = grow.Recipe(count=3, word="x" * 60), grow.Recipe(count=4)
    assert differences(was.identity(), now.identity()) == ["count: 3 -> 4", f"word: {'x' * 37}... -> (default)"]
    direction = {"kind": "Direction", "tensor": "a"}
    assert differences({"d": direction}, {"d": direction | {"tensor": "b"}}) == ["d.tensor: a -> b"]


def test_values_are_compared_by_content() -> None:
    one = Direction(source=Dictionary("d"), tensor="decoder/1")
    assert Intervention(direction=one) == Intervention(direction=Direction(source=Dictionary("d"), tensor="decoder/1"))


def test_a_direction_may_lie_in_a_file_the_user_owns(grown: Dataset, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"same")
    recipe = grow.Recipe(interventions=(Intervention(direction=Direction(source=File(str(tmp_path / "a.pt"))), op="cap", strength=1.0),))
    data = json.loads(json.dumps(recipe.to_json()))
    assert grow.Recipe.from_json(data) == recipe
    assert recipe.inputs() == {}
    data["interventions"][0]["direction"]["source"] = str(tmp_path / "b.pt")
    assert grow.Recipe.from_json(data).identity() == recipe.identity()
    data["interventions"][0]["direction"]["source"] = str(grown.path)
    assert grow.Recipe.from_json(data).interventions[0].direction.source == grown
    data["interventions"][0]["op"] = "push"
    with pytest.raises(RecipeError, match="'push' is none of add, ablate, clamp, cap"):
        grow.Recipe.from_json(data)
