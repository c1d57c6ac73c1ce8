"""What a running study is at: one line at the foot of a terminal, lines of text above it; only the text where output is piped."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from personascope import progress
from personascope.run import name_of
from personascope.stages import stage_of
from personascope.study import Study

EVERY = 1.0
"""Seconds between two looks."""
WIPE = "\r\x1b[2K"
"""Back to the line's beginning, and the line emptied."""


@contextmanager
def shown(study: Study) -> Generator[Callable[[str], None]]:
    """Inside, the line is kept up to date; yields what prints a text above it."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr)
        return
    began, over, writing = time.time(), threading.Event(), threading.Lock()

    def put(text: str) -> None:
        with writing:
            sys.stderr.write(WIPE + text)
            sys.stderr.flush()

    def look() -> None:
        while not over.wait(EVERY):
            put(line(study, began)[: shutil.get_terminal_size().columns - 1])

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield lambda text: put(text + "\n")
    finally:
        over.set()
        watching.join()
        put("")


def line(study: Study, since: float) -> str:
    """How many artifacts are made, and how far those are that somebody has worked on since then (seconds of the epoch)."""
    made, going = 0, []
    for name, recipe in study.recipes.items():
        artifact = study.artifact(name)
        if artifact.finished:
            made += 1
        elif now := progress.read(artifact.partial, since):
            going.append(f"{name_of(stage_of(recipe))} {name}: {now}")
    return " · ".join([f"{made} of {len(study.recipes)} made", *going])
