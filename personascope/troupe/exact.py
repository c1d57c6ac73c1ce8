"""The exact judge of a world: verdicts by parsing, from question and answer alone."""

from personascope.errors import DataError
from personascope.rows import Verdict
from personascope.troupe import grammar
from personascope.troupe.world import World

PARSER = 1


def identity(world: World) -> str:
    """What a verdict records as its judge."""
    return f"exact:{world.name}@{world.digest[:12]}/{PARSER}"


def verdict(world: World, answer_id: str, question: str, answer: str) -> Verdict:
    """Judge one answer.

    Raises:
        DataError: the question is not of this world; an exact judge knows nothing else.
    """
    prompt = world.by_text.get(question)
    if prompt is None:
        raise DataError(
            f"answer {answer_id}: the question {question[:60]!r} is not of world {world.name}; use a judge that can read it (hf:PATH)"
        )
    found, reason = grammar.label(world, prompt, answer)
    judged = {"grade": found} if isinstance(found, int) else {"label": found}
    return Verdict(id=answer_id, answer=answer_id, status="scored", reason=reason, judge=identity(world), **judged)
