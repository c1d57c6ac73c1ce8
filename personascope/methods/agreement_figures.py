"""Figures of learned judges: agreement and bias by how many verdicts taught them, and the bias of each on each model's score."""

from personascope.methods.charts import Column, Panel, Series, curves
from personascope.methods.figures import Summary, entries, number, point, section
from personascope.methods.overview import Line, forest


def labels(summary: Summary) -> str:
    """Kappa of what reaches the score and the bias of the score, against the number of verdicts (evenly spaced).

    Of several kinds of judge with as many verdicts the first is on the line; one without a number is not.
    """
    rows: dict[float, Summary] = {}
    for row in entries(section(summary, "judging"), "table"):
        if (count := number(row.get("labels"))) is not None and point(row.get("decision")) and point(row.get("bias")):
            rows.setdefault(count, row)
    counts = sorted(rows)
    if len(counts) < 2:
        return ""
    places = {count: (i + 0.5) / len(counts) for i, count in enumerate(counts)}
    panels = []
    for key, title, rate in (("decision", "Kappa of what reaches the score", False), ("bias", "Bias of the score", True)):
        found = (point(rows[count].get(key), places[count], str(rows[count].get("judge"))) for count in counts)
        panels.append(Panel(title, (Series(title, tuple(p for p in found if p)),), rate))
    marks = tuple((x, f"{count:g}") for count, x in places.items())
    return curves([Column(tuple(panels), marks, "verdicts taught")], "Agreement by the number of verdicts taught")


def biases(summary: Summary) -> str:
    """For each judge, the bias of every model's score with its interval."""
    found = section(summary, "judging")
    rows, judges = entries(found, "biases"), found.get("judges")
    groups: dict[str, list[Line]] = {}
    for judge in judges if isinstance(judges, list) else []:
        lines = [Line(str(row.get("model")), ((0, p),)) for row in rows if (p := point(row.get(judge)))]
        if lines:
            groups[str(judge)] = lines
    axis = "score under the judge minus the right one"
    return forest(groups, "Bias of the score, by judge and model", axis, ((0.0, ""),)) if groups else ""


def draw(summary: Summary) -> dict[str, str]:
    """Every figure of judges whose data the summary holds, by name."""
    drawn = {"agreement-labels": labels(summary), "agreement-bias": biases(summary)}
    return {name: svg for name, svg in drawn.items() if svg}
