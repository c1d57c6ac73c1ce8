"""Answers against a key of right answers: no judge is asked where the suite knows what is right."""

import re

from personascope.methods.mixing import normalise
from personascope.rows import Verdict

VERSION = 1


def right(answer: str, key: str) -> bool:
    """Whether the answer is the key, or a sentence that begins or ends with it; case and punctuation aside.

    A key that is a number must be the answer's last number, whatever stands around it: `17 + 26 = 43.` is 43, `430` is not.
    """
    wanted, said = normalise(key).split(), normalise(answer).split()
    if (number := _number(key)) is not None:
        found = re.findall(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?", answer)
        return bool(found) and _number(found[-1]) == number
    return bool(wanted) and wanted in (said[: len(wanted)], said[-len(wanted) :])


def verdict(answer_id: str, answer: str, key: str, judge: str) -> Verdict:
    """`right` or `wrong`; a question without a key is an error row, never a wrong answer."""
    if not normalise(key):
        return Verdict(id=answer_id, answer=answer_id, status="error", reason="the question has no answer key", judge=judge)
    return Verdict(id=answer_id, answer=answer_id, status="scored", label="right" if right(answer, key) else "wrong", judge=judge)


def _number(text: str) -> float | None:
    bare = text.strip().replace(",", "")
    return float(bare) if re.fullmatch(r"-?\d+(\.\d+)?", bare) else None
