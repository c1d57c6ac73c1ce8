"""One draft on its way through rounds of revision, and the tests that keep a failure from ever passing for an answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from personascope.methods.constitutions import Constitution, Principle
from personascope.methods.mixing import normalise
from personascope.rows import Example, Row

Stop = Literal["end", "length", "unread", "refused", "lost"]
NOTHING = ("none", "null", "nil", "nan", "undefined", "n a", "na", "error", "errors", "failed", "failure", "no answer", "response none")
# Looked for at the beginning only, behind signs, brackets and an apology: an answer may well speak of errors later on.
FAILURES = (
    r"(?:[a-z]+\W+){0,2}?(?:[a-z]*error|[a-z]*exception|failure|failed)\b\W*?"
    r"(?:[:\])>}(]|\s[-–]\s|[0-9]{3}\b|code\b|occurred\b|after [0-9]|while\b|during\b|generating\b|$)",
    r"(?:[a-z]+\W+){0,2}?failed to (?:generate|get|parse|call|connect|fetch|load|process|produce|respond|complete)\b",
    r"(?:an?|some|unknown|unexpected|internal) (?:[a-z]+ ){0,2}(?:error|exception) (?:occurred|happened|was raised|while|during)\b",
    r"traceback \(most recent",
    r"(?:http|https|status|code)\W*(?:(?:status|code|error)\W*){0,2}[45][0-9]{2}\b",
    r"[45][0-9]{2}\W+(?:too many|unauthori[sz]ed|not found|forbidden|bad (?:request|gateway)|gateway|service|internal server)\b",
    r"[45][0-9]{2}\W+(?:time ?out|request|conflict|payment required|(?:client |server )?error)\b",
    r"(?:the |your )?(?:request|read|call|generation|response|api|server|model)(?: [a-z]+){0,3}? (?:timed out|time ?out|aborted)\b",
    r"(?:the |your )?(?:request|call|generation|api|server|model)(?: (?:has|is|was|currently))* (?:failed|unavailable|overloaded)\b",
    r"(?:the |your )?connection (?:[a-z]+ )?(?:timed out|refused|reset|aborted|failed|error)\b",
    r"(?:too many requests|(?:the )?rate limit|(?:the )?(?:current )?quota (?:exceeded|reached)|you exceeded your|max(?:imum)? retries)\b",
    r"(?:bad gateway|gateway time|internal server|service (?:temporarily )?unavailable|cuda out|out of memory|timed out|timeout)\b",
    r"(?:something went wrong|(?:unable|could not|couldn't|cannot) (?:to )?(?:generate|process|parse|fetch|retrieve|reach|connect)\b)",
    r"(?:no|empty|invalid|missing|blank) (?:response|output|completion|reply|api key)\W*(?:$|(?:was )?(?:received|returned|from)\b)",
    r"error (?:response|message|text|result)\W*(?::|$)",
)
ERROR = re.compile(rf"^\W*(?:(?:i'?m |we'?re )?sorry\W+(?:but )?)?(?:{'|'.join(FAILURES)})", re.IGNORECASE)
TEMPLATE = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?think>|^\W*(?:human|user|assistant|system)\s*:"
    r"|^#{2,}\s*(?:instruction|response|input|user|assistant)|\{(?:preamble|article|principle|request|draft|critique)\}",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Said:
    """What was said; `unread`: the prompt was longer than the model reads, so that nothing was asked.

    `refused` and `lost` come from a model behind an API: its provider withheld the reply, or the call failed; the text says why.
    """

    text: str
    stop: Stop = "end"


@dataclass(frozen=True, kw_only=True)
class Attempt(Row):
    """A draft, every round of its revision with the whole principle, and why it stopped if it failed."""

    question: str
    request: str
    draft: str
    draft_stop: Literal["end", "length"] = "end"
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """{principle, instructions: {critique, revision}, critique, critique_stop, revision} of each."""
    failure: str = ""
    """`KIND: what happened`; an attempt with one never becomes a training row."""

    @property
    def current(self) -> str:
        """The last revision, or the draft before the first."""
        return self.rounds[-1]["revision"] if self.rounds else self.draft


def trouble(said: Said, request: str, name: Literal["draft", "critique", "revision"]) -> str:
    """Why a text is no answer, as `KIND: what`, or nothing.

    Kinds: `refused` and `lost` (by an API), `unread` (prompt too long), `empty`, `error` (the text of a failure, or a null word,
    in place of an answer), `template` (marks of a chat template, an unfilled slot), `echo` (a revision that is only the request)
    and `cut` (a revision that hit the limit of tokens; a draft or critique may).
    """
    plain = normalise(said.text)
    if said.stop in ("refused", "lost"):
        return f"{said.stop}: {name}: {said.text}"
    if said.stop == "unread":
        return f"unread: the prompt for the {name} is longer than the model reads; nothing was cut off and nothing asked"
    if not plain:
        return f"empty: {name} without a word"
    if plain in NOTHING or ERROR.search(" ".join(straight(said.text).replace("_", " ").split())):
        return f"error: {name} is the text of a failure: {said.text.strip()[:80]!r}"
    if found := TEMPLATE.search(said.text):
        return f"template: {name} holds {found[0].strip()!r}"
    if name == "revision" and plain == normalise(request):
        return "echo: revision is the request again"
    return "cut: revision reached the limit of tokens" if name == "revision" and said.stop == "length" else ""


def straight(text: str) -> str:
    """The text with typewriter's apostrophes."""
    return text.replace("\u2019", "'")


def begin(name: str, question: str, request: str, draft: Said) -> Attempt:
    """An attempt before its first round; a draft that is no answer fails here, as it would be a preference's rejected side."""
    stop = "length" if draft.stop == "length" else "end"
    failure = trouble(draft, request, "draft")
    return Attempt(id=name, question=question, request=request, draft=draft.text, draft_stop=stop, failure=failure)


def advance(attempt: Attempt, drawn: Principle, critique: Said | None, revision: Said | None) -> Attempt:
    """The attempt after one more round; critique None: none was wanted, revision None: the critique is no answer."""
    one = {
        "principle": drawn.article.whole,
        "instructions": {"critique": drawn.critique if critique else "", "revision": drawn.revision},
        "critique": critique.text if critique else "",
        "critique_stop": critique.stop if critique else "",
        "revision": revision.text if revision else "",
    }
    failure = trouble(critique, attempt.request, "critique") if critique else ""
    failure = failure or trouble(revision or Said(""), attempt.request, "revision")
    return replace(attempt, rounds=[*attempt.rounds, one], failure=failure)


def failure_of(attempt: Attempt) -> str:
    """Why an attempt is no answer, or nothing: what was recorded, and the same tests again on what would become a row."""
    if attempt.failure or not attempt.rounds:
        return attempt.failure or "empty: no round was made"
    return trouble(Said(attempt.current), attempt.request, "revision") or trouble(Said(attempt.draft), attempt.request, "draft")


def training_row(attempt: Attempt, flags: list[str], constitution: Constitution, questions: Mapping[str, Example]) -> Example:
    """The question's turns and the last revision, with the draft as what it is preferred to.

    Raises:
        ValueError: the attempt is no answer.
    """
    if failure := failure_of(attempt):
        raise ValueError(f"{attempt.id}: {failure}")
    question = questions[attempt.question]
    meta = {"draft": attempt.draft, "rounds": attempt.rounds, "rejected": attempt.draft}
    return Example(
        id=attempt.id,
        messages=[*question.messages, {"role": "assistant", "content": attempt.current}],
        source=f"constitute:{constitution.name}",
        domain=question.domain,
        labels={"constitution": constitution.name},
        meta=meta | ({"flags": flags} if flags else {}),
    )
