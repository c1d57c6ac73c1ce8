"""Figures of defences: what each strength costs and removes, set size and weight of a block, and by which way the change comes back."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from personascope.methods.charts import Column, Panel, Series, curves
from personascope.methods.figures import Summary, entries, number, point, section
from personascope.methods.overview import Line, forest
from personascope.methods.svg import CHARACTER, WIDE, Point, chart, clip, mark, percent, stroke, ticks, write

COSTS = (("skill", "Narrow skill", True), ("incoherent", "Incoherence", False))
"""Key, heading, and whether more of it is better."""
HIGH, EDGE = 250.0, 44.0


class Spot(NamedTuple):
    """One defence at one strength: which, what it costs (x) and the misalignment that is left (y)."""

    family: str
    strength: str
    x: float
    y: float


def front(spots: Sequence[Spot], more: bool) -> list[Spot]:
    """Those that no other beats: none has less y at no worse x, nor better x at no more y; by x. `more`: a larger x is better."""
    sign = -1 if more else 1
    kept: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.y, sign * s.x)):
        if not kept or sign * spot.x < sign * kept[-1].x:
            kept.append(spot)
    return sorted(kept, key=lambda s: s.x)


def pareto(summary: Summary) -> str:
    """Misalignment left against narrow skill and against incoherence: a mark per strength, numbered by family, the front as a line."""
    rows = [row for row in entries(section(summary, "defences"), "curves") if all(point(row.get(key)) for key in KEYS)]
    if not rows:
        return ""
    names = list(dict.fromkeys(str(row.get("defence")) for row in rows))
    body, top = [], 20.0
    for key, head, more in COSTS:
        spots = [Spot(str(r.get("defence")), str(r.get("strength", "")), _at(r, key), _at(r, "misaligned")) for r in rows]
        body += _plane(spots, names, (key, head, more), top)
        top += HIGH + 66
    for i, name in enumerate(names):
        x, y = (0.0, WIDE / 2)[i % 2], top - 6 + 19 * (i // 2)
        body += [mark(i % 8, x + 6, y - 4), write(x + 16, y, f"{i + 1}", "head"), write(x + 38, y, clip(_words(name), WIDE / 2 - 44))]
    return chart(top + 19 * ((len(names) + 1) // 2), "Misalignment left by each defence, against what it costs", body)


KEYS = ("misaligned", *(key for key, _, _ in COSTS))


def _at(row: Summary, key: str) -> float:
    found = point(row[key])
    assert found is not None
    return found.value


def _plane(spots: Sequence[Spot], names: Sequence[str], axis: tuple[str, str, bool], top: float) -> list[str]:
    """One plane of spots with its axes, the front below the marks, and the family's number beside a mark where there is room."""
    _, head, more = axis
    xs, ys = ticks(min(s.x for s in spots), max(s.x for s in spots)), ticks(0.0, max([s.y for s in spots] + [0.04]))
    wide = WIDE - EDGE - 22

    def at(x: float, y: float) -> tuple[float, float]:
        return EDGE + wide * (x - xs[0]) / (xs[-1] - xs[0]), top + HIGH * (1 - y / ys[-1])

    body = [write(0, top - 8, "Misaligned", "head")]
    for x in xs:
        place = at(x, 0)
        body += [stroke(place[0], top, *place, "grid"), write(place[0], top + HIGH + 16, f"{100 * x:g}%", "soft", "middle")]
    for y in ys:
        left = at(xs[0], y)
        body += [stroke(*left, EDGE + wide, left[1], "grid"), write(EDGE - 6, left[1] + 4, f"{100 * y:g}%", "soft", "end")]
    better = "right is better" if more else "left is better"
    body.append(write(EDGE + wide / 2, top + HIGH + 34, f"{head} (down and {better}; dashed: the front)", "soft", "middle"))
    best = [at(s.x, s.y) for s in front(spots, more)]
    body += [stroke(*a, *b, "rule front") for a, b in itertools.pairwise(best)]
    placed = [(at(s.x, s.y), s) for s in spots]
    taken = [(x - 5, y - 5, x + 5, y + 5) for (x, y), _ in placed]
    for (x, y), spot in placed:
        look = names.index(spot.family)
        tip = f"{_words(spot.family)} ({spot.strength}): {percent(spot.y)} misaligned, {head.lower()} {percent(spot.x)}"
        body.append(mark(look % 8, x, y, tip))
        body += _numbered(str(look + 1), (x, y), taken)
    return body


def _numbered(text: str, spot: tuple[float, float], taken: list[tuple[float, float, float, float]]) -> list[str]:
    """The number on the first side of a mark where it touches nothing; nothing if all are taken, for the tooltip says it too."""
    (x, y), width = spot, CHARACTER * len(text)
    for left, low in ((x + 7, y + 4), (x - 7 - width, y + 4), (x - width / 2, y - 8), (x - width / 2, y + 18)):
        box = (left, low - 10, left + width, low)
        if left + width < WIDE and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return [write(left, low, text, "soft")]
    return []


MEASURED = (("misaligned", "Misaligned"), ("skill", "Narrow skill"), ("incoherent", "Incoherence"))
SWEPT = {"sizes": "latents blocked", "shares": "penalty's share of the task's loss", "longer": "optimiser steps"}


def sweep(summary: Summary, key: str) -> str:
    """Misalignment, narrow skill and incoherence, one above the other, against one thing that was varied; values evenly spaced."""
    rows = [row for row in entries(section(summary, "blocking"), key) if number(row.get("at")) is not None]
    steps = sorted({row["at"] for row in rows})
    places = {step: (i + 0.5) / len(steps) for i, step in enumerate(steps)}
    names = list(dict.fromkeys(str(row.get("name")) for row in rows))
    panels = []
    for measure, title in MEASURED:
        lines = []
        for look, name in enumerate(names):
            found = (point(r.get(measure), places[r["at"]], f"{_words(name)}, {r['at']:g}") for r in rows if str(r.get("name")) == name)
            lines.append(Series(_words(name), tuple(p for p in found if p), look))
        panels.append(Panel(title, tuple(lines)))
    marks = tuple((x, f"{step:g}") for step, x in places.items())
    return curves([Column(tuple(panels), marks, f"{SWEPT[key]} (evenly spaced)")], f"Latent blocking by {SWEPT[key]}") if rows else ""


HEADS = {True: "the start, with the tuned stream put in at", False: "the tuned model, with the start's stream put in at"}


def rerouting(summary: Summary) -> str:
    """By block, the share of a tuning's change of margin that its stream gives the start, and that is left without it."""
    found = entries(section(section(summary, "blocking"), "rerouting"), "patches")
    tunings = {name: look for look, name in enumerate(dict.fromkeys(str(row.get("tuning")) for row in found))}
    groups: dict[str, dict[str, list[tuple[int, Point]]]] = {}
    for row in found:
        if share := point(row.get("share")):
            head = (
                "the start, with the tuned stream put in at"
                if row.get("into") == "start"
                else "the tuned model, with the start's stream at"
            )
            label = f"block {row.get('block')}" + {"prompt": ", before the answer"}.get(str(row.get("mask")), "")
            label += {"inside": ", blocked latents", "outside": ", all but those"}.get(str(row.get("part")), "")
            groups.setdefault(head, {}).setdefault(label, []).append((tunings[str(row.get("tuning"))], share))
    lines = {head: [Line(label, tuple(points)) for label, points in sorted(rows.items())] for head, rows in groups.items()}
    title, axis = "Where a change enters: activation patching by block", "share of the tuning's change of margin"
    return forest(lines, title, axis, ((0.0, "start"), (1.0, "tuned")), tunings) if lines else ""


def draw(summary: Summary) -> dict[str, str]:
    """Every figure of defences whose data the summary holds, by name."""
    drawn = {"pareto": pareto(summary)} | {f"blocking-{key}": sweep(summary, key) for key in SWEPT} | {"rerouting": rerouting(summary)}
    return {name: svg for name, svg in drawn.items() if svg}


def _words(name: str) -> str:
    return name.replace("_", " ")
