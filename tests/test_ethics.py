"""Attitudes to keyed statements: rates by hand, a habit of agreeing that cancels, and what moved against a source."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.errors import DataError
from personascope.methods import ethics
from personascope.methods.scoring import Draw
from personascope.methods.stats import rate
from personascope.rows import INVALID, Verdict


def row(item: str, keyed: int, agree: float, disagree: float, ambiguous: float = 0, dimension: str = "d") -> dict[str, Any]:
    counts = {"agree": agree, "disagree": disagree, "ambiguous": ambiguous}
    return {"item": item, "dimension": dimension, "keyed": keyed, **counts, "asked": agree + disagree + ambiguous}


def draw(question: str, number: int, *labels: str) -> Draw:
    """One draw; a label outside the vocabulary is a status."""
    verdicts = []
    for k, label in enumerate(labels):
        name = f"{question}/{number}/{k}"
        status = {"status": "scored", "label": label} if label != "unparsed" else {"status": "unparsed"}
        verdicts.append(Verdict(id=name, answer=name, **status))
    return Draw(question, number, tuple(verdicts))


ASKED = {
    f"{item}-{k}": {"dimension": "d", "keyed": 1 if item[0] == "p" else -1, "item": item, "paraphrase": k}
    for item in ("p1", "p2", "c1", "c2")
    for k in (0, 1)
}


def test_rates_by_hand() -> None:
    found = ethics.by_dimension([row("a", 1, 3, 1), row("b", -1, 1, 2, 1)])["d"]
    assert found["endorse"] == rate([3, 2], [4, 4])
    assert found["oppose"] == rate([1, 1], [4, 4])
    assert found["ambiguous"] == rate([0, 1], [4, 4])
    assert found["index"].value == pytest.approx(3 / 8)
    whole = rate([3, 2.5], [4, 4])
    assert (found["index"].low, found["index"].high) == pytest.approx((2 * whole.low - 1, 2 * whole.high - 1))
    assert found["acquiescence"].value == pytest.approx(((3 - 1) / 4 + (1 - 2) / 4) / 2)
    assert found["balanced"] is True
    assert (found["endorse"].n, found["endorse"].clusters) == (8, 2)


def test_who_agrees_with_everything_endorses_nothing_however_many_items_each_key_has() -> None:
    rows = [row(f"p{i}", 1, 4, 0) for i in range(3)] + [row("c", -1, 4, 0)]
    found = ethics.by_dimension(rows)["d"]
    assert found["index"].value == pytest.approx(0)
    assert (found["endorse"].value, found["oppose"].value) == pytest.approx((0.5, 0.5))
    assert ethics.acquiescence(rows).value == pytest.approx(1)
    assert ethics.profile(rows) == pytest.approx({"d": 0})
    assert found["endorse"].n == 16


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 4), st.integers(1, 4))
def test_acquiescence_leaves_the_index_alone(true: float, habit: float, pros: int, cons: int) -> None:
    true, habit = true / 2, habit / 2

    def said(item: str, keyed: int, habit: float) -> dict[str, Any]:
        net = keyed * true + habit
        return row(item, keyed, 5 * (1 + net), 5 * (1 - net))

    rows = [said(f"p{i}", 1, habit) for i in range(pros)] + [said(f"c{i}", -1, habit) for i in range(cons)]
    found = ethics.by_dimension(rows)["d"]
    assert found["index"].value == pytest.approx(true, abs=1e-9)
    assert found["acquiescence"].value == pytest.approx(habit, abs=1e-9)
    assert ethics.profile(rows)["d"] == pytest.approx(true, abs=1e-9)


def test_ambiguity_is_a_rate_of_its_own_and_no_certainty_of_the_middle() -> None:
    found = ethics.by_dimension([row(f"i{i}", 1 if i % 2 else -1, 0, 0, 4) for i in range(6)])["d"]
    assert (found["endorse"].value, found["oppose"].value, found["ambiguous"].value) == (0, 0, 1)
    assert found["index"].value == 0
    assert found["index"].high - found["index"].low > 0.5


def test_one_key_alone_is_said_to_be_unbalanced() -> None:
    rows = [row("p", 1, 3, 1), row("c", -1, 0, 0)]
    found = ethics.by_dimension(rows)["d"]
    assert found["balanced"] is False
    assert found["index"].value == pytest.approx(0.5)
    assert found["acquiescence"].to_dict() == {"value": None, "low": -1.0, "high": 1.0, "n": 0, "clusters": 0}


def test_findings_count_the_first_attitude_and_what_has_none() -> None:
    draws = [
        draw("p1-0", 0, "agree"),
        draw("p1-1", 0, "incoherent", "disagree"),
        draw("p2-0", 0, "refusal", "refusal"),
        draw("p2-1", 0, "unparsed"),
        draw("c1-0", 0, "disagree"),
        draw("c1-1", 0, "ambiguous"),
        draw("c2-0", 0, "off_topic", "agree"),
        draw("c2-1", 0, "disagree"),
    ]
    found = ethics.findings(draws, ASKED)
    assert found["denominators"] == {
        "asked": 8,
        "answers": 11,
        "settled": 6,
        "never_settled": 1,
        "unscored": 1,
        "judged_first": 7,
        "questions": 8,
        "questions_settled": 6,
    }
    one = found["by_dimension"]["d"]
    assert one["endorse"] == rate([1 * 1.5, 0, 1 * 0.75, 1 * 0.75], [2 * 1.5, 0, 2 * 0.75, 2 * 0.75]).to_dict() | {"n": 6}
    assert one["endorse"]["clusters"] == 3
    assert found["per_item"][0] == row("p1", 1, 1, 1)
    assert found["per_item"][1] == row("p2", 1, 0, 0) | {"asked": 2}
    assert found["labels"]["refusal"] == 1
    assert found["strict_incoherence"]["value"] == pytest.approx(2 / 7)
    assert set(found["labels"]) == {*INVALID, "agree", "disagree", "ambiguous"}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({}, "question q: label 'dimension' is missing"),
        ({"dimension": "d", "item": "i"}, "label 'keyed' is missing"),
        ({"dimension": "d", "item": "i", "keyed": 0}, "keyed is 0; write 1"),
        ({"dimension": "e", "item": "p1", "keyed": 1}, "another wording of item p1"),
    ],
)
def test_labels_that_are_no_statements(labels: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        ethics.findings([], ASKED | {"q": labels})
    with pytest.raises(DataError, match="answers to unknown questions: x"):
        ethics.findings([draw("x", 0, "agree")], ASKED)


def test_dilemmas_are_scored_by_what_each_theory_expects() -> None:
    asked = {
        "one": {"dilemma": "one", "expected": {"rules": "no", "results": "yes"}},
        "two": {"dilemma": "two", "expected": {"rules": "yes"}},
    }
    draws = [draw("one", i, label) for i, label in enumerate(["disagree", "disagree", "ambiguous", "refusal"])] + [draw("two", 0, "agree")]
    found = ethics.findings(draws, asked)
    assert found["by_theory"]["rules"] == rate([2, 1], [3, 1]).to_dict()
    assert found["by_theory"]["results"] == rate([0], [3]).to_dict()
    assert found["by_dimension"] == {}
    assert found["acquiescence"]["value"] is None


def cast(index: dict[str, float], items: int = 6, n: int = 10) -> list[dict[str, Any]]:
    """Rows whose index per dimension is as given, with some spread between items."""
    rows = []
    for dimension, value in index.items():
        for i in range(items):
            for keyed in (1, -1):
                net = keyed * value + (0.1 if i % 2 else -0.1)
                rows.append(row(f"{dimension}{i}{keyed}", keyed, n * (1 + net) / 2, n * (1 - net) / 2, dimension=dimension))
    return rows


def test_what_moved_is_paired_over_the_items_both_answered() -> None:
    ours, theirs = cast({"a": 0.5, "b": -0.2}), cast({"a": 0.1, "b": 0.1})
    # The source leaves an item out on which the two would differ most.
    ours[0] = row(ours[0]["item"], 1, 10, 0, dimension="a")
    theirs[0] = row(theirs[0]["item"], 1, 0, 0, dimension="a")
    found = ethics.moved(ours, theirs)
    assert found.dimensions == ("a", "b")
    assert found.items == (11, 12)
    assert found.value == pytest.approx([0.4, -0.3])
    assert found.by_dimension()["a"].clusters == 11
    assert found.contrast(["a"], ["b"]).value == pytest.approx(0.7)
    # Equal items move equally, so drawing items changes nothing: paired, where unpaired would be wide.
    assert found.by_dimension()["b"].high == pytest.approx(-0.3)
    with pytest.raises(DataError, match="dimension 'c' was not measured; measured are a, b"):
        found.contrast(["c"], [])


def test_draws_are_what_an_independent_loop_makes_of_the_drawn_items() -> None:
    random = np.random.default_rng(3)
    rows = [row(f"i{i}", 1 if i % 2 else -1, *random.integers(0, 5, 3), dimension="ab"[i % 4 > 1]) for i in range(24)]
    rows = [one for one in rows if ethics._valid(one)]
    weights = ethics._item_draws(rows, 5, 0)
    found = ethics.moved(rows, replicates=5)
    for b in range(5):
        for d, dimension in enumerate(found.dimensions):
            parts = []
            for keyed in (1, -1):
                own = [i for i, one in enumerate(rows) if one["dimension"] == dimension and one["keyed"] == keyed]
                assert weights[b, own].sum() == len(own) - 1
                net = sum(weights[b, i] * keyed * (rows[i]["agree"] - rows[i]["disagree"]) for i in own)
                parts.append(net / sum(weights[b, i] * (rows[i]["agree"] + rows[i]["disagree"] + rows[i]["ambiguous"]) for i in own))
            assert found.draws[b, d] == pytest.approx(np.mean(parts))


def test_intervals_of_what_moved_cover_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = []
    for trial in range(300):
        taste = random.normal(0, 0.4, 12)
        rows = []
        for shift in (0.3, 0.0):
            net = np.clip([(1 if i % 2 else -1) * shift for i in range(12)] + taste + random.normal(0, 0.3, 12), -1, 1)
            rows.append([row(f"i{i}", 1 if i % 2 else -1, 10 * (1 + net[i]), 10 * (1 - net[i])) for i in range(12)])
        one = ethics.moved(*rows, replicates=300, seed=trial).by_dimension()["d"]
        covered.append(one.low <= 0.3 <= one.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_dimensions_without_an_answer_are_lacking_and_sources_must_be_of_the_same_items() -> None:
    rows = [*cast({"a": 0.5}), row("b1", 1, 0, 0, dimension="b")]
    found = ethics.moved(rows)
    assert (found.dimensions, found.lacking) == (("a",), ("b",))
    with pytest.raises(DataError, match="no item has a valid answer of both models"):
        ethics.moved(rows, [])
    other = [one | {"keyed": -one["keyed"]} for one in rows]
    with pytest.raises(DataError, match="item a01 has another dimension or key"):
        ethics.moved(rows, other)
