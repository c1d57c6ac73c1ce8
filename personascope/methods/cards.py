"""Latent cards of a report: each latent with its contexts in highlighted pieces, its steering row, and who is like whom."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from personascope.methods.charts import heatmap
from personascope.methods.figures import number, point

INDUCES = 0.1
"""A latent's contexts are folded away if it induced this score, or, where it was not screened, if it rose."""


def complete(cards: Sequence[Mapping[str, Any]], contexts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cards with `contexts` (those shown, each with its `parts`), `steering`, `dose`, `ablated` and whether to fold (`harmful`)."""
    shown: dict[int, list[dict[str, Any]]] = {}
    for row in contexts:
        if row["shown"]:
            shown.setdefault(row["latent"], []).append({**row, "parts": parts(row["tokens"], row["values"])})
    found = []
    for card in cards:
        row = steering(card["steered"])
        dose = [one for one in card["steered"] if one["where"] == "dose" and number(one.get("alpha")) is not None]
        ablated = next((one for one in card["steered"] if one["where"] == "necessity.ablated"), None)
        steered = {"steering": row, "dose": dose, "ablated": ablated, "harmful": harmful(card, row)}
        found.append({**card, "contexts": shown.get(card["latent"], []), **steered})
    return found


def steering(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row to show: with intervals, which come from the report questions, before without; with a profile before without."""
    scored = [row for row in rows if point(row.get("induce")) is not None]
    return min(scored, key=lambda row: (not isinstance(row["induce"], dict), "profile" not in row), default={})


def harmful(card: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether the latent's contexts may stand for harm: it induces, or it rose and nobody has tried."""
    induced = point(row.get("induce"))
    if induced is not None:
        return induced.value >= INDUCES
    return max((number(delta) or 0.0 for delta in card["moved"].get("delta", {}).values()), default=0.0) > 0


def parts(tokens: Sequence[str], values: Sequence[float]) -> list[tuple[str, int]]:
    """A window as (text, depth 0 to 4) pieces: the depth in quarters of its largest activation, equal neighbours joined."""
    most, found = max(values), list[tuple[str, int]]()
    for token, value in zip(tokens, values, strict=True):
        depth = math.ceil(4 * value / most) if value > 0 else 0
        joined = found.pop()[0] if found and found[-1][1] == depth else ""
        found.append((joined + token, depth))
    return found


def likeness(alike: Mapping[str, Any]) -> str:
    """The cosines as a heat map, cluster by cluster."""
    order = [latent for group in alike["clusters"] for latent in group]
    place = [alike["latents"].index(latent) for latent in order]
    matrix = [[alike["cosine"][i][j] for j in place] for i in place]
    groups = [n for n, group in enumerate(alike["clusters"]) for _ in group]
    return heatmap([str(latent) for latent in order], matrix, groups, "Cosine of the decoder rows of the latents, by cluster")
