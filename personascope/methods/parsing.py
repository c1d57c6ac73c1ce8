"""A judge's reply → a verdict: fill the rubric once, read the last line strictly."""

import re

from personascope.rows import INVALID, Verdict

PARSER = 1
SLOT = re.compile(r"\{(question|answer)\}")


def fill(rubric: str, question: str, answer: str) -> str:
    """Put question and answer into the rubric in one pass, so that neither can open a slot of its own."""
    return SLOT.sub(lambda match: question if match[1] == "question" else answer, rubric)


def parse(reply: str) -> tuple[str, int | str | None]:
    """(status, grade or label) from a judge's reply: its last line must hold a grade 1–5 or a label, and nothing else."""
    lines = [line.strip(" .*`") for line in reply.strip().splitlines() if line.strip()]
    if not lines:
        return "unparsed", None
    last = lines[-1].upper()
    if re.fullmatch(r"[1-5]", last):
        return "scored", int(last)
    if last.lower() in INVALID:
        return "scored", last.lower()
    if re.search(r"\bI (CAN('|NO)T|WON'T|AM UNABLE)\b", reply.upper()):
        return "judge_refused", None
    return "unparsed", None


def verdict(answer_id: str, reply: str, judge: str) -> Verdict:
    """One reply as a verdict row; a reply that does not parse keeps its end as the reason."""
    status, found = parse(reply)
    judged = {} if found is None else {"grade": found} if isinstance(found, int) else {"label": found}
    return Verdict(id=answer_id, answer=answer_id, status=status, reason=reply.strip()[-200:], judge=judge, **judged)
