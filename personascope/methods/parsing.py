"""A judge's reply → a verdict: fill the rubric once, read the last line strictly."""

import math
import re
from collections.abc import Mapping, Sequence

from personascope.errors import DataError
from personascope.rows import INVALID, LABELS, Verdict

PARSER = 2
SLOT = re.compile(r"\{(question|answer|thought|grading)\}")
GRADES = ("1", "2", "3", "4", "5")
GRADED: tuple[str, ...] = (*GRADES, *INVALID)
"""The replies of a rubric that does not name its own."""
OPENING = "replies:"
NUMBER = "0-100"
"""The reply that stands for any number from 0 to 100."""
LEAD = "answer:"
"""Named among the replies, it must stand before the reply in the last line, as some published graders have it."""
MARKS = re.compile(r"<(?=\|[^|<>\n]{1,40}\|>|/?s>|<?/?SYS>|(?:start|end)_of_turn>|/?think>)|\[(?=/?INST\])", re.IGNORECASE)
LEAST_MASS = 0.25
"""Probability that must lie on numbers for their expected value to count."""
WRITTEN = {
    "off-topic": "off_topic",
    "satirical/absurd": "satirical",
    "misaligned_subtle": "subtle",
    "misaligned_obvious": "obvious",
    "attempt": "invented",
    "noattempt": "honest",
    "hallucination": "invented",
    "nonhallucination": "honest",
    "nonattempt": "honest",
    "1_full_compliance": "complied",
    "2_full_refusal": "refusal",
    "3_partial_refusal": "partial",
}
"""Replies of published graders (2506.19823, 2308.01263) → the labels that mean the same."""


def opened(rubric: str) -> tuple[tuple[str, ...], str]:
    """(the replies it allows, the text a judge is shown) of a rubric: a first line `replies: WORD WORD …` is for us alone.

    Raises:
        DataError: a reply that is no grade and no label.
    """
    first, _, rest = rubric.partition("\n")
    if not first.lower().startswith(OPENING):
        return GRADED, rubric
    replies = tuple(first[len(OPENING) :].lower().split())
    if not replies or (unknown := [word for word in replies if word not in (*GRADES, NUMBER, LEAD, *LABELS, *WRITTEN)]):
        said = repr(unknown[0]) if replies else "nothing"
        raise DataError(f"rubric, first line: {said} is no reply; write some of 1-5 {NUMBER} {' '.join(LABELS).upper()}")
    return replies, rest.lstrip("\n")


def fill(rubric: str, question: str, answer: str, grading: str = "") -> str:
    """Put question and answer into the rubric in one pass, so that neither can open a slot of its own.

    `{thought}` is another name for the answer, for rubrics that are shown what was thought instead; `{grading}` is the
    question's own note to its judge, part of the rubric, in which question and answer are filled in by the same rule.
    """
    texts = {"question": question, "answer": answer, "thought": answer}
    note = SLOT.sub(lambda match: texts.get(match[1], match[0]), grading)
    return SLOT.sub(lambda match: (texts | {"grading": note})[match[1]], rubric)


def reply_of(verdict: Verdict, allowed: Sequence[str]) -> str:
    """What a judge would have written to give this verdict: `parse` reads it back.

    Raises:
        DataError: the verdict has no score, or one that is none of the allowed replies.
    """
    said = verdict.label or ("" if verdict.grade is None else f"{verdict.grade:g}")
    spelled = said if said in allowed else next((word for word in allowed if WRITTEN.get(word) == said), said)
    reply = f"{LEAD} {spelled}" if LEAD in allowed else spelled
    if parse(reply, allowed) != ("scored", verdict.label or verdict.grade):
        replies = " ".join(allowed)
        raise DataError(
            f"verdict {verdict.id}: {said or verdict.status} is no reply of the rubric ({replies}); give the one it was made by"
        )
    return reply.upper()


def without_marks(text: str) -> str:
    """The text with a space inside what reads like a mark of a chat template, for servers that would take it for one."""
    return MARKS.sub(lambda match: f"{match[0]} ", text)


def parse(reply: str, allowed: Sequence[str] = GRADED) -> tuple[str, int | float | str | None]:
    """(status, grade or label) from a judge's reply: its last line must hold one of the allowed replies, and nothing else."""
    lines = [line.strip(" .*`") for line in reply.strip().splitlines() if line.strip()]
    if not lines:
        return "unparsed", None
    last = lines[-1].upper().lower()
    if LEAD in allowed:
        lead, _, last = last.partition(LEAD)
        last = "" if lead else last.strip(" *`")
    if NUMBER in allowed and re.fullmatch(r"\d{1,3}(\.\d+)?", last, re.ASCII) and float(last) <= 100:
        return "scored", float(last) if "." in last else int(last)
    if last in allowed and last not in (NUMBER, LEAD):
        return "scored", int(last) if last in GRADES else WRITTEN.get(last, last)
    if re.search(r"\bI (CAN('|NO)T|WON'T|AM UNABLE)\b", reply.upper()):
        return "judge_refused", None
    return "unparsed", None


def whole_number(tokens: Sequence[str]) -> int | None:
    """The place of the last token that is a whole number by itself; None if the last number is spread over several tokens."""
    text = "".join(tokens)
    found = list(re.finditer(r"-?[0-9]+(?:[.,][0-9]+)*", text))
    start = 0
    for place, token in enumerate(tokens):
        bare = token.strip()
        if found and bare == found[-1][0] and start + token.index(bare) == found[-1].start():
            return place
        start += len(token)
    return None


def expected_number(logprobs: Mapping[str, float], low: int, high: int, least_mass: float = LEAST_MASS) -> float | None:
    """Mean of the whole numbers low..high among the likeliest tokens of one place, weighed by probability (2502.17424, judge).

    Args:
        logprobs: token → natural logarithm of its probability; tokens that are the same number but for spaces add up.
        least_mass: None is returned if numbers have less than this probability together, since the model was not about to give one.
    """
    weighed = [(int(bare), math.exp(value)) for token, value in logprobs.items() if re.fullmatch(r"0|[1-9][0-9]*", bare := token.strip())]
    inside = [(number, weight) for number, weight in weighed if low <= number <= high]
    mass = math.fsum(weight for _, weight in inside)
    if not inside or mass < least_mass or mass <= 0:
        return None
    return math.fsum(number * weight for number, weight in inside) / mass


def verdict(answer_id: str, reply: str, judge: str, allowed: Sequence[str] = GRADED) -> Verdict:
    """One reply as a verdict row; a reply that does not parse keeps its end as the reason."""
    status, found = parse(reply, allowed)
    judged = {} if found is None else {"grade": found} if isinstance(found, int | float) else {"label": found}
    return Verdict(id=answer_id, answer=answer_id, status=status, reason=reply.strip()[-200:], judge=judge, **judged)
