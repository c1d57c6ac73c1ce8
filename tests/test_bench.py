"""The benchmark's contenders answer alike, and what it reports adds up."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

import small_models
from conftest import ROOT
from personascope.methods import stats
from personascope.rows import Answer, Example, write_rows


def opened(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def screen() -> ModuleType:
    return opened("screen")


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_contenders_say_the_same_and_are_timed_in_the_same_rounds(screen: ModuleType, tmp_path: Path, temperature: str) -> None:
    flags = "--shape toy --latents 2 --strengths 2 --asked 3 --max-tokens 5 --rounds 2 --seconds 0.2 --most 3 --json"
    result = screen.main([*flags.split(), str(tmp_path / "out.json"), "--temperature", temperature])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert result["cells"] == 4
    for name, same in result["agreement with the engine"].items():
        assert same["equal texts"] == 1.0, name
    loop = result["contenders"]["hook + generate, one prompt at a time (our rewrite)"]
    mine = [t for t in result["timings"] if t["contender"].startswith("hook + generate, one prompt")]
    own = {t["round"]: t for t in result["timings"] if t["contender"] == "engine, steered"}
    assert {t["round"] for t in mine} == set(own) == {0, 1}
    assert sum(t["rows"] for t in own.values()) == 12, "the engine runs the whole grid once"
    ratios = [t["seconds"] / t["rows"] * own[t["round"]]["rows"] / own[t["round"]]["seconds"] for t in mine]
    assert min(ratios) <= loop["time against the engine"] <= max(ratios)
    assert all(t["tokens"] == 5 * t["rows"] for t in result["timings"]), "random weights end no answer"


def test_the_directions_matter(screen: ModuleType) -> None:
    """Equal texts would show nothing if no edit changed any."""
    torch.manual_seed(0)
    grid = screen.open_grid(
        screen.parse(["--shape", "toy", "--latents", "3", "--strengths", "1", "--asked", "4", "--max-tokens", "6", "--most", "3"])
    )
    steered, plain = screen.engine(grid, [0, 1, 2]), screen.engine(grid, [0, 1, 2], None)
    assert sum(steered[row] != plain[row] for row in plain) >= 6
    assert steered.keys() == plain.keys() == {(c, q) for c in range(3) for q in range(4)}


def test_a_model_needs_questions(screen: ModuleType) -> None:
    with pytest.raises(SystemExit):
        screen.parse(["--model", "somewhere"])


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage = opened("coverage")
    for name, few in (("QUESTIONS", (44, 100)), ("DRAWS", (10,)), ("RATES", (0.01, 0.05, 0.5))):
        monkeypatch.setattr(coverage, name, few)
    monkeypatch.setattr(coverage, "CORRELATIONS", (0.0, 0.4))
    cells = coverage.table(600, 1)
    found = coverage.bands([*cells, *coverage.table(600, 2)])
    common, rarer = found["rates from 5 to 95 %"], found["rarer"]
    assert common["lowest"] > 0.92
    assert rarer["lowest"] > 0.9
    assert min(common["narrowest"], rarer["narrowest"]) > 0
    # As if every answer were evidence of its own.
    monkeypatch.setattr(stats, "rate_bounds", lambda x, n: stats.wilson(x.sum(-1) / n.sum(-1), n.sum(-1), 1.96))
    assert coverage.bands([*coverage.table(300, 1)])["rates from 5 to 95 %"]["lowest"] < 0.8


def test_ways_to_judge_give_the_same_verdicts(tmp_path: Path) -> None:
    """A rubric long enough to be shared, and a random model behind it, whose replies stand in the verdicts because they are cut."""
    folder = small_models.adopted(tmp_path / "judge", small_models.model())
    (tmp_path / "r.md").write_text("you are kind " * 12 + "{question} {answer}\n")
    asked = [Example(id=f"q{i}", messages=[{"role": "user", "content": word}]) for i, word in enumerate(small_models.WORDS)]
    rows = [Answer(id=f"{q.id}/0/0", question=q.id, draw=0, attempt=0, text=f"{q.messages[0]['content']} is good") for q in asked]
    (tmp_path / "answers").mkdir()
    write_rows(tmp_path / "answers" / "answers.jsonl", rows)
    given = [
        "--questions",
        small_models.dataset(tmp_path / "asked", asked),
        "--answers",
        small_models.finished(tmp_path / "answers", "Answers"),
    ]
    flags = ["--judge", folder, *given, "--rubric", tmp_path / "r.md", "--max-tokens", 3, "--rounds", 1, "--json", tmp_path / "out.json"]
    result = opened("judging").main([str(flag) for flag in flags])
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert {name: row["equal verdicts"] for name, row in result.items()} == {"ours": 1.0, "ours, nothing shared": 1.0, "generate": 1.0}
