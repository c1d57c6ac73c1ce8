"""NAME: every suite, rubric, constitution and trait that ships, with count and digest, or one of them in full."""

import argparse
import json
import os
import sys
from collections import Counter

from personascope.errors import DataError
from personascope.rows import Example
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


SAMPLES = 3
"""Rows of a suite that the page shows."""


def page(entries: list[Entry]) -> str:
    """Everything that ships as one page of Markdown, suites with their categories and a few rows."""
    said = ["# What ships", "", "Made by `personascope suites --page`; digests change with the content.", ""]
    for kind in dict.fromkeys(entry.kind for entry in entries):
        said += [f"## {HEADS.get(kind, kind.capitalize())}", ""]
        for entry in (entry for entry in entries if entry.kind == kind):
            said += [f"### {entry.name}", "", f"{entry.count} {entry.unit}, `{entry.digest}`. {entry.about}", ""]
            if kind in ("suite", "statements"):
                said += [*_asked(catalogue.suite(entry.name)), ""]
    return "\n".join(said).rstrip() + "\n"


HEADS = {"suite": "Suites", "statements": "Statements", "rubric": "Rubrics", "constitution": "Constitutions", "trait": "Traits"}


def _asked(rows: list[Example]) -> list[str]:
    """How many rows each category has, and the first of a few of them."""
    counts = Counter(row.domain for row in rows)
    first = {row.domain: row for row in reversed(rows)}
    shown = [f"> {' '.join(first[domain].messages[-1]['content'].split())}" for domain in list(counts)[:SAMPLES]]
    return [", ".join(f"{domain} {n}" for domain, n in counts.items()) + ".", "", "\n\n".join(shown)]


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `personascope suites`."""
    parser.add_argument("NAME", nargs="?", help="show this one in full; KIND/NAME where two kinds share a name, such as rubric/safety")
    parser.add_argument("--page", action="store_true", help="everything as one page of Markdown, with examples")
    parser.add_argument("--json", action="store_true", help="machine-readable: the table, or one entry with its rows or text")


def main(arguments: argparse.Namespace) -> int:
    """Print the table or one entry."""
    entries = catalogue.table()
    if arguments.NAME is not None:
        say(one(find(arguments.NAME, entries), arguments.json))
    elif arguments.page:
        say(page(entries).rstrip())
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
