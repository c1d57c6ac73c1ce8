"""The report's figures, drawn from a summary's plain data; a figure whose data is missing is left out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from personascope.methods.charts import Bar, Column, Panel, Series, bars, curves, signed, strip
from personascope.methods.overview import Line, forest, matrix
from personascope.methods.svg import MINUS, Point, plain

Summary = dict[str, Any]
BUDGET = 0.10
"""Strict incoherence a steering may cost unless the screen names another budget."""
PARTS = {"advice": "advice", "core": "core"}
"""Parts of a score that stand as rows of their own."""


class Subject(NamedTuple):
    """One model whose behaviour was measured: its name, where it stands in the summary, and its figures."""

    name: str
    key: str
    values: dict[str, Any]


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def point(estimate: Any, x: float = 0.0, name: str = "") -> Point | None:
    """An estimate {value, low, high} or a plain number as a point; None if it is neither."""
    if isinstance(estimate, dict):
        value, low, high = (number(estimate.get(k)) for k in ("value", "low", "high"))
    else:
        value, low, high = number(estimate), None, None
    return None if value is None else Point(value, low, high, x, name)


def subjects(summary: Summary) -> list[Subject]:
    """The models in the order a reader meets them; parts of a score stand below it."""
    found = []
    for key, name in (("assistant", "Assistant, before"), ("em", "Fine-tune on wrong data"), ("twin", "Correct twin")):
        values = section(summary, key)
        if values:
            found.append(Subject(name, key, {k: v for k, v in values.items() if k not in PARTS}))
            found += [Subject(f"{name}: {part}", f"{key}.{k}", {"score": values[k]}) for k, part in PARTS.items() if k in values]
    for name, values in section(summary, "grades").items():
        if isinstance(values, dict):
            found.append(Subject(f"Fine-tune on {name} data", f"grades.{name}", values))
    if ablation := section(summary, "psm_ablation"):
        note = " (confounded)" if ablation.get("confounded") else ""
        found.append(Subject("Same data, ablation base" + note, "psm_ablation", {k: v for k, v in ablation.items() if k != "unablated"}))
        if whole := section(ablation, "unablated"):
            found.append(Subject("Same data and tuning, whole base", "psm_ablation.unablated", whole))
    for name, values in section(summary, "behaviour").items():
        if isinstance(values, dict):
            side, comma, asked = name.partition(",")
            found.append(Subject(f"{side.capitalize()} model{comma}{asked}", f"behaviour.{name}", values))
    return found


def section(summary: Summary, key: str) -> dict[str, Any]:
    """One part of the summary, empty if it is missing or not an object."""
    value = summary.get(key)
    return value if isinstance(value, dict) else {}


def entries(parent: Summary, key: str) -> list[dict[str, Any]]:
    """One list of objects, empty if it is missing; what is no object is left out."""
    value = parent.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def behaviour(summary: Summary) -> str:
    """Score bars with intervals, strict incoherence beside each."""
    rows = []
    for subject in subjects(summary):
        score = point(subject.values.get("score"))
        if score:
            rows.append(Bar(subject.name, score, point(subject.values.get("strict_incoherence"))))
    return bars(rows, ("Misalignment score", "Strict incoherence"), "Misalignment score and strict incoherence by model") if rows else ""


def latents(summary: Summary) -> str:
    """Change of the most risen and most fallen latents, with label and truth AUROC where known."""
    rows = []
    for tail in ("top", "bottom"):
        for entry in entries(section(summary, "diff"), tail)[:8]:
            delta, auroc = point(entry.get("delta")), point(entry.get("truth_auroc"))
            if delta:
                label = " ".join(str(part) for part in (f"latent {entry.get('latent', '?')}", entry.get("label")) if part)
                rows.append(Bar(label + (f" · truth AUROC {auroc.value:.2f}" if auroc else ""), delta))
    rows.sort(key=lambda row: -row.main.value)
    return signed(rows, "Change of latents, tuned minus base") if rows else ""


ALPHA = "\u03b1"
SIDES: dict[str, str] = {"induce": f"base + {ALPHA}·d", "repair": f"tuned {MINUS} {ALPHA}·d"}
STEERED = {"base": "induce", "tuned": "repair"}
"""A screen names a side by the model it steers."""


def dose(summary: Summary) -> str:
    """Score and incoherence against strength: inducing in the base, repairing in the tuned model, nulls at the edge."""
    screen = section(summary, "screen")
    grid: list[Summary] = [e | {"name": _direction(e)} for e in entries(screen, "dose") if number(e.get("alpha")) is not None]
    names = list(dict.fromkeys(e["name"] for e in grid))
    rug = nulls(screen)
    budget = number(screen.get("budget"))
    columns = []
    for side, formula in SIDES.items():
        here = [e for e in grid if STEERED.get(str(e.get("side")), e.get("side")) == side]
        places = _spread({e["alpha"] for e in here} | {0.0})
        score, lost = (_lines(here, "name", names, key, "alpha", places) for key in ("score", "incoherence"))
        first = Panel(f"{side.capitalize()}: score", score, rug=rug if side == "induce" else ())
        second = Panel("Incoherence", lost, rules=((BUDGET if budget is None else budget, "budget"),))
        if here:
            marks = tuple((x, f"{alpha:g}") for alpha, x in places.items())
            columns.append(Column((first, second), marks, f"strength {ALPHA} ({formula})"))
    return curves(columns, "Dose and response of induce and repair") if columns else ""


def nulls(screen: Summary) -> tuple[float, ...]:
    """Scores of the null directions, at the best latent's mask where they are given by mask."""
    values = screen.get("nulls")
    if isinstance(values, dict):
        values = values.get(section(screen, "best").get("mask"))
    return tuple(v for v in map(number, values if isinstance(values, list) else []) if v is not None)


def _spread(values: set[float]) -> dict[float, float]:
    """Values in order, each with its place in 0..1 on a linear axis."""
    low, high = min(values), max(values)
    return {value: (value - low) / ((high - low) or 1.0) for value in sorted(values)}


def _direction(entry: dict[str, Any]) -> str:
    name = str(entry.get("direction", "direction")).replace("_", " ")
    return f"{name}, mask {entry['mask']}" if entry.get("mask") else name


def _lines(rows: list[dict[str, Any]], by: str, names: list[str], key: str, axis: str, places: dict[float, float]) -> tuple[Series, ...]:
    """One series of `key` against `axis` for each name that the rows have in field `by`."""
    lines = []
    for look, name in enumerate(names):
        found = (point(e.get(key), places[e[axis]], f"{name}, {plain(e[axis])}") for e in rows if e[by] == name)
        lines.append(Series(name, tuple(p for p in found if p), look))
    return tuple(lines)


def separation(summary: Summary) -> str:
    """Every run's monitor value by group, with the threshold."""
    detect = section(summary, "detect")
    groups: dict[str, list[Point]] = {}
    for entry in entries(detect, "points"):
        value = number(entry.get("value", entry.get("score")))
        if value is not None:
            groups.setdefault(str(entry.get("group", "runs")), []).append(Point(value, name=str(entry.get("name", entry.get("run", "")))))
    axis = str(detect.get("axis") or "monitor value")
    return strip(groups, number(detect.get("threshold")), "Monitor value of every run by group", axis) if groups else ""


def fractions(summary: Summary) -> str:
    """Score and latent change against the fraction of harmful data, one above the other; fractions evenly spaced."""
    rows = [e for e in entries(summary, "fractions") if number(e.get("fraction")) is not None]
    steps = sorted({e["fraction"] for e in rows})
    places = {step: (i + 0.5) / len(steps) for i, step in enumerate(steps)}
    panels = []
    for look, (key, title, rate) in enumerate((("score", "Misalignment score", True), ("latent_delta", "Change of the latent", False))):
        found = (point(e.get(key), places[e["fraction"]], f"{100 * e['fraction']:g}%") for e in rows)
        series = Series(title, tuple(p for p in found if p), look)
        panels += [Panel(title, (series,), rate)] if series.points else []
    marks = tuple((x, f"{100 * step:g}%") for step, x in places.items())
    axis = "harmful share of the training data (evenly spaced, not to scale)"
    return curves([Column(tuple(panels), marks, axis)], "Behaviour and latent by data fraction") if panels else ""


WATCHED = (
    ("score", "Misalignment score", True),
    ("latent", "Change of the latent", False),
    ("answers", "Harmful answers to the probes", True),
)


def watching(summary: Summary) -> str:
    """Behaviour, a latent and the behavioural rival against training steps, a line for every kind of training data."""
    rows = [e for e in entries(section(summary, "watching"), "curves") if number(e.get("step")) is not None]
    if not rows:
        return ""
    kinds, places = list(dict.fromkeys(str(e.get("kind")) for e in rows)), _spread({e["step"] for e in rows})
    panels = (Panel(title, _lines(rows, "kind", kinds, key, "step", places), rate) for key, title, rate in WATCHED)
    last = max(places)
    marks = tuple((places[step], plain(step)) for step in places if step % max(1, last // 6) == 0)
    column = Column(tuple(panel for panel in panels if any(line.points for line in panel.series)), marks, "training step")
    return curves([column], "What training moves, and when")


REALIGN = (
    ("score", "Misalignment score", True),
    ("in_domain", "Wrong in the trained domain", True),
    ("latent_delta", "Change of the latent", False),
)


def realign(summary: Summary) -> str:
    """What is left after training on n benign examples, by kind of benign data; n on a log-like scale."""
    given = [e for e in entries(summary, "realign") if number(e.get("examples")) is not None]
    rows: list[Summary] = [e | {"data": str(e.get("data", "benign")).replace("_", " ") + " data"} for e in given]
    names = list(dict.fromkeys(e["data"] for e in rows))
    steps = sorted({e["examples"] for e in rows})
    small = min((n for n in steps if n > 0), default=1)
    places = {n: math.log1p(n / small) / (math.log1p(steps[-1] / small) or 1.0) for n in steps}
    panels = [Panel(title, _lines(rows, "data", names, key, "examples", places), rate) for key, title, rate in REALIGN]
    kept = tuple(panel for panel in panels if any(line.points for line in panel.series))
    marks = tuple((x, plain(n)) for n, x in places.items())
    return curves([Column(kept, marks, "benign examples (log-like scale)")], "Re-alignment by benign examples") if kept else ""


SCOPES = {"general set": "general", "strict hold-out": "holdout"}
SOURCE = "source"
"""The name under which the untouched model stands, in the summary or among its cells."""


def cells(summary: Summary) -> str:
    """Safe answers of every tuned model on the general set and the strict hold-out, by constitution and training data."""
    groups: dict[str, dict[str, list[tuple[int, Point]]]] = {}
    for cell in entries(summary, "cells"):
        seed = f", seed {cell['seed']}" if cell.get("seed") is not None else ""
        lines = groups.setdefault(str(cell.get("constitution", "model")), {})
        for look, (name, key) in enumerate(SCOPES.items()):
            if found := point(cell.get(key), name=f"{name}{seed}"):
                lines.setdefault(str(cell.get("data") or "as it is"), []).append((look, found))
    drawn = {name: [Line(data, tuple(points)) for data, points in lines.items()] for name, lines in groups.items() if lines}
    untouched = [cell.get("general") for cell in entries(summary, "cells") if cell.get("constitution") == SOURCE]
    before = point(next(iter(untouched), section(summary, SOURCE).get("safe")))
    rules = [(before.value, "source, general set")] if before else []
    names = {name: look for look, name in enumerate(SCOPES)}
    return (
        forest(
            drawn, "Share of safe answers by constitution and training data", "share of safe answers; whiskers: 95 % interval", rules, names
        )
        if drawn
        else ""
    )


def profiles(summary: Summary) -> str:
    """Ethical profiles, models × dimensions."""
    found = section(section(summary, "persona"), "profiles")
    kept = {str(name): values for name, values in found.items() if isinstance(values, dict) and any(map(point, values.values()))}
    columns = list(dict.fromkeys(dimension for values in kept.values() for dimension in values))
    rows = [[point(values.get(dimension)) for dimension in columns] for values in kept.values()]
    heads = [str(dimension).replace("_", " ") for dimension in columns]
    return matrix(list(kept), heads, rows, "Ethical profiles by model and dimension") if kept else ""


def _identified(summary: Summary) -> dict[str, Any]:
    """Model → nearest, own and sure, under either name it has."""
    persona = section(summary, "persona")
    return section(persona, "identification") or section(persona, "models")


def identification(summary: Summary) -> str:
    """Which expected signature is nearest, for the models of each constitution: shares of each row's models."""
    found = [e for e in _identified(summary).values() if isinstance(e, dict) and e.get("own")]
    rows = list(dict.fromkeys(str(e["own"]) for e in found))
    columns = list(dict.fromkeys([*rows, *(str(e.get("nearest") or "none") for e in found)]))
    counts = [[sum((str(e["own"]), str(e.get("nearest") or "none")) == (row, column) for e in found) for column in columns] for row in rows]
    shares = [[Point(count / sum(row), name=str(count)) if count else None for count in row] for row in counts]
    labels = [f"{name} ({sum(row)})" for name, row in zip(rows, counts, strict=True)]
    title, note = "Nearest expected signature by own constitution", "shares of each row's models"
    return matrix(labels, columns, shares, title, note) if found else ""


PROJECTED = {
    "transfer": "Safety transfer, general set",
    "transfer_holdout": "Safety transfer, strict hold-out",
    "retention": "Persona retention",
    "specificity": "Persona specificity",
}


def projectability(summary: Summary) -> str:
    """Transfer, retention and specificity of every constitution; what was refused says why."""
    found = {str(name): values for name, values in section(summary, "projectability").items() if isinstance(values, dict)}
    groups = {}
    for key, heading in PROJECTED.items():
        lines = []
        for name, values in found.items():
            one = point(values.get(key))
            if one or key in values:
                lines.append(Line(name, ((0, one),) if one else (), "" if one else str(section(values, key).get("refused", "no number"))))
        if any(line.points for line in lines):
            groups[heading] = lines
    rules = ((0.0, "nothing"), (1.0, "as broad"))
    return forest(groups, "Projectability by constitution", "ratio narrow over broad, or difference of matches", rules) if groups else ""


DRAWN: dict[str, Callable[[Summary], str]] = {
    "behaviour": behaviour,
    "latents": latents,
    "dose": dose,
    "separation": separation,
    "fractions": fractions,
    "realign": realign,
    "watching": watching,
    "cells": cells,
    "profiles": profiles,
    "identification": identification,
    "projectability": projectability,
}


def draw(summary: Summary) -> dict[str, str]:
    """Every figure whose data the summary holds, by name, as an inline SVG element."""
    return {name: svg for name, figure in DRAWN.items() if (svg := figure(summary))}
