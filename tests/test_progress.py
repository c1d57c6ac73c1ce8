"""How far work has come is heard by who listens, kept beside it, seen at a terminal's foot, and gone when the work is done."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import small_models
from conftest import BOOT, ROOT
from personascope import progress, status
from personascope.artifact import Dataset, Model
from personascope.progress import Progress
from personascope.rows import Example
from personascope.run import run
from personascope.stages import dictionary, finetune
from personascope.study import Study, plan
from toys import grow

STUDY = """
from toys import grow

def build(study):
    study.run("data", grow.Recipe(count=40, pause=0.1))
"""


def test_only_who_listens_hears_and_only_while_it_does() -> None:
    first: list[Progress] = []
    second: list[Progress] = []
    progress.tell(1, 2, "rows")
    with progress.heard(first.append):
        with contextlib.suppress(KeyError), progress.heard(second.append):
            progress.tell(1, 9, "rows")
            raise KeyError
        progress.tell(12, 9, "answers")
    progress.tell(3, 9, "rows")
    assert [str(now) for now in first] == ["1 of 9 rows", "12 of 12 answers"], "an estimate that was too low is not shown"
    assert second == [(1, 9, "rows")]


def test_it_is_kept_once_a_second_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    keep = progress.kept(tmp_path)
    assert progress.read(tmp_path) is None
    for done, seconds in ((1, 0.0), (2, 0.5), (3, 0.5)):
        clock[0] += seconds
        keep(Progress(done, 10, "steps"))
        assert progress.read(tmp_path) == Progress(1 if done < 3 else 3, 10, "steps")
    (tmp_path / progress.FILE).write_text("[1,")
    assert progress.read(tmp_path) is None
    assert not list(tmp_path.glob("*.new"))
    (tmp_path / progress.NEW).write_text("[1,")
    progress.forget(tmp_path)
    assert not list(tmp_path.iterdir()), "a kill in the middle of writing leaves nothing in a result"


def test_the_line_tells_what_is_made_and_how_far_the_rest_is(tmp_path: Path) -> None:
    study = Study(tmp_path)
    for name in ("a", "b", "c"):
        study.run(name, grow.Recipe(count=2))
    run(grow.Recipe(count=2), tmp_path / "a")
    began = time.time()
    assert status.line(study, began) == "1 of 3 made"
    (tmp_path / "b.partial").mkdir()
    progress.kept(tmp_path / "b.partial")(Progress(1, 2, "rows"))
    assert status.line(study, began - 1) == "1 of 3 made · grow b: 1 of 2 rows"
    assert status.line(study, began + 60) == "1 of 3 made", "what a killed run left behind is nobody's work"
    assert [line.split() for line in plan(study)][1] == ["begun", "grow", "b", "1", "of", "2", "rows"]


def test_a_study_shows_it_on_a_terminal_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(STUDY)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    command = [sys.executable, "-c", BOOT, "run", str(tmp_path / "slow.py"), "--out", str(tmp_path / "out")]
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=child, check=True)
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    assert "0 of 1 made · grow data: " in shown
    assert "of 40 rows" in shown
    assert shown.endswith(status.WIPE)
    assert not list((tmp_path / "out").rglob("progress.*"))


def test_training_and_dictionaries_tell(tmp_path: Path) -> None:
    """The long stages that are not made of rows."""
    base = Model(small_models.adopted(tmp_path / "base", small_models.model()))
    texts = Dataset(small_models.dataset(tmp_path / "texts", small_models.texts(12)))
    turns = [{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "yes"}]
    rows = Dataset(small_models.dataset(tmp_path / "rows", [Example(id="r", messages=turns)]))
    told: list[Progress] = []
    run(finetune.Recipe(model=base, data=rows, steps=3, batch=2, rank=2), tmp_path / "tuned", hear=told.append)
    assert told == [(step, 3, "steps") for step in (1, 2, 3)]
    told.clear()
    size = {"site": "block:1", "width": 16, "k": 2, "tokens": 100, "heldout_tokens": 50, "batch": 20}
    run(dictionary.Recipe(model=base, texts=texts, heldout=texts, **size), tmp_path / "sae", hear=told.append)
    trained = [now for now in told if now.unit == "tokens"]
    assert [now.done for now in trained] == sorted(now.done for now in trained)
    assert trained[-1] == (100, 100, "tokens")
    assert {now.unit for now in told} == {"tokens", "held-out tokens"}
