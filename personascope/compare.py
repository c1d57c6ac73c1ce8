"""A B: the verdicts of two finished audits (or studies) side by side."""

import argparse
import json
from pathlib import Path
from typing import Any

from personascope.errors import ArtifactError


def estimates(found: Any, name: str = "") -> dict[str, dict[str, float]]:
    """Every estimate of a summary by its dotted name; lists are left out, for their places need not correspond."""
    if not isinstance(found, dict):
        return {}
    if {"value", "low", "high"} <= set(found):
        return {name: found}
    return {key: value for part, inner in found.items() for key, value in estimates(inner, f"{name}.{part}".lstrip(".")).items()}


def read(path: Path) -> dict[str, dict[str, float]]:
    """The estimates of one directory's summary.json.

    Raises:
        ArtifactError: no finished audit or study there.
    """
    try:
        return estimates(json.loads((path / "summary.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} has no summary.json: give the directory of a finished audit or study") from None
    except ValueError:
        raise ArtifactError(f"{path / 'summary.json'} is damaged: run the audit again") from None


def rows(a: dict[str, dict[str, float]], b: dict[str, dict[str, float]]) -> list[str]:
    """One line per estimate both have: both with interval, the difference, and `apart` where the intervals do not touch."""
    lines = []
    for name in [key for key in a if key in b]:
        left, right = a[name], b[name]
        if left["value"] is None or right["value"] is None:
            continue
        apart = "apart" if left["low"] > right["high"] or right["low"] > left["high"] else ""
        shown = [f"{e['value']:7.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in (left, right)]
        lines.append(f"{name:44} {shown[0]:26} {shown[1]:26} {right['value'] - left['value']:+.3f} {apart}".rstrip())
    return lines


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `personascope compare`."""
    parser.add_argument("A", type=Path, help="directory of a finished audit or study")
    parser.add_argument("B", type=Path, help="another one")


def main(arguments: argparse.Namespace) -> int:
    """Print the table."""
    a, b = read(arguments.A), read(arguments.B)
    found = rows(a, b)
    if not found:
        raise ArtifactError(f"{arguments.A} and {arguments.B} have no estimate in common; compare two audits, or two runs of one study")
    print(f"{'':44} {str(arguments.A)[-26:]:26} {str(arguments.B)[-26:]:26} B - A", *found, sep="\n")
    return 0
