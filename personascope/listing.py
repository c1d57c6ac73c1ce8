"""NAME: every suite, rubric, constitution and trait that ships, with count and digest, or one of them in full."""

import argparse
import json
import os
import sys

from personascope.errors import DataError
from personascope.suites import catalogue
from personascope.suites.catalogue import Entry


def find(name: str, entries: list[Entry]) -> Entry:
    """The entry NAME or KIND/NAME; a bare name that several kinds share is the first of the table.

    Raises:
        DataError: nothing of that name ships.
    """
    kind, _, bare = name.rpartition("/")
    for entry in entries:
        if entry.name == bare and kind in ("", entry.kind):
            return entry
    raise DataError(f"nothing called {name!r} ships; `personascope suites` lists what does, named NAME or KIND/NAME")


def lines(entries: list[Entry]) -> list[str]:
    """The table for people: a block per kind, a line per entry."""
    width = max(len(entry.name) for entry in entries)
    said, kind = [], ""
    for entry in entries:
        if entry.kind != kind:
            kind = entry.kind
            said += ["", kind] if said else [kind]
        said.append(f"  {entry.name:{width}}  {entry.count:4} {entry.unit:10}  {entry.digest}  {entry.about}")
    return said


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `personascope suites`."""
    parser.add_argument("NAME", nargs="?", help="show this one in full; KIND/NAME where two kinds share a name, such as rubric/safety")
    parser.add_argument("--json", action="store_true", help="machine-readable: the table, or one entry with its rows or text")


def main(arguments: argparse.Namespace) -> int:
    """Print the table or one entry."""
    entries = catalogue.table()
    if arguments.NAME is not None:
        say(one(find(arguments.NAME, entries), arguments.json))
    else:
        say(json.dumps([entry.to_dict() for entry in entries], indent=1) if arguments.json else "\n".join(lines(entries)))
    return 0


def one(entry: Entry, as_json: bool) -> str:
    """An entry in full, for people or as JSON with its `rows` or its `text`."""
    if not as_json:
        return catalogue.shown(entry.kind, entry.name)
    asked = entry.kind in ("suite", "statements")
    held = {"rows": [row.to_dict() for row in catalogue.suite(entry.name)]} if asked else {"text": catalogue.shown(entry.kind, entry.name)}
    return json.dumps(entry.to_dict() | held, ensure_ascii=False, indent=1)


def say(text: str) -> None:
    """Print; a reader that has seen enough, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer would be written once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
