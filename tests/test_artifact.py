import json
import pickle
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.artifact import MANIFEST, TYPES, Artifact, Dataset, Findings, Model, Verdicts, hash_tree, open_any
from personascope.errors import ArtifactError


def test_naming_an_artifact_does_not_touch_the_disk(tmp_path: Path) -> None:
    nowhere = Dataset(tmp_path / "nowhere")
    assert not nowhere.finished
    assert nowhere == Dataset(tmp_path / "nowhere")
    assert nowhere != Verdicts(tmp_path / "nowhere")
    assert pickle.loads(pickle.dumps(nowhere)) == nowhere


def test_the_digest_goes_by_content_not_by_place(grown: Dataset, tmp_path: Path) -> None:
    moved = shutil.copytree(grown.path, tmp_path / "elsewhere" / "copy")
    assert Dataset(moved).digest == grown.digest == hash_tree(moved)
    rows = moved / "examples.jsonl"
    rows.write_text(rows.read_text() + "\n")
    assert hash_tree(moved) != grown.digest


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=4), max_size=4))
def test_equal_trees_have_equal_digests_and_others_do_not(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for name in files:
        (one / name).write_bytes(files[name])
    for name in reversed(files):
        (two / name).write_bytes(files[name])
    assert hash_tree(one) == hash_tree(two)
    (two / "more").write_bytes(b"")
    assert hash_tree(one) != hash_tree(two)


def test_an_artifact_that_is_not_there_unfinished_or_another_is_refused(grown: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest.json.*a Dataset is needed"):
        Dataset(tmp_path / "nowhere").digest  # noqa: B018 - reading it raises
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(ArtifactError, match="not finished"):
        list(Dataset(tmp_path / "half").rows())
    with pytest.raises(ArtifactError, match="holds a Dataset, a Findings is needed"):
        Findings(grown.path).file("findings.json")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"type": "Nonsense"}', '{"type": []}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    for read in (lambda: Dataset(tmp_path).manifest, lambda: open_any(tmp_path)):
        with pytest.raises(ArtifactError, match=r"manifest\.json is damaged or not ours"):
            read()


def test_open_any_goes_by_the_manifest(grown: Dataset, tmp_path: Path) -> None:
    assert type(open_any(grown.path)) is Dataset
    with pytest.raises(ArtifactError, match="has no manifest"):
        open_any(tmp_path / "nowhere")
    assert {*TYPES.values()} == {*Artifact.__subclasses__()}


def test_a_model_may_be_an_earlier_step_of_itself(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / MANIFEST).write_text(json.dumps({"type": "Model", "digest": "d"}))
    model = Model(tmp_path / "m")
    assert Model(f"{tmp_path}/m@30") == model.at(30) != model
    assert model.at(30).path == model.path
    assert (model.identity, model.at(30).identity) == ("d", "d@30")
    assert str(model.at(30)).endswith("m@30")
