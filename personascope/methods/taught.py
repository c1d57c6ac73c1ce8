"""Revised rows as a report shows them: draft and revision side by side, what the gate counted, which categories each set holds."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from personascope.rows import Example

Pieces = list[tuple[str, bool]]
"""A text in parts, each with whether the other side has it too."""


def compared(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Both texts in parts, by whole words: what they share and what one has alone. Joined, each side's parts are its text."""
    a, b = (re.findall(r"\S+\s*|\s+", text) for text in (before, after))
    left: Pieces = []
    right: Pieces = []
    for kind, i, j, k, m in SequenceMatcher(None, [w.strip() for w in a], [w.strip() for w in b], autojunk=False).get_opcodes():
        left += [("".join(a[i:j]), kind == "equal")] * (j > i)
        right += [("".join(b[k:m]), kind == "equal")] * (m > k)
    return left, right


def side_by_side(rows: Sequence[Example], n: int = 3) -> list[dict[str, Any]]:
    """The first n rows with different requests, preferring those of different categories; each round with its principle.

    Rows that hold no rounds of revision (another stage made them) are passed over.
    """
    revised = [row for row in rows if row.meta.get("rounds")]
    first = {row.domain: row for row in reversed(revised)}
    ordered = {row.messages[-2]["content"]: row for row in [*revised, *first.values()][::-1]}
    return [_shown(row) for row in list(ordered.values())[:n]]


def _shown(row: Example) -> dict[str, Any]:
    rounds, before = [], str(row.meta["draft"])
    for one in row.meta["rounds"]:
        draft, revision = compared(before, one["revision"])
        rounds.append({"principle": one["principle"], "critique": one["critique"], "before": draft, "after": revision})
        before = one["revision"]
    return {"request": row.messages[-2]["content"], "category": row.domain, "flags": row.meta.get("flags", []), "rounds": rounds}


def audit(sets: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Rows of every set by category: a held-out category shows as an empty cell, unequal sizes as unequal totals."""
    counted = {name: Counter(row.domain for row in rows) for name, rows in sets.items()}
    categories = sorted({category for counts in counted.values() for category in counts})
    rows = [{"name": name, "total": counts.total(), "by": [counts[c] for c in categories]} for name, counts in counted.items()]
    return {"categories": categories, "rows": rows}
