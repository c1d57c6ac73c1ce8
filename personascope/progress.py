"""How far a stage has come: told by whoever does the work, kept in a file that other processes read while it runs."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

FILE, NEW = "progress.json", "progress.new"
"""What is kept, and what is being written to take its place."""
EVERY = 1.0
"""Seconds between two writes."""


class Progress(NamedTuple):
    """So many of so many rows, steps, tokens or answers."""

    done: int
    total: int
    """As far as is known beforehand; an adaptive stage may need fewer or more."""
    unit: str

    def __str__(self) -> str:
        return f"{self.done:,} of {max(self.done, self.total):,} {self.unit}"


Hear = Callable[[Progress], None]
_HEARD: ContextVar[tuple[Hear, ...]] = ContextVar("heard", default=())


def tell(done: int, total: int, unit: str) -> None:
    """Say how far the work is; nothing happens where nobody listens."""
    for hear in _HEARD.get():
        hear(Progress(done, total, unit))


@contextmanager
def heard(*by: Hear) -> Generator[None]:
    """Inside, these hear all that is told."""
    token = _HEARD.set((*_HEARD.get(), *by))
    try:
        yield
    finally:
        _HEARD.reset(token)


def kept(work: Path) -> Hear:
    """Keeps what is told in a file of a directory of work, at most once a second."""
    place, written = work / FILE, 0.0

    def keep(now: Progress) -> None:
        nonlocal written
        if time.monotonic() >= written + EVERY:
            written = time.monotonic()
            (work / NEW).write_text(json.dumps(now))
            (work / NEW).replace(place)

    return keep


def read(work: Path, since: float = 0.0) -> Progress | None:
    """What was last kept there, if anything was since then (seconds of the epoch); the work may end meanwhile."""
    try:
        return Progress(*json.loads((work / FILE).read_text())) if (work / FILE).stat().st_mtime >= since else None
    except (OSError, ValueError, TypeError):
        return None


def forget(work: Path) -> None:
    """Take away what was kept, a half-written one too: a result does not hold how it was come by."""
    for name in (FILE, NEW):
        (work / name).unlink(missing_ok=True)
