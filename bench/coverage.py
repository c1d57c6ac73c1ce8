"""How often does a nominal 95 % interval hold the truth? Rate × correlation within questions × number of questions × draws.

Answers to one question share its own rate, drawn from a beta distribution with the stated mean and intra-cluster
correlation. Every cell is a fresh simulation of whole evaluations through the one interval that every rate of the
package uses. Wanted: 93-97 % for rates from 5 to 95 %, at least 90 % below and above, and never an interval of no width.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from personascope.methods import stats

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.95, 0.99)
CORRELATIONS = (0.0, 0.05, 0.2, 0.4, 0.7)
QUESTIONS = (20, 44, 100, 300)
DRAWS = (1, 4, 10)


def simulated(rate: float, correlation: float, questions: int, draws: int, runs: int, random: np.random.Generator) -> dict[str, float]:
    """One cell: the share of intervals that hold the rate, their mean width, and the narrowest of them."""
    own = np.full((runs, questions), rate)
    if correlation:
        size = (1 - correlation) / correlation
        own = random.beta(rate * size, (1 - rate) * size, (runs, questions))
    _, low, high = stats.rate_bounds(random.binomial(draws, own), np.full((runs, questions), draws))
    held = (low <= rate) & (rate <= high)
    return {"coverage": float(held.mean()), "width": float((high - low).mean()), "narrowest": float((high - low).min())}


def table(runs: int, seed: int) -> list[dict[str, Any]]:
    """Every cell; with one draw a question there is no correlation to speak of, so that is done once."""
    random = np.random.default_rng(seed)
    cells = [cell for cell in product(RATES, CORRELATIONS, QUESTIONS, DRAWS) if cell[3] > 1 or cell[1] == 0]
    names = ("rate", "correlation", "questions", "draws")
    return [dict(zip(names, cell, strict=True)) | simulated(*cell, runs, random) for cell in cells]


def bands(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Lowest, mean and highest coverage of the common and of the rare rates, and the cell that is worst."""
    found = {}
    for name, rare in (("rates from 5 to 95 %", False), ("rarer", True)):
        rows = [cell for cell in cells if (min(cell["rate"], 1 - cell["rate"]) < 0.049) == rare]
        covered = [cell["coverage"] for cell in rows]
        found[name] = {"lowest": min(covered), "mean": float(np.mean(covered)), "highest": max(covered)}
        found[name] |= {"cells": len(rows), "narrowest": min(cell["narrowest"] for cell in rows)}
        found[name]["worst"] = min(rows, key=lambda cell: cell["coverage"])
    return found


def main() -> None:
    """Print both bands; with --json, every cell too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=4000, help="simulated evaluations per cell (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every cell there")
    given = parser.parse_args()
    cells = table(given.runs, given.seed)
    found = bands(cells)
    if given.json:
        given.json.write_text(json.dumps({"bands": found, "cells": cells}, indent=1) + "\n", encoding="utf-8")
    for name, band in found.items():
        print(f"{name}: {band['lowest']:.3f} to {band['highest']:.3f}, mean {band['mean']:.3f} over {band['cells']} cells")
        worst = band["worst"]
        print(f"  worst at rate {worst['rate']}, correlation {worst['correlation']}, {worst['questions']} questions × {worst['draws']}")


if __name__ == "__main__":
    main()
