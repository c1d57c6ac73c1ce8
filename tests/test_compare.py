"""Two summaries side by side: what both have, the difference, and whether the intervals are apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Ended
from personascope import compare

Cli = Callable[..., Ended]


def estimate(value: float | None, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 400, "clusters": 200}


def written(path: Path, summary: Any) -> Path:
    path.mkdir()
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_what_both_have_is_compared(cli: Cli, tmp_path: Path) -> None:
    a = written(tmp_path / "a", {"em": {"score": estimate(0.1, 0.05, 0.2), "good": estimate(0.5, 0.4, 0.6)}, "only": estimate(0.3)})
    b = written(tmp_path / "b", {"em": {"score": estimate(0.4, 0.3, 0.5), "good": estimate(0.45, 0.35, 0.55)}, "seconds": {"total": 3}})
    ended = cli("compare", a, b)
    assert (ended.code, ended.err) == (0, "")
    head, *lines = ended.out.splitlines()
    assert head.split()[-5:] == [str(a)[-26:].split()[-1], str(b)[-26:].split()[-1], "B", "-", "A"]
    assert [line.split()[0] for line in lines] == ["em.score", "em.good"]
    assert lines[0].split()[1:] == ["0.100", "[0.050,", "0.200]", "0.400", "[0.300,", "0.500]", "+0.300", "apart"]
    assert lines[1].split()[-1] == "-0.050"


@pytest.mark.parametrize(
    ("left", "right", "apart"),
    [((0.1, 0.2), (0.3, 0.4), True), ((0.3, 0.4), (0.1, 0.2), True), ((0.1, 0.3), (0.3, 0.4), False), ((0.0, 1.0), (0.3, 0.4), False)],
)
def test_apart_means_that_the_intervals_do_not_touch(left: tuple, right: tuple, apart: bool) -> None:
    (line,) = compare.rows({"x": estimate(sum(left) / 2, *left)}, {"x": estimate(sum(right) / 2, *right)})
    assert line.endswith("apart") == apart


def test_estimates_are_found_at_any_depth_but_not_in_lists() -> None:
    found = compare.estimates({"a": {"b": {"c": estimate(1)}, "d": [estimate(2)], "e": 3}, "f": estimate(4), "g": "text"})
    assert {name: one["value"] for name, one in found.items()} == {"a.b.c": 1, "f": 4}


def test_a_rate_of_nothing_is_left_out() -> None:
    assert compare.rows({"x": estimate(None), "y": estimate(0.1)}, {"x": estimate(0.2), "y": estimate(None)}) == []


def test_mistakes_are_said_in_one_line(cli: Cli, tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", {"x": estimate(0.1)}), written(tmp_path / "b", {"y": estimate(0.1)})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "summary.json").write_text("{")
    for other, says in (
        (tmp_path / "none", "has no summary.json: give the directory of a finished audit or study"),
        (tmp_path / "c", "summary.json is damaged: run the audit again"),
        (b, "have no estimate in common; compare two audits"),
    ):
        ended = cli("compare", a, other)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("personascope: ")
        assert ended.err.count("\n") == 1
        assert says in ended.err


def test_damage_of_other_kinds_is_damage_too(cli: Cli, tmp_path: Path) -> None:
    a = written(tmp_path / "a", {"x": estimate(0.1)})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.json").write_bytes(b"\xff\xfe")
    assert "is damaged" in cli("compare", a, tmp_path / "b").err
    (tmp_path / "file").write_text("x")
    assert "has no summary.json" in cli("compare", a, tmp_path / "file").err
    assert "no estimate in common" in cli("compare", a, written(tmp_path / "c", [1, 2])).err
