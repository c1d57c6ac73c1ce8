"""SVG text for charts: colours, escaped labels, lines, and marks whose shape tells a series without its colour.

Lengths are SVG units; every chart is `WIDE` units wide, so that its text stays legible on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE = 520
CHARACTER = 7.8
"""Estimated width of one character at the 13-unit text size, rounded up."""
MINUS = "\u2212"
MARKS = ("circle", "square", "triangle", "diamond")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
LIGHT = {"paper": "#ffffff", "ink": "#1d2329", "soft": "#5b6570", "line": "#d9dee3"}
LIGHT |= {"s0": "#1f5f99", "s1": "#b2491c", "s2": "#27715a", "s3": "#75509b"}
DARK = {"paper": "#15191d", "ink": "#e4e8eb", "soft": "#9ba6b0", "line": "#333b43"}
DARK |= {"s0": "#7db6e8", "s1": "#ee9a70", "s2": "#79c6a9", "s3": "#c3a3e2"}
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
STYLE = (
    f"svg.chart{{font:13px {FONT}}}"
    ".chart text{fill:var(--ink)}.chart .soft{fill:var(--soft)}.chart .head{font-weight:600}"
    ".chart .grid{stroke:var(--line)}.chart .axis{stroke:var(--soft)}.chart .whisker{stroke:var(--ink);stroke-width:1.4}"
    ".chart .rule{stroke:var(--ink);stroke-dasharray:4 3}.chart .null{stroke:var(--soft);opacity:.55}"
    ".chart .curve{fill:none;stroke-width:2}"
    + "".join(f".chart .c{i}{{stroke:var(--s{i})}}.chart .f{i}{{fill:var(--s{i});stroke:var(--s{i})}}" for i in range(4))
    + ".chart .hollow{fill:var(--paper)}"
)


@dataclass(frozen=True)
class Point:
    """A value with its 95 % interval, where one is known; `x` in 0..1 across the panel."""

    value: float
    low: float | None = None
    high: float | None = None
    x: float = 0.0
    name: str = ""


def clean(text: object) -> str:
    """Text from data, fit for XML: control characters and lone surrogates become spaces, the rest is escaped."""
    return escape("".join(c if c.isprintable() else " " for c in str(text)))


def clip(text: object, units: float) -> str:
    """The text cut to about this many units of width."""
    most, whole = max(4, int(units / CHARACTER)), str(text)
    return whole if len(whole) <= most else whole[: most - 1].rstrip() + "…"


def percent(value: float) -> str:
    """0.473 → 47.3 %, with a no-break space."""
    return f"{100 * value:.1f}\u00a0%"


def plain(value: float) -> str:
    """A number with as many digits as a reader can use; integers keep all of theirs."""
    size = abs(value)
    if isinstance(value, int) or size >= 100:
        return f"{value:,.0f}"
    digits = 3 if size < 1 else 2 if size < 10 else 1
    return f"{value:.1e}" if 0 < size < 0.0005 else f"{value:.{digits}f}"


def hundredths(value: float) -> str:
    """0.47 → .47, and a true minus sign."""
    text = f"{abs(value):.2f}"
    return (MINUS if value < 0 and text != "0.00" else "") + (text if text[0] != "0" else text[1:])


def ticks(low: float, high: float) -> list[float]:
    """Three to six round values that cover low..high."""
    rough = max(high - low, 1e-9) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def chart(height: float, title: str, body: Sequence[str]) -> str:
    """The SVG element, without a namespace because HTML needs none; see `standalone`."""
    name = clean(title)
    head = f'<svg class="chart" role="img" aria-label="{name}" viewBox="0 0 {WIDE} {height:g}" width="{WIDE}" height="{height:g}">'
    return f"{head}<title>{name}</title>{''.join(body)}</svg>\n"


def standalone(svg: str) -> str:
    """The same chart as a file of its own: namespace, light colours written out, white ground."""
    style = STYLE
    for name, colour in LIGHT.items():
        style = style.replace(f"var(--{name})", colour)
    ground = f'<style>{style}</style><rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace("</title>", "</title>" + ground, 1)


def write(x: float, y: float, text: str, look: str = "", anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{look}" text-anchor="{anchor}">{clean(text)}</text>'


def stroke(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{look}"/>'


def mark(look: int, x: float, y: float, name: str = "", size: float = 4.0) -> str:
    """A data mark whose shape follows `look`; `name` is its tooltip."""
    shape, r = MARKS[look % len(MARKS)], size
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -r * 1.25), (r * 1.15, r), (-r * 1.15, r)],
        "diamond": [(0, -r * 1.3), (r * 1.3, 0), (0, r * 1.3), (-r * 1.3, 0)],
    }
    tip, style = f"<title>{clean(name)}</title>" if name else "", f"mark f{look % 4}" + (" hollow" if look >= len(MARKS) else "")
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" class="{style}">{tip}</circle>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape])
    return f'<polygon points="{points}" class="{style}">{tip}</polygon>'
