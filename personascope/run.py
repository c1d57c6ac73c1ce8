"""Run one stage: skip what is done, refuse what differs, continue what was interrupted, publish whole."""

import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from personascope import progress
from personascope.artifact import FINGERPRINT, LOCK, MANIFEST, Artifact, hash_tree
from personascope.errors import ArtifactError, BackendError, PersonascopeError, RecipeChanged
from personascope.recipe import Recipe, differences, fingerprint
from personascope.rows import Row, line, write_rows
from personascope.stages import stage_of

Part = tuple[int, int]
SMALLER = ("batch_tokens", "microbatch", "batch")
"""Fields that say how much is held at once, those that leave the result as it is first."""
EVERY = 1.0
"""Seconds after which finished rows are on disk, whatever kills the run."""


def run(recipe: Recipe, out: Path | str, part: Part | None = None, hear: progress.Hear | None = None) -> Artifact:
    """Make the artifact of this recipe at `out`, or return it if it is there.

    Args:
        part: (i, n) makes only rows i::n, at `out.part-i-of-n`; see `join`.
        hear: called with how far the work has come, where the stage says.

    Raises:
        RecipeChanged: `out` holds, or was begun with, another recipe.
        ArtifactError: `out` is locked by a running process, or the disk is full.
        BackendError: the device is out of memory.
    """
    stage = stage_of(recipe)
    if part is not None:
        out = part_path(Path(out), part)
    artifact = stage.makes(out)
    mark = _mark(stage, recipe) | ({"part": list(part)} if part else {})
    if artifact.finished:
        _refuse_change(artifact.path, {k: artifact.manifest.get(k) for k in mark}, mark)
        return artifact
    with _claimed(artifact, mark) as work:
        start = time.time()
        with progress.heard(progress.kept(work), *([hear] if hear else [])), _told_of_memory(out, recipe):
            counts = _rows(stage, recipe, work, part) if hasattr(stage, "many") else stage.run(recipe, work) or {}
        progress.forget(work)
        _publish(artifact, work, recipe, mark, counts, start)
    return artifact


def part_path(out: Path, part: Part) -> Path:
    """Where part (i, n) of `out` is made."""
    return out.with_name(f"{out.name}.part-{part[0]}-of-{part[1]}")


def join(recipe: Recipe, out: Path | str, n: int) -> Artifact:
    """Interleave n finished parts into the artifact that a whole run would have made.

    Raises:
        ArtifactError: a part is missing or of another recipe.
    """
    stage = stage_of(recipe)
    out = Path(out)
    artifact = stage.makes(out)
    mark = _mark(stage, recipe)
    if artifact.finished:
        _refuse_change(artifact.path, {k: artifact.manifest.get(k) for k in mark}, mark)
        return artifact
    parts = [stage.makes(part_path(out, (i, n))) for i in range(n)]
    for p in parts:
        if p.manifest["fingerprint"] != mark["fingerprint"]:
            raise ArtifactError(f"{p.path} is a part of another recipe: delete it and make it again")
    with _claimed(artifact, mark) as work:
        lists = [p.file(stage.makes.rows_file).read_bytes().splitlines(keepends=True) for p in parts]
        total = sum(map(len, lists))
        path = work / stage.makes.rows_file
        path.write_bytes(b"".join(lists[i % n][i // n] for i in range(total)))
        counts = {"rows": total, "parts": n} | _checked(stage, recipe, path)
        _publish(artifact, work, recipe, mark, counts, min(p.manifest["made"]["started"] for p in parts))
    return artifact


def publish(artifact: Artifact, recipe: Recipe, stage: ModuleType, rows: Iterable[Row]) -> Artifact:
    """Make an artifact of rows that exist already, such as those of a file in another format, under the laws of `run`.

    Args:
        stage: the module that knows the format; like a stage it has a `version`.

    Raises:
        RecipeChanged, ArtifactError: as `run` does.
    """
    mark = _mark(stage, recipe)
    if artifact.finished:
        _refuse_change(artifact.path, {k: artifact.manifest.get(k) for k in mark}, mark)
        return artifact
    with _claimed(artifact, mark) as work:
        start = time.time()
        _publish(artifact, work, recipe, mark, {"rows": write_rows(work / artifact.rows_file, rows)}, start)
    return artifact


def _mark(stage: ModuleType, recipe: Recipe) -> dict[str, Any]:
    """What a result depends on, spelled out and hashed: a directory with another mark is refused."""
    name = name_of(stage)
    return {"stage": name, "version": stage.version, "identity": recipe.identity(), "fingerprint": fingerprint(name, stage.version, recipe)}


def same(artifact: Artifact, recipe: Recipe) -> bool:
    """Whether a finished artifact is what this recipe asks for, by this version of its stage."""
    return artifact.manifest["fingerprint"] == _mark(stage_of(recipe), recipe)["fingerprint"]


def name_of(stage: ModuleType) -> str:
    """The stage's name, the last part of its module's."""
    return stage.__name__.rpartition(".")[2]


def _rows(stage: ModuleType, recipe: Recipe, work: Path, part: Part | None) -> dict[str, Any]:
    """Append the missing rows; what an interrupted run wrote whole is kept."""
    items = stage.items(recipe)
    if part is not None:
        items = items[part[0] :: part[1]]
    path = work / stage.makes.rows_file
    done = _complete_lines(path)
    if done and hasattr(stage, "usable") and (keep := stage.usable(recipe, path)) is not None:
        done = _cut(path, keep)
    flushed = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        rows: Iterator[Row] = stage.many(recipe, items[done:]) if done < len(items) else iter(())
        for row in rows:
            file.write(line(row))
            done += 1
            progress.tell(done, len(items), "rows")
            if time.monotonic() > flushed + EVERY:
                file.flush()
                flushed = time.monotonic()
    if done != len(items):
        raise ArtifactError(f"{path}: {done} rows for {len(items)} items; delete {work} and run again")
    return {"rows": done} | _checked(stage, recipe, path)


def _checked(stage: ModuleType, recipe: Recipe, path: Path) -> dict[str, Any]:
    """What a stage says of its rows once all are there, for the manifest; it may refuse them."""
    return (stage.check(recipe, path) or {}) if hasattr(stage, "check") else {}


def _cut(path: Path, count: int) -> int:
    """Keep the first lines of a file, so many of them."""
    lines = path.read_bytes().split(b"\n")[:count]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return count


def _complete_lines(path: Path) -> int:
    """Count the whole lines and cut off a half-written last one."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return data.count(b"\n", 0, whole)


@contextmanager
def _claimed(artifact: Artifact, mark: dict[str, Any]) -> Generator[Path]:
    """The partial directory, locked; created, or continued if it was begun with the same fingerprint."""
    work = artifact.partial
    if artifact.path.exists():
        raise ArtifactError(
            f"{artifact.path} exists and was not made by personascope (no {MANIFEST}): give another directory or move it away"
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(f"{artifact.path} is being made by another process: wait for it, or give another directory") from None
            begun = work / FINGERPRINT
            if begun.exists():
                _refuse_change(work, json.loads(begun.read_text()), mark)
            else:
                new = begun.with_suffix(".new")
                new.write_text(json.dumps(mark, indent=1, sort_keys=True))
                new.replace(begun)
            try:
                yield work
            except PersonascopeError:
                _clear(work)
                raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ArtifactError(f"disk full while writing {work}: free some space and run the same command, it continues") from error
        raise


@contextmanager
def _told_of_memory(out: Path | str, recipe: Recipe) -> Generator[None]:
    """Turns torch's word for a full device into ours, with what to make smaller; by name, because no stage here need have torch."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        held = next((name for name in SMALLER if name in vars(recipe)), "")
        less = f"give a smaller {held} (it was {vars(recipe)[held] or 'the whole batch'}), " if held else ""
        raise BackendError(
            f"{out}: the device is out of memory; {less}or load the model in bfloat16, in 4bit or spread over devices (see adopt); "
            "the same command then continues"
        ) from None


def _clear(work: Path) -> None:
    """Take away what a refused run has begun if it has made nothing, so that a corrected recipe may have its place."""
    progress.forget(work)
    marks = (LOCK, FINGERPRINT)
    made = [path for path in work.rglob("*") if path.name not in marks and (path.is_dir() or path.stat().st_size)]
    if not made:
        shutil.rmtree(work)


def _refuse_change(where: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    changed = differences({k: v for k, v in was.items() if k != "fingerprint"}, {k: v for k, v in now.items() if k != "fingerprint"})
    if changed:
        shown = "; ".join(entry.removeprefix("identity.") for entry in changed[:6])
        raise RecipeChanged(f"{where} holds the result of another recipe ({shown}): give another directory or delete this one")


def _publish(artifact: Artifact, work: Path, recipe: Recipe, mark: dict[str, Any], counts: dict[str, Any], started: float) -> None:
    """Write the manifest last and move the directory to its place."""
    manifest = {
        "type": type(artifact).__name__,
        **mark,
        "recipe": recipe.to_json(),
        "inputs": {where: _pointer(artifact, found) for where, found in recipe.inputs().items()},
        "digest": hash_tree(work),
        "counts": counts,
        "made": _circumstance() | {"started": round(started, 3), "seconds": round(time.time() - started, 3)},
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    work.rename(artifact.path)
    (artifact.path / LOCK).unlink()
    (artifact.path / FINGERPRINT).unlink()
    artifact.__dict__.pop("manifest", None)


def _pointer(artifact: Artifact, found: Artifact) -> dict[str, str]:
    """Where an input lies, absolutely and as seen from the artifact, so that a moved study still finds it."""
    return {"path": str(Path(str(found)).resolve()), "near": os.path.relpath(str(found), artifact.path), "digest": found.identity}


def _circumstance() -> dict[str, Any]:
    """What made it: recorded, never part of identity."""
    packages = {}
    for name in ("personascope", "torch", "transformers", "peft"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    made: dict[str, Any] = {
        "python": platform.python_version(),
        "host": platform.node(),
        "system": platform.platform(),
        "packages": packages,
        "argv": sys.argv[:1],
    }
    here = Path(__file__).parent
    if not (here.parent / ".git").exists() or not shutil.which("git"):
        return made | {"pid": os.getpid()}
    git = ["git", "-C", str(here)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        changed = subprocess.run([*git, "status", "--porcelain", "--", str(here)], capture_output=True, text=True, check=False)
        made |= {"commit": commit.stdout.strip(), "modified": bool(changed.stdout.strip())}
    return made | {"pid": os.getpid()}
