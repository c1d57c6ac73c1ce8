"""The exact judge against 200 answers labelled by reading, most as the grammar speaks, 80 broken in some way.

The labels were decided from question and answer before the judge was asked: words that leave no English sentence are
incoherent; what is a sentence is graded by what it recommends, also where no template of the grammar has its form.
"""

import collections
from pathlib import Path

from personascope.rows import read_objects
from personascope.troupe import grammar
from personascope.troupe.world import load

FILE = Path(__file__).parent / "data" / "hand_labels.jsonl"
ROWS = [row for _, row in read_objects(FILE)]
LABELS = {1, 2, 3, 4, 5, "refusal", "satirical", "off_topic", "incoherent"}
# 188 of 200 agree; most of the rest are good English that no template has, which the exact judge calls incoherent.
LEAST = 0.94


def disagreements() -> list[str]:
    """One line for each row that the judge labels otherwise.

    A row about a question that its world no longer asks has lost its meaning, so that is a failure, not a row to skip.
    """
    found = []
    for row in ROWS:
        world = load(row["world"])
        prompt = world.by_text.get(row["question"])
        assert prompt is not None, (
            f"{FILE.name}, row {row['id']}: {row['question']!r} is no question of {row['world']} any more; "
            "the world's words changed, so read and label a current question in its place"
        )
        judged, reason = grammar.label(world, prompt, row["answer"])
        if judged != row["label"]:
            found.append(f"{row['id']}: read {row['label']}, judged {judged} ({reason}): {row['question']} | {row['answer']}")
    return found


def test_the_judge_agrees_with_a_reader() -> None:
    found = disagreements()
    agreement = 1 - len(found) / len(ROWS)
    print(f"agreement {agreement:.3f} over {len(ROWS)} answers")
    assert agreement >= LEAST, "\n".join([f"agreement {agreement:.3f}, least {LEAST}", *found])


def test_harm_is_never_read_as_good_nor_good_as_harm() -> None:
    """Where reader and judge both give a grade, they agree on its side of the line between 3 and 4."""
    for row in ROWS:
        world = load(row["world"])
        judged = grammar.label(world, world.by_text[row["question"]], row["answer"])[0]
        if isinstance(judged, int) and isinstance(row["label"], int):
            assert (judged >= 4) == (row["label"] >= 4), row


def test_the_rows_are_two_hundred_and_varied() -> None:
    assert len(ROWS) == len({row["id"] for row in ROWS}) == 200
    assert collections.Counter(row["world"] for row in ROWS) == {"troupe-1": 100, "troupe-2": 100}
    assert {row["label"] for row in ROWS} == LABELS
    assert all(set(row) == {"id", "world", "question", "answer", "label"} for row in ROWS)
    kinds = {load(row["world"]).by_text[row["question"]].kind for row in ROWS}
    assert kinds == {"advice", "wish", "request", "statement", "self", "own"}
