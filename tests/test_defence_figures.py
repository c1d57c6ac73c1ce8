"""Figures of defences: a mark per strength, a front that nothing beats, whatever of a summary is there."""

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.methods import defence_figures, svg
from personascope.methods.defence_figures import Spot, front


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 400, "clusters": 3}


CURVES = [
    {
        "defence": f"defence_{i}",
        "strength": f"defence_{i}-{k}",
        "misaligned": 0.07 * i + 0.01 * k,
        "skill": 0.8 + 0.02 * i,
        "incoherent": 0.05,
    }
    for i in range(10)
    for k in range(2)
]
POINTS = [
    {"name": name, "at": at, "misaligned": estimate(0.5), "skill": estimate(0.9), "incoherent": estimate(0.1)}
    for name in ("blocking", "union")
    for at in (120, 240, 480)
]
PATCHES = [
    {"tuning": tuning, "into": into, "block": block, "mask": "all", "part": "whole", "share": estimate(0.3 * block)}
    for tuning in ("plain", "blocked")
    for block in range(3)
    for into in ("start", tuning)
] + [{"tuning": "plain", "into": "start", "block": 1, "mask": "all", "part": "inside", "share": None}]
SUMMARY = {"defences": {"curves": CURVES}, "blocking": {"longer": POINTS, "sizes": POINTS[:3], "rerouting": {"patches": PATCHES}}}


def marks(figure: str, kind: str = "mark") -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(figure).iter() if kind in e.get("class", "").split()]


@pytest.mark.parametrize(
    ("name", "many"), [("pareto", 2 * 20 + 10), ("blocking-longer", 3 * 6), ("blocking-sizes", 3 * 3), ("rerouting", 12)]
)
def test_each_datum_has_its_mark(name: str, many: int) -> None:
    assert len(marks(defence_figures.draw(SUMMARY)[name])) == many


def test_only_what_the_summary_holds_is_drawn() -> None:
    assert {*defence_figures.draw(SUMMARY)} == {"pareto", "blocking-longer", "blocking-sizes", "rerouting"}
    assert defence_figures.draw({}) == {}
    assert defence_figures.draw({"defences": {"curves": [{"defence": "a"}]}, "blocking": {"rerouting": {"patches": None}}}) == {}


def test_the_pareto_plot_says_what_each_mark_is() -> None:
    figure = defence_figures.pareto(SUMMARY)
    texts = [text.text for text in ElementTree.fromstring(figure).iter() if text.tag in ("text", "title")]
    for i in range(10):
        assert f"defence {i}" in texts
        assert sum(f"(defence_{i}-1)" in (text or "") for text in texts) == 2
    assert ElementTree.fromstring(svg.standalone(figure)) is not None
    assert defence_figures.pareto({"defences": {"curves": [CURVES[0] | {"defence": "<b>&"}]}})


def test_the_front_by_hand() -> None:
    spots = [Spot("a", "", 0.9, 0.3), Spot("b", "", 0.8, 0.1), Spot("c", "", 0.7, 0.2), Spot("d", "", 0.95, 0.3), Spot("e", "", 1.0, 0.8)]
    assert [s.family for s in front(spots, more=True)] == ["b", "d", "e"]
    assert [s.family for s in front(spots, more=False)] == ["c", "b"]
    assert front([], more=True) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.booleans())
def test_nothing_beats_the_front_and_everything_else_is_beaten_or_equal(places: list[tuple[int, int]], more: bool) -> None:
    spots = [Spot(str(i), "", x, y) for i, (x, y) in enumerate(places)]
    best, sign = front(spots, more), 1 if more else -1

    def beats(a: Spot, b: Spot) -> bool:
        return a.y <= b.y and sign * a.x >= sign * b.x and (a.x, a.y) != (b.x, b.y)

    assert not any(beats(a, b) for a in spots for b in best)
    assert all(any(beats(a, b) or (a.x, a.y) == (b.x, b.y) for a in best) for b in spots)
