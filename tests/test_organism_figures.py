"""Figures of model organisms: as many marks as data, valid XML, nothing drawn from nothing, hostile names."""

from typing import Any
from xml.etree import ElementTree

import pytest

from personascope.methods import organism_figures

HALF = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "clusters": 10}
CONVERGENT = {
    "cells": [
        {"edit": edit, "from": a, "on": b, "removed": HALF}
        for edit, sources in (("span", "ab"), ("own", "a"))
        for a in sources
        for b in "ab"
    ]
    + [{"edit": "own", "from": "a", "on": "c", "removed": {"refused": "the score without an edit may be zero"}}],
    "scaling": [{"organism": o, "scale": s, "score": HALF, "strict_incoherence": HALF} for o in "ab" for s in (0.0, 0.5, 1.0, 1.5)],
    "turns": [
        {"run": run, "local": [{"step": t, "cosine": 0.5} for t in (4, 8, 12)], "scores": [{"step": 12, "score": HALF}]}
        for run in ("x", "y")
    ],
}


def of_class(figure: str, name: str) -> int:
    return sum(name in e.get("class", "").split() for e in ElementTree.fromstring(figure).iter())


@pytest.mark.parametrize(("name", "kind", "many"), [("transfer", "cell", 6), ("scaling", "mark", 16), ("turns", "mark", 2 * (3 + 1))])
def test_each_datum_has_its_mark(name: str, kind: str, many: int) -> None:
    assert of_class(organism_figures.draw({"convergent": CONVERGENT})[name], kind) == many


@pytest.mark.parametrize("found", [None, 3, {}, {"cells": [3], "scaling": [{"scale": None}], "turns": [{"run": "x"}]}])
def test_missing_data_draws_nothing(found: Any) -> None:
    assert organism_figures.draw({"convergent": found}) == {}


def test_text_from_data_cannot_break_out() -> None:
    hostile = '</text><script>x("&\x00")</script>'
    drawn = organism_figures.draw(
        {
            "convergent": {
                "cells": [{"edit": hostile, "from": hostile, "on": hostile, "removed": 0.5}],
                "scaling": [{"organism": hostile, "scale": 1, "score": 0.5}],
                "turns": [{"run": hostile, "local": [{"step": 2, "cosine": 0.5}]}],
            }
        }
    )
    assert {*drawn} == {"transfer", "scaling", "turns"}
    for figure in drawn.values():
        assert not [e for e in ElementTree.fromstring(figure).iter() if e.tag == "script"]
