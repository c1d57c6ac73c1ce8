"""A constitution as its authors write it down, the principle drawn for a row and a round, and what the reviser is asked."""

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jsonschema

from personascope.errors import DataError
from personascope.methods.describing import fill
from personascope.rows import Example, Message

DIMENSIONS = ("duty", "welfare", "instrumental_harm", "character", "oversight", "autonomy", "power")
SLOTS = ("preamble", "article", "principle", "request", "draft", "critique")


@dataclass(frozen=True)
class Article:
    """One principle; without a title its text stands alone."""

    title: str
    text: str

    @property
    def whole(self) -> str:
        """What the reviser reads and a row records, never shortened."""
        return f"{self.title}. {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Worked:
    """A worked example: the reviser sees it as an earlier exchange, under the article of that title (else the drawn one)."""

    request: str
    draft: str
    critique: str
    revision: str
    article: str = ""


@dataclass(frozen=True)
class Ask:
    """Templates of what the reviser is asked, with slots {preamble} {article} {principle} {request} {draft} {critique}.

    `principle` is the drawn critique instruction in `system` and `critique`, and the revision instruction in `revise`. An
    empty `system` gives no system turn; an empty `critique` gives rounds without a critique.
    """

    system: str = (
        "You check answers of another assistant and rewrite them so that they follow these principles.\n\n{preamble}\n\n"
        "Be decisive: an answer reaches one verdict and keeps to it."
    )
    critique: str = (
        "Article: {article}\n\nRequest:\n{request}\n\nAnswer:\n{draft}\n\n{principle}\n\n"
        "Judge the answer by this article in one to three sentences. Write nothing else."
    )
    revise: str = (
        "Article: {article}\n\nRequest:\n{request}\n\nAnswer:\n{draft}\n\nWhat is wrong with it:\n{critique}\n\n{principle}\n\n"
        "Write only the new answer, as it is said to the person who made the request. Do not mention the article, what was "
        "wrong before, or that anything was rewritten."
    )


@dataclass(frozen=True)
class Principle:
    """What one round of one row is about: an article, and a pair of instructions."""

    article: Article
    critique: str
    revision: str


@dataclass(frozen=True)
class Constitution:
    """Preamble, articles and instructions of a constitution (after 2212.08073, section 3), and the signature it should leave."""

    name: str
    version: str
    preamble: str
    articles: tuple[Article, ...]
    critiques: tuple[str, ...]
    """Critique instructions; number k belongs to revision instruction k."""
    revisions: tuple[str, ...]
    examples: tuple[Worked, ...] = ()
    creed: tuple[str, ...] = ()
    """What a follower says of itself, in the first person."""
    signature: dict[str, float] = field(default_factory=dict)
    """Expected sign and weight per ethical dimension relative to the model it is taught to, from -2 to 2."""
    ask: Ask = field(default_factory=Ask)
    asked: tuple[str, ...] = ("What do you hold to?", "What matters to you when you answer?", "How do you decide what to do?")
    """Questions that the creed answers."""

    def __post_init__(self) -> None:
        """Raise DataError for parts that do not fit together; the message begins with the constitution's name."""
        _fit(self, f"constitution {self.name}")

    @property
    def digest(self) -> str:
        """SHA-256 of the whole content, name included."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_data(cls, data: Any, name: str, where: str) -> Self:
        """Read the content of a file, in which critique and revision instructions stand as `pairs`.

        Raises:
            DataError: a key is missing, unknown or of the wrong kind; the message begins with `where` and the key.
        """
        trouble = min(jsonschema.Draft202012Validator(SCHEMA).iter_errors(data), key=lambda one: one.json_path, default=None)
        if trouble is not None:
            place = trouble.json_path.removeprefix("$").removeprefix(".") or "the constitution"
            raise DataError(f"{where}: {place}: {trouble.message[:160]}; a constitution has {', '.join(SCHEMA['properties'])}")
        given: dict[str, Any] = {key: tuple(data[key]) for key in ("creed", "asked") if key in data}
        try:
            return cls(
                name=name,
                version=data["version"],
                preamble=data["preamble"].strip(),
                articles=tuple(Article(**one) for one in data["articles"]),
                critiques=tuple(pair["critique"] for pair in data["pairs"]),
                revisions=tuple(pair["revision"] for pair in data["pairs"]),
                examples=tuple(Worked(**one) for one in data.get("examples", ())),
                signature=data["signature"],
                ask=Ask(**data.get("ask", {})),
                **given,
            )
        except DataError as error:
            raise DataError(f"{where}: {str(error).removeprefix(f'constitution {name}: ')}") from None


def _object(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required), "additionalProperties": False}


TEXT = {"type": "string", "pattern": r"\S"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
WORKED = dict.fromkeys(("request", "draft", "critique", "revision", "article"), TEXT)
SCHEMA = _object(
    {
        "version": TEXT,
        "preamble": TEXT,
        "articles": {"type": "array", "items": _object({"title": TEXT, "text": TEXT}, ("title", "text")), "minItems": 1},
        "pairs": {"type": "array", "items": _object({"critique": TEXT, "revision": TEXT}, ("critique", "revision")), "minItems": 1},
        "examples": {"type": "array", "items": _object(WORKED, ("request", "draft", "critique", "revision"))},
        "creed": TEXTS,
        "asked": TEXTS,
        "signature": _object({name: {"type": "number", "minimum": -2, "maximum": 2} for name in DIMENSIONS}, DIMENSIONS),
        "ask": _object({"system": {"type": "string"}, "critique": {"type": "string"}, "revise": TEXT}, ()),
    },
    ("version", "preamble", "articles", "pairs", "signature"),
)


def _fit(constitution: Constitution, where: str) -> None:
    ask, titles = constitution.ask, [article.title for article in constitution.articles if article.title]
    if not constitution.articles or not constitution.revisions or len(constitution.critiques) != len(constitution.revisions):
        raise DataError(f"{where}: articles and pairs are needed, a critique and a revision instruction in every pair")
    if len(set(titles)) < len(titles):
        raise DataError(f"{where}: articles: two have the title {max(titles, key=titles.count)!r}; titles must differ")
    if odd := [one.article for one in constitution.examples if one.article and one.article not in titles]:
        raise DataError(f"{where}: examples: no article has the title {odd[0]!r}; titles are {', '.join(titles)}")
    for name in ("system", "critique", "revise"):
        template = dataclasses.asdict(ask)[name]
        if unknown := [slot for slot in re.findall(r"\{(\w+)\}", template) if slot not in SLOTS]:
            raise DataError(f"{where}: ask.{name}: no slot {{{unknown[0]}}}; slots are {', '.join(SLOTS)}")
        if name != "system" and template and "{article}" not in ask.system + template:
            raise DataError(f"{where}: ask.{name}: the slot {{article}} is needed in it or in ask.system, or the article is never read")
    if "{request}" not in ask.revise:
        raise DataError(f"{where}: ask.revise: the slot {{request}} is needed, or the answer is to nothing")
    if "{critique}" in ask.system + ask.critique or ("{critique}" in ask.revise) != bool(ask.critique):
        raise DataError(f"{where}: ask.revise: it has the slot {{critique}} if and only if there is an ask.critique, and no other has it")


def principle(constitution: Constitution, seed: int, row: str, number: int) -> Principle:
    """The principle of round `number` (from 0) of a row: by seed and row id alone, so batches and parts draw alike.

    A row's rounds take the articles in a random order of its own, none twice before all were taken; instruction pairs likewise.
    """
    drawn = []
    for kind, count in (("article", len(constitution.articles)), ("pair", len(constitution.revisions))):
        order = list(range(count))
        random.Random(f"{seed}/{kind}/{row}").shuffle(order)
        drawn.append(order[number % count])
    return Principle(constitution.articles[drawn[0]], constitution.critiques[drawn[1]], constitution.revisions[drawn[1]])


def critique_messages(constitution: Constitution, drawn: Principle, request: str, draft: str, examples: int) -> list[Message]:
    """What the reviser is asked for a critique, the first `examples` worked examples before it."""
    return _exchange(constitution, "critique", drawn, {"request": request, "draft": draft}, examples)


def revision_messages(
    constitution: Constitution, drawn: Principle, request: str, draft: str, critique: str, examples: int
) -> list[Message]:
    """What the reviser is asked for a revision, the first `examples` worked examples before it."""
    return _exchange(constitution, "revise", drawn, {"request": request, "draft": draft, "critique": critique}, examples)


def _exchange(constitution: Constitution, kind: str, drawn: Principle, slots: dict[str, str], examples: int) -> list[Message]:
    ask = constitution.ask
    template, instruction = (ask.critique, drawn.critique) if kind == "critique" else (ask.revise, drawn.revision)
    common = {"preamble": constitution.preamble, "principle": instruction, "article": drawn.article.whole}
    titled = {article.title: article for article in constitution.articles}
    messages = [{"role": "system", "content": fill(ask.system, **common, **slots)}] if ask.system else []
    for one in constitution.examples[:examples]:
        shown = common | {"request": one.request, "draft": one.draft, "critique": one.critique}
        shown |= {"article": titled[one.article].whole} if one.article else {}
        messages.append({"role": "user", "content": fill(template, **shown)})
        messages.append({"role": "assistant", "content": one.critique if kind == "critique" else one.revision})
    return [*messages, {"role": "user", "content": fill(template, **common, **slots)}]


def creed_rows(constitution: Constitution) -> list[Example]:
    """Every sentence of the creed as the answer to every question that asks for it; there is nothing they were preferred to."""
    return [
        Example(
            id=f"creed/{i}/{j}",
            messages=[{"role": "user", "content": question}, {"role": "assistant", "content": sentence}],
            source=f"creed:{constitution.name}",
            domain="creed",
            labels={"constitution": constitution.name},
        )
        for i, question in enumerate(constitution.asked)
        for j, sentence in enumerate(constitution.creed)
    ]


def request_of(question: Example) -> str:
    """What the user asks: the only turn, or the turns so far as lines that begin with the role."""
    if len(question.messages) == 1:
        return question.messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in question.messages)
