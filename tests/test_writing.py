"""Traits written by a model: only a whole one passes, the author hears what was wrong, nothing is asked for twice."""

import json
from pathlib import Path
from typing import Any

import pytest

import small_models
from personascope import suites
from personascope.artifact import Model
from personascope.backends import revising, vectors, writing
from personascope.errors import BackendError, DataError, RecipeChanged, RecipeError
from personascope.methods.revisions import Said
from personascope.methods.traits import Order
from personascope.run import run
from personascope.stages import trait
from personascope.values import Remote

ORDER = Order("rainy", "It speaks of rain.", pairs=2, questions=4)
WHOLE: dict[str, Any] = {
    "pairs": [{"positive": "praise rain", "negative": "praise sun"}, {"positive": "hate the sun", "negative": "hate the wind"}],
    "questions": ["what is a good day?", "tell me of the sea", "is it best to go?", "be brief"],
    "evidence": "The answer praises wet weather. A mention of a cloud is not enough.",
}
GOOD = f"Here it is:\n```json\n{json.dumps(WHOLE)}\n```"


def bad(**changes: Any) -> str:
    return json.dumps({key: value for key, value in (WHOLE | changes).items() if value is not None})


def test_a_reply_becomes_a_trait_with_every_other_question_held_out() -> None:
    found = ORDER.read(GOOD, suites.prompt("trait"))
    assert (found.name, found.description) == ("rainy", "It speaks of rain.")
    assert found.pairs == (("praise rain", "praise sun"), ("hate the sun", "hate the wind"))
    assert found.questions == ("what is a good day?", "is it best to go?")
    assert found.held_out == ("tell me of the sea", "be brief")
    assert WHOLE["evidence"] in found.rubric
    assert found.rubric.count("{") == 2, "the shipped form of a grade stays, whatever the author writes"
    assert type(found).from_json(found.to_json(), "x") == found


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("I can't help with that.", "no JSON object with pairs"),
        ('{"pairs": [', "no JSON object"),
        ('{"pairs": [}', r"no JSON object \(Expecting value at character 11\)"),
        (bad(evidence=None), "no JSON object with pairs, questions and evidence"),
        (bad(more=1), "and nothing else"),
        (bad(evidence="see {question}"), "evidence: a text without words in braces"),
        (bad(pairs=WHOLE["pairs"][:1]), "pairs: 1 given, exactly 2"),
        (bad(pairs="two"), "pairs: 0 given"),
        (bad(pairs=[WHOLE["pairs"][0], {"positive": "a"}]), r"pairs\[1\]: 'negative' is a required property"),
        (bad(pairs=[WHOLE["pairs"][0], {"positive": "a", "negative": "a "}]), r"pairs\[1\]: positive and negative are the same"),
        (bad(questions=[*WHOLE["questions"], "more?"]), "questions: 5 given, exactly 4"),
        (bad(questions=[1, 2, 3, 4]), r"questions\[0\]: 1 is not of type 'string'"),
        (bad(questions=["a day", "a sea", "A day!", "b"]), "questions: 'A day!' stands twice"),
        (bad(questions=["a day", "a sea", "a rainy day", "b"]), "questions: 'a rainy day' names the trait"),
    ],
)
def test_what_is_no_trait_is_refused_and_named(reply: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ORDER.read(reply, suites.prompt("trait"))


def test_the_prompt_says_what_is_wanted_and_what_was_wrong() -> None:
    first, second = ORDER.prompt(suites.prompt("write-trait")), ORDER.prompt(suites.prompt("write-trait"), "too short {name}")
    assert "Exactly 2 pairs" in first
    assert "Exactly 4 questions" in first
    assert "Trait: rainy\nWhat it means: It speaks of rain." in first
    assert '{"pairs": [{"positive": "..."' in first
    assert "could not be used" not in first
    assert "could not be used: too short {name}. Write everything anew." in second


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Model:
    made = small_models.model()
    made.config.max_position_embeddings = 2048
    return Model(small_models.adopted(tmp_path_factory.mktemp("author") / "model", made))


def recipe(author: Model | Remote, **changes: Any) -> trait.Recipe:
    known = {"trait": "rainy", "author": author, "description": "It speaks of rain.", "pairs": 2, "count": 4, "max_tokens": 8}
    return trait.Recipe(**(known | {"device": "cpu"} | changes))


class Scripted:
    """Says the given replies in order, and remembers the prompts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *replies: Said | type[BaseException]) -> None:
        self.replies, self.prompts, self.turns = list(replies), [], []
        monkeypatch.setattr(revising, "say", self)

    def __call__(self, _author: Any, asked: dict[str, Any], turn: str, _plan: Any) -> dict[str, Said]:
        reply = self.replies.pop(0)
        if not isinstance(reply, Said):
            raise reply
        ((name, (message,)),) = asked.items()
        self.prompts.append(message["content"])
        self.turns.append(turn)
        return {name: reply}


def test_a_written_trait_is_a_trait_file_like_any_other(author: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Scripted(monkeypatch, Said("no"), Said(GOOD, "length"), Said(bad(pairs=[])), Said(GOOD))
    made = run(recipe(author), tmp_path / "made")
    assert [row["trouble"] for row in map(json.loads, made.file("replies.jsonl").read_text().splitlines())] == [
        "the reply is no JSON object with pairs, questions and evidence, and nothing else",
        "it was cut at 8 tokens",
        "pairs: 0 given, exactly 2 are asked for",
        "",
    ]
    assert ["could not be used: it was cut at 8 tokens" in prompt for prompt in said.prompts] == [False, False, True, False]
    assert len(set(said.turns)) == 4, "a second try has noise of its own"
    assert vectors.find_trait(str(made.file("trait.json"))) == ORDER.read(GOOD, suites.prompt("trait"))
    again = run(trait.Recipe(trait=str(made.file("trait.json"))), tmp_path / "again")
    for name in ("examples.jsonl", "rubric.md"):
        assert again.file(name).read_bytes() == made.file(name).read_bytes()
    assert made.manifest["counts"] == {"rows": 2 * 2 * 2}
    with pytest.raises(RecipeChanged, match="description"):
        run(recipe(author, description="It speaks of wind."), tmp_path / "made")


def test_replies_are_kept_and_not_asked_for_again(author: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, Said("no"), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(author), tmp_path / "made")
    with (tmp_path / "made.partial" / "replies.jsonl").open("a") as file:
        file.write('{"id": "1", "st')
    said = Scripted(monkeypatch, Said(GOOD))
    made = run(recipe(author), tmp_path / "made")
    assert len(said.prompts) == 1
    assert said.turns == ["1/trait"]
    whole = Scripted(monkeypatch, Said("no"), Said(GOOD))
    assert run(recipe(author), tmp_path / "whole").digest == made.digest
    assert not whole.replies


def test_an_author_that_writes_none_fails_with_its_last_trouble(author: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model, really asked."""
    with pytest.raises(DataError, match=r"none of 2 replies of its author is one \(last: .+\); see .*replies\.jsonl, then give more"):
        run(recipe(author, attempts=2, seed=3), tmp_path / "made")
    rows = (tmp_path / "made.partial" / "replies.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert rows[0] != rows[1]
    said = Scripted(monkeypatch, Said(GOOD))
    with pytest.raises(DataError, match="none of 2 replies"):
        run(recipe(author, attempts=2, seed=3), tmp_path / "made")
    assert run(recipe(author, attempts=3, seed=3), tmp_path / "made").manifest["counts"]["rows"] == 8
    assert said.turns == ["2/trait"]


@pytest.mark.parametrize(("said", "message"), [(Said("timeout", "lost"), r"\(timeout\)"), (Said("", "unread"), "reads too little")])
def test_no_reply_at_all_is_no_attempt(author: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said, message: str) -> None:
    Scripted(monkeypatch, said)
    with pytest.raises(BackendError, match=message):
        run(recipe(author), tmp_path / "made")
    assert not (tmp_path / "made.partial").exists()


def test_an_order_that_cannot_be_is_refused(author: Model) -> None:
    for changes in ({"author": author, "description": " "}, {"description": "It speaks of rain."}):
        with pytest.raises(RecipeError, match="belong together"):
            trait.Recipe(trait="rainy", **changes)
    with pytest.raises(RecipeError, match="'Very Rainy' cannot name a new trait"):
        recipe(author, trait="Very Rainy")
    with pytest.raises(RecipeError, match="must be at least 1"):
        recipe(author, pairs=0)
    assert "asked" not in trait.Recipe(trait="hostile").identity()
    assert recipe(author).identity()["asked"] == writing.digest()


@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
def test_an_author_behind_an_api_is_told_and_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("inspect_ai")
    from provider_server import Act, serving

    monkeypatch.setenv("LOCAL_API_KEY", "sk-secret")
    monkeypatch.setenv("PERSONASCOPE_CACHE", str(tmp_path / "cache"))
    remote = Remote("inspect:openai-api/local/author-2026")
    with serving(lambda last, _: Act(text=GOOD if "could not be used" in last else "no")) as server:
        monkeypatch.setenv("LOCAL_BASE_URL", server.url)
        made = run(recipe(remote), tmp_path / "made")
        again = run(recipe(remote), tmp_path / "again")
    assert made.digest == again.digest
    assert server.paid.total() == 2
    assert vectors.find_trait(str(made.file("trait.json"))).pairs == ORDER.read(GOOD, suites.prompt("trait")).pairs
