"""Content that ships with personascope: rubrics, moral statements and dilemmas, the report's template, versioned by digest."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from personascope.errors import DataError
from personascope.methods import rubrics
from personascope.rows import Example

HERE = Path(__file__).parent
FRAMES = ('Do you agree with this statement? "{wording}"', 'Someone says: "{wording}" Do you agree?')
"""How the first and the second wording of a statement are asked; one frame each, so that no frame is a dimension's own."""


def is_file(name: str) -> bool:
    """Whether a rubric's name is a place in a file of the user's: `FILE.md`, or a published `FILE.yaml:NAME` or `FILE.py:NAME`."""
    return name.endswith(".md") or Path(name.rpartition(":")[0]).suffix in (".yaml", ".yml", ".py")


def rubric(name: str) -> str:
    """The text of a rubric with its slots: a shipped one by name, a `.md` file, or a published one (see `methods.rubrics`).

    Raises:
        DataError: neither shipped nor a file, or no such rubric in the file.
    """
    if is_file(name):
        path, part = (name, "") if name.endswith(".md") else name.rsplit(":", 1)
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; check the path")
        text = Path(path).read_text(encoding="utf-8")
        return rubrics.published(text, path, part) if part else text
    shipped = sorted(path.stem for path in (HERE / "rubrics").glob("*.md"))
    if name not in shipped:
        raise DataError(f"no rubric {name!r}; shipped are {', '.join(shipped)}")
    return (HERE / "rubrics" / f"{name}.md").read_text(encoding="utf-8")


def digest(text: str) -> str:
    """A short name for exactly this text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def prompt(name: str) -> str:
    """The text of a shipped prompt with its slots in braces; raises DataError for one that is not shipped."""
    shipped = sorted(path.stem for path in (HERE / "prompts").glob("*.md"))
    if name not in shipped:
        raise DataError(f"no prompt {name!r}; shipped are {', '.join(shipped)}")
    return (HERE / "prompts" / f"{name}.md").read_text(encoding="utf-8")


def statements(source: str = "ethics") -> list[Example]:
    """Questions about moral statements, from the shipped file of that name or a `.toml` file of the same form.

    A file holds `[dimensions.NAME]` with lists `pro` and `con` of items, each a list of one wording per frame. A question
    has `domain` = dimension and `labels` = dimension, keyed (1 | -1), item, paraphrase; `meta` holds the bare statement.

    Raises:
        DataError: no such file, or one of another form; the message names file and key.
    """
    path = _suite(source)
    dimensions = _table(path).get("dimensions")
    if not isinstance(dimensions, dict) or not dimensions:
        raise DataError(f"{path}: [dimensions.NAME] is missing; write at least one, with lists pro and con")
    rows = []
    for dimension, sides in dimensions.items():
        for side, keyed in (("pro", 1), ("con", -1)):
            items = sides.get(side) if isinstance(sides, dict) else None
            if not isinstance(items, list) or not items:
                raise DataError(f"{path}: dimensions.{dimension}.{side} must be a list of items")
            for number, wordings in enumerate(items, 1):
                rows += _asked(f"{path}: dimensions.{dimension}.{side}, item {number}", wordings, (dimension, side, keyed, number))
    return rows


def _asked(where: str, wordings: Any, place: tuple[str, str, int, int]) -> list[Example]:
    if not isinstance(wordings, list) or len(wordings) != len(FRAMES) or not all(isinstance(one, str) and one for one in wordings):
        raise DataError(f"{where} must be a list of {len(FRAMES)} wordings")
    dimension, side, keyed, number = place
    item = f"{dimension}-{side}-{number}"
    return [
        Example(
            id=f"{item}-{k}",
            messages=[{"role": "user", "content": frame.format(wording=wording)}],
            source="statements",
            domain=dimension,
            labels={"dimension": dimension, "keyed": keyed, "item": item, "paraphrase": k},
            meta={"statement": wording},
        )
        for k, (frame, wording) in enumerate(zip(FRAMES, wordings, strict=True))
    ]


def dilemmas(source: str = "dilemmas") -> list[Example]:
    """Dilemmas with a yes-or-no question, from the shipped file of that name or a `.toml` file of the same form.

    A file holds `[[dilemma]]` with name, text and `expected` = theory → "yes" | "no". A question has `domain` = dilemma and
    `labels` = dilemma (its name) and expected.

    Raises:
        DataError: no such file, or one of another form; the message names file and key.
    """
    path = _suite(source)
    found = _table(path).get("dilemma")
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: [[dilemma]] is missing; write at least one, with name, text and expected")
    rows = []
    for number, one in enumerate(found, 1):
        name, text, expected = (one.get(key) for key in ("name", "text", "expected"))
        if not isinstance(name, str) or not isinstance(text, str) or not text.endswith("?"):
            raise DataError(f"{path}: dilemma {number}: name and a text that ends with a question are needed")
        if not isinstance(expected, dict) or not expected or not set(expected.values()) <= {"yes", "no"}:
            raise DataError(f"{path}: dilemma {name}: expected must give yes or no per theory")
        messages = [{"role": "user", "content": text}]
        labels = {"dilemma": name, "expected": expected}
        rows.append(Example(id=f"dilemma-{name}", messages=messages, source="dilemmas", domain="dilemma", labels=labels))
    return rows


def _suite(source: str) -> Path:
    path = Path(source) if source.endswith(".toml") else HERE / "statements" / f"{source}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(one.stem for one in (HERE / "statements").glob("*.toml")))
        raise DataError(f"{source}: no such file; give a .toml file or one of {shipped}")
    return path


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML ({error}); fix the file") from None
