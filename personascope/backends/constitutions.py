"""Constitutions by name: a shipped one, a user's file, or a character of a world."""

import tomllib
from pathlib import Path

from personascope import suites
from personascope.errors import DataError, RecipeError
from personascope.methods.constitutions import Constitution
from personascope.troupe.constitutions import of

HOME = suites.HERE / "constitutions"


def shipped() -> list[str]:
    """The names of the shipped ones."""
    return sorted(path.stem for path in HOME.glob("*.toml"))


def load(spec: str) -> Constitution:
    """The constitution `NAME` (shipped), `FILE.toml` (named by its stem) or `world:WORLD/CHARACTER`.

    Raises:
        DataError: no such file, or it is no constitution (the message names file and key); no such world or character.
        RecipeError: the spec names nothing.
    """
    if spec.startswith("world:"):
        return _of_world(spec)
    path = Path(spec) if spec.endswith(".toml") else HOME / f"{spec}.toml"
    if not path.is_file():
        if spec.endswith(".toml"):
            raise DataError(f"{spec}: no such file; check the path")
        raise RecipeError(f"no constitution {spec!r}; shipped are {', '.join(shipped())}, or give FILE.toml or world:WORLD/CHARACTER")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not TOML ({error}); fix the file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert the file") from None
    return Constitution.from_data(data, path.stem, str(path))


def _of_world(spec: str) -> Constitution:
    world, mark, character = spec.removeprefix("world:").rpartition("/")
    if not (world and mark and character):
        raise RecipeError(f"constitution {spec!r} names no character; write world:WORLD/CHARACTER")
    return of(world, character)


def identity(spec: str) -> str:
    """Name and digest: what everything made with it depends on."""
    constitution = load(spec)
    return f"{constitution.name}:{constitution.digest[:16]}"
