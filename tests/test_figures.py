"""The figures: valid XML, as many marks as data, told apart without colour, honest lengths."""

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.methods import figures, svg
from personascope.methods.charts import Bar, bars, heatmap, signed
from personascope.methods.overview import Line, forest, matrix

DATA = Path(__file__).parent / "data"
SUMMARY = json.loads((DATA / "summary.json").read_text())
ALIGNED = json.loads((DATA / "alignment.json").read_text())
"""A study of constitutions: the other figures."""
WATCHED = json.loads((DATA / "watched.json").read_text())
"""A study of watched trainings."""
EVERYTHING = SUMMARY | ALIGNED | WATCHED


def parsed(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def of_class(figure: str, name: str) -> list[ElementTree.Element]:
    return [e for e in parsed(figure).iter() if name in e.get("class", "").split()]


def shape(element: ElementTree.Element) -> str:
    """What a mark looks like in black and white: its kind and its corners relative to the first."""
    if element.tag == "circle":
        return "circle"
    corners = [tuple(map(float, pair.split(","))) for pair in element.get("points", "").split()]
    return " ".join(f"{round((x - corners[0][0]) / 3)},{round((y - corners[0][1]) / 3)}" for x, y in corners)


@pytest.mark.parametrize(
    ("name", "kind", "many"),
    [
        ("behaviour", "bar", 8 + 6),
        ("latents", "bar", 5 + 3),
        ("dose", "mark", 2 * 2 * 15),
        ("dose", "null", 51),
        ("separation", "mark", 36),
        ("fractions", "mark", 2 * 8),
        ("realign", "mark", 3 * (5 + 8)),
        ("watching", "mark", 2 * 2 * 4 + 4 + 2),
        ("cells", "mark", 2 * (1 + 5 * 3 * 2)),
        ("profiles", "cell", 5 * 3 * 7),
        ("identification", "cell", 5),
        ("projectability", "mark", 4 * 4 - 1),
    ],
)
def test_each_datum_has_its_mark(name: str, kind: str, many: int) -> None:
    assert len(of_class(figures.draw(EVERYTHING)[name], kind)) == many


@pytest.mark.parametrize("name", figures.DRAWN)
def test_figures_are_valid_xml_inline_and_alone(name: str) -> None:
    figure = figures.draw(EVERYTHING)[name]
    assert parsed(figure).tag == "svg"
    assert "://" not in figure
    alone = svg.standalone(figure)
    assert parsed(alone).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in alone, "a file of its own knows no page colours"


def test_text_from_data_cannot_break_out() -> None:
    hostile = '</text><script>x("&\x00\ud800")</script>'
    summary = {
        "grades": {hostile: {"score": 0.2}},
        "diff": {"top": [{"latent": hostile, "delta": 1.0, "label": hostile}]},
        "detect": {"points": [{"name": hostile, "group": hostile, "value": 1}], "axis": hostile},
        "screen": {"dose": [{"direction": hostile, "side": "induce", "alpha": 1, "score": 0.1}]},
        "realign": [{"data": hostile, "examples": 0, "score": 0.1}],
        "watching": {"curves": [{"kind": hostile, "step": 0, "score": 0.1}, {"kind": hostile, "step": 2, "score": 0.1}]},
        "cells": [{"constitution": hostile, "data": hostile, "general": 0.1}],
        "persona": {"profiles": {hostile: {hostile: 0.1}}, "identification": {hostile: {"own": hostile, "nearest": hostile}}},
        "projectability": {hostile: {"transfer": 0.1, "retention": {"refused": hostile}}},
    }
    drawn = figures.draw(summary)
    assert set(drawn) == set(figures.DRAWN) - {"fractions"}
    for figure in drawn.values():
        assert not [e for e in parsed(figure).iter() if e.tag == "script"]


@pytest.mark.parametrize(
    "summary",
    [
        {},
        dict.fromkeys(("em", "grades", "diff", "screen", "detect", "fractions", "realign")),
        {"em": {"score": {"value": None}}, "diff": {"top": [{"latent": 3}]}, "screen": {"nulls": 3, "dose": [None]}},
        {"cells": [{"constitution": "a"}, 3], "persona": {"profiles": {"m": {"d": None}}, "identification": {"m": {}}}},
        {"watching": {"curves": [{"kind": "a"}, 3, {"kind": "a", "step": None}]}},
        {"cells": {}, "persona": 3, "projectability": {"a": {"transfer": {"refused": "x"}}, "b": 3}},
        {"fractions": [{"fraction": 0.1}], "realign": [{"examples": 3}], "detect": {"points": [{"value": float("nan")}]}},
    ],
)
def test_missing_data_draws_nothing(summary: dict[str, Any]) -> None:
    assert figures.draw(summary) == {}


@pytest.mark.parametrize("name", ["dose", "realign", "separation", "cells"])
def test_series_differ_without_colour(name: str) -> None:
    marks = of_class(figures.draw(EVERYTHING)[name], "mark")
    looks = {(e.get("class"), shape(e)) for e in marks}
    hues = {hue for hue, _ in looks}
    assert len(hues) > 1
    assert len(looks) == len(hues) == len({s for _, s in looks}), "one shape for each hue and no shape twice"


def test_a_screen_may_name_the_steered_model_and_give_nulls_by_mask() -> None:
    sides = {"induce": "base", "repair": "tuned"}
    screen = SUMMARY["screen"] | {"dose": [e | {"side": sides[e["side"]]} for e in SUMMARY["screen"]["dose"]]}
    screen["nulls"] = {"last_prompt": SUMMARY["screen"]["nulls"], "all": [0.9]}
    assert figures.dose({"screen": screen}) == figures.dose(SUMMARY)


def test_lines_differ_by_dash_and_are_named() -> None:
    figure = figures.draw(SUMMARY)["dose"]
    dashes = {e.get("stroke-dasharray") for e in of_class(figure, "curve") if e.tag == "line"}
    assert len(dashes) == 3
    assert "latent 412, mask last_prompt" in figure


def test_bars_are_as_long_as_their_values_and_outlines_tell_the_companion() -> None:
    rows = [Bar("a", svg.Point(0.2, 0.1, 0.3), svg.Point(0.1)), Bar("b", svg.Point(0.4))]
    found = of_class(bars(rows, ("x", "y"), "t"), "bar")
    widths = [float(e.get("width", "0")) for e in found]
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.2)
    assert ["hollow" in e.get("class", "") for e in found] == [False, True, False]


def test_whiskers_span_the_interval() -> None:
    figure = bars([Bar("a", svg.Point(0.2, 0.1, 0.3))], ("x", "y"), "t")
    width = float(of_class(figure, "bar")[0].get("width", "0"))
    line = of_class(figure, "whisker")[0]
    assert float(line.get("x1", "0")) == pytest.approx(width / 2, abs=0.1)
    assert float(line.get("x2", "0")) == pytest.approx(width * 1.5, abs=0.1)


def test_falls_point_the_other_way_with_a_sign() -> None:
    figure = signed([Bar("up", svg.Point(2.0)), Bar("down", svg.Point(-1.0))], "t")
    up, down = of_class(figure, "bar")
    assert float(down.get("x", "0")) + float(down.get("width", "0")) == pytest.approx(float(up.get("x", "0")), abs=0.2)
    assert re.findall(r">([+\u2212][\d.]+)<", figure) == ["+2.00", "\u22121.00"]


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_ticks_cover_the_range(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-6
    assert found[-1] >= high - 1e-6 * max(1, high)


@given(st.text())
def test_any_text_is_fit_for_xml(text: str) -> None:
    assert ElementTree.fromstring(svg.write(0, 0, text)).tag == "text"


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1320, "1,320"), (1.0, "1.00"), (0.0432, "0.043"), (28.14, "28.1"), (1e-5, "1.0e-05"), (-1.9, "-1.90")]
)
def test_numbers_keep_the_digits_a_reader_needs(value: float, shown: str) -> None:
    assert svg.plain(value) == shown


@pytest.mark.parametrize("many", [1, 5, 20, 60])
def test_a_heat_map_has_a_square_a_pair_and_a_frame_a_group(many: int) -> None:
    matrix = [[1.0 if i == j else -0.5 if (i + j) % 2 else 0.25 for j in range(many)] for i in range(many)]
    figure = heatmap([f"<{i}>" for i in range(many)], matrix, [i // 3 for i in range(many)], "Likeness")
    squares = of_class(figure, "cell")
    assert len(squares) == many**2
    assert [float(e.get("fill-opacity", "")) for e in squares] == [abs(value) for row in matrix for value in row]
    assert all(("f1" in e.get("class", "")) == (value < 0) for e, value in zip(squares, itertools.chain(*matrix), strict=True))
    assert len(of_class(figure, "frame")) == many // 3 + (many % 3 == 2)
    for element in squares:
        assert float(element.get("x", "")) + float(element.get("width", "")) <= svg.WIDE + 0.1
    texts = [e.text for e in parsed(figure).iter() if e.tag == "text"]
    assert sum(text in {f"<{i}>" for i in range(many)} for text in texts) == (30 if many == 60 else many)
    assert many == 1 or svg.MINUS in "".join(str(text) for text in texts) or many == 60, "a negative value is told without its hue"


def texts(figure: str) -> list[str]:
    return [str(e.text) for e in parsed(figure).iter() if e.tag == "text"]


def test_a_matrix_tells_sign_size_and_certainty_without_colour() -> None:
    cells = [[svg.Point(0.8, 0.5, 1.0), svg.Point(-0.4, -0.6, 0.1)], [None, svg.Point(-0.2, -0.3, -0.1)]]
    figure = matrix(["<a>", "b"], ["one", "two"], cells, "Profiles")
    squares = of_class(figure, "cell")
    assert [e.get("fill-opacity") for e in squares] == ["0.55", "0.28", "0.14"]
    assert [("f1" in e.get("class", "").split()) for e in squares] == [False, True, True]
    numbers = [e for e in parsed(figure).iter() if e.tag == "text" and e.get("text-anchor") == "middle"]
    assert [(e.text, e.get("class")) for e in numbers] == [(".80", "head"), ("\u2212.40", ""), ("\u2212.20", "head")]
    assert squares[0][0].text == "<a>, one: 0.800 (0.500 to 1.00)"


@pytest.mark.parametrize("many", [1, 4, 7, 20])
def test_a_matrix_stays_within_its_width(many: int) -> None:
    names = ["a dimension of some length"] * many
    figure = matrix(["the name of a model, which is rather long"], names, [[svg.Point(0.1)] * many], "t")
    for element in of_class(figure, "cell"):
        assert float(element.get("x", "")) + float(element.get("width", "")) <= svg.WIDE + 0.1


def test_a_forest_puts_values_where_they_are_and_says_what_has_no_number() -> None:
    lines = [Line("low", ((0, svg.Point(0.0, -0.1, 0.1)),)), Line("high", ((0, svg.Point(1.0)),)), Line("none", (), "too small")]
    figure = forest({"Group": lines}, "t", "axis", [(0.5, "half")])
    first, second = of_class(figure, "mark")
    rule = of_class(figure, "rule")
    assert len(rule) == 1
    middle = float(rule[0].get("x1", "0"))
    assert (float(first.get("cx", "0")) + float(second.get("cx", "0"))) / 2 == pytest.approx(middle, abs=0.2)
    said = texts(figure)
    assert {"Group", "half", "axis", "too small", "1.00", "0.00 (\u22120.10 to 0.10)"} <= set(said)
    assert len(of_class(figure, "whisker")) == 3


def test_a_whisker_beyond_the_axis_has_no_end_stroke() -> None:
    lines = [Line("wide", ((0, svg.Point(0.5, -90.0, 0.6)),)), Line("other", ((0, svg.Point(0.0)),))]
    figure = forest({"g": lines}, "t", "axis")
    whiskers = of_class(figure, "whisker")
    assert len(whiskers) == 2, "the line and its right end"
    assert all(0 <= float(e.get(x, "0")) <= svg.WIDE for e in whiskers for x in ("x1", "x2"))
    assert "0.50 (\u221290.00 to 0.60)" in texts(figure)


def test_the_source_is_the_reference_wherever_it_stands() -> None:
    rows = [cell for cell in ALIGNED["cells"] if cell["constitution"] != "source"]
    apart = figures.cells({"cells": rows, "source": {"safe": {"value": 0.04, "low": 0.02, "high": 0.06}}})
    for figure in (apart, figures.cells(ALIGNED)):
        assert "source, general set" in texts(figure)
    assert "source, general set" not in texts(figures.cells({"cells": rows}))
    models = {"persona": {"models": ALIGNED["persona"]["identification"]}}
    assert figures.identification(models) == figures.identification(ALIGNED)
