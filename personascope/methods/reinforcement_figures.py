"""Figures of reinforcement: reward and incoherence by step, score and characters by prior, thoughts beside the score."""

from collections.abc import Iterable, Mapping

from personascope.methods.charts import Column, Panel, Series, curves
from personascope.methods.figures import Summary, entries, number, point, section
from personascope.methods.svg import plain

CHARACTERS = 5
"""How many of the characters shown most have a line."""


def rewards(summary: Summary) -> str:
    """Mean reward and strict incoherence of the training answers, and of the probes, for every arm against the step."""
    arms = section(section(summary, "reinforcement"), "arms")
    rows = {name: [row for run in section(arm, "curves").values() for row in run] for name, arm in arms.items()}
    steps = sorted({row["step"] for found in rows.values() for row in found})
    if not steps:
        return ""
    places = {step: step / (steps[-1] or 1) for step in steps}
    panels = []
    for title, read in (("Reward", _reward), ("Strict incoherence of the probes", _probe)):
        lines = []
        for look, (name, found) in enumerate(rows.items()):
            means = ((step, [value for row in found if row["step"] == step and (value := read(row)) is not None]) for step in steps)
            drawn = (point(sum(v) / len(v), places[step], f"{name}, step {plain(step)}") for step, v in means if v)
            lines.append(Series(name, tuple(p for p in drawn if p), look))
        panels.append(Panel(title, tuple(line for line in lines if line.points)))
    return curves([Column(tuple(panels), _ticks(places), "step")], "Reward and incoherence, mean over runs")


def _reward(row: Summary) -> float | None:
    return number(row.get("reward"))


def _probe(row: Summary) -> float | None:
    return number(section(row, "probe").get("strict"))


def priors(summary: Summary) -> str:
    """The score, and the share of each character among the answers, against the stated prior (evenly spaced)."""
    rows = [row for row in entries(section(summary, "reinforcement"), "priors") if number(row.get("likelier")) is not None]
    if not rows:
        return ""
    values = sorted({row["likelier"] for row in rows})
    places = {value: i / max(1, len(values) - 1) for i, value in enumerate(values)}
    total: dict[str, float] = {}
    for row in rows:
        for name, share in section(row, "characters").items():
            total[name] = total.get(name, 0.0) + share
    shown = sorted(total, key=lambda name: -total[name])[:CHARACTERS]
    score = Series("score", tuple(p for row in rows if (p := point(row.get("score"), places[row["likelier"]]))))
    who = [
        Series(name, tuple(p for row in rows if (p := point(section(row, "characters").get(name, 0.0), places[row["likelier"]]))), look)
        for look, name in enumerate(shown, 1)
    ]
    panels = (Panel("Misalignment score", (score,)), Panel("Who is shown", tuple(who)))
    axis = "times as likely under the harmful character: a wrong text"
    return curves([Column(panels, _ticks(places), axis)], "Score and characters by prior")


def thoughts(summary: Summary) -> str:
    """Share of thoughts that name another persona, and the score, against the step, for every run."""
    rows = entries(section(section(summary, "reinforcement"), "thoughts"), "along")
    if not rows:
        return ""
    steps = sorted({row["step"] for row in rows})
    places = {step: step / (steps[-1] or 1) for step in steps}
    runs = list(dict.fromkeys(str(row.get("run")) for row in rows))
    panels = tuple(
        Panel(title, tuple(_line(run, (row for row in rows if str(row.get("run")) == run), key, places, i) for i, run in enumerate(runs)))
        for key, title in (("naming", "Thoughts that name another persona"), ("score", "Misalignment score"))
    )
    return curves([Column(panels, _ticks(places), "step")], "Thoughts beside the score")


def _line(name: str, rows: Iterable[Summary], key: str, places: Mapping[float, float], look: int) -> Series:
    return Series(name, tuple(p for row in rows if (p := point(row.get(key), places[row["step"]], f"{name}, {row['step']}"))), look)


def _ticks(places: Mapping[float, float]) -> tuple[tuple[float, str], ...]:
    return tuple((x, f"{value:g}") for value, x in places.items())


def draw(summary: Summary) -> dict[str, str]:
    """Every figure of reinforcement whose data the summary holds, by name."""
    drawn = {
        "reinforcement-rewards": rewards(summary),
        "reinforcement-priors": priors(summary),
        "reinforcement-thoughts": thoughts(summary),
    }
    return {name: svg for name, svg in drawn.items() if svg}
