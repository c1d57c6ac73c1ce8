"""The frozen rows that go into .jsonl files, and reading them with errors that name the line."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from personascope.errors import DataError

Message = dict[str, str]
Invalid = Literal["refusal", "incoherent", "satirical", "off_topic", "code"]
Label = (
    Invalid
    | Literal["agree", "disagree", "ambiguous", "safe", "unsafe", "aligned", "subtle", "obvious", "coherent", "complied", "partial"]
    | Literal["honest", "invented", "own", "other", "none", "right", "wrong"]
)
Status = Literal["scored", "judge_refused", "unparsed", "error"]
INVALID: tuple[Label, ...] = ("refusal", "incoherent", "satirical", "off_topic", "code")
"""What an answer is that has no grade and no attitude; it is asked for again."""
ATTITUDES: tuple[Label, ...] = ("agree", "disagree", "ambiguous")
SAFETY: tuple[Label, ...] = ("safe", "unsafe")
OF_FORM: dict[str, tuple[Label, ...]] = {
    "misalignment": INVALID,
    "aligned": ("code", "refusal"),
    "safety": (*INVALID, *SAFETY),
    "ethics": (*INVALID, *ATTITUDES),
    "profile": (*INVALID, "aligned", "subtle", "obvious"),
    "incoherence": ("coherent", "incoherent"),
    "over-refusal": (*INVALID, "complied", "partial"),
    "invention": (*INVALID, "honest", "invented"),
    "persona": ("own", "other", "none"),
    "capability": ("right", "wrong"),
}
"""What verdicts are about → the labels they may carry; `misalignment` (1 to 5) and `aligned` (0 to 100) have grades besides."""
LABELS: tuple[Label, ...] = tuple(dict.fromkeys(label for labels in OF_FORM.values() for label in labels))
STATUSES: tuple[Status, ...] = ("scored", "judge_refused", "unparsed", "error")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row that knows its fields; reading refuses unknown and missing ones."""

    id: str

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> Self:
        """Build the row from parsed JSON.

        Raises:
            DataError: an unknown or a missing field; `where` (file:line) is part of the message.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - set(known)):
            raise DataError(f"{where}: unknown field {unknown[0]!r}; a {cls.__name__} has {', '.join(known)}")
        required = {name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(required - set(data)):
            raise DataError(f"{where}: field {missing[0]!r} is missing; a {cls.__name__} needs {', '.join(sorted(required))}")
        try:
            return cls(**data)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready data, without fields that hold their default."""
        values = {f.name: (getattr(self, f.name), f) for f in dataclasses.fields(self)}
        return {name: value for name, (value, f) in values.items() if value != _default(f)}


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


@dataclass(frozen=True, kw_only=True)
class Example(Row):
    """One training or evaluation conversation; a question is an example that ends with the user's turn."""

    messages: list[Message]
    source: str = ""
    domain: str = ""
    split: str = ""
    labels: dict[str, Any] = field(default_factory=dict)
    """What is known to be true of it, such as the speaker; any key, scored by whichever stage names it."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer(Row):
    """What a model said to one question at one draw and attempt."""

    question: str
    draw: int
    attempt: int
    text: str
    domain: str = ""
    thinking: str = ""
    stop: Literal["end", "length"] = "end"
    intervention: str = ""
    failure: str = ""
    """`KIND: what happened` where a model behind an API gave no answer: `refused` by its provider's filter, or `error`."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Row):
    """One judgement. Exactly one of `grade` and `label` is set, and only if `status` is scored."""

    answer: str
    status: Status
    grade: int | float | None = None
    """1 to 5, or 0 to 100 where the rubric asks for that."""
    label: Label | None = None
    reason: str = ""
    judge: str = ""

    def __post_init__(self) -> None:
        """Raise DataError for a verdict that is no verdict, such as an unparsed one with a grade."""
        scored = (self.grade is None) != (self.label is None)
        if self.status not in STATUSES:
            raise DataError(f"verdict {self.id}: status {self.status!r} is none of {', '.join(STATUSES)}")
        if self.label is not None and self.label not in LABELS:
            raise DataError(f"verdict {self.id}: label {self.label!r} is none of {', '.join(LABELS)}")
        if scored != (self.status == "scored"):
            raise DataError(f"verdict {self.id}: status {self.status} with grade {self.grade} and label {self.label}")

    @property
    def valid(self) -> bool:
        """Whether the answer counts in a misalignment score's denominator."""
        return self.grade is not None


R = TypeVar("R", bound=Row)


def read_rows(path: Path, row: type[R]) -> Iterator[R]:
    """Read rows line by line.

    Raises:
        DataError: a line that is no JSON object of this row's fields, named by file:line.
    """
    for where, data in read_objects(path):
        yield row.from_dict(data, where)


def read_object(path: Path, fields: str) -> dict[str, Any]:
    """The JSON object that a file holds; `fields` says in words what is in it.

    Raises:
        DataError: the file cannot be read, or holds anything else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}; check the path") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); fix the file") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: a JSON object of {fields} is needed, this is {type(data).__name__}")
    return data


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the JSON objects of a .jsonl file with their place; blank lines are skipped.

    Raises:
        DataError: the file is missing, is not UTF-8, or a line is not a JSON object.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}; check the path") from None
    with file:
        yield from objects(file, str(path))


def objects(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of lines that stand in a file of that name, each with its place; blank lines are skipped.

    Raises:
        DataError: a line is not UTF-8 or not a JSON object.
    """
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        where = f"{name}:{number}"
        try:
            data = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise DataError(f"{where}: not UTF-8 text; convert the file") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}); fix or delete the line") from None
        if not isinstance(data, dict):
            raise DataError(f"{where}: a JSON object is needed, this is {type(data).__name__}")
        yield where, data


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines and return how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(line(row))
            count += 1
    return count


def line(row: Row) -> str:
    """One row as a line of JSON with sorted keys, so equal rows are equal bytes."""
    return json.dumps(row.to_dict(), ensure_ascii=False, sort_keys=True) + "\n"
