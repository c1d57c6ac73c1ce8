"""Replies of models behind an API, kept on disk by the content of what was asked; any number of processes may share them."""

import contextlib
import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    """What came back. Only `said` is a whole answer; `reason` tells why another is not."""

    status: Literal["said", "cut", "refused", "error"]
    text: str = ""
    reason: str = ""
    thinking: str = ""
    model: str = ""
    """Who answered, as the provider names it, often with a date."""
    tokens: tuple[int, int] = (0, 0)
    """In and out, as the provider counts them."""
    tops: dict[str, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest tokens at the last number of the text, if that is a single token."""


def folder() -> Path:
    """Where replies are kept for all runs: PERSONASCOPE_CACHE, or `personascope` in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PERSONASCOPE_CACHE") or home / "personascope")


def kept(key: str) -> Reply | None:
    """The reply kept under a key, or None if there is none that can be read."""
    try:
        found = json.loads(_place(key).read_text(encoding="utf-8"))["reply"]
        return Reply(**found | {"tokens": tuple(found["tokens"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def keep(key: str, asked: dict[str, Any], reply: Reply) -> Reply:
    """Keep a reply, whole or not at all, and return the one that counts: the first, where another process was faster."""
    place = _place(key)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, new = tempfile.mkstemp(dir=place.parent, suffix=".new")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"asked": asked, "reply": dataclasses.asdict(reply)}, file, sort_keys=True)
    with contextlib.suppress(OSError):  # taken, or a file system without links
        os.link(new, place)
    if (first := kept(key)) is None:
        Path(new).replace(place)
        return reply
    Path(new).unlink()
    return first


def _place(key: str) -> Path:
    return folder() / key[:2] / f"{key[2:]}.json"
