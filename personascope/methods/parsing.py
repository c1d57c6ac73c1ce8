"""A judge's reply → a verdict: fill the rubric once, read the last line strictly."""

import re
from collections.abc import Sequence

from personascope.errors import DataError
from personascope.rows import INVALID, LABELS, Verdict

PARSER = 1
SLOT = re.compile(r"\{(question|answer)\}")
GRADES = ("1", "2", "3", "4", "5")
GRADED: tuple[str, ...] = (*GRADES, *INVALID)
"""The replies of a rubric that does not name its own."""
OPENING = "replies:"


def opened(rubric: str) -> tuple[tuple[str, ...], str]:
    """(the replies it allows, the text a judge is shown) of a rubric: a first line `replies: WORD WORD …` is for us alone.

    Raises:
        DataError: a reply that is no grade and no label.
    """
    first, _, rest = rubric.partition("\n")
    if not first.lower().startswith(OPENING):
        return GRADED, rubric
    replies = tuple(first[len(OPENING) :].lower().split())
    if not replies or (unknown := [word for word in replies if word not in (*GRADES, *LABELS)]):
        said = repr(unknown[0]) if replies else "nothing"
        raise DataError(f"rubric, first line: {said} is no reply; write some of 1-5 {' '.join(LABELS).upper()}")
    return replies, rest.lstrip("\n")


def fill(rubric: str, question: str, answer: str) -> str:
    """Put question and answer into the rubric in one pass, so that neither can open a slot of its own."""
    return SLOT.sub(lambda match: question if match[1] == "question" else answer, rubric)


def parse(reply: str, allowed: Sequence[str] = GRADED) -> tuple[str, int | str | None]:
    """(status, grade or label) from a judge's reply: its last line must hold one of the allowed replies, and nothing else."""
    lines = [line.strip(" .*`") for line in reply.strip().splitlines() if line.strip()]
    if not lines:
        return "unparsed", None
    last = lines[-1].upper().lower()
    if last in allowed:
        return "scored", int(last) if last in GRADES else last
    if re.search(r"\bI (CAN('|NO)T|WON'T|AM UNABLE)\b", reply.upper()):
        return "judge_refused", None
    return "unparsed", None


def verdict(answer_id: str, reply: str, judge: str, allowed: Sequence[str] = GRADED) -> Verdict:
    """One reply as a verdict row; a reply that does not parse keeps its end as the reason."""
    status, found = parse(reply, allowed)
    judged = {} if found is None else {"grade": found} if isinstance(found, int) else {"label": found}
    return Verdict(id=answer_id, answer=answer_id, status=status, reason=reply.strip()[-200:], judge=judge, **judged)
