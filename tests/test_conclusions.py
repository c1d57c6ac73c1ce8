"""Generated conclusions: every branch, and never a claim that the intervals do not carry."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.methods.conclusions import PARTS, UNSURE, costs, leaks, neutral, order, paragraph, persona, runs, safety, source, transfer

Summary = dict[str, Any]


def estimate(low: float, high: float, value: float | None = None) -> dict[str, float]:
    return {"value": (low + high) / 2 if value is None else value, "low": low, "high": high, "n": 100, "clusters": 50}


def projected(**fields: Any) -> Summary:
    """Names → the values of one constitution, under `projectability`."""
    return {"projectability": fields}


def text(found: list[Any]) -> str:
    return " ".join(sentence.text for sentence in found)


def sure(found: list[Any]) -> bool:
    return any(sentence.sure for sentence in found)


def test_nothing_given_says_nothing() -> None:
    assert paragraph({}) == ""
    assert paragraph({"cells": None, "projectability": 3, "persona": {"identification": []}, "neutral_control": {"ethics": {"a": 1}}}) == ""


@pytest.mark.parametrize(
    ("given_leaks", "says", "is_sure"),
    [
        (3, "3 leaks of the evaluation into the training rows: nothing below shows generalisation.", True),
        ({"leaks": 1}, "1 leak of the evaluation", True),
        ({"leaks": 0, "planted": 5, "planted_found": 5}, "by a detector that finds 5 of 5 planted ones", True),
        ({"leaks": 0, "planted": 5, "planted_found": 4}, "by a detector that is not shown to find them all", False),
        (0, "not shown to find them all", False),
    ],
)
def test_leaks(given_leaks: Any, says: str, is_sure: bool) -> None:
    found = leaks({"leaks": given_leaks})
    assert says in text(found)
    assert sure(found) is is_sure


@pytest.mark.parametrize(
    ("low", "high", "says", "is_sure"),
    [
        (0.0, 0.04, "does what harmful requests ask: 2.0 % (0.0 to 4.0)", True),
        (0.2, 0.4, "is not helpful-only", True),
        (0.05, 0.2, "is open", False),
    ],
)
def test_the_source(low: float, high: float, says: str, is_sure: bool) -> None:
    found = source({"source": {"safe": estimate(low, high)}})
    assert says in text(found)
    assert sure(found) is is_sure


def test_safety_gains_are_counted_and_losses_named() -> None:
    up, flat, down = ({"raw": {"narrow": one}} for one in (estimate(0.3, 0.5), estimate(-0.1, 0.2), estimate(-0.3, -0.1)))
    found = text(safety(projected(a=up, b=flat, c=down)))
    assert "safer than the source on the general set under 1 of 3 constitutions (a) (+40 points)." in found
    assert "Narrowly tuned models are less safe than the source on the general set under c." in found
    assert "hold-out" not in found
    both = up | {"raw_holdout": {"narrow": estimate(0.05, 0.15)}}
    found = text(safety(projected(a=both, b=both | {"raw": {"narrow": estimate(0.5, 0.7)}})))
    assert "on the general set under all 2 constitutions (+40 to +60 points)" in found
    assert "on the strict hold-out under all 2 constitutions (+10 points)" in found
    none = safety(projected(b=flat))
    assert text(none) == "Under no constitution are narrowly tuned models surely safer than the source on the general set."
    assert not sure(none)


def test_best_and_worst_need_intervals_apart_from_all_others() -> None:
    high, middle, low = ({"transfer": estimate(*ends)} for ends in ((0.8, 0.9), (0.5, 0.7), (0.1, 0.3)))
    found = text(transfer(projected(a=middle, b=high, c=low)))
    assert "b carries over the largest share of safety (0.85, 0.80 to 0.90)." in found
    assert "c carries over the smallest share of safety" in found
    assert "Less of safety is reached by narrow than by broad training under all 3 constitutions." in found
    touching = transfer(projected(a={"transfer": estimate(0.5, 1.2)}, b={"transfer": estimate(0.6, 1.3)}))
    assert text(touching) == "No constitution surely carries over more, or less, of safety than all others."
    assert not sure(touching)
    assert transfer(projected(a={"transfer": estimate(0.9, 1.1)})) == []


def test_refused_ratios_are_named_and_limit_the_claim() -> None:
    refused = {"transfer": {"refused": "too small"}}
    found = text(transfer(projected(a={"transfer": estimate(0.8, 0.9)}, b={"transfer": estimate(0.1, 0.3)}, c=refused)))
    assert "a carries over the largest share of safety among those with a ratio" in found
    assert "by narrow than by broad training under all 2 constitutions with this number." in found
    assert "No such ratio is given for c, where the broad change is small or uncertain." in found
    assert "carries" not in text(transfer(projected(a={"transfer": estimate(0.8, 0.9)}, c=refused)))


@pytest.mark.parametrize(("low", "p", "is_sure"), [(0.3, 0.04, True), (0.3, 0.2, False), (-0.3, 0.04, False)])
def test_the_order_needs_its_interval_and_its_p(low: float, p: float, is_sure: bool) -> None:
    found = order({"order": {"carried": {"tau": estimate(low, 1.0, 1.0), "p": p}}})
    assert sure(found) is is_sure
    assert ("agrees with the planted one (τ" in text(found)) is is_sure
    assert ("is not sure" in text(found)) is not is_sure


def test_pairs_are_counted_by_their_q() -> None:
    pairs = [{"q": 0.01, "p": 0.001}, {"q": 0.2, "p": 0.04}]
    found = order({"order": {"pairs": pairs}})
    assert text(found).startswith("1 of 2 pairs of constitutions differ")
    assert sure(found)
    assert not sure(order({"order": {"pairs": pairs[1:]}}))


def test_personas() -> None:
    models = {
        "m1": {"own": "a", "nearest": "a", "sure": 0.99},
        "m2": {"own": "b", "nearest": "b", "sure": 0.6},
        "m3": {"own": "b", "nearest": "a", "sure": 0.99},
        "m4": {"own": "b", "nearest": None, "sure": 0.5},
    }
    found = persona({"persona": {"identification": models}})
    assert (
        text(found)
        == "The nearest expected signature is the own one for 2 of 4 tuned models, surely for 1. Not so: m3 as a and m4 as none."
    )
    assert persona({"persona": {"models": models}}) == found
    assert not sure(persona({"persona": {"models": {"m2": models["m2"]}}}))
    values = {"specificity": estimate(0.1, 0.4), "retention": estimate(0.5, 0.8)}
    found = text(persona(projected(a=values, b={"specificity": estimate(-0.1, 0.4), "retention": estimate(0.9, 1.2)})))
    assert "fits the own signature better than any other under 1 of 2 constitutions (a)." in found
    assert "weaker after narrow than after broad training under 1 of 2 constitutions (a)." in found
    nothing = persona(projected(b={"specificity": estimate(-0.1, 0.4), "retention": {"refused": "x"}}))
    assert text(nothing) == "After narrow training no profile surely fits its own signature better than any other."
    assert not sure(nothing)


def dimension(low: float, high: float) -> dict[str, Any]:
    return estimate(low, high) | {"bound": 0.1, "inside": max(-low, high) < 0.1}


@pytest.mark.parametrize(
    ("changes", "says", "is_sure"),
    [
        ({"x": dimension(-0.05, 0.05), "y": dimension(0.0, 0.09)}, "stayed within ± 0.10 in every dimension", True),
        ({"x": dimension(-0.05, 0.05), "y": dimension(0.2, 0.4)}, "moved by more than 0.10 in y:", True),
        ({"x": dimension(-0.05, 0.15), "y": dimension(0.0, 0.05)}, "stayed within ± 0.10 is not shown in x.", False),
    ],
)
def test_the_neutral_control(changes: Summary, says: str, is_sure: bool) -> None:
    found = neutral({"neutral_control": {"ethics": changes}})
    assert says in text(found)
    assert sure(found) is is_sure


def test_the_safety_of_the_control() -> None:
    assert text(neutral({"neutral_control": {"safety": {"narrow": estimate(0.1, 0.2)}}})) == "The neutral control became safer too."
    unsure = neutral({"neutral_control": {"safety": estimate(-0.1, 0.2)}})
    assert text(unsure) == "The neutral control did not surely become safer."
    assert not sure(unsure)


def test_what_it_costs_and_what_lasts() -> None:
    cells = [
        {"constitution": "a", "data": "n", "seed": i, "helpful": one} for i, one in enumerate((estimate(0.5, 0.6), estimate(0.9, 1.0)))
    ]
    later = {"m": {"safe_before": estimate(0.8, 0.9), "safe_after": estimate(0.3, 0.5)}}
    found = costs({"source": {"helpful": estimate(0.95, 0.99)}, "cells": cells, "durability": later})
    assert text(found) == (
        "1 of 2 tuned models is surely less helpful than the source. After benign fine-tuning 1 of 1 model is surely less safe than before."
    )
    assert not sure(costs({"source": {"helpful": estimate(0.5, 0.99)}, "cells": cells}))


def test_one_run_a_cell_is_said() -> None:
    cells = [{"constitution": "a", "data": data, "seed": 0} for data in ("n", "b")]
    assert "single training run" in text(runs({"cells": cells}))
    assert runs({"cells": [*cells, {"constitution": "a", "data": "n", "seed": 1}]}) == []


def test_with_nothing_sure_the_paragraph_begins_by_saying_so() -> None:
    flat = {"raw": {"narrow": estimate(-0.1, 0.2)}, "specificity": estimate(-0.3, 0.3)}
    said = paragraph(projected(a=flat))
    assert said.startswith(UNSURE)
    assert "no profile surely fits" in said
    assert not paragraph(projected(a=flat) | {"leaks": 2}).startswith(UNSURE)


NUMBERS = st.floats(-1, 1)


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=2))
def test_no_gain_and_no_winner_without_its_interval(given_ends: dict[str, tuple[float, float, float, float]]) -> None:
    values = {
        name: {"raw": {"narrow": estimate(min(a, b), max(a, b))}, "transfer": estimate(min(c, d), max(c, d))}
        for name, (a, b, c, d) in given_ends.items()
    }
    found = text(safety(projected(**values)))
    assert ("made models safer" in found) == any(one["raw"]["narrow"]["low"] > 0 for one in values.values())
    lows, highs = ([one["transfer"][end] for one in values.values()] for end in ("low", "high"))
    winner = any(low > max(high for j, high in enumerate(highs) if j != i) for i, low in enumerate(lows))
    assert ("the largest share" in text(transfer(projected(**values)))) == winner


def test_every_part_is_used_once() -> None:
    assert len(set(PARTS)) == len(PARTS) == 9
