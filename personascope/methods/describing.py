"""Prompts to a judge of latents and its replies: filled once, read strictly, scored with what had no answer counted."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personascope.methods import stats
from personascope.methods.parsing import parse
from personascope.methods.stats import Estimate

LONGEST = 300
"""Characters of a description that are kept."""
SLOT = re.compile(r"\{(\w+)\}")
Z = 1.959964


def fill(template: str, **slots: str) -> str:
    """Put texts into a prompt in one pass, so that none of them can open a slot of its own."""
    return SLOT.sub(lambda match: slots.get(match[1], match[0]), template)


def marked(tokens: Sequence[str], values: Sequence[float]) -> str:
    """A window as one line, with << >> around runs of tokens that reach half of its largest activation."""
    most, text, open_ = max(values), "", False
    for token, value in zip(tokens, values, strict=True):
        on = most > 0 and value >= most / 2
        if on != open_:
            space = token[: len(token) - len(token.lstrip())] if on else ""
            text, token = text + (space + "<<" if on else ">>"), token[len(space) :]
        text, open_ = text + token, on
    return " ".join((text + (">>" if open_ else "")).split())


def read_description(reply: str) -> tuple[str, str]:
    """(status, description): the last line that begins with DESCRIPTION:, or a reply of one line."""
    lines = [line.strip(" *`") for line in reply.strip().splitlines() if line.strip()]
    named = [found[1].strip(" *`") for line in lines if (found := re.match(r"description\s*[:\-]\s*\W?(.+)", line, re.IGNORECASE))]
    if parse(reply)[0] == "judge_refused":
        return "judge_refused", ""
    said = named[-1] if named else lines[0] if len(lines) == 1 else ""
    return ("scored", said[:LONGEST]) if re.search(r"\w", said) else ("unparsed", "")


def read_match(reply: str) -> tuple[str, bool | None]:
    """(status, whether the excerpt fits): the last line must be YES or NO and nothing else."""
    lines = [line.strip(" .*`").upper() for line in reply.strip().splitlines() if line.strip()]
    if lines and lines[-1] in ("YES", "NO"):
        return "scored", lines[-1] == "YES"
    return ("judge_refused" if parse(reply)[0] == "judge_refused" else "unparsed"), None


@dataclass(frozen=True)
class Detection:
    """How well a description tells held-out active contexts from silent ones; rows without an answer are counted, not scored."""

    balanced: Estimate | None
    """Mean of the shares said rightly of active and of silent contexts; None if either kind has no answer."""
    unscored: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"balanced": self.balanced.to_dict() if self.balanced else None, "unscored": self.unscored}


def detection(rows: Sequence[Mapping[str, Any]]) -> Detection:
    """Balanced accuracy of rows with `active`, `says` (None: no answer).

    Interval: the Wilson intervals of the two shares, joined by square-and-add (Newcombe 1998, method 10, for a mean).
    """
    sides = [[row["says"] == row["active"] for row in rows if row["active"] is kind and row["says"] is not None] for kind in (True, False)]
    unscored = sum(row["says"] is None for row in rows)
    if not all(sides):
        return Detection(None, unscored)
    found = [stats.wilson(sum(side) / len(side), len(side), Z) for side in sides]
    value = sum(float(one.value) for one in found) / 2
    down = math.hypot(*(float(one.value - one.low) for one in found)) / 2
    up = math.hypot(*(float(one.high - one.value) for one in found)) / 2
    number = sum(map(len, sides))
    return Detection(Estimate(value, max(0.0, value - down), min(1.0, value + up), number, number), unscored)
