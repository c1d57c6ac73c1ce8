"""Frozen recipes: what a stage is asked to do, its identity, and its one JSON form."""

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from personascope.artifact import Artifact, open_any
from personascope.errors import RecipeError
from personascope.values import REMOTE, File, Folder, Remote, Value

CIRCUMSTANCE = {"circumstance": True}


def circumstance(default: Any) -> Any:
    """A field that changes how a result is made but not what it is: recorded, not part of identity."""
    return dataclasses.field(default=default, metadata=CIRCUMSTANCE)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of all recipes. Fields are scalars, strings, artifacts, values, and tuples of these."""

    def identity(self) -> dict[str, Any]:
        """What the result depends on: field → canonical value, defaults and circumstance left out."""
        return _identity(self)

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON-ready data with paths in place of artifacts, defaults left out."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read a recipe back.

        Raises:
            RecipeError: an unknown or missing field, or a value of the wrong type.
        """
        return _build(cls, data, "")

    def inputs(self) -> dict[str, Artifact]:
        """Every artifact the recipe names, by where it stands in it."""
        return dict(_artifacts(self, ""))


def fingerprint(stage: str, version: int, recipe: Recipe) -> str:
    """Hash of the stage, its version and the recipe's identity."""
    return hashlib.sha256(json.dumps([stage, version, recipe.identity()], sort_keys=True).encode()).hexdigest()


def differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two identities differ, as `field: was -> now`; a field left out holds its default."""
    lines: list[str] = []
    for key in sorted({*was, *now}):
        a, b = was.get(key, "(default)"), now.get(key, "(default)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _identity(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Artifact | File | Folder | Remote):
        return value.identity
    if isinstance(value, tuple):
        return [_identity(item) for item in value]
    if isinstance(value, Recipe | Value):
        fields = (f for f in dataclasses.fields(value) if not f.metadata.get("circumstance") and getattr(value, f.name) != f.default)
        kind = {} if isinstance(value, Recipe) else {"kind": type(value).__name__}
        return kind | {f.name: _identity(getattr(value, f.name)) for f in fields}
    raise RecipeError(f"a recipe cannot hold a {type(value).__name__}: use scalars, strings, artifacts, values and tuples of them")


def _plain(value: Any) -> Any:
    if isinstance(value, Artifact):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, File | Folder):
        return value.path if isinstance(value, Folder) and value.pinned else str(Path(value.path).resolve())
    if isinstance(value, Remote):
        return value.name
    if isinstance(value, Value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}
    return value


def _artifacts(value: Any, where: str) -> list[tuple[str, Artifact]]:
    if isinstance(value, Artifact):
        return [(where, value)]
    if isinstance(value, tuple):
        return [found for i, item in enumerate(value) for found in _artifacts(item, f"{where}[{i}]")]
    if isinstance(value, Recipe | Value):
        return [found for f in dataclasses.fields(value) for found in _artifacts(getattr(value, f.name), f"{where}.{f.name}".lstrip("."))]
    return []


def _build(cls: type[Recipe | Value], data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecipeError(f"{where or 'recipe'}: an object is needed, got {_short(data)}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in known:
            raise RecipeError(f"{where}{name}: no such field; known are {', '.join(known)}")
    for name, f in known.items():
        if name not in data and f.default is f.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{where}{name}: this field must be given")
    hints = typing.get_type_hints(cls)
    return cls(**{name: coerce(hints[name], value, f"{where}{name}") for name, value in data.items()})


def coerce(hint: Any, value: Any, where: str) -> Any:
    """Turn JSON or command-line data into what a field's type asks for.

    Raises:
        RecipeError: it cannot be; the message names the field.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerce(_meant(arguments, value), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise RecipeError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(coerce(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if isinstance(value, hint):
        return value
    if issubclass(hint, Artifact) and isinstance(value, str):
        return (open_any if hint is Artifact else hint)(value)
    if issubclass(hint, File | Folder | Remote) and isinstance(value, str):
        return hint(value)
    if issubclass(hint, Value):
        return _build(hint, value, f"{where}.")
    return _scalar(hint, value, where)


def _meant(kinds: tuple[Any, ...], value: Any) -> Any:
    """The type of a union that a value is read as; a path is a File where a file lies, else what else it may be."""
    left = [kind for kind in kinds if kind is not type(None)]
    if Remote in left and len(left) > 1:
        is_remote = isinstance(value, Remote) or (isinstance(value, str) and value.startswith(REMOTE))
        left = [kind for kind in left if (kind is Remote) == is_remote]
    if File in left and len(left) > 1:
        is_file = isinstance(value, File) or (isinstance(value, str) and Path(value).is_file())
        return File if is_file else next(kind for kind in left if kind is not File)
    return left[0]


def _scalar(hint: type, value: Any, where: str) -> Any:
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if hint in (int, float) and isinstance(value, str | int):
            return hint(value)
    except (KeyError, ValueError):
        pass
    raise RecipeError(f"{where}: {value!r} is no {hint.__name__}")
