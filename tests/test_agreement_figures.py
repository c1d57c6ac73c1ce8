"""Figures of learned judges: as many marks as data, valid XML, nothing drawn from nothing."""

from typing import Any
from xml.etree import ElementTree

import pytest

from personascope.methods import agreement_figures

HALF = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "clusters": 10}
UNDEFINED = {"value": None, "low": -1.0, "high": 1.0, "n": 0, "clusters": 0, "why": "one side has no reply that counts in a score"}
JUDGING = {
    "judges": ["many <b>", "few", "shuffled"],
    "table": [
        {"judge": name, "labels": n, "decision": HALF, "bias": HALF} for name, n in (("many <b>", 300), ("few", 100), ("shuffled", 100))
    ]
    + [{"judge": "none", "labels": 3, "decision": UNDEFINED, "bias": UNDEFINED}],
    "biases": [{"model": name, "many <b>": HALF, "few": UNDEFINED, "shuffled": HALF} for name in "xyz"],
}


def of_class(figure: str, name: str) -> int:
    return sum(name in e.get("class", "").split() for e in ElementTree.fromstring(figure).iter())


@pytest.mark.parametrize(("name", "many"), [("agreement-labels", 2 * 2), ("agreement-bias", 3 * 2)])
def test_each_datum_has_its_mark_and_a_control_is_not_on_the_line(name: str, many: int) -> None:
    assert of_class(agreement_figures.draw({"judging": JUDGING})[name], "mark") == many


@pytest.mark.parametrize("found", [None, 3, {}, {"table": [3], "judges": 3, "biases": [{"model": "x"}]}, {"table": [{"labels": 5}]}])
def test_missing_data_draws_nothing(found: Any) -> None:
    assert agreement_figures.draw({"judging": found}) == {}
