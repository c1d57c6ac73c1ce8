"""The record of a judge's qualification as a page of Markdown."""

from collections.abc import Sequence
from typing import Any

from personascope.methods import verdict_scores

COEFFICIENTS = {
    "decision": "kappa of what reaches the score",
    "kappa": "kappa of all replies",
    "weighted": "kappa of grades, quadratic",
    "icc": "ICC(2,1) of grades",
    "bias": "difference of the score",
}


def page(record: dict[str, Any]) -> str:
    """The record as Markdown: the judges in one table, the sweep, pairs, what they confuse, what falls short."""
    given, rubric, judges = record["answers"], record["rubric"], record["judges"]
    unknown = f" {given['unknown']} have no known verdict and are left out." if given["unknown"] else ""
    parts = [
        f"# {'Is this judge' if len(judges) == 1 else 'Are these judges'} qualified?",
        f"{given['rows']} answers to {given['questions']} questions and {given['twins']} twins ({given['name']} {given['digest']}), "
        f"rubric {rubric['name']} ({rubric['digest']}), known verdicts: {given['reference']}.{unknown} "
        f"Share {rubric['counts']}, as known: {_share(given['score'])}. Intervals: 95 %, over questions.",
    ]
    keys = [key for key in COEFFICIENTS if key in judges[0]]
    titles = ["judge", "qualified", f"share {rubric['counts']}", *(COEFFICIENTS[key] for key in keys), "no verdict", "kept by twins"]
    rows = [
        [
            one["judge"],
            "yes" if one["qualified"] else "NO",
            _share(one["score"]),
            *(_shown(key, one[key]) for key in keys),
            _share(one["unscored"]),
            _share(one["robust"]) if one["robust"] else "not tested",
        ]
        for one in judges
    ]
    # One judge reads better downwards.
    parts.append(_grid([titles, *rows]) if len(rows) > 1 else _grid(list(zip(["", *titles[1:]], rows[0], strict=True))))
    if "sweep" in given:
        lines = [[name, *(_share(sweep[str(t)]) for t in verdict_scores.THRESHOLDS)] for name, sweep in _sweeps(record)]
        parts += ["## Score by threshold", _grid([["", *(f"grade {t} and up" for t in verdict_scores.THRESHOLDS)], *lines])]
    if "pairs" in record:
        lines = [[one["a"], one["b"], *(_shown(key, one[key]) for key in keys)] for one in record["pairs"]]
        parts += ["## Pairs of judges", _grid([["judge", "judge", *(COEFFICIENTS[key] for key in keys)], *lines])]
        parts.append("All together: " + "; ".join(f"{name} {_shown(name, one)}" for name, one in record["together"].items()) + ".")
    for one in judges:
        words, counts = one["confusion"]["words"], one["confusion"]["counts"]
        table = [["known", *words], *([word, *map(str, row)] for word, row in zip(words, counts, strict=True))]
        parts += [f"## {one['judge']}: known verdicts (rows) and its own (columns)", _grid(table)]
        if one["robust"]:
            kept = "; ".join(f"{change} {a} of {b}" for change, (a, b) in one["robust"]["changes"].items())
            parts.append(f"Verdicts kept by twins: {kept}.")
    said = [f"{one['judge']}: {'qualified' if one['qualified'] else 'not qualified: ' + '; '.join(one['shortfalls'])}" for one in judges]
    return "\n\n".join([*parts, "## Verdict", "\n".join(f"- {line}" for line in said)]) + "\n"


def _sweeps(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("as known", record["answers"]["sweep"]), *((one["judge"], one["sweep"]) for one in record["judges"])]


def _shown(key: str, one: dict[str, Any]) -> str:
    """A coefficient, or the bias in points, with its interval."""
    if one["value"] is None:
        return "undefined"
    if key == "bias":
        return f"{100 * one['value']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    return f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _share(one: dict[str, Any]) -> str:
    if one["value"] is None:
        return "none valid"
    return f"{100 * one['value']:.1f} % [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for the terminal."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
