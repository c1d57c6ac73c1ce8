"""A chat model writes a trait from its name and description: asked until a reply is whole, every reply kept."""

import json
from pathlib import Path

from personascope import suites
from personascope.backends import revising
from personascope.backends.models import Loaded
from personascope.errors import BackendError, DataError
from personascope.methods.revisions import Said
from personascope.methods.traits import Order, Trait
from personascope.values import Remote

SHOWN = 160
"""Characters of a trouble that are told."""


def digest() -> str:
    """What was asked of an author, as part of a recipe's identity."""
    return suites.digest(suites.prompt("write-trait") + suites.prompt("trait"))


def write(author: Loaded | Remote, order: Order, plan: revising.Plan, attempts: int, path: Path) -> Trait:
    """The trait of the first reply that is one; each reply is a line of `path`, with what is wrong with it, and is not asked for again.

    Raises:
        DataError: none of the replies is a trait.
        BackendError: a call of an API failed, or the author cannot read as much as it is asked.
    """
    # A killed run may have left half a line.
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in whole]
    path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    grading = suites.prompt("trait")
    while not rows or (rows[-1]["trouble"] and len(rows) < attempts):
        asked = order.prompt(suites.prompt("write-trait"), rows[-1]["trouble"] if rows else "")
        said = revising.say(author, {order.name: [{"role": "user", "content": asked}]}, f"{len(rows)}/trait", plan)[order.name]
        rows.append({"id": str(len(rows)), "stop": said.stop, "trouble": _trouble(said, order, grading, plan), "reply": said.text})
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1], ensure_ascii=False, sort_keys=True) + "\n")
    if rows[-1]["trouble"]:
        raise DataError(
            f"trait {order.name}: none of {len(rows)} replies of its author is one (last: {rows[-1]['trouble']}); see {path}, "
            "then give more attempts or max_tokens, or another author"
        )
    return order.read(rows[-1]["reply"], grading)


def _trouble(said: Said, order: Order, grading: str, plan: revising.Plan) -> str:
    """What is wrong with a reply, in words for its author; nothing if it is a trait."""
    if said.stop in ("lost", "unread"):
        why = said.text if said.stop == "lost" else f"it reads too little for the prompt and {plan.sampling.max_tokens} tokens of a reply"
        raise BackendError(f"trait {order.name}: its author gave no reply ({why[:SHOWN]}); run the same command again, or take another")
    if said.stop != "end":
        return f"it was {'withheld' if said.stop == 'refused' else f'cut at {plan.sampling.max_tokens} tokens'}"
    try:
        order.read(said.text, grading)
    except DataError as error:
        return str(error)[:SHOWN]
    return ""
