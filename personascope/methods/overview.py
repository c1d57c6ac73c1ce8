"""Charts of a whole grid of models: signed values of models × dimensions, and a forest of estimates under headings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from personascope.methods.charts import legend
from personascope.methods.svg import CHARACTER, MINUS, WIDE, Point, chart, clean, clip, hundredths, mark, plain, stroke, ticks, write

LETTER = 1.1 * CHARACTER
"""A character at the larger text size of a phone."""


def matrix(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Point | None]], title: str, note: str = "") -> str:
    """Signed values of rows × columns as squares coloured around 0, each with its number.

    Rises have the first hue, falls the second and a minus sign; the deeper the fill, the larger the size. A number is bold
    if its interval leaves 0 out; a cell without a value is empty. Fills stay pale enough for the numbers to be read.
    """
    label = max((LETTER * len(clip(name, 200)) for name in rows), default=0) + 8
    longest = max((LETTER * len(clip(name, 150)) for name in columns), default=0)
    # The slanted name of the last column reaches beyond it.
    beyond = 0.5 * LETTER * len(clip(columns[-1], 150)) if columns else 0.0
    width = min(64.0, (WIDE - label - beyond) / max(len(columns) - 0.5, 1))
    top, size = 14 + 0.87 * longest, max((abs(p.value) for row in cells for p in row if p), default=0.0) or 1.0
    body = []
    for j, name in enumerate(columns):
        x = label + (j + 0.5) * width
        body.append(f'<text transform="translate({x:.1f} {top - 7:.1f}) rotate(-60)" class="soft">{clean(clip(name, 150))}</text>')
    for i, (name, row) in enumerate(zip(rows, cells, strict=True)):
        y = top + 24 * i
        body.append(write(label - 8, y + 16, clip(name, 200), "", "end"))
        body += [_cell(point, (label + j * width, y, width), size, f"{name}, {columns[j]}") for j, point in enumerate(row) if point]
    floor = top + 24 * len(rows)
    body.append(write(WIDE, floor + 18, note or f"bold: the interval leaves 0 out; deepest fill: {size:.2f}", "soft", "end"))
    return chart(floor + 26, title, body)


def _cell(point: Point, box: tuple[float, float, float], size: float, name: str) -> str:
    """A pale square with its number; `box` is x, y and width."""
    x, y, width = box
    look, sure = "f0" if point.value >= 0 else "f1", point.low is not None and point.high is not None and point.low * point.high > 0
    tip = f"{name}: {plain(point.value)}" + (
        f" ({plain(point.low)} to {plain(point.high)})" if point.low is not None and point.high is not None else ""
    )
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="24"'
    fill = f'fill-opacity="{0.55 * min(1.0, abs(point.value) / size):.2f}" stroke-opacity="0.15"'
    square = f'<rect {place} class="cell {look}" {fill}><title>{clean(tip)}</title></rect>'
    return square + (write(x + width / 2, y + 16, hundredths(point.value), "head" if sure else "", "middle") if width >= 30 else "")


@dataclass(frozen=True)
class Line:
    """One row of a forest plot: its estimates, each with a look, or a note where there is no number."""

    label: str
    points: tuple[tuple[int, Point], ...] = ()
    note: str = ""


def forest(
    groups: Mapping[str, Sequence[Line]],
    title: str,
    axis: str,
    rules: Sequence[tuple[float, str]] = (),
    names: Mapping[str, int] | None = None,
) -> str:
    """Labelled estimates with their intervals under headings, and dashed lines of reference.

    A row's several estimates lie one below the other; a single one has its numbers beside it. A whisker without its end
    stroke goes on beyond the axis. `names` says what each look means.
    """
    lines = [line for part in groups.values() for line in part]
    low, high = _window([p for line in lines for _, p in line.points], [value for value, _ in rules])
    grid = ticks(low, high)
    alone = any(len(line.points) == 1 for line in lines)
    x, width = 168.0, WIDE - 168.0 - (158 if alone else 14)
    scale = width / (grid[-1] - grid[0])

    def at(value: float) -> float:
        return x + (value - grid[0]) * scale

    keys, y = legend(dict(names or {}))
    head = y = y + (20 if any(name for _, name in rules) else 6)
    body, under = [], []
    for group, part in groups.items():
        body.append(write(0, y + 16, clip(group, WIDE), "head"))
        y += 24
        begun = y
        for line in part:
            height = max(22, 11 * len(line.points) + 6)
            body.append(write(8, y + 14, clip(line.label, x - 14)))
            body += _estimates(line, y, at, (grid[0], grid[-1]))
            y += height
        under += [stroke(at(value), begun, at(value), y, "rule") for value, _ in rules]
    under += [stroke(at(value), head, at(value), y, "grid") for value in grid]
    under += [write(at(value), y + 15, f"{value:g}".replace("-", MINUS), "soft", "middle") for value in grid]
    under += [write(min(max(at(value), 60), WIDE - 60), head - 6, name, "soft", "middle") for value, name in rules]
    under.append(write(x + width / 2, y + 33, axis, "soft", "middle"))
    return chart(y + 42, title, [*keys, *under, *body])


def _window(points: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    """What an axis shows: all values and, of the intervals, as much again on either side as the values span."""
    values = [p.value for p in points] + list(others)
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(high - low, 0.1)
    ends = [v for p in points for v in (p.low, p.high) if v is not None]
    return max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)


def _estimates(line: Line, y: float, at: Callable[[float], float], span: tuple[float, float]) -> list[str]:
    if not line.points:
        return [write(WIDE, y + 14, clip(line.note or "no number", WIDE - 180), "soft", "end")]
    body = []
    for k, (look, p) in enumerate(line.points):
        middle = y + 10 + 11 * k
        if p.low is not None and p.high is not None:
            ends = [min(max(end, span[0]), span[1]) for end in (p.low, p.high)]
            body.append(stroke(at(ends[0]), middle, at(ends[1]), middle, "whisker"))
            body += [stroke(at(end), middle - 4, at(end), middle + 4, "whisker") for end in (p.low, p.high) if span[0] <= end <= span[1]]
        body.append(mark(look, at(p.value), middle, p.name or line.label))
    if len(line.points) == 1:
        p = line.points[0][1]
        spread = f" ({p.low:.2f} to {p.high:.2f})" if p.low is not None and p.high is not None else ""
        body.append(write(WIDE, y + 14, f"{p.value:.2f}{spread}".replace("-", MINUS), "", "end"))
    return body
