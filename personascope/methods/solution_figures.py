"""Figures of two solutions of one task: loss at equal size, loss under noise, drift once nothing holds, and the way training took."""

from collections.abc import Sequence

from personascope.methods.charts import Column, Panel, Series, curves, legend
from personascope.methods.figures import Summary, entries, number, point, section
from personascope.methods.svg import MINUS, WIDE, chart, mark, plain, stroke, ticks, write

EDGE, HIGH = 44.0, 230.0


def _cases(rows: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Rows by what was learned and by which method."""
    found: dict[str, list[Summary]] = {}
    for row in rows:
        found.setdefault(" by ".join(str(row[key]) for key in ("case", "method") if row.get(key)), []).append(row)
    return found


def _column(name: str, rows: Sequence[Summary], panels: Sequence[tuple[str, str, bool]], axis: str, by: str, title: str) -> Column | None:
    """One case: panels (key, title, whether a rate) against `axis`, a line for each name in field `by`."""
    kept = [row for row in rows if number(row.get(axis)) is not None]
    values = sorted({row[axis] for row in kept})
    if not values:
        return None
    low, reach = min(0.0, values[0]), (values[-1] - min(0.0, values[0])) or 1.0
    places = {value: (value - low) / reach for value in values}
    names = list(dict.fromkeys(str(row.get(by)) for row in rows))
    drawn = []
    for key, head, rate in panels:
        lines = []
        for look, line in enumerate(names):
            points = (point(row.get(key), places[row[axis]], f"{line}, {row[axis]:g}") for row in kept if str(row.get(by)) == line)
            lines.append(Series(line, tuple(p for p in points if p), look))
        shown = tuple(line for line in lines if line.points)
        drawn += [Panel(f"{name}: {head}", shown, rate)] if shown else []
    return Column(tuple(drawn), tuple((x, f"{value:g}") for value, x in places.items()), title) if drawn else None


def _curves(summary: Summary, part: str, panels: Sequence[tuple[str, str, bool]], axis: str, titles: tuple[str, str]) -> list[str]:
    """A chart for every two cases, side by side."""
    found = _cases(entries(section(summary, "solutions"), part))
    columns = [_column(name, rows, panels, axis, "solution", titles[1]) for name, rows in found.items()]
    kept = [column for column in columns if column]
    return [curves(kept[i : i + 2], titles[0]) for i in range(0, len(kept), 2)]


def sizes(summary: Summary) -> list[str]:
    """Loss of the task, and influence on pretraining text, of every solution brought to the same sizes."""
    panels = (("loss", "loss", False), ("influence", "KL on texts", False))
    return _curves(summary, "size", panels, "size", ("Loss and influence at equal size", "size (1: general)"))


def noise(summary: Summary) -> list[str]:
    """Rise of the task's loss with the share of orthogonal noise."""
    panels = (("rise", "rise of the loss", False),)
    return _curves(summary, "noise", panels, "noise", ("Loss under orthogonal noise of equal size", "share of noise \u03b5"))


def drift(summary: Summary) -> list[str]:
    """The effect in the trained domain and outside it, with the KL and after it ends."""
    until = number(section(summary, "solutions").get("until"))
    title = "step" if until is None else f"step; the KL ends after step {until:g}"
    return _curves(summary, "drift", (("effect", "effect", True),), "step", ("Drift once the KL is off", title))


def path(summary: Summary) -> list[str]:
    """For each case its checkpoints on the two principal axes of their changes, a line for each training, from the start."""
    drawn = []
    for name, rows in _cases(entries(section(summary, "solutions"), "path")).items():
        spots = [row for row in rows if all(number(row.get(key)) is not None for key in ("x", "y", "step"))]
        drawn += [_plane(name, spots)] if spots else []
    return drawn


def _plane(name: str, rows: Sequence[Summary]) -> str:
    """One case's trajectories, both axes in the same unit of length."""
    lines = list(dict.fromkeys(str(row.get("solution")) for row in rows))
    keys, low = legend({line: look for look, line in enumerate(lines)})
    spans = [(min(row[key] for row in rows), max(row[key] for row in rows)) for key in ("x", "y")]
    scale = min((WIDE - 2 * EDGE) / ((spans[0][1] - spans[0][0]) or 1.0), HIGH / ((spans[1][1] - spans[1][0]) or 1.0))
    left, floor = EDGE, 34 + low + (spans[1][1] - spans[1][0]) * scale

    def at(row: Summary) -> tuple[float, float]:
        return left + (row["x"] - spans[0][0]) * scale, floor - (row["y"] - spans[1][0]) * scale

    body = [write(0, 14, name, "head"), '<g transform="translate(0 20)">', *keys, "</g>"]
    for value in ticks(*spans[0]):
        if spans[0][0] <= value <= spans[0][1]:
            x = left + (value - spans[0][0]) * scale
            body += [stroke(x, floor + 8, x, floor + 12, "axis"), write(x, floor + 26, _signed(value), "soft", "middle")]
    body.append(stroke(left, floor + 8, left + (spans[0][1] - spans[0][0]) * scale, floor + 8, "axis"))
    for look, line in enumerate(lines):
        spots = sorted((row for row in rows if str(row.get("solution")) == line), key=lambda row: row["step"])
        track = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, spots))
        body.append(f'<polyline points="{track}" class="curve c{look % 4}"/>')
        body += [mark(look, *at(row), f"{line}, step {plain(row['step'])}") for row in spots]
    return chart(floor + 40, f"Trajectories on the two principal axes, {name}", body)


def _signed(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def draw(summary: Summary) -> dict[str, str]:
    """Every figure of solutions whose data the summary holds, by name and number."""
    drawn = {"size": sizes(summary), "noise": noise(summary), "drift": drift(summary), "path": path(summary)}
    return {f"solution-{name}-{number}": svg for name, charts in drawn.items() for number, svg in enumerate(charts)}
