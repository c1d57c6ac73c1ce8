"""Figures of model organisms: what one's direction removes from another, a change at other sizes, and where training turns."""

from collections.abc import Sequence

from personascope.methods.charts import Column, Panel, Series, curves
from personascope.methods.figures import Summary, entries, number, point, section
from personascope.methods.overview import matrix
from personascope.methods.svg import Point, plain


def transfer(summary: Summary) -> str:
    """Share of an organism's misalignment (columns) that is gone under another's direction (rows), for every edit tried on all pairs."""
    cells = [cell for cell in entries(section(summary, "convergent"), "cells") if point(cell.get("removed"))]
    names = list(dict.fromkeys(str(cell.get("on")) for cell in cells))
    rows: dict[str, dict[str, Point | None]] = {}
    for cell in cells:
        rows.setdefault(f"{cell.get('edit')}, from {cell.get('from')}", {})[str(cell.get("on"))] = point(cell.get("removed"))
    shares = [[row.get(name) for name in names] for row in rows.values()]
    return (
        matrix(list(rows), names, shares, "Misalignment removed, by organism", "1: all of it; bold: the interval leaves 0 out")
        if rows
        else ""
    )


def scaling(summary: Summary) -> str:
    """Score and strict incoherence against the size that an organism's change is given."""
    rows = [row for row in entries(section(summary, "convergent"), "scaling") if number(row.get("scale")) is not None]
    if not rows:
        return ""
    places = _evenly([row["scale"] for row in rows])
    names = list(dict.fromkeys(str(row.get("organism")) for row in rows))
    panels = []
    for key, title in (("score", "Misalignment score"), ("strict_incoherence", "Strict incoherence")):
        series = [
            _series(name, [r for r in rows if str(r.get("organism")) == name], key, "scale", places, i) for i, name in enumerate(names)
        ]
        panels.append(Panel(title, tuple(series)))
    marks = tuple((x, f"{size:g}") for size, x in places.items())
    return curves([Column(tuple(panels), marks, "times the change that training made")], "Behaviour by the size of the change")


def turns(summary: Summary) -> str:
    """Local cosine of the weights' path and the score, against the step, for every followed run."""
    runs = [run for run in entries(section(summary, "convergent"), "turns") if entries(run, "local")]
    if not runs:
        return ""
    steps = [row["step"] for run in runs for key in ("local", "scores") for row in entries(run, key) if number(row.get("step")) is not None]
    places = {step: step / (max(steps) or 1) for step in sorted({0, *steps})}
    panels = []
    for part, key, title, rate in (("local", "cosine", "Local cosine", False), ("scores", "score", "Misalignment score", True)):
        series = [_series(str(run.get("run")), entries(run, part), key, "step", places, i) for i, run in enumerate(runs)]
        panels.append(Panel(title, tuple(series), rate))
    return curves(
        [Column(tuple(panels), tuple((x, plain(step)) for step, x in places.items()), "step")],
        "Where training turns, and when behaviour changes",
    )


def draw(summary: Summary) -> dict[str, str]:
    """Every figure of organisms whose data the summary holds, by name."""
    drawn = {"transfer": transfer(summary), "scaling": scaling(summary), "turns": turns(summary)}
    return {name: svg for name, svg in drawn.items() if svg}


def _series(name: str, rows: Sequence[Summary], key: str, axis: str, places: dict[float, float], look: int) -> Series:
    """One line of `key` against `axis`; rows without a place are left out."""
    placed = [(row, places[row[axis]]) for row in rows if row.get(axis) in places]
    found = (point(row.get(key), x, f"{name}, {plain(row[axis])}") for row, x in placed)
    return Series(name, tuple(p for p in found if p), look)


def _evenly(values: Sequence[float]) -> dict[float, float]:
    """Value → place from 0 to 1 on a linear axis."""
    low, high = min(values), max(values)
    return {value: (value - low) / ((high - low) or 1.0) for value in sorted(set(values))}
