import json
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from personascope.artifact import Dataset, Findings
from personascope.errors import BackendError, DataError, RecipeChanged, RecipeError
from personascope.run import run
from personascope.study import Study, _prepare, execute, load, plan, write_json
from toys import grow, tally


def declare(study: Study, fail: str = "", word: str = "leaf") -> Findings:
    """Two data sets, one derived from the first, and the sum of that."""
    first = study.run("data/first", grow.Recipe(count=5, word=word))
    study.run("data/other", grow.Recipe(count=3))
    second = study.run("second", grow.Recipe(source=first))
    return study.run("sum", tally.Recipe(source=second, fail=fail))


def test_declaring_runs_nothing_and_knows_what_needs_what(tmp_path: Path) -> None:
    study = Study(tmp_path / "root")
    made = declare(study)
    assert made == Findings(tmp_path / "root" / "sum") == study.artifact("sum")
    assert not (tmp_path / "root").exists()
    assert study.needs() == {"data/first": set(), "data/other": set(), "second": {"data/first"}, "sum": {"second"}}


def test_one_name_holds_one_recipe(tmp_path: Path) -> None:
    study = Study(tmp_path)
    assert study.run("a", grow.Recipe(count=1)) == study.run("a", grow.Recipe(count=1))
    with pytest.raises(RecipeError, match="'a' is declared twice"):
        study.run("a", grow.Recipe(count=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_execute_makes_what_is_missing_inputs_first(tmp_path: Path, workers: int) -> None:
    study, told = Study(tmp_path), []
    made = declare(study)
    execute(study, workers, tell=told.append)
    assert made.json("findings.json")["letters"] > 0
    assert sorted(told) == sorted(f"{'tally' if n == 'sum' else 'grow'}: {tmp_path / n}" for n in study.recipes)
    assert told.index(f"grow: {tmp_path / 'second'}") > told.index(f"grow: {tmp_path / 'data/first'}")
    told.clear()
    execute(study, workers, tell=told.append)
    assert told == []
    seconds = study.seconds()
    assert set(seconds) == {"grow", "tally", "total", "wall"}
    assert 0 <= seconds["wall"] <= 60


def test_what_a_finished_stage_allows_does_not_wait_for_a_slow_one(tmp_path: Path) -> None:
    study, told = Study(tmp_path), []
    study.run("slow", grow.Recipe(count=40, pause=0.1))
    first = study.run("first", grow.Recipe(count=2))
    run(grow.Recipe(count=2), first.path)
    study.run("then", grow.Recipe(source=first))
    execute(study, 2, tell=told.append)
    assert told == [f"grow: {tmp_path / name}" for name in ("then", "slow")]


def test_workers_make_the_same_bytes_as_none(tmp_path: Path) -> None:
    digests = []
    for workers in (1, 2):
        study = Study(tmp_path / str(workers))
        declare(study)
        execute(study, workers, tell=lambda _: None)
        digests.append({name: study.artifact(name).digest for name in study.recipes})
    assert digests[0] == digests[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_stops_the_study_and_keeps_what_is_made(tmp_path: Path, workers: int) -> None:
    study = Study(tmp_path)
    declare(study, fail="error")
    with pytest.raises(DataError, match="wanted to fail"):
        execute(study, workers, tell=lambda _: None)
    assert study.artifact("second").finished
    assert not study.artifact("sum").finished


def test_a_bug_in_a_worker_shows_its_traceback(tmp_path: Path) -> None:
    study = Study(tmp_path)
    declare(study, fail="bug")
    with pytest.raises(RuntimeError, match=r"(?s)sum\nTraceback.*KeyError: 'a bug'"):
        execute(study, 2, tell=lambda _: None)


def test_a_worker_that_is_killed_is_said(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.run("dies", tally.Recipe(source=run(grow.Recipe(count=2), tmp_path / "data"), fail="kill"))
    with pytest.raises(BackendError, match=r"dies: its process was killed.*fewer workers"):
        execute(study, 2, tell=lambda _: None)


def test_changed_recipes_and_changed_inputs_are_refused(tmp_path: Path) -> None:
    study = Study(tmp_path)
    declare(study)
    execute(study, tell=lambda _: None)
    changed = Study(tmp_path)
    declare(changed, word="root")
    with pytest.raises(RecipeChanged, match=r"data/first .*word: \(default\) -> root"):
        execute(changed, tell=lambda _: None)


def test_a_deleted_input_is_made_again_below_a_finished_stage(tmp_path: Path) -> None:
    study = Study(tmp_path)
    declare(study)
    execute(study, tell=lambda _: None)
    (tmp_path / "data/first").rename(tmp_path / "gone")
    told: list[str] = []
    execute(study, tell=told.append)
    assert told == [f"grow: {tmp_path / 'data/first'}"]


def test_the_plan_says_state_and_cost(tmp_path: Path) -> None:
    study = Study(tmp_path)
    declare(study)
    run(study.recipes["data/first"], tmp_path / "data/first")
    (tmp_path / "data/other.partial").mkdir()
    lines = [re.split(r"\s{2,}", line) for line in plan(study)]
    assert lines == [
        ["finished", "grow", "data/first"],
        ["begun", "grow", "data/other"],
        ["to do", "grow", "second"],
        ["to do", "tally", "sum", "known when its inputs are"],
    ]
    run(study.recipes["second"], tmp_path / "second")
    assert plan(study)[3].endswith("5 rows")


def test_the_plan_tells_what_a_run_would_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path)
    study.run("a", grow.Recipe(count=2, word="x"))
    execute(study, tell=lambda _: None)
    assert plan(study) == ["finished  grow       a"]
    monkeypatch.setattr(grow, "version", grow.version + 1)
    assert plan(study) == ["changed   grow       a"]
    with pytest.raises(RecipeError, match="another recipe"):
        execute(study, tell=lambda _: None)


def test_wall_time_counts_overlap_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path)
    for name in ("a", "b", "c"):
        study.run(name, grow.Recipe(count=1, word=name))
    execute(study, tell=lambda _: None)
    spans = {"a": (0.0, 10.0), "b": (5.0, 10.0), "c": (100.0, 1.0)}
    monkeypatch.setattr(
        Dataset, "manifest", property(lambda self: {"made": dict(zip(("started", "seconds"), spans[self.path.name], strict=True))})
    )
    assert study.seconds() == {"grow": 21.0, "total": 21.0, "wall": 16.0}


def test_load_names_what_is_wrong_with_a_study_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such study file"):
        load(tmp_path / "none.py")
    (tmp_path / "notes.txt").write_text("def build(study): ...")
    with pytest.raises(DataError, match="no such study file"):
        load(tmp_path / "notes.txt")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(DataError, match=r"defines no build\(study\)"):
        load(tmp_path / "empty.py")


def test_a_study_may_be_named_like_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def build(study): ...\n")
    assert load(tmp_path / "json.py").__name__ == "study_json"
    import json as again

    assert again is json


def test_write_json_replaces_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text() == "old"
    write_json(path, {"x": 1})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]


def test_a_worker_computes_with_one_thread() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        assert pool.submit(threads).result() == 1


def threads() -> int:
    import torch

    return torch.get_num_threads()
