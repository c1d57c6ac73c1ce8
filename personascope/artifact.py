"""Typed directories whose manifest is written last: what a stage reads and makes."""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from personascope.errors import ArtifactError
from personascope.rows import Answer, Example, Row, Verdict, read_rows

MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.json"
LOCK = "lock"


class Artifact:
    """A path and, once finished, its manifest. Making one does not touch the disk; reading from it does."""

    rows_file: ClassVar[str] = ""
    """Name of the .jsonl payload, for artifacts that are rows."""
    row_type: ClassVar[type[Row]] = Row

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash((type(self), str(self)))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def finished(self) -> bool:
        """Whether a manifest is there; a directory without one does not count as made."""
        return (self.path / MANIFEST).is_file()

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            ArtifactError: nothing there, not finished, not readable, or an artifact of another type.
        """
        wanted = type(self).__name__
        if not self.finished:
            state = (
                "is not finished: run the stage again to continue it"
                if self.partial.exists()
                else "has no manifest.json: give the directory a stage made"
            )
            raise ArtifactError(f"{self.path} {state} (a {wanted} is needed)")
        manifest = _read_manifest(self.path)
        if manifest["type"] != wanted:
            raise ArtifactError(f"{self.path} holds a {manifest['type']}, a {wanted} is needed")
        return manifest

    @property
    def partial(self) -> Path:
        """Where the work on this artifact happens until it is finished."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def digest(self) -> str:
        """Hash of the payload, the same wherever the directory lies."""
        return self.manifest["digest"]

    @property
    def identity(self) -> str:
        """What another recipe depends on when it names this artifact."""
        return self.digest

    def file(self, name: str) -> Path:
        """Path of one file of a finished artifact; raises ArtifactError if unfinished."""
        _ = self.manifest
        return self.path / name

    def json(self, name: str) -> Any:
        """One JSON file of a finished artifact."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def rows(self) -> Iterator[Any]:
        """The rows of a finished artifact of rows."""
        return read_rows(self.file(self.rows_file), self.row_type)


class Dataset(Artifact):
    """Conversations to train on, or questions to ask: `examples.jsonl`."""

    rows_file = "examples.jsonl"
    row_type = Example


class Model(Artifact):
    """A model: `model.json` with, as made, full weights, a PEFT adapter, a trained vector, or a reference to a base elsewhere.

    `checkpoint` picks a saved training step instead of the last one; it is written `PATH@STEP`.
    """

    def __init__(self, path: Path | str, checkpoint: int | None = None) -> None:
        name, _, step = Path(path).name.rpartition("@")
        if name and step.isdigit():
            path, checkpoint = Path(path).with_name(name), int(step)
        super().__init__(path)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        return str(self.path) if self.checkpoint is None else f"{self.path}@{self.checkpoint}"

    @property
    def identity(self) -> str:
        """The digest, with the step if one is picked."""
        return self.digest if self.checkpoint is None else f"{self.digest}@{self.checkpoint}"

    def at(self, step: int) -> "Model":
        """This model as it was after `step` optimiser steps; the checkpoint must have been saved."""
        return Model(self.path, step)


class Answers(Artifact):
    """Sampled answers: `answers.jsonl`."""

    rows_file = "answers.jsonl"
    row_type = Answer


class Verdicts(Artifact):
    """Judgements of answers: `verdicts.jsonl`."""

    rows_file = "verdicts.jsonl"
    row_type = Verdict


class Findings(Artifact):
    """Rates with intervals: `findings.json`."""


class Dictionary(Artifact):
    """A sparse dictionary in SAELens' folder format: `cfg.json`, `sae_weights.safetensors`."""


class Diff(Artifact):
    """What moved between models: `latents.jsonl`, `directions.safetensors`, `diff.json`."""


class Vectors(Artifact):
    """Persona vectors: `directions.safetensors` with `persona/SITE`, `vectors.json`."""


class Screen(Artifact):
    """What moves behaviour: `grid.jsonl`, `screen.json`."""


class Labels(Artifact):
    """What latents are, in words and numbers: `latents.jsonl`, `contexts.jsonl`, `similarity.json`, `interpret.json`."""


class Monitor(Artifact):
    """A calibrated detector: `monitor.json`, `scores.jsonl`."""


class Report(Artifact):
    """One self-contained `report.html`."""


TYPES: dict[str, type[Artifact]] = {kind.__name__: kind for kind in Artifact.__subclasses__()}


def open_any(path: Path | str) -> Artifact:
    """The artifact at this path, as the type its manifest names.

    Raises:
        ArtifactError: nothing finished there.
    """
    manifest = Path(path) / MANIFEST
    if not manifest.is_file():
        raise ArtifactError(f"{path} has no {MANIFEST}: give the directory a stage made")
    return TYPES[_read_manifest(Path(path))["type"]](path)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["type"] in TYPES:
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise ArtifactError(f"{path / MANIFEST} is damaged or not ours: run the stage again in another directory")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(root: Path) -> str:
    """SHA-256 over the sorted relative names and contents of the files below `root`, our own marks apart."""
    ours = {MANIFEST, FINGERPRINT, LOCK}
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and str(p.relative_to(root)) not in ours)
    lines = [f"{name} {hash_file(root / name)}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
