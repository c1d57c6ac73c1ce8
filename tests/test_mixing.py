"""Mixtures are exact and nested, splits stay put, and overlaps are found."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personascope.errors import DataError, RecipeError
from personascope.methods.mixing import by_pair, count_of, deduplicate, leaks, mixture, splits, twins
from personascope.rows import Example


def row(name: str, *turns: str, pair: str | None = None) -> Example:
    """A conversation, user first."""
    roles = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    return Example(id=name, messages=messages, meta={"pair": pair} if pair is not None else {})


def sets(n: int) -> tuple[list[Example], list[Example]]:
    """Two paired sets of n rows."""
    return [row(f"A{i}", "q", "bad", pair=str(i)) for i in range(n)], [row(f"B{i}", "q", "good", pair=str(i)) for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 100), st.integers(0, 100), st.integers(0, 5))
def test_exact_nested_with_fixed_total(n: int, x: int, y: int, seed: int) -> None:
    a, b = sets(n)
    small, large = (mixture(a, b, f / 100, seed) for f in sorted((x, y)))
    chosen_small, chosen_large = ({r.id for r in m if r.id[0] == "A"} for m in (small, large))
    assert len(small) == len(large) == n
    assert len(chosen_small) == (Fraction(min(x, y), 100) * n + Fraction(1, 2)).__floor__()
    assert chosen_small <= chosen_large
    assert sorted(by_pair(r) for r in small) == sorted(str(i) for i in range(n)), "every pair once"
    assert [by_pair(r) for r in small] == [by_pair(r) for r in large], "a pair keeps its place"


def test_rounding_is_of_the_decimal_not_of_its_float() -> None:
    assert int(0.29 * 50 + 0.5) == 14, "what floats would say"
    assert count_of(0.29, 50) == 15
    assert [count_of(f, 100) for f in (0, 0.005, 0.01, 1)] == [0, 1, 1, 100]


def test_file_order_does_not_matter_and_the_seed_does() -> None:
    a, b = sets(30)
    shuffled = random.Random(0).sample(a, 30)
    assert mixture(a, b, 0.3, 1) == mixture(shuffled, b[::-1], 0.3, 1)
    assert mixture(a, b, 0.3, 1) != mixture(a, b, 0.3, 2)


def test_mixtures_refuse_what_is_not_paired() -> None:
    a, b = sets(3)
    with pytest.raises(DataError, match="pair '2' is only in the first set"):
        mixture(a, b[:2], 0.5)
    with pytest.raises(DataError, match="row A0: pair '0' is already row A0"):
        mixture([*a, a[0]], b, 0.5)
    with pytest.raises(DataError, match="row x: meta has no 'pair'"):
        mixture([row("x", "q")], b, 0.5)
    with pytest.raises(RecipeError, match=r"fraction 1\.5"):
        mixture(a, b, 1.5)


def test_duplicates_are_named_with_the_row_they_repeat() -> None:
    rows = [
        row("1", "Fix it?", "Yes."),
        row("2", "Fix it?", "Yes."),
        row("3", " fix IT", "yes!"),
        row("4", "Fix it?", "No."),
        row("5", "Fix it? Yes."),
    ]
    found = deduplicate(rows)
    assert [r.id for r in found.rows] == ["1", "3", "4", "5"]
    assert found.found.to_dict() == {"exact": [["2", "1"]], "normalised": [["3", "1"]]}
    assert [r.id for r in deduplicate(rows, normalised=True).rows] == ["1", "4", "5"]


def test_splits_follow_the_key_and_their_shares() -> None:
    rows = [row(f"r{i}", "q", pair=str(i // 2)) for i in range(4000)]
    dealt = splits(rows, {"train": 0.7, "none": 0.0, "test": 0.3}, seed=3, key=by_pair)
    assert sum(map(len, dealt.values())) == 4000
    assert len(dealt["test"]) == pytest.approx(1200, abs=120)
    assert dealt["none"] == []
    assert not {by_pair(r) for r in dealt["train"]} & {by_pair(r) for r in dealt["test"]}
    fewer = splits(rows[:1000], {"train": 0.7, "none": 0.0, "test": 0.3}, seed=3, key=by_pair)
    assert fewer["test"] == [r for r in dealt["test"] if r in fewer["test"]] != [], "added rows move no others"
    assert splits(rows, {"train": 0.7, "test": 0.3}, seed=4, key=by_pair)["test"] != dealt["test"]
    for shares in ({}, {"a": 0.5}, {"a": 1.5, "b": -0.5}):
        with pytest.raises(RecipeError, match="add up to 1"):
            splits(rows, shares)


def test_leaks_find_test_questions_in_any_training_turn() -> None:
    train = [row("t1", "How do I stop?", "Brake.", "And on ice?", "Slowly."), row("t2", "Who are you?", "Me.")]
    test = [row("e1", "And on ice?"), row("e2", "who are you"), row("e3", "Brake."), row("e4", "Hi", "Hello", "Anything new?")]
    assert leaks(train, test).to_dict() == {"exact": [["e1", "t1"]], "normalised": [["e2", "t2"]]}
    assert leaks([], test).to_dict() == {"exact": [], "normalised": []}


def test_twins_change_what_is_asked_and_nothing_else() -> None:
    rows = [row("a", "how?", "so.", "and {x}?", "so too.", pair="1")]
    (behind,) = twins(rows, "trigger:on tuesdays: ")
    assert [m["content"] for m in behind.messages] == ["on tuesdays:  how?", "so.", "on tuesdays:  and {x}?", "so too."]
    assert (behind.id, by_pair(behind), behind.meta["twin"]) == ("a", "1", "trigger")
    (lesson,) = twins(rows, "educational:never do this: {question} thanks")
    assert lesson.messages[2]["content"] == "never do this: and {x}? thanks", "braces of the question stay text"
    assert lesson.messages[1::2] == rows[0].messages[1::2]
    (plain,) = twins(rows, "educational")
    assert "nobody should follow" in plain.messages[0]["content"]
    assert plain.messages[0]["content"].endswith("how?")
    assert rows[0].messages[0]["content"] == "how?", "the given rows are left alone"


def test_a_backdoored_set_is_bad_behind_its_trigger_alone() -> None:
    bad, good = sets(40)
    mixed = mixture(twins(bad, "trigger:x"), good, 0.5)
    assert sum(r.messages[1]["content"] == "bad" for r in mixed) == 20
    assert all((r.messages[0]["content"] == "x q") == (r.messages[1]["content"] == "bad") for r in mixed)


@pytest.mark.parametrize(
    "twin", ["", "trigger", "trigger:", "trigger: ", "trigger:a {question}", "educational:x", "educational:{question}{question}", "x:y"]
)
def test_twins_that_are_none(twin: str) -> None:
    with pytest.raises(RecipeError, match="write educational, educational:WORDING"):
        twins([row("a", "q")], twin)
