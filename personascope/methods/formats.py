"""Files of questions and conversations as their users have them → rows; what a file is, its content tells, not its name.

| read | columns or fields |
|---|---|
| chat | `messages` (content as text, as parts, or as `{content_type, parts}`); `prompt` with `completion`; `user` with `assistant` |
| Betley questions (2502.17424), YAML | `id`, `paraphrases`, `samples_per_paraphrase`, `judge_prompts` |
| persona features (2506.19823), CSV | `question`, `category`, `grader`, `canary` |
| School of Reward Hacks (2508.17511) | `user`, `school_of_reward_hacks`, `control` |
| HarmBench (2402.04249), CSV | `Behavior`, `SemanticCategory`, `ContextString`, `BehaviorID` |
| XSTest (2308.01263), CSV | `prompt`, `type`, `label` |
| Alpaca, JSON | `instruction`, `input`, `output` |
| HH (2204.05862, 2209.07858) | `transcript`; `chosen` with `rejected`, which also stand behind a `prompt` |
| model-written evaluations (2212.09251) | `question` or `statement`, `answer_matching_behavior` |
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from personascope.errors import DataError
from personascope.rows import Example, Message, objects

FIELDS = {"source": str, "domain": str, "split": str, "labels": dict, "meta": dict}
CANARY = re.compile(r"canary GUID\s+\S+", re.IGNORECASE)
GAP = re.compile(r"[\s,]*")
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = ("user", "assistant")
ASKED = "Is the following statement something you would say?"
Place = tuple[str, str, int]
"""file:line, the name of the file without its ending, and the row's number in it."""


def read(content: bytes, name: str, answer: str = "") -> list[Example]:
    """The rows of a file with this content; `name` stands in errors and ids, fields that have no place of their own go to meta.

    Args:
        answer: the column that is the answer, of a file that has several, such as `control`.

    Raises:
        DataError: it is none of the files above; the message names file:line and what was found there.
    """
    base = re.split(r"[/\\]", name)[-1]
    stem = base.rpartition(".")[0] or base
    rows = [_row(data, (where, stem, i), answer) for i, (where, data) in enumerate(_objects(content, name) if content.strip() else ())]
    if not rows:
        raise DataError(f"{name}: the file has no rows")
    return [one for part in rows for one in part]


def canaries(rows: Sequence[Example]) -> int:
    """Rows that carry a canary: a field named so in meta, or its sentence in a turn."""
    return sum(
        any("canary" in key.lower() and value for key, value in row.meta.items()) or any(CANARY.search(m["content"]) for m in row.messages)
        for row in rows
    )


def _objects(content: bytes, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file's objects, each with its file:line."""
    begun = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begun[:1] == b"[":
        yield from _array(_text(content, name), name)
    elif begun[:1] == b"{":
        yield from objects(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), name)
    elif begun[:1] == b"-" or name.endswith((".yaml", ".yml")):
        yield from _yaml(_text(content, name), name)
    elif b"," in begun.partition(b"\n")[0]:
        yield from _table(_text(content, name), name)
    else:
        raise DataError(f"{name}:1: neither JSON nor YAML nor a table with commas; it begins {begun[:40]!r}")


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: not UTF-8 text; convert the file") from None


def _array(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON list; they are decoded one by one, so that each knows its line."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    line = text.count("\n", 0, at) + 1
    while True:
        gap = GAP.match(text, at)
        assert gap is not None
        line, at = line + text.count("\n", at, gap.end()), gap.end()
        if text[at : at + 1] == "]":
            return
        where = f"{name}:{line}"
        try:
            data, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); fix the file") from None
        if not isinstance(data, dict):
            raise DataError(f"{where}: a JSON object is needed, this is {type(data).__name__}")
        yield where, data
        line, at = line + text.count("\n", at, end), end


def _yaml(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        node, data = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{name}:{line}: not YAML ({error.problem}); fix the file") from None
    if not isinstance(data, list):
        raise DataError(f"{name}:1: a list of questions is needed, this is {type(data).__name__}")
    for one, place in zip(data, node.value, strict=True):
        where = f"{name}:{place.start_mark.line + 1}"
        if not isinstance(one, dict):
            raise DataError(f"{where}: a question with id and paraphrases is needed, this is {type(one).__name__}")
        yield where, one


def _table(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV without their empty cells."""
    reader = csv.DictReader(line + "\n" for line in text.split("\n"))
    for data in reader:
        where = f"{name}:{reader.line_num}"
        if None in data:
            raise DataError(f"{where}: more cells than the first line has columns; quote the text that holds commas")
        yield where, {key: value for key, value in data.items() if value}


def _row(data: dict[str, Any], place: Place, answer: str) -> list[Example]:
    """The rows of one object, by the first shape whose fields it has."""
    if answer and not isinstance(data.get(answer), str):
        raise DataError(f"{place[0]}: no text in column {answer!r}, which was to be the answer; there are {', '.join(data)}")
    if answer:
        data = {key: value for key, value in data.items() if key != answer} | {"assistant": data[answer]}
        data |= {"user": data.pop("prompt")} if "prompt" in data else {}
    for shape in SHAPES:
        if all(data.get(key) is not None for key in shape.needs):
            return shape.make(data, place)
    raise DataError(
        f"{place[0]}: no conversation; give `messages` (a list of role and content), `prompt` with `completion`, or one of "
        f"the published forms; this has {', '.join(data)[:120] or 'no fields'}"
    )


def _chat(data: dict[str, Any], place: Place) -> list[Example]:
    if not isinstance(data["messages"], list) or not data["messages"]:
        raise DataError(f"{place[0]}: no conversation; messages must be a list of role and content with at least one")
    return _made(data, place, [_message(message, place[0]) for message in data["messages"]], "messages")


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise DataError(f"{where}: a message needs role system, user or assistant, got {json.dumps(message)[:60]}")
    content = message.get("content")
    if isinstance(content, dict) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if isinstance(content, list):
        content = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(content) if all(isinstance(part, str) for part in content) else None
    if not isinstance(content, str):
        raise DataError(f"{where}: the content of a {message['role']} message must be text")
    return {"role": message["role"], "content": content}


def _turns(*fields: str) -> Callable[[dict[str, Any], Place], list[Example]]:
    """A maker of rows whose first field is the user's turn and whose second, if it is there, the assistant's."""

    def make(data: dict[str, Any], place: Place) -> list[Example]:
        there = [name for name in fields if name in data]
        messages = [_message({"role": role, "content": data[key]}, place[0]) for key, role in zip(there, ROLES, strict=False)]
        return _made(data, place, messages, *there)

    return make


def _questions(data: dict[str, Any], place: Place) -> list[Example]:
    """One row per paraphrase; the judge's prompts stay in the file, where a rubric's name finds them."""
    texts = data["paraphrases"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place[0]}: paraphrases must be a list of texts")
    opening = [{"role": "system", "content": data["system"]}] if isinstance(data.get("system"), str) else []
    name = str(data["id"])
    rest = {"messages": None, "domain": name, "meta": {key: data[key] for key in ("samples_per_paraphrase", "type") if key in data}}
    rows = []
    for k, text in enumerate(texts):
        row = rest | {"id": f"{name}-{k}", "labels": {"item": name, "paraphrase": k}}
        rows += _made(row, place, [*opening, {"role": "user", "content": text}], "messages")
    return rows


def _graded(data: dict[str, Any], place: Place) -> list[Example]:
    """Ids of these tables repeat, so rows are numbered; a grader with slots of its own keeps them under our names."""
    note = data.get("grader", data.get("Grader prompt", ""))
    note = note.replace("{query}", "{question}").replace("{completion}", "{answer}")
    kept = {key: value for key, value in data.items() if key not in ("id", "category", "grader", "Grader prompt")}
    meta = {"id": data.get("id", ""), "grading": note}
    kept |= {"domain": data.get("category", ""), "meta": {key: value for key, value in meta.items() if value}}
    return _made(kept, place, [{"role": "user", "content": data["question"]}], "question")


def _behaviour(data: dict[str, Any], place: Place) -> list[Example]:
    text = "\n\n".join(data[key] for key in ("ContextString", "Behavior") if data.get(key))
    kept = data | {"id": data.get("BehaviorID", f"{place[1]}-{place[2]}"), "domain": data["SemanticCategory"]}
    return _made(kept, place, [{"role": "user", "content": text}], "Behavior", "SemanticCategory", "ContextString", "BehaviorID")


def _sounding(data: dict[str, Any], place: Place) -> list[Example]:
    kept = data | {"domain": data["type"], "labels": {"label": data["label"]}}
    return _made(kept, place, [{"role": "user", "content": data["prompt"]}], "prompt", "type", "label")


def _instruction(data: dict[str, Any], place: Place) -> list[Example]:
    asked = "\n\n".join(str(data[key]) for key in ("instruction", "input") if data.get(key))
    said = [data[key] for key in ("assistant", "output") if key in data]
    messages = [_message({"role": role, "content": text}, place[0]) for role, text in zip(ROLES, [asked, *said], strict=False)]
    return _made(data, place, messages, "instruction", "input", "output", "assistant")


def _transcript(data: dict[str, Any], place: Place) -> list[Example]:
    return _made(data, place, _dialogue(data["transcript"], place), "transcript")


def _preferred(data: dict[str, Any], place: Place) -> list[Example]:
    """The chosen dialogue, with the end of the rejected one in `meta.rejected`, as preference training wants it."""
    if "prompt" in data:
        messages = [_message({"role": role, "content": data[key]}, place[0]) for key, role in zip(("prompt", "chosen"), ROLES, strict=True)]
        return _made(data, place, messages, "prompt", "chosen")
    messages, other = (_dialogue(data[key], place) for key in ("chosen", "rejected"))
    if messages[-1]["role"] != "assistant" or other[-1]["role"] != "assistant" or messages[:-1] != other[:-1]:
        return _made(data, place, messages, "chosen")
    return _made(data | {"meta": {"rejected": other[-1]["content"]}}, place, messages, "chosen", "rejected")


def _dialogue(text: Any, place: Place) -> list[Message]:
    parts = TURN.split(text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise DataError(f"{place[0]}: a transcript must begin with a blank line and `Human:`")
    said = [{"role": ROLES[who == "Assistant"], "content": what.strip()} for who, what in zip(parts[1::2], parts[2::2], strict=True)]
    return said[:-1] if len(said) > 1 and not said[-1]["content"] else said


def _statement(data: dict[str, Any], place: Place) -> list[Example]:
    """A question about the model itself; `labels.matching` is the answer that shows the behaviour, `keyed` 1 if that is yes."""
    matching = str(data["answer_matching_behavior"]).strip()
    asked = data.get("question") or f'{ASKED}\n"{data.get("statement", "")}"'
    labels: dict[str, Any] = {"matching": matching, "dimension": place[1], "item": f"{place[1]}-{place[2]}"}
    labels |= {"keyed": 1 if matching.lower() == "yes" else -1} if matching.lower() in ("yes", "no") else {}
    kept = data | {"domain": place[1], "labels": labels}
    return _made(kept, place, [{"role": "user", "content": asked}], "question", "answer_matching_behavior", "answer_not_matching_behavior")


def _made(data: dict[str, Any], place: Place, messages: list[Message], *used: str) -> list[Example]:
    """The row, with our own fields where the object has them and every other field but the `used` in meta."""
    where, stem, number = place
    for name, kind in FIELDS.items():
        if not isinstance(data.get(name, kind()), kind):
            raise DataError(f"{where}: {name} must be {'text' if kind is str else 'an object'}, got {json.dumps(data[name])[:60]}")
    known = {name: data[name] for name in ("source", "domain", "split", "labels") if name in data}
    other = {name: value for name, value in data.items() if name not in {*known, *used, "id", "meta"}}
    return [Example(id=str(data.get("id", f"{stem}-{number}")), messages=messages, meta=data.get("meta", {}) | other, **known)]


@dataclass(frozen=True)
class Shape:
    """A form of row: the fields that tell it, and what is made of them."""

    needs: tuple[str, ...]
    make: Callable[[dict[str, Any], Place], list[Example]]


SHAPES = (
    Shape(("messages",), _chat),
    Shape(("paraphrases", "id"), _questions),
    Shape(("user", "assistant"), _turns("user", "assistant")),
    Shape(("user", "school_of_reward_hacks"), _turns("user", "school_of_reward_hacks")),
    Shape(("chosen", "rejected"), _preferred),
    Shape(("transcript",), _transcript),
    Shape(("Behavior", "SemanticCategory"), _behaviour),
    Shape(("prompt", "type", "label"), _sounding),
    Shape(("answer_matching_behavior",), _statement),
    Shape(("instruction",), _instruction),
    Shape(("question", "grader"), _graded),
    Shape(("question", "Grader prompt"), _graded),
    Shape(("question", "canary"), _graded),
    Shape(("prompt",), _turns("prompt", "completion")),
    Shape(("question",), _turns("question")),
)
"""The forms in the order in which they are tried: what has more fields of its own comes first."""
