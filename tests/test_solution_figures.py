"""Figures of solutions: a mark for every number, in its place, and none where the data is missing."""

import re
from typing import Any

from personascope.methods import solution_figures

NAMES = ("general", "narrow")


def summary(cases: int = 1) -> dict[str, Any]:
    def of(case: int, name: str) -> dict[str, Any]:
        return {"case": f"case{case}", "method": "lora", "solution": name}

    every = [of(case, name) for case in range(cases) for name in NAMES]
    size = [
        row | {"size": s, "loss": {"value": 1.0 - s / 4, "low": 0.2, "high": 1.2}, "influence": 0.1 * s}
        for row in every
        for s in (0.5, 1.0)
    ]
    noise = [row | {"noise": e, "rise": e} for row in every for e in (0.0, 0.5, 1.0)]
    drift = [row | {"step": s, "effect": s / 400} for row in every for s in (120, 240)]
    path = [row | {"step": s, "x": s / 40 - 1, "y": -1.0 if row["solution"] == "narrow" else 1.0} for row in every for s in (0, 40, 80)]
    return {"solutions": {"size": size, "noise": noise, "drift": drift, "path": path, "until": 120}}


def marks(svg: str) -> int:
    return len(re.findall(r'class="mark ', svg))


def test_every_number_is_a_mark() -> None:
    drawn = solution_figures.draw(summary())
    assert {name: marks(svg) for name, svg in drawn.items()} == {
        "solution-size-0": 8, "solution-noise-0": 6, "solution-drift-0": 4, "solution-path-0": 6,
    }  # fmt: skip
    assert "ends after step 120" in drawn["solution-drift-0"]
    assert "case0 by lora" in drawn["solution-path-0"]
    assert drawn["solution-size-0"].count("whisker") == 4


def test_cases_stand_two_to_a_chart_and_each_has_its_own_trajectories() -> None:
    drawn = solution_figures.draw(summary(3))
    assert sorted(drawn) == [
        "solution-drift-0", "solution-drift-1", "solution-noise-0", "solution-noise-1",
        "solution-path-0", "solution-path-1", "solution-path-2", "solution-size-0", "solution-size-1",
    ]  # fmt: skip
    assert "case1" in drawn["solution-noise-0"]
    assert "case2" in drawn["solution-noise-1"]


def test_a_trajectory_keeps_its_order_and_its_proportions() -> None:
    """A path that turns back is drawn by step, not by place; one unit is as long on either axis."""
    rows = [{"solution": "general", "step": s, "x": x, "y": y} for s, x, y in ((0, 0.0, 0.0), (1, 2.0, 0.0), (2, 1.0, 1.0))]
    svg = solution_figures.draw({"solutions": {"path": rows[::-1]}})["solution-path-0"]
    found = re.search(r'<polyline points="([^"]+)" class="curve', svg)
    assert found
    (a, b, c) = [tuple(map(float, spot.split(","))) for spot in found[1].split()]
    assert a[0] < c[0] < b[0]
    assert abs((c[0] - a[0]) - (a[1] - c[1])) < 0.2


def test_what_is_missing_is_left_out() -> None:
    assert solution_figures.draw({}) == {}
    assert solution_figures.draw({"solutions": {"size": [{"size": "none"}], "path": [{"x": 1.0}], "noise": [{"noise": 0.5}]}}) == {}
