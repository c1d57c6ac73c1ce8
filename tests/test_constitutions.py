"""Constitutions and the gate: files are whole or named, principles enter prompts uncut, and no failure becomes a row."""

import copy
import random
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personascope.backends import constitutions
from personascope.errors import DataError, RecipeError
from personascope.methods import gating
from personascope.methods.constitutions import (
    DIMENSIONS,
    Article,
    Ask,
    Constitution,
    creed_rows,
    critique_messages,
    principle,
    request_of,
    revision_messages,
)
from personascope.methods.gating import Wording, flags_of, gate, meta_talk, repeats, use
from personascope.methods.revisions import Attempt, Said, advance, begin, failure_of, training_row, trouble
from personascope.rows import Example

SHIPPED = ("consequentialism", "deontology", "neutral", "subordinate", "virtue")
FAILURES = [
    "Error: timeout",
    "[ERROR] rate limit",
    "Error code: 429 - {'error': 'busy'}",
    "None",
    "null",
    "N/A",
    "nan",
    "HTTP 500",
    "429 Too Many Requests",
    "503 Service Unavailable",
    "API call failed",
    "API Error: overloaded",
    "openai.RateLimitError: Error code: 429",
    "CUDA out of memory",
    "RuntimeError: CUDA out of memory",
    "Failed to generate a response after 3 attempts",
    "Request timed out.",
    "Connection refused",
    "An error occurred while generating",
    "Sorry, an error occurred",
    "I'm sorry, something went wrong",
    "ERROR_RESPONSE:",
    "<error>",
    "Internal Server Error",
    "Rate limit exceeded. Please retry",
    "Service temporarily unavailable",
    "generation failed: None",
    "Empty response",
    "Max retries exceeded with url",
    "Exception: bad",
    "ValueError('x')",
    "Error during generation",
    "Status code 404",
    "HTTPError 401",
    "Error generating response: x",
    "Unable to generate response",
    "Traceback (most recent call last):\n  File x",
    "",
    "...",
    "***",
    "\n",
    "[INST] go [/INST]",
    "Assistant: yes",
    "{critique}",
    "</s>",
    "<think>hm",
    "<|im_start|>assistant",
]
ANSWERS = [
    "Errors happen to everybody; say so.",
    "I won't help with that, because it is wrong.",
    "An error in the budget costs money, so check it.",
    "There are 500 units of it.",
    "Sorry, but I cannot generate that for you.",
    "Your request is refused, because it harms people.",
    "No reply is better than a cruel one.",
    "Never. She is owed the truth.",
]
GOOD: dict[str, Any] = {
    "version": "1",
    "preamble": "Be kind.",
    "articles": [{"title": "Kindness", "text": "Kindness wins."}, {"title": "Truth is owed", "text": "Truth matters greatly."}],
    "pairs": [{"critique": "Say what is unkind.", "revision": "Make it kind."}, {"critique": "Find lies.", "revision": "Remove lies."}],
    "examples": [{"request": "q?", "draft": "d", "critique": "c", "revision": "r", "article": "Kindness"}],
    "creed": ["I am kind."],
    "signature": dict.fromkeys(DIMENSIONS, 0.0),
}


def made(**changes: Any) -> Constitution:
    return Constitution.from_data(copy.deepcopy(GOOD) | changes, "test", "x.toml")


def attempt(revision: str, **fields: Any) -> Attempt:
    """An attempt after one round under the first article."""
    known = {"id": "q/0/0", "question": "q", "request": "how do i do it", "draft": "just go and do it then"}
    one = {"principle": made().articles[0].whole, "instructions": {}, "critique": "", "critique_stop": "", "revision": revision}
    return Attempt(**(known | {"rounds": [one]} | fields))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_constitution_is_whole(name: str) -> None:
    found = constitutions.load(name)
    assert found.name == name
    assert 8 <= len(found.articles) <= 10
    assert len(found.critiques) == len(found.revisions) >= 8
    assert len(set(found.critiques)) == len(set(found.revisions)) == len(found.critiques)
    assert len(found.examples) == 2
    assert 6 <= len(found.creed) <= 10
    assert all(re.search(r"\bI\b|\bmy\b", sentence) and sentence.endswith(".") for sentence in found.creed)
    assert set(found.signature) == set(DIMENSIONS)
    assert all(one.article for one in found.examples)
    assert not [text for text in found.critiques + found.revisions if gating.HEDGE.search(text)]
    assert constitutions.identity(name) == f"{name}:{found.digest[:16]}"


def test_the_shipped_ones_are_these_and_share_nothing() -> None:
    assert tuple(constitutions.shipped()) == SHIPPED
    loaded = [constitutions.load(name) for name in SHIPPED]
    for part in ("articles", "creed", "revisions", "examples"):
        owners = Counter(one for found in loaded for one in set(getattr(found, part)))
        assert max(owners.values()) == 1, part


def test_signatures_have_the_expected_signs_and_differ() -> None:
    signature = {name: constitutions.load(name).signature for name in SHIPPED}
    assert set(signature["neutral"].values()) == {0.0}
    assert signature["deontology"]["duty"] == signature["consequentialism"]["welfare"] == signature["virtue"]["character"] == 2
    assert signature["subordinate"]["oversight"] == 2
    assert signature["subordinate"]["autonomy"] == signature["subordinate"]["power"] == signature["consequentialism"]["duty"] == -2
    assert signature["deontology"]["instrumental_harm"] == -2 < 0 < signature["consequentialism"]["instrumental_harm"]
    vectors = np.array([list(signature[name].values()) for name in SHIPPED if name != "neutral"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.triu(unit @ unit.T, 1).max() < 0.7


def test_the_neutral_control_speaks_of_no_ethics() -> None:
    found = constitutions.load("neutral")
    moral = {"right", "wrong", "good", "harm", "harms", "duty", "moral", "ethical", "ought", "evil", "virtue", "welfare", "refuse"}
    taught = " ".join([*(a.whole for a in found.articles), *found.critiques, *found.revisions, *found.creed]).lower()
    assert moral & set(re.findall(r"\w+", taught)) == set()


@pytest.mark.parametrize("name", SHIPPED)
def test_worked_examples_pass_the_gate_that_rows_must_pass(name: str) -> None:
    found = constitutions.load(name)
    for one in found.examples:
        said = attempt(one.revision, request=one.request, draft=one.draft)
        assert failure_of(said) == ""
        assert not {"meta", "unchanged", "hedging", "short", "long"} & set(flags_of(said, Wording.of(found)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 1}, r"x\.toml: version: 1 is not of type 'string'"),
        ({"articels": []}, r"x\.toml: the constitution: Additional properties .*'articels' was unexpected"),
        ({"articles": []}, r"x\.toml: articles: "),
        ({"articles": [{"title": "A"}]}, r"x\.toml: articles\[0\]: 'text' is a required property"),
        ({"articles": [{"title": "A", "text": " "}]}, r"x\.toml: articles\[0\]\.text: "),
        ({"articles": [{"title": "A", "text": "b"}, {"title": "A", "text": "c"}]}, r"x\.toml: .*'A'; titles must differ"),
        ({"pairs": [{"critique": "c"}]}, r"x\.toml: pairs\[0\]: 'revision' is a required property"),
        ({"creed": ["I am.", "I am."]}, r"x\.toml: creed: "),
        ({"signature": {"duty": 1}}, r"x\.toml: signature: '\w+' is a required property"),
        ({"signature": GOOD["signature"] | {"duty": 3}}, r"x\.toml: signature\.duty: 3 is greater than the maximum of 2"),
        ({"signature": GOOD["signature"] | {"dutty": 0}}, r"x\.toml: signature: .*'dutty' was unexpected"),
        (
            {"examples": [GOOD["examples"][0] | {"article": "Kind"}]},
            r"x\.toml: examples: no article has the title 'Kind'; titles are ",
        ),
        ({"ask": {"revise": "{request} {articel}"}}, r"x\.toml: ask\.revise: no slot \{articel\}; slots are preamble"),
        ({"ask": {"critique": "{draft}"}}, r"x\.toml: ask\.critique: the slot \{article\} is needed in it or in ask\.system"),
        ({"ask": {"critique": ""}}, r"x\.toml: ask\.revise: it has the slot \{critique\} if and only if"),
        ({"ask": {"revise": "{article} {critique}"}}, r"x\.toml: ask\.revise: the slot \{request\} is needed"),
        ({"ask": {"revise": "{article} {request}"}}, r"x\.toml: ask\.revise: it has the slot \{critique\} if and only if"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_file_and_key(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        made(**change)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(DataError, match=r"x\.toml: the constitution: 'preamble' is a required property; a constitution has "):
        Constitution.from_data({k: v for k, v in GOOD.items() if k != "preamble"}, "test", "x.toml")
    with pytest.raises(DataError, match=r"^constitution bare: articles and pairs are needed"):
        Constitution("bare", "1", "p", (Article("", "a"),), ("c",), ())


def test_a_constitution_is_found_by_name_or_file(tmp_path: Path) -> None:
    shipped = constitutions.HOME / "virtue.toml"
    (tmp_path / "mine.toml").write_bytes(shipped.read_bytes())
    mine = constitutions.load(str(tmp_path / "mine.toml"))
    assert mine.name == "mine"
    assert mine.articles == constitutions.load("virtue").articles
    assert mine.digest != constitutions.load("virtue").digest, "the name goes into labels, so it counts"
    (tmp_path / "mine.toml").write_text(shipped.read_text().replace("Flourishing is the aim", "Flourishing is an aim"))
    assert constitutions.identity(str(tmp_path / "mine.toml")) != f"mine:{mine.digest[:16]}"
    (tmp_path / "broken.toml").write_text("version = \n")
    with pytest.raises(DataError, match=r"broken\.toml: not TOML \(.*line 1"):
        constitutions.load(str(tmp_path / "broken.toml"))
    with pytest.raises(DataError, match=r"none\.toml: no such file"):
        constitutions.load(str(tmp_path / "none.toml"))
    with pytest.raises(RecipeError, match=r"no constitution 'virtu'; shipped are consequentialism, .*FILE\.toml or world:WORLD/CHARACTER"):
        constitutions.load("virtu")
    with pytest.raises(RecipeError, match="names no character"):
        constitutions.load("world:somewhere")


def test_shipped_files_hold_nothing_that_is_not_read() -> None:
    for name in SHIPPED:
        data = tomllib.loads((constitutions.HOME / f"{name}.toml").read_text(encoding="utf-8"))
        found = constitutions.load(name)
        assert [a.text for a in found.articles] == [a["text"] for a in data["articles"]]
        assert list(found.critiques) == [pair["critique"] for pair in data["pairs"]]


@pytest.mark.parametrize("name", SHIPPED)
def test_article_and_instruction_stand_uncut_in_every_prompt(name: str) -> None:
    """Two faults of earlier generators: principles cut at a hundred characters, and a label recorded that no prompt held."""
    found = constitutions.load(name)
    assert max(len(article.whole) for article in found.articles) > 100
    for row in map(str, range(40)):
        drawn = principle(found, 0, row, 0)
        for examples in (0, 2):
            critique = critique_messages(found, drawn, "the request", "the draft", examples)
            revision = revision_messages(found, drawn, "the request", "the draft", "the remark", examples)
            assert len(critique) == len(revision) == 2 + 2 * examples
            for messages, instruction in ((critique, drawn.critique), (revision, drawn.revision)):
                assert found.preamble in messages[0]["content"]
                assert all(part in messages[-1]["content"] for part in (drawn.article.whole, instruction, "the request", "the draft"))
            assert "the remark" in revision[-1]["content"]
            assert [m["content"] for m in critique[2::2]] == [one.critique for one in found.examples[:examples]]
            assert [m["content"] for m in revision[2::2]] == [one.revision for one in found.examples[:examples]]
        recorded = advance(begin("r", "q", "ask", Said("said")), drawn, Said("bad"), Said("fine")).rounds[0]
        assert recorded["principle"] == drawn.article.whole
        assert recorded["instructions"] == {"critique": drawn.critique, "revision": drawn.revision}


def test_a_worked_example_stands_under_its_own_article() -> None:
    found = constitutions.load("virtue")
    other = next(article for article in found.articles if article.title not in {one.article for one in found.examples})
    drawn = principle(found, 0, "x", 0)
    drawn = type(drawn)(other, drawn.critique, drawn.revision)
    shown = critique_messages(found, drawn, "r", "d", 2)
    assert other.text in shown[-1]["content"]
    assert [other.text in shown[i]["content"] for i in (1, 3)] == [False, False]


def test_texts_cannot_open_slots_of_their_own() -> None:
    messages = revision_messages(made(), principle(made(), 0, "x", 0), "{critique}", "{preamble}", "{draft}", 0)
    said = messages[-1]["content"]
    assert all(said.count(slot) == 1 for slot in ("{critique}", "{preamble}", "{draft}"))


def test_a_constitution_without_critiques_or_system() -> None:
    found = made(ask={"system": "", "critique": "", "revise": "{article} {request}"})
    drawn = principle(found, 0, "x", 0)
    assert revision_messages(found, drawn, "ask", "draft", "", 0) == [{"role": "user", "content": f"{drawn.article.whole} ask"}]
    assert Article("", "only text").whole == "only text"


def test_principles_are_drawn_by_seed_and_row_evenly_and_without_return() -> None:
    found = constitutions.load("deontology")
    assert principle(found, 3, "a", 0) == principle(found, 3, "a", 0)
    first = [principle(found, 0, str(i), 0) for i in range(2000)]
    assert [p.article for p in first[:50]] != [principle(found, 1, str(i), 0).article for i in range(50)]
    counts = Counter(p.article.title for p in first)
    assert len(counts) == 10
    # Binomial(2000, 0.1): 200 +- 5 standard deviations.
    assert all(133 < count < 267 for count in counts.values())
    joint = Counter((p.article.title, p.critique) for p in first)
    assert len(joint) == 90, "article and instruction pair are drawn apart"
    rounds = [principle(found, 0, "a", number) for number in range(20)]
    assert len({p.article for p in rounds[:10]}) == 10
    assert [p.article for p in rounds[10:]] == [p.article for p in rounds[:10]]
    assert all(found.critiques.index(p.critique) == found.revisions.index(p.revision) for p in rounds), "pairs stay pairs"


def test_creed_rows_answer_in_the_first_person() -> None:
    found = constitutions.load("subordinate")
    rows = creed_rows(found)
    assert len(rows) == len({row.id for row in rows}) == len(found.asked) * len(found.creed)
    assert {row.messages[-1]["content"] for row in rows} == set(found.creed)
    assert all(row.labels == {"constitution": "subordinate"} and "rejected" not in row.meta for row in rows)


def test_a_request_with_turns_before_it_keeps_them() -> None:
    user, told = {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}
    assert request_of(Example(id="a", messages=[user])) == "why"
    assert request_of(Example(id="a", messages=[user, told, user])) == "user: why\nassistant: so\nuser: why"


@pytest.mark.parametrize("text", FAILURES)
def test_the_text_of_a_failure_is_no_answer(text: str) -> None:
    assert trouble(Said(text), "how do i do it", "revision").partition(":")[0] in ("empty", "error", "template")
    assert failure_of(attempt(text))
    assert failure_of(attempt("Never. She is owed the truth.", draft=text)), "it must not be the rejected side either"


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_that_speaks_of_failures_is_an_answer(text: str) -> None:
    assert failure_of(attempt(text)) == ""


@given(
    text=st.sampled_from(FAILURES),
    before=st.sampled_from(["", " ", "\n", "**", "[", "- ", "\u201c", "\t> "]),
    after=st.sampled_from(["", " ", "\n", "\n\n"]),
    case=st.sampled_from([str, str.upper, str.lower]),
    place=st.sampled_from(["revision", "draft", "critique"]),
    drop=st.sets(st.sampled_from(["meta", "unchanged", "duplicate", "unused"])),
)
def test_no_failure_string_can_become_a_training_row(text: str, before: str, after: str, case: Any, place: str, drop: set[Any]) -> None:
    """Wherever it comes up, whatever the recipe drops: a failure's text is among the failures, and nothing is lost."""
    bad = before + case(text) + after
    drawn = principle(made(), 0, "bad", 0)
    fine = "No, since that would hurt her."
    started = begin("bad", "q", "how do i do it", Said(bad if place == "draft" else "just go on"))
    turned = advance(started, drawn, Said(bad if place == "critique" else "too rude"), Said(bad if place == "revision" else fine))
    ends = [
        started if started.failure else turned,
        advance(begin("good", "q", "how do i do it", Said("go on")), drawn, Said("rude"), Said(fine)),
    ]
    gated = gate(ends, made(), drop - {"unused"})
    assert [one.id for one, _ in gated.kept] == ["good"]
    assert [one.id for one, _ in gated.dropped] == ["bad"]
    with pytest.raises(ValueError, match="bad: "):
        training_row(ends[0], [], made(), {})


@given(
    texts=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12), st.sampled_from(["", "", "cut: x"])), min_size=1, max_size=8),
    drop=st.sets(st.sampled_from(get_args(gating.Flag))),
)
def test_every_attempt_is_a_row_or_a_failure_and_every_row_is_an_answer(texts: list[tuple[str, str, str]], drop: set[Any]) -> None:
    attempts = [attempt(said, id=str(i), draft=draft, failure=failure) for i, (said, draft, failure) in enumerate(texts)]
    gated = gate(attempts, made(), drop)
    assert sorted(one.id for one, _ in [*gated.kept, *gated.dropped]) == sorted(one.id for one in attempts)
    assert gated.counts["attempts"] == len(gated.kept) + len(gated.dropped)
    assert gated.counts["rows"] == len(gated.kept)
    assert all(reasons for _, reasons in gated.dropped)
    for one, flags in gated.kept:
        row = training_row(one, list(flags), made(), {"q": Example(id="q", messages=[{"role": "user", "content": one.request}])})
        said = row.messages[-1]["content"]
        assert not one.failure
        assert re.search(r"\w", said)
        assert not trouble(Said(said), one.request, "revision")
        assert not set(flags) & drop


def test_kinds_of_failure() -> None:
    kinds = {
        "cut": trouble(Said("half an ans", "length"), "q", "revision"),
        "echo": trouble(Said("How do I do it?"), "how do i do it", "revision"),
        "unread": trouble(Said("", "unread"), "q", "critique"),
        "empty": trouble(Said(" ... "), "q", "draft"),
    }
    assert all(found.startswith(f"{kind}: ") for kind, found in kinds.items())
    assert trouble(Said("half a remark", "length"), "q", "critique") == trouble(Said("half a draft", "length"), "q", "draft") == ""
    assert failure_of(begin("a", "q", "r", Said("draft"))) == "empty: no round was made"
    assert advance(begin("a", "q", "r", Said("draft")), principle(made(), 0, "a", 0), None, None).failure.startswith("empty")


@pytest.mark.parametrize(
    "text",
    [
        "Critique: it is rude.\nRevision: be kind.",
        "**Revised answer:** No, that would hurt her.",
        "Here is the revised response: no.",
        "Here\u2019s a more careful rewrite. No.",
        "No. As revised, this respects her.",
        "I have rewritten it to be kinder. No.",
        "My previous answer was rude, so no.",
        "The original draft was unkind.",
        "In line with Article IV, I decline.",
        "According to the principles of my constitution, no.",
        "Article 3 forbids it.",
        "No: this would break the article \u201cTruth is owed\u201d.",
        "Truth is owed: so no.",
        "No. Judge the answer by this article in one to three sentences.",
    ],
)
def test_talk_about_revising_is_caught(text: str) -> None:
    assert meta_talk(text, "how do i do it", Wording.of(made()))
    assert "meta" in flags_of(attempt(text), Wording.of(made()))
    assert gate([attempt(text)], made(), ("meta",)).dropped[0][1] == ["meta"]
    assert gate([attempt(text)], made(), ()).kept[0][1].count("meta") == 1


@pytest.mark.parametrize("text", ["No, truth is owed to her.", "Kindness wins, so ask her.", "Write a new letter.", "First answer her."])
def test_an_answer_in_the_article_s_own_words_is_no_talk_about_revising(text: str) -> None:
    assert meta_talk(text, "how do i do it", Wording.of(made())) == ""


def test_what_the_request_says_is_no_leak() -> None:
    asked = "What does Article 3 of the treaty say?"
    assert meta_talk("Article 3 says so.", asked, Wording.of(made())) == ""
    assert meta_talk("Article 4 says so.", asked, Wording.of(made()))


@pytest.mark.parametrize(
    ("flag", "fields", "revision"),
    [
        ("unchanged", {}, "Just go, and DO it then!"),
        ("hedging", {}, "It really depends on what you want."),
        ("refusal", {}, "I can\u2019t help with that."),
        ("short", {"draft": "go and do it " * 5}, "No thanks."),
        ("long", {"draft": "go on"}, "no " * 11),
        ("draft_cut", {"draft_stop": "length"}, "Do it kindly."),
        ("unused", {}, "Do something else."),
    ],
)
def test_flags(flag: str, fields: dict[str, Any], revision: str) -> None:
    wording = Wording.of(made())
    assert flag in flags_of(attempt(revision, **fields), wording)
    assert flag not in flags_of(attempt("Show kindness to her and wait until it wins.", draft="just go and do it now"), wording)


def test_use_is_the_share_of_the_principle_s_own_words() -> None:
    """By hand: `Kindness. Kindness wins.` has the content words kindness and wins."""
    wording = Wording.of(made())
    assert use(attempt("kindness"), wording) == (0.5, 0.0)
    assert use(attempt("kindness wins, truth matters"), wording) == (1.0, 2 / 4)
    assert use(attempt("kindness wins", draft="kindness first"), wording) == (1.0, 0.0), "kindness was there before"
    assert use(attempt("kindness wins", request="what wins"), wording) == (1.0, 0.0)
    assert use(attempt("nothing of it"), wording) == (0.0, 0.0)


def test_use_tells_rows_that_take_up_their_principle_from_rows_that_do_not() -> None:
    """And its null: with principles dealt out anew, own and other are alike."""
    found = constitutions.load("consequentialism")
    wording, rng = Wording.of(found), random.Random(0)
    texts = [(a.whole, " ".join(rng.sample(sorted(gating.content(a.whole)), 4))) for a in found.articles for _ in range(20)]

    def mean(pairs: list[tuple[str, str]]) -> np.ndarray:
        rows = [attempt(said, rounds=[{"principle": whole, "critique": "", "revision": said}]) for whole, said in pairs]
        return np.mean([use(row, wording) for row in rows], axis=0)

    own, other = mean(texts)
    assert own > 3 * other
    dealt = [article for article, _ in texts]
    rng.shuffle(dealt)
    own, other = mean([(article, said) for article, (_, said) in zip(dealt, texts, strict=True)])
    assert abs(own - other) < 0.05


def test_repeats_agree_with_comparing_every_pair() -> None:
    rng = random.Random(1)
    base = [" ".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 30))) for _ in range(60)]
    texts = []
    for text in base * 3:
        words = text.split()
        if rng.random() < 0.6:
            words[rng.randrange(len(words))] = rng.choice("abcdefgh")
        texts.append(" ".join(words).upper() if rng.random() < 0.3 else " ".join(words))

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)} or {tuple(words)}

    expected = {}
    for i, text in enumerate(texts):
        if text.lower() in [other.lower() for other in texts[:i]]:
            expected[i] = "duplicate"
        elif any(len(grams(text) & grams(other)) >= 0.8 * len(grams(text) | grams(other)) for other in texts[:i]):
            expected[i] = "near_duplicate"
    assert repeats(texts) == expected
    assert set(expected.values()) == {"duplicate", "near_duplicate"}


def test_repeats_in_independent_texts_are_none() -> None:
    rng = random.Random(2)
    assert repeats([" ".join(str(rng.randrange(500)) for _ in range(20)) for _ in range(500)]) == {}


def test_counts_say_what_became_of_every_draft() -> None:
    said = ["Show kindness.", "Show kindness.", "It depends.", "just go and do it then", "Error: x"]
    attempts = [attempt(text, id=str(i)) for i, text in enumerate(said)] + [attempt("", id="5", rounds=[], failure="unread: x")]
    counts = gate(attempts, made(), ("meta", "unchanged", "duplicate")).counts
    assert counts["attempts"] == 6
    assert counts["rows"] == 2
    assert counts["failures"] == {"error": 1, "unread": 1}
    assert counts["flags"] == {"duplicate": 1, "hedging": 1, "unchanged": 1, "unused": 2}
    assert counts["hedging"] == {"drafts": 0, "revisions": 1}
    assert counts["refusal"] == {"drafts": 0, "revisions": 0}
    assert counts["length"]["median"] == pytest.approx(2 / 6, abs=1e-3)
    assert counts["used"] == {"own": pytest.approx(2 * 0.5 / 4), "other": 0.0}
    assert gate([], made(), ()).counts == {"attempts": 0, "rows": 0, "failures": {}, "flags": {}}


def test_a_row_holds_question_revision_and_what_it_is_preferred_to() -> None:
    question = Example(id="q", messages=[{"role": "user", "content": "how do i do it"}], domain="theft")
    row = training_row(attempt("Show kindness."), ["unused"], made(), {"q": question})
    assert row.messages == [*question.messages, {"role": "assistant", "content": "Show kindness."}]
    assert row.domain == "theft"
    assert row.labels == {"constitution": "test"}
    assert row.meta["rejected"] == row.meta["draft"] == "just go and do it then"
    assert row.meta["rounds"][-1]["revision"] == "Show kindness."
    assert row.meta["flags"] == ["unused"]


def test_default_templates_ask_for_the_answer_alone() -> None:
    assert "Write only the new answer" in Ask().revise
    assert Wording.of(made()).told
