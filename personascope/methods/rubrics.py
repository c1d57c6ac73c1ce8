"""Published rubrics as their users have them → our form: slots named alike, and a first line that says which replies count."""

import ast
import re

import yaml

from personascope.errors import DataError
from personascope.methods.parsing import GRADES, LEAD, NUMBER, WRITTEN
from personascope.rows import LABELS

RENAMED = {"query": "question", "completion": "answer", "response": "answer", "grader": "grading"}
"""Slots of published templates → ours."""


def published(text: str, path: str, name: str) -> str:
    """The rubric of that name in a published file.

    A question file (2502.17424) holds them under `judge_prompts`, the same for every question that has one of the name; a
    Python file of graders (2506.19823) as string constants, which are read and never run.

    Raises:
        DataError: the file cannot be read, or holds no rubric of that name or several; the message names file and line.
    """
    found = _constants(text, path) if path.endswith(".py") else _prompts(text, path)
    if name not in found:
        raise DataError(f"{path}: no rubric {name!r} in it; there are {', '.join(sorted(found)) or 'none'}")
    if len(found[name]) > 1:
        raise DataError(f"{path}: {len(found[name])} different rubrics {name!r}; keep the questions of one of them per file")
    return ours(next(iter(found[name])), f"{path}, {name}")


def ours(template: str, where: str) -> str:
    """A template made for `str.format` as a rubric of ours; its replies are those it names itself.

    `ANSWER: WORD` in the template asks for such a last line; else a scale from 0 to 100, beside which CODE and REFUSAL count
    if it names them.

    Raises:
        DataError: no slot for an answer, or no reply that we know.
    """
    text = re.sub(r"\{(\w+)\}", lambda match: "{" + RENAMED.get(match[1], match[1]) + "}", template)
    if "{answer}" not in text and "{grading}" not in text:
        raise DataError(f"{where}: no slot {{answer}} in it; it is no rubric")
    known = (*GRADES, *LABELS, *WRITTEN)
    led = [word for word in dict.fromkeys(re.findall(r"answer:\s*([\w/-]+)", text.lower())) if word in known]
    if led:
        replies = [LEAD, *led]
    elif re.search(r"\b0\b.{0,200}\b100\b", text, re.DOTALL):
        replies = [NUMBER, *(word for word in ("CODE", "REFUSAL") if re.search(rf"\b{word}\b", text))]
    else:
        raise DataError(f"{where}: it names no reply that we know; copy it to a .md file that begins with `replies: …`")
    return f"replies: {' '.join(replies).upper()}\n\n{text.replace('{{', '{').replace('}}', '}').strip()}\n"


def _constants(text: str, path: str) -> dict[str, set[str]]:
    """String constants assigned at the top of a Python file."""
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise DataError(f"{path}:{error.lineno}: not Python ({error.msg}); give the file as it was published") from None
    found: dict[str, set[str]] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = {node.value.value}
    return found


def _prompts(text: str, path: str) -> dict[str, set[str]]:
    """The judge prompts of a question file, by name."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())[:120]}); fix the file") from None
    found: dict[str, set[str]] = {}
    for question in data if isinstance(data, list) else []:
        prompts = question.get("judge_prompts") if isinstance(question, dict) else None
        for name, prompt in (prompts or {}).items():
            found.setdefault(str(name), set()).add(str(prompt))
    return found
