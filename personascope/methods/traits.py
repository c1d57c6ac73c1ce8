"""A trait as its authors write it down: system prompts that call for it and against it, questions, and a rubric."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import jsonschema

from personascope.errors import DataError
from personascope.methods import rubrics
from personascope.methods.describing import fill
from personascope.methods.mixing import normalise
from personascope.rows import Example

Side = Literal["positive", "negative", "plain"]
TEXT = {"type": "string", "pattern": r"\S"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
PAIR = {
    "type": "object",
    "properties": {"positive": TEXT, "negative": TEXT},
    "required": ["positive", "negative"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9][a-z0-9_-]*$"},
        "description": TEXT,
        "pairs": {"type": "array", "items": PAIR, "minItems": 1},
        "questions": TEXTS,
        "held_out": TEXTS,
        "rubric": TEXT,
    },
    "required": ["name", "description", "pairs", "questions"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Trait:
    """One trait (2507.21509, section 2): opposite system prompts in pairs and the questions asked under each of them."""

    name: str
    description: str
    pairs: tuple[tuple[str, str], ...]
    """(positive, negative) system prompts."""
    questions: tuple[str, ...]
    """Asked to extract the vector."""
    held_out: tuple[str, ...] = ()
    """Asked to test it."""
    rubric: str = ""
    """The trait's own rubric with slots {question} and {answer}; empty means one made of name and description."""

    @classmethod
    def from_json(cls, data: Any, where: str) -> Self:
        """Read a trait, in our form or as persona vectors publishes them (`instruction`, `questions`, `eval_prompt`).

        Raises:
            DataError: a field is missing, unknown or of the wrong kind; the message begins with `where` and the field.
        """
        if isinstance(data, dict) and "instruction" in data:
            data = _published(data, where)
        trouble = next(iter(jsonschema.Draft202012Validator(SCHEMA).iter_errors(data)), None)
        if trouble is not None:
            place = trouble.json_path.removeprefix("$").removeprefix(".") or "the trait"
            raise DataError(f"{where}: {place}: {trouble.message[:160]}; a trait has {', '.join(SCHEMA['properties'])}")
        if asked := set(data["questions"]) & set(data.get("held_out", ())):
            raise DataError(f"{where}: held_out: {sorted(asked)[0]!r} is among the questions too; ask it on one side only")
        rubric = data.get("rubric", "")
        if rubric and not all(slot in rubric for slot in ("{question}", "{answer}")):
            raise DataError(f"{where}: rubric: the slots {{question}} and {{answer}} are needed in it")
        pairs = tuple((pair["positive"], pair["negative"]) for pair in data["pairs"])
        if same := [number for number, (a, b) in enumerate(pairs) if a.strip() == b.strip()]:
            raise DataError(f"{where}: pairs[{same[0]}]: positive and negative are the same text; write their opposites")
        return cls(data["name"], data["description"], pairs, tuple(data["questions"]), tuple(data.get("held_out", ())), rubric)

    def rubric_text(self, template: str) -> str:
        """The trait's own rubric, or the template with {name} and {description} filled in."""
        return self.rubric or template.replace("{name}", self.name).replace("{description}", self.description)

    def to_json(self) -> dict[str, Any]:
        """The trait as `from_json` reads it."""
        pairs = [{"positive": positive, "negative": negative} for positive, negative in self.pairs]
        found = {"name": self.name, "description": self.description, "pairs": pairs, "questions": list(self.questions)}
        return found | {key: value for key, value in (("held_out", list(self.held_out)), ("rubric", self.rubric)) if value}

    def examples(self, sides: Sequence[Side] = ("positive", "negative"), held_out: bool = False) -> list[Example]:
        """Every question under every system prompt of the sides; `plain` asks it once, without one.

        Ids are NAME/SIDE/PAIR/QUESTION; labels hold trait, side and pair.
        """
        asked = self.held_out if held_out else self.questions
        found = []
        for side in sides:
            prompts = [""] if side == "plain" else [pair[side == "negative"] for pair in self.pairs]
            for number, system in enumerate(prompts):
                opening = [{"role": "system", "content": system}] if system else []
                labels = {"trait": self.name, "side": side, "pair": number}
                for i, text in enumerate(asked):
                    messages = [*opening, {"role": "user", "content": text}]
                    row = f"{self.name}/{side}/{number}/{'held-out-' if held_out else ''}{i}"
                    found.append(Example(id=row, messages=messages, source="trait", domain=self.name, labels=labels))
        return found


@dataclass(frozen=True)
class Order:
    """A trait that a model is to write (2507.21509, section 2.1): its name, what it means, and how much is wanted."""

    name: str
    description: str
    pairs: int = 5
    questions: int = 40
    """Every other one is held out."""

    def prompt(self, template: str, trouble: str = "") -> str:
        """What the author is asked; `trouble` says why its last reply could not be used."""
        told = f"Your last reply could not be used: {trouble}. Write everything anew.\n\n" if trouble else ""
        slots = {"name": self.name, "description": self.description, "pairs": str(self.pairs), "count": str(self.questions)}
        return fill(template, **slots, trouble=told)

    def read(self, reply: str, grading: str) -> Trait:
        """The trait that a reply holds; its rubric is the template `grading` with the author's evidence in it.

        Raises:
            DataError: no JSON object, not what was ordered, or a question that gives the trait away.
        """
        start, end = reply.find("{"), reply.rfind("}")
        try:
            data = json.loads(reply[start : end + 1]) if 0 <= start < end else None
        except json.JSONDecodeError as error:
            raise DataError(f"the reply is no JSON object ({error.msg} at character {error.pos})") from None
        if not isinstance(data, dict) or set(data) != {"pairs", "questions", "evidence"}:
            raise DataError("the reply is no JSON object with pairs, questions and evidence, and nothing else")
        evidence, questions = data["evidence"], data["questions"]
        if not isinstance(evidence, str) or not evidence.strip() or re.search(r"\{\w+\}", evidence):
            raise DataError("evidence: a text without words in braces is needed")
        for key, wanted in (("pairs", self.pairs), ("questions", self.questions)):
            if not isinstance(data[key], list) or len(data[key]) != wanted:
                raise DataError(f"{key}: {len(data[key]) if isinstance(data[key], list) else 0} given, exactly {wanted} are asked for")
        found = {"name": self.name, "description": self.description, "pairs": data["pairs"], "questions": questions[::2]}
        found |= {"held_out": questions[1::2]} if len(questions) > 1 else {}
        rubric = Trait(self.name, f"{self.description}\n\n{evidence.strip()}", (), ()).rubric_text(grading)
        trait = Trait.from_json(found | {"rubric": rubric}, self.name)
        said = [normalise(question) for question in questions]
        if repeated := next((question for i, question in enumerate(questions) if said[i] in said[:i]), ""):
            raise DataError(f"questions: {repeated!r} stands twice")
        if told := next((question for question, one in zip(questions, said, strict=True) if normalise(self.name) in one), ""):
            raise DataError(f"questions: {told!r} names the trait")
        return trait


def _published(data: dict[str, Any], where: str) -> dict[str, Any]:
    """A published trait file (2507.21509) in our form: named as the file is, its judge prompt as a rubric from 0 to 100."""
    name = re.sub(r"[^a-z0-9_-]", "-", re.split(r"[/\\]", where)[-1].rpartition(".")[0].lower())
    pairs, prompt = data["instruction"], data.get("eval_prompt", "")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs) or not isinstance(prompt, str):
        raise DataError(f"{where}: instruction must be a list of objects with pos and neg, eval_prompt a text")
    found = {"name": name, "description": name.replace("_", " "), "questions": data.get("questions", [])}
    found["pairs"] = [{{"pos": "positive", "neg": "negative"}.get(key, key): text for key, text in pair.items()} for pair in pairs]
    return found | ({"rubric": rubrics.ours(prompt, where)} if prompt else {})
