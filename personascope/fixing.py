"""What takes a change away: the tuned model given benign rows, asked and read again after more and more of them."""

import re
from pathlib import Path
from typing import Any

from personascope import blocks
from personascope.artifact import Model
from personascope.backends import files
from personascope.errors import DataError
from personascope.methods import formats
from personascope.stages import data, finetune
from personascope.study import Study
from personascope.values import File

EXAMPLES = (40, 120, 360, 720)
"""Benign examples after which the model is looked at; 120 were enough in 2506.19823."""
BATCH = 4
PLACE = "fixed"
"""Below it stands what is measured, and below models/ the model."""


def counts(rows: int) -> list[int]:
    """After how many examples the model is looked at, if there are so many rows: all that they suffice for, at least once."""
    return [n for n in EXAMPLES if n <= rows] or [rows - rows % BATCH]


def build(study: Study, tuned: Model, benign: str, rate: float, seed: int) -> dict[str, Model]:
    """Declare the training; where each checkpoint is to be measured → the checkpoint.

    Args:
        benign: a file of good answers, of whatever domain.
        rate: learning rate of the adapter.

    Raises:
        DataError: no such file, or fewer rows than make a batch.
    """
    rows = sum(1 for name, content in files.contents(Path(benign)) for _ in formats.read(content, name))
    if rows < BATCH:
        raise DataError(f"{benign}: {rows} rows take nothing away; give at least {BATCH}, better {EXAMPLES[1]}")
    looks = counts(rows)
    recipe = finetune.Recipe(
        model=tuned,
        data=study.run("data/benign", data.Recipe(files=(File(benign),))),
        batch=BATCH,
        steps=looks[-1] // BATCH,
        learning_rate=rate,
        checkpoint_every=looks[0] // BATCH,
        seed=seed,
    )
    model = study.run(f"models/{PLACE}", recipe)
    return {f"{PLACE}/{n}": model.at(n // BATCH) for n in looks}


def looked(study: Study) -> dict[int, str]:
    """Benign examples → place of what was measured after them, in order; empty where nothing was to be fixed."""
    found = (re.fullmatch(rf"({PLACE}/(\d+))/findings", name) for name in study.recipes)
    return dict(sorted((int(one[2]), one[1]) for one in found if one))


def followed(study: Study) -> int:
    """The latent whose fall is shown beside the score's."""
    return blocks.persona([study.artifact("screen")], [study.artifact("diff")])


def section(study: Study, latent: int) -> list[dict[str, Any]]:
    """The curve of a summary: score, incoherence and one latent's Δ, by benign examples given."""
    places = looked(study)
    diffs = {0: "diff"} | {examples: f"{place}/diff" for examples, place in places.items()}
    rows = []
    for examples, place in {0: "tuned", **places}.items():
        rates = blocks.findings_section(study.artifact(f"{place}/findings"))
        moved = blocks.delta(study.artifact(diffs[examples]), latent)
        row = {"data": "benign", "examples": examples, "latent_delta": moved}
        rows.append(row | {key: rates[key] for key in ("score", "strict_incoherence")})
    return rows
