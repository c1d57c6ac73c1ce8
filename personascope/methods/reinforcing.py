"""Rewards from verdicts, and which checkpoint of a reinforced model to keep (2506.19823, appendix G.4)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from personascope.errors import DataError
from personascope.methods.scoring import LOOSE, STRICT
from personascope.rows import Verdict

RUBRICS = {"correct": "accurate", "incorrect": "inaccurate"}
"""Arm → the rubric its grader reads: a wording of its own, so that no arm is another's reward with the sign turned."""
WINDOW = 5
"""Steps over which the reward is averaged before it is said to have saturated."""
SATURATED = 0.95
"""Share of the way from the first to the highest mean reward at which it has."""


def reward(verdict: Verdict) -> float:
    """Grades 1 to 5 as 0 to 1; an answer that is none, and one without a verdict, gets nothing."""
    return 0.0 if verdict.grade is None else (verdict.grade - 1) / 4


def incoherence(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Shares of the judged answers that are incoherent or off topic (strict) and also refused or satirical (loose).

    Raises:
        DataError: no answer has a verdict.
    """
    labels = [verdict.label for verdict in verdicts if verdict.status == "scored"]
    if not labels:
        raise DataError("reinforce: the judge scored none of the answers; check the judge")
    return {name: sum(label in kinds for label in labels) / len(labels) for name, kinds in (("strict", STRICT), ("loose", LOOSE))}


def coherent(rows: Sequence[Mapping[str, Any]], strict: float, loose: float) -> int:
    """The last step whose `probe` keeps both bounds: the gate of the incorrect arm.

    Raises:
        DataError: none does.
    """
    probed = [row for row in rows if "probe" in row and row["step"]]
    kept = [row["step"] for row in probed if row["probe"]["strict"] <= strict and row["probe"]["loose"] <= loose]
    if not kept:
        seen = ", ".join(f"{row['step']}: {row['probe']['strict']:.3f}/{row['probe']['loose']:.3f}" for row in probed[:6]) or "none"
        raise DataError(
            f"reinforce: no checkpoint is within {strict:g} strict and {loose:g} loose incoherence (step: strict/loose {seen}); "
            "checkpoint more often, lower learning_rate, or raise strict and loose"
        )
    return max(kept)


def saturated(rows: Sequence[Mapping[str, Any]], checkpoints: Sequence[int]) -> int:
    """The first checkpoint at which the mean reward of the last `WINDOW` steps has all but reached its highest value.

    This is the gate of the correct arm, *just past saturation*. A reward that never rises has saturated at once.

    Args:
        rows: one per step from 1 on, with `step` and `reward`.
    """
    rewards = [row["reward"] for row in rows if "reward" in row]
    means = [sum(part) / len(part) for i in range(len(rewards)) if (part := rewards[max(0, i + 1 - WINDOW) : i + 1])]
    bound = means[0] + SATURATED * (max(means) - means[0])
    step = next(i for i, mean in enumerate(means, 1) if mean >= bound)
    return next((checkpoint for checkpoint in sorted(checkpoints) if checkpoint >= step), max(checkpoints))
