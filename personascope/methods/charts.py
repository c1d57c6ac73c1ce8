"""Charts as SVG text: bars, signed bars, small-multiple curves, a strip of points and a heat map.

Series differ by marker, dash and name as well as by hue. All text is escaped in `svg`; nothing else comes from data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from personascope.methods.svg import (
    CHARACTER,
    DASHES,
    MINUS,
    WIDE,
    Point,
    chart,
    clean,
    clip,
    hundredths,
    mark,
    percent,
    plain,
    stroke,
    ticks,
    write,
)


@dataclass(frozen=True)
class Bar:
    """A labelled bar and, in the second column, its companion."""

    label: str
    main: Point
    side: Point | None = None


@dataclass(frozen=True)
class Series:
    """One line of a panel; `look` picks marker, dash and hue."""

    name: str
    points: tuple[Point, ...]
    look: int = 0


@dataclass(frozen=True)
class Panel:
    """One small plot; `rules` are labelled horizontal lines, `rug` values are ticks at the right edge."""

    title: str
    series: tuple[Series, ...]
    rate: bool = True
    rules: tuple[tuple[float, str], ...] = ()
    rug: tuple[float, ...] = ()


@dataclass(frozen=True)
class Column:
    """Panels one above the other that share an x axis; ticks are (x in 0..1, label)."""

    panels: tuple[Panel, ...]
    ticks: tuple[tuple[float, str], ...]
    title: str


def _bar(x: float, y: float, span: tuple[float, float], thick: float, look: str) -> str:
    left, right = sorted(span)
    return f'<rect x="{x + left:.1f}" y="{y:.1f}" width="{max(right - left, 0.8):.1f}" height="{thick:g}" class="{look}"/>'


def _lying(point: Point, x: float, y: float, scale: float) -> str:
    """A horizontal whisker around a bar's end."""
    if point.low is None or point.high is None:
        return ""
    a, b = x + point.low * scale, x + point.high * scale
    return stroke(a, y, b, y, "whisker") + stroke(a, y - 4, a, y + 4, "whisker") + stroke(b, y - 4, b, y + 4, "whisker")


def _reach(points: Sequence[Point]) -> tuple[float, float]:
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    return min([0.0, *values]), max([0.0, *values])


def bars(rows: Sequence[Bar], heads: tuple[str, str], title: str) -> str:
    """Rates as filled bars with whiskers and, beside each, its companion as an outlined bar."""
    left, right, gap = 330.0, 150.0, 42
    tops = [ticks(0, max(_reach(points)[1], 0.04)) for points in ([r.main for r in rows], [r.side for r in rows if r.side])]
    sides = any(row.side for row in rows)
    places = [(0.0, left if sides else float(WIDE - 40), tops[0]), (float(WIDE) - right, right - 14, tops[1])][: 1 + sides]
    floor = 26.0 + 38 * len(rows)
    body = []
    for (x, width, grid), head in zip(places, heads, strict=False):
        body.append(write(x, 13, head, "head"))
        for value in grid[:: 2 if x and len(grid) > 3 else 1]:
            at = x + width * value / grid[-1]
            body += [stroke(at, 24, at, floor, "grid"), write(at, floor + 15, f"{100 * value:g}", "soft", "middle" if value else "start")]
    body.append(write(places[0][0] + places[0][1], floor + 32, "percent; whiskers: 95 % interval", "soft", "end"))
    for i, row in enumerate(rows):
        y = 24.0 + 38 * i
        body.append(write(0, y + 14, clip(row.label, places[0][1] - 70)))
        for (x, width, grid), point, look in zip(places, (row.main, row.side), ("f0", "c1 hollow"), strict=False):
            if point is not None:
                body.append(write(x + width, y + 14, percent(point.value), "", "end"))
                body.append(_bar(x, y + 19, (0, point.value * width / grid[-1]), 10, "bar " + look))
                body.append(_lying(point, x, y + 24, width / grid[-1]))
    return chart(floor + gap, title, body)


def signed(rows: Sequence[Bar], title: str) -> str:
    """Values around zero: rises filled, falls outlined, the number at the tip, a label line above each."""
    low, high = _reach([row.main for row in rows])
    room, edge = WIDE - 2 * 56.0, 56.0
    scale = room / max(high - low, 1e-9)
    zero = edge - low * scale
    floor = 6.0 + 35 * len(rows)
    body = []
    for i, row in enumerate(rows):
        y, value = 6.0 + 35 * i, row.main.value
        body.append(write(0, y + 11, clip(row.label, WIDE), "soft"))
        body.append(stroke(zero, y + 15, zero, y + 29, "axis"))
        body.append(_bar(zero, y + 17, (0, value * scale), 10, "bar " + ("f0" if value >= 0 else "c1 hollow")))
        body.append(_lying(row.main, zero, y + 22, scale))
        tip = zero + scale * (max(value, row.main.high or value) if value >= 0 else min(value, row.main.low or value))
        sign = "+" if value > 0 else MINUS if value < 0 else ""
        body.append(write(tip + (5 if value >= 0 else -5), y + 26, f"{sign}{abs(value):.2f}", "", "start" if value >= 0 else "end"))
    return chart(floor + 6, title, body)


def curves(columns: Sequence[Column], title: str) -> str:
    """Small multiples: columns side by side, panels stacked over a shared x axis, one legend on top."""
    shown = [(panel.title, s) for column in columns for panel in column.panels for s in panel.series]
    names, top = legend({s.name: s.look for title, s in shown if s.name != title})
    width = (WIDE - 44.0 - 52 * (len(columns) - 1) - 14) / len(columns)
    high = 124.0 if len(columns) == 1 else 112.0
    body, bottom = list(names), top
    for c, column in enumerate(columns):
        x = 44 + c * (width + 52)
        labels = [t for i, t in enumerate(column.ticks) if not _crowded(column.ticks, i, width)]
        for r, panel in enumerate(column.panels):
            y = top + 24 + r * (high + 40)
            body += _panel(panel, (x, y, width, high), [at for at, _ in labels])
            bottom = max(bottom, y + high)
        y = top + 24 + (len(column.panels) - 1) * (high + 40) + high
        body += [write(x + at * width, y + 16, label, "soft", "middle") for at, label in labels]
        body.append(write(x + width / 2, y + 34, column.title, "soft", "middle"))
    return chart(bottom + 40, title, body)


def _crowded(marks: Sequence[tuple[float, str]], i: int, width: float) -> bool:
    """Whether tick i would touch one already placed; the last always stays."""
    kept: list[int] = []
    for j in range(len(marks)):
        near = [k for k in kept if (marks[j][0] - marks[k][0]) * width < CHARACTER * (len(marks[j][1]) + len(marks[k][1])) / 2 + 3]
        if not near:
            kept.append(j)
        elif j == len(marks) - 1:
            kept = [k for k in kept if k not in near] + [j]
    return i not in kept


def legend(names: dict[str, int]) -> tuple[list[str], float]:
    """Marker, dash and name of each series, wrapped; and the height it takes."""
    body, x, y = [], 0.0, 12.0
    for name, look in names.items():
        width = 44 + CHARACTER * len(clip(name, WIDE - 44)) + 10
        if x and x + width > WIDE:
            x, y = 0.0, y + 20
        line = f'<line x1="{x:.1f}" y1="{y - 4:.1f}" x2="{x + 30:.1f}" y2="{y - 4:.1f}" class="curve c{look % 4}" {_dash(look)}/>'
        body += [line, mark(look, x + 15, y - 4).replace('"mark ', '"key '), write(x + 36, y, clip(name, WIDE - 44))]
        x += width
    return body, y + 16 if names else 0.0


def _dash(look: int) -> str:
    dash = DASHES[look % len(DASHES)]
    return f'stroke-dasharray="{dash}"' if dash else ""


def _panel(panel: Panel, box: tuple[float, float, float, float], xs: Sequence[float]) -> list[str]:
    x, y, width, height = box
    points = [p for s in panel.series for p in s.points] + [Point(v) for v, _ in panel.rules] + [Point(v) for v in panel.rug]
    low, high = _reach(points)
    grid = [t for t in ticks(low, high if high > low else 0.05 if panel.rate else 1.0) if t >= low]
    drop = height / (grid[-1] - low)

    def at(value: float) -> float:
        return y + height - (value - low) * drop

    body = [write(x - 34, y - 9, panel.title, "head")]
    for value in grid:
        body += [stroke(x, at(value), x + width, at(value), "grid"), write(x - 6, at(value) + 4, _tick(value, panel.rate), "soft", "end")]
    body += [stroke(x + u * width, y + height, x + u * width, y + height + 4, "axis") for u in xs]
    body.append(stroke(x, at(0.0), x + width, at(0.0), "axis"))
    body += [stroke(x + width + 3, at(v), x + width + 12, at(v), "null") for v in panel.rug]
    for value, label in panel.rules:
        body += [stroke(x, at(value), x + width, at(value), "rule"), write(x + 4, at(value) - 4, label, "soft")]
    for series in panel.series:
        body += _curve(series, x, width, at)
    return body


def _tick(value: float, rate: bool) -> str:
    return f"{100 * value:g}" + ("%" if value else "") if rate else f"{value:g}".replace("-", MINUS)


def _curve(series: Series, x: float, width: float, at: Callable[[float], float]) -> list[str]:
    spots = [(x + p.x * width, at(p.value), p) for p in sorted(series.points, key=lambda p: p.x)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in spots)
    body = [f'<polyline points="{path}" class="curve c{series.look % 4}" {_dash(series.look)}/>'] if len(spots) > 1 else []
    for a, _, p in spots:
        if p.low is not None and p.high is not None:
            body.append(stroke(a, at(p.low), a, at(p.high), f"whisker c{series.look % 4}"))
    return body + [mark(series.look, a, b, p.name or series.name) for a, b, p in spots]


def strip(groups: Mapping[str, Sequence[Point]], threshold: float | None, title: str, axis: str) -> str:
    """Every value as a mark in its group's row, piled where they would hide each other; the threshold as a line."""
    everything = [p for points in groups.values() for p in points] + ([Point(threshold)] if threshold is not None else [])
    low, high = _reach(everything)
    grid = [t for t in ticks(low, high if high > low else low + 1) if t >= low]
    edge, width = 12.0, WIDE - 40.0
    scale = width / (grid[-1] - low)
    body, y = [], 22.0
    for look, (group, points) in enumerate(groups.items()):
        spots = _pile([edge + (p.value - low) * scale for p in points])
        depth = max((level for _, level in spots), default=0)
        step = min(8.0, 40.0 / max(depth, 1))
        y += 30
        body.append(write(0, y - 12, f"{clip(group, WIDE - 80)} ({len(points)})"))
        for (a, level), p in zip(spots, points, strict=True):
            body.append(mark(look % 4, a, y + 4 + level * step, f"{p.name}: {plain(p.value)}"))
        y += 8 + depth * step
        body.append(stroke(edge, y + 6, edge + width, y + 6, "grid"))
    for value in grid:
        body.append(write(edge + (value - low) * scale, y + 24, _tick(value, False), "soft", "middle"))
    body.append(write(edge + width / 2, y + 41, axis, "soft", "middle"))
    if threshold is not None:
        at = edge + (threshold - low) * scale
        body += [stroke(at, 20, at, y + 10, "rule"), write(min(max(at, 60), WIDE - 60), 13, f"threshold {plain(threshold)}", "", "middle")]
    return chart(y + 48, title, body)


def _pile(places: Sequence[float]) -> list[tuple[float, int]]:
    """The level at which each mark lies free of earlier ones, 9 units being a mark's width."""
    taken: list[tuple[float, int]] = []
    for place in places:
        level = 0
        while any(other == level and abs(at - place) < 9 for at, other in taken):
            level += 1
        taken.append((place, level))
    return taken


def heatmap(names: Sequence[str], values: Sequence[Sequence[float]], groups: Sequence[int], title: str) -> str:
    """A symmetric matrix of values in -1..1 as squares, in the order given; a frame around each group of two or more.

    `groups[i]` numbers the group of row i; its rows stand together. The deeper the fill, the larger the size; negative
    values have the second hue and a minus sign. Names and numbers are written where there is room for them.
    """
    left = 14 + CHARACTER * max((len(clip(name, 150)) for name in names), default=0)
    cell = min(34.0, (WIDE - left - 2) / max(len(names), 1))
    step = math.ceil(13 / cell)
    body = []
    for i, (name, row) in enumerate(zip(names, values, strict=True)):
        y = 4 + i * cell
        if i % step == 0:
            body.append(write(left - 6, y + cell / 2 + 4, clip(name, 150), "", "end"))
        for j, value in enumerate(row):
            look, x = "f0" if value >= 0 else "f1", left + j * cell
            tip = f"<title>{clean(names[i])} and {clean(names[j])}: {hundredths(value)}</title>"
            size = f'x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
            body.append(f'<rect {size} class="cell {look}" fill-opacity="{min(1.0, abs(value)):.2f}" stroke-opacity="0">{tip}</rect>')
            if i != j and cell >= 30:
                body.append(write(x + cell / 2, y + cell / 2 + 4, hundredths(value), "", "middle"))
            elif value <= -0.2 and cell >= 9:
                body.append(write(x + cell / 2, y + cell / 2 + 4, MINUS, "", "middle"))
    for group in dict.fromkeys(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        if len(members) > 1:
            at, size = members[0] * cell, len(members) * cell
            place = f'x="{left + at:.1f}" y="{4 + at:.1f}" width="{size:.1f}" height="{size:.1f}"'
            body.append(f'<rect {place} class="frame axis" fill="none" stroke-width="2"/>')
    return chart(8 + cell * len(names), title, body)
