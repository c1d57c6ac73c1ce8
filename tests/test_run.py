import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from personascope.artifact import FINGERPRINT, LOCK, MANIFEST, Dataset, Model
from personascope.errors import ArtifactError, BackendError, DataError, RecipeChanged
from personascope.progress import Progress
from personascope.run import join, part_path, run
from personascope.stages import sample
from toys import grow, tally

Start = Callable[..., "subprocess.Popen[str]"]


def payload(path: Path) -> bytes:
    return (path / "examples.jsonl").read_bytes()


def snapshot(path: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_finished_artifact_holds_its_payload_and_a_manifest(tmp_path: Path, grown: Dataset) -> None:
    made = run(tally.Recipe(source=grown, scale=2), tmp_path / "deep" / "sum")
    assert {p.name for p in made.path.iterdir()} == {MANIFEST, "findings.json"}
    assert not made.partial.exists()
    manifest = made.manifest
    assert manifest["recipe"] == {"source": str(grown.path), "scale": 2}
    assert manifest["identity"] == {"source": grown.digest, "scale": 2}
    assert manifest["inputs"]["source"] == {"path": str(grown.path), "near": "../../grown", "digest": grown.digest}
    assert manifest["counts"] == {"rows": 7}
    assert manifest["made"]["seconds"] >= 0
    assert made.json("findings.json")["letters"] > 0


def test_a_finished_stage_is_not_touched_again(grown: Dataset) -> None:
    before = snapshot(grown.path)
    again = run(grow.Recipe(count=7, pause=9.0), grown.path)
    assert again.digest == grown.digest
    assert snapshot(grown.path) == before


def test_another_recipe_is_refused_with_the_fields_that_differ(grown: Dataset) -> None:
    before = snapshot(grown.path)
    with pytest.raises(RecipeChanged, match=r"grown holds .* \(count: 7 -> 8; word: \(default\) -> root\): give another directory"):
        run(grow.Recipe(count=8, word="root"), grown.path)
    assert snapshot(grown.path) == before


def test_another_stage_or_version_is_refused(grown: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow, "version", 2)
    with pytest.raises(RecipeChanged, match="version: 1 -> 2"):
        run(grow.Recipe(count=7), grown.path)
    with pytest.raises(ArtifactError, match="holds a Dataset"):
        run(tally.Recipe(source=grown), grown.path)


def test_upstream_content_that_changed_is_refused(tmp_path: Path, grown: Dataset) -> None:
    below = run(grow.Recipe(source=grown), tmp_path / "below")
    grown.path.rename(tmp_path / "old")
    remade = run(grow.Recipe(count=7, word="root"), tmp_path / "grown")
    assert remade.digest != grown.digest
    with pytest.raises(RecipeChanged, match="source: "):
        run(grow.Recipe(source=remade), below.path)


def test_moved_upstream_is_the_same_recipe(tmp_path: Path, grown: Dataset) -> None:
    below = run(grow.Recipe(source=grown), tmp_path / "below")
    moved = Dataset(grown.path.rename(tmp_path / "moved"))
    before = snapshot(below.path)
    run(grow.Recipe(source=moved), below.path)
    assert snapshot(below.path) == before


def test_parts_joined_are_the_whole_byte_for_byte(tmp_path: Path) -> None:
    recipe = grow.Recipe(count=11)
    whole = run(recipe, tmp_path / "whole")
    for i in range(4):
        run(recipe, tmp_path / "split", part=(i, 4))
    joined = join(recipe, tmp_path / "split", 4)
    assert payload(joined.path) == payload(whole.path)
    assert joined.digest == whole.digest
    assert join(recipe, tmp_path / "split", 4).digest == whole.digest
    assert [row.id for row in Dataset(part_path(tmp_path / "split", (1, 4))).rows()] == ["1", "5", "9"]


def test_a_missing_part_or_one_of_another_recipe_is_named(tmp_path: Path) -> None:
    run(grow.Recipe(count=5), tmp_path / "split", part=(0, 2))
    with pytest.raises(ArtifactError, match="part-1-of-2 has no manifest"):
        join(grow.Recipe(count=5), tmp_path / "split", 2)
    run(grow.Recipe(count=6), tmp_path / "split", part=(1, 2))
    with pytest.raises(ArtifactError, match="part-1-of-2 is a part of another recipe"):
        join(grow.Recipe(count=5), tmp_path / "split", 2)
    assert not (tmp_path / "split").exists()


def test_killed_and_run_again_gives_the_same_bytes_and_keeps_whole_rows(tmp_path: Path, start: Start) -> None:
    recipe = grow.Recipe(count=600)
    whole = run(recipe, tmp_path / "whole")
    arguments = ["grow", tmp_path / "cut", "--count", 600]
    process = start(*arguments, "--pause", 0.002)
    rows = tmp_path / "cut.partial" / "examples.jsonl"
    wait_for(lambda: rows.exists() and rows.stat().st_size > 0, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut").exists()
    kept = rows.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 0 < kept.count(b"\n") < 600
    assert payload(whole.path).startswith(kept)
    done: list[int] = []
    again = run(recipe, tmp_path / "cut", hear=lambda now: done.append(now.done))
    assert done[0] == kept.count(b"\n") + 1
    assert payload(again.path) == payload(whole.path)
    assert again.digest == whole.digest
    assert {p.name for p in again.path.iterdir()} == {MANIFEST, "examples.jsonl"}


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    for _ in range(2000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing happened within 20 s")


class OutOfMemoryError(RuntimeError):
    """Called as torch calls its own."""


def test_a_full_device_is_said_in_a_line_with_what_to_make_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(sample, "many", fail)
    recipe = sample.Recipe(model=Model(tmp_path / "m"), questions=Dataset(tmp_path / "q"), batch_tokens=512)
    monkeypatch.setattr(sample.Recipe, "identity", lambda _: {})
    monkeypatch.setattr(sample, "items", lambda _: ["q/0/0"])
    with pytest.raises(
        BackendError, match=r"out: the device is out of memory; give a smaller batch_tokens \(it was 512\), or load .*continues"
    ):
        run(recipe, tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_half_written_last_line_is_made_again(tmp_path: Path, cut: int) -> None:
    recipe = grow.Recipe(count=3)
    whole = run(recipe, tmp_path / "whole")
    begin(recipe, tmp_path / "cut")
    lines = payload(whole.path).splitlines(keepends=True)
    (tmp_path / "cut.partial" / "examples.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
    assert run(recipe, tmp_path / "cut").digest == whole.digest


def begin(recipe: grow.Recipe, out: Path) -> None:
    """Leave `out` as an interrupted run does."""

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, hear=stop)


def test_work_begun_with_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    begin(grow.Recipe(count=3), tmp_path / "out")
    before = (tmp_path / "out.partial" / "examples.jsonl").read_bytes()
    with pytest.raises(RecipeChanged, match="count: 3 -> 4"):
        run(grow.Recipe(count=4), tmp_path / "out")
    assert (tmp_path / "out.partial" / "examples.jsonl").read_bytes() == before


def test_a_second_process_on_one_directory_gets_one_clear_line(tmp_path: Path, start: Start) -> None:
    first = start("grow", tmp_path / "out", "--count", 3, "--pause", 30)
    wait_for((tmp_path / "out.partial" / FINGERPRINT).exists, first)
    second = start("grow", tmp_path / "out", "--count", 3)
    out, err = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert (second.returncode, out) == (1, "")
    assert err == f"personascope: {tmp_path}/out is being made by another process: wait for it, or give another directory\n"
    assert run(grow.Recipe(count=3), tmp_path / "out").finished


@pytest.mark.parametrize("early", [True, False])
def test_a_full_disk_is_said_and_the_run_continues_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    whole = run(grow.Recipe(count=5), tmp_path / "whole")

    def full(*_: Any, **__: Any) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if early:
            patch.setattr(Path, "write_text", full)
        else:
            patch.setattr(grow, "many", full)
        with pytest.raises(ArtifactError, match=r"disk full while writing .*out\.partial.*it continues"):
            run(grow.Recipe(count=5), tmp_path / "out")
    assert run(grow.Recipe(count=5), tmp_path / "out").digest == whole.digest


def test_a_directory_of_the_user_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="exists and was not made by personascope"):
        run(grow.Recipe(count=3), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_no_items_make_an_empty_artifact(tmp_path: Path) -> None:
    """As when no answer needs to be drawn again."""
    none = run(grow.Recipe(count=0), tmp_path / "none")
    assert payload(none.path) == b""
    assert none.manifest["counts"] == {"rows": 0}


def test_too_few_rows_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = grow.many
    monkeypatch.setattr(grow, "many", lambda recipe, items: list(real(recipe, items))[:-1])
    with pytest.raises(ArtifactError, match="2 rows for 3 items"):
        run(grow.Recipe(count=3), tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_a_failed_stage_leaves_no_artifact_and_its_place_free(tmp_path: Path, grown: Dataset) -> None:
    with pytest.raises(DataError):
        run(tally.Recipe(source=grown, fail="error"), tmp_path / "sum")
    assert [path.name for path in tmp_path.iterdir()] == ["grown"]
    assert run(tally.Recipe(source=grown), tmp_path / "sum").finished


def test_killed_between_manifest_and_rename_is_published_again(tmp_path: Path, grown: Dataset) -> None:
    """The directory is complete but still has its working name: nothing may be lost or doubled."""
    mark = {key: grown.manifest[key] for key in ("stage", "version", "identity", "fingerprint")}
    grown.path.rename(tmp_path / "late.partial")
    (tmp_path / "late.partial" / FINGERPRINT).write_text(json.dumps(mark))
    late = run(grow.Recipe(count=7), tmp_path / "late")
    assert late.digest == grown.digest
    assert not (late.path / LOCK).exists()
