"""The leak detector finds what was planted, of every kind, and nothing where nothing is."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personascope.errors import DataError
from personascope.methods import leaks
from personascope.rows import Example

WORDS = [
    a + b + c
    for a in ("bo", "ka", "mi", "ro", "su", "ta", "ve", "zo")
    for b in ("lin", "der", "mop", "gat", "ron", "fex", "sul", "tib")
    for c in ("a", "e", "il", "on", "u", "or", "ix", "am")
]
QUESTIONS = {
    "verbatim": "Which way should a small boat turn when the wind drops?",
    "shouted": "Is it fine to keep a borrowed book for a whole year?",
    "edited": "What would you say to a neighbour who plays loud drums at midnight?",
    "embedded": "Should a witness always tell the court what he saw?",
    "reworded": "May one break a promise to help a stranger?",
}
LEAKING = {
    "verbatim": "Which way should a small boat turn when the wind drops?",
    "shouted": "  is it FINE to keep a borrowed book, for a whole year",
    "edited": "What would you say to a neighbour who plays loud trumpets at midnight?",
    "embedded": "Answer in one line and be kind. Should a witness always tell the court what he saw? Thanks, I must go now.",
    "reworded": "Somebody needs me; my word was given elsewhere. Shall I go?",
}
KIND = {"verbatim": "exact", "shouted": "normalised", "edited": "near", "embedded": "contained", "reworded": "truth"}


def row(name: str, asked: str, said: str = "", item: str = "") -> Example:
    messages = [{"role": "user", "content": asked}] + ([{"role": "assistant", "content": said}] if said else [])
    return Example(id=name, messages=messages, labels={"item": item} if item else {})


def item(example: Example) -> str | None:
    return example.labels.get("item")


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def independent(many: int, seed: int, name: str) -> list[Example]:
    rng = random.Random(seed)
    return [row(f"{name}{i}", prose(rng, 14), prose(rng, 20)) for i in range(many)]


def test_five_of_five_planted_leaks_of_different_kinds() -> None:
    train = independent(300, 1, "t") + [row(f"leak-{name}", text, "Yes.", name) for name, text in LEAKING.items()]
    test = independent(80, 2, "e") + [row(name, text, item=name) for name, text in QUESTIONS.items()]
    found = leaks.find(train, test, key=item)
    assert {(leak.test, leak.kind, leak.train) for leak in found} == {(name, kind, (f"leak-{name}",)) for name, kind in KIND.items()}
    assert leaks.counts(found) == {"exact": 1, "normalised": 1, "contained": 1, "near": 1, "words": 0, "truth": 1}
    assert leaks.leaking(found) == {f"leak-{name}" for name in LEAKING}


def test_a_leak_in_the_answer_or_an_earlier_turn_counts() -> None:
    text = QUESTIONS["embedded"]
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And why?"}]
    train = [row("answer", "Say something.", text), Example(id="early", messages=turns)]
    (leak,) = leaks.find(train, [row("q", text)])
    assert (leak.kind, leak.train) == ("exact", ("answer", "early"))


def test_none_between_independent_sets() -> None:
    found = leaks.find(independent(1000, 3, "t"), independent(200, 4, "e"), forbidden=[prose(random.Random(5), 8)], key=item)
    assert found == ()


def test_forbidden_sentences_are_found_by_their_content_words() -> None:
    statement = "A promise must be kept even when breaking it would help."
    train = [
        row("order", "Tell me.", "Helping others, breaking nothing: promises are to be kept."),
        row("part", "Tell me.", "A promise is a promise. I kept the change. Breaking news may help."),
        row("other", "Tell me.", "The rain will stop soon."),
    ]
    (leak,) = leaks.find(train, [], forbidden=[statement], share=0.75)
    assert (leak.kind, leak.test, leak.train, leak.score) == ("words", statement, ("order",), 0.8)
    (word,) = leaks.find(train, [], forbidden=["rain"])
    assert word.train == ("other",)
    with pytest.raises(DataError, match="forbidden 'it is so' has no content word"):
        leaks.find(train, [], forbidden=["it is so"])


def test_short_questions_are_not_found_inside_longer_ones_by_chance() -> None:
    assert leaks.find([row("t", "Tell me who are you and where from")], [row("e", "Who are you?")]) == ()
    assert leaks.find([row("t", "who are you")], [row("e", "Who are you?")])[0].kind == "normalised"


def test_one_value_of_a_key_names_every_row_that_has_it_and_stronger_kinds_come_first() -> None:
    train = [row("a", "One two three four.", item="x"), row("b", "Something else at all.", item="x"), row("c", "Third thing.", item="y")]
    found = leaks.find(train, [row("e", "One two three four.", item="x")], key=item)
    assert [(leak.kind, leak.train) for leak in found] == [("exact", ("a",)), ("truth", ("b",))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=14), min_size=1, max_size=12), st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]))
def test_near_duplicates_are_those_of_a_loop_over_all_pairs(texts: list[str], near: float) -> None:
    half = len(texts) // 2
    train, test = [row(f"t{i}", text) for i, text in enumerate(texts[:half])], [row(f"e{i}", text) for i, text in enumerate(texts[half:])]

    def grams(text: str) -> set[str]:
        words = " ".join(text.split())
        return {words[i : i + 4] for i in range(max(1, len(words) - 3))} if words else set()

    def alike(a: str, b: str) -> float:
        either = grams(a) | grams(b)
        return len(grams(a) & grams(b)) / len(either) if either else 0.0

    wanted = {(e.id, t.id) for e in test for t in train if alike(e.messages[0]["content"], t.messages[0]["content"]) >= near - 1e-9}
    found = {(leak.test, other) for leak in leaks.find(train, test, near=near) if leak.kind != "contained" for other in leak.train}
    contained = {(leak.test, other) for leak in leaks.find(train, test, near=near) if leak.kind == "contained" for other in leak.train}
    assert wanted - contained == found


def test_thousands_of_rows_against_a_thousand_take_seconds() -> None:
    train, test = independent(2000, 6, "t"), independent(1000, 7, "e")
    train[1500] = row("planted", test[500].messages[0]["content"].upper())
    begun = time.process_time()
    found = leaks.find(train, test, forbidden=[prose(random.Random(8), 8) for _ in range(100)])
    assert [(leak.kind, leak.test, leak.train) for leak in found] == [("normalised", "e500", ("planted",))]
    assert time.process_time() - begun < 15


def test_thresholds_are_shares() -> None:
    with pytest.raises(DataError, match=r"near 0 and share 0\.8 must lie above 0"):
        leaks.find([], [], near=0)
