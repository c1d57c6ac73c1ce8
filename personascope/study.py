"""Several recipes as one readable study: plan it, run what is missing, sum it up."""

import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

from personascope import progress
from personascope.artifact import Artifact
from personascope.errors import ArtifactError, BackendError, DataError, PersonascopeError, RecipeError
from personascope.recipe import Recipe
from personascope.run import name_of, run, same
from personascope.stages import report, stage_of
from personascope.values import File

SCHEMA = Path(__file__).with_name("summary.schema.json")


@dataclass
class Study:
    """A graph of recipes below one root. `run` only declares; the runner makes what is missing."""

    root: Path
    quick: bool = False
    recipes: dict[str, Recipe] = field(default_factory=dict)

    def run(self, name: str, recipe: Recipe) -> Any:
        """Declare that `root/name` is made by this recipe and return the artifact it will be.

        Raises:
            RecipeError: the name is taken by another recipe of this study.
        """
        if self.recipes.setdefault(name, recipe) != recipe:
            raise RecipeError(f"study: {name!r} is declared twice with different recipes; give one another name")
        return stage_of(recipe).makes(self.root / name)

    def artifact(self, name: str) -> Any:
        """The artifact declared under this name."""
        return stage_of(self.recipes[name]).makes(self.root / name)

    def needs(self) -> dict[str, set[str]]:
        """For every artifact of the study, the names of the study's own artifacts that it reads."""
        places = {str(self.root / name): name for name in self.recipes}
        inputs = {name: {str(found.path) for found in recipe.inputs().values()} for name, recipe in self.recipes.items()}
        return {name: {places[path] for path in paths if path in places} for name, paths in inputs.items()}

    def seconds(self) -> dict[str, float]:
        """Seconds of work per stage, `total` of them, and `wall`: time in which at least one stage ran."""
        spent: dict[str, float] = {}
        spans = []
        for name, recipe in self.recipes.items():
            made = self.artifact(name).manifest["made"]
            stage = name_of(stage_of(recipe))
            spent[stage] = spent.get(stage, 0.0) + made["seconds"]
            spans.append((made["started"], made["started"] + made["seconds"]))
        wall, end = 0.0, 0.0
        for start, stop in sorted(spans):
            wall += max(0.0, stop - max(start, end))
            end = max(end, stop)
        total = sum(spent.values())
        return {stage: round(s, 1) for stage, s in spent.items()} | {"total": round(total, 1), "wall": round(wall, 1)}


def load(path: Path) -> ModuleType:
    """Import a study file.

    Raises:
        DataError: no such file, or it defines no `build`.
    """
    if not path.is_file() or path.suffix != ".py":
        raise DataError(f"{path}: no such study file; give the path of a .py file that defines build(study)")
    name = f"study_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "build"):
        raise DataError(f"{path}: defines no build(study); a study declares its recipes there")
    return module


def plan(study: Study) -> list[str]:
    """One line per artifact: finished, changed (another recipe or version made it), begun (how far) or to do, and its cost where known."""
    lines = []
    for name, recipe in study.recipes.items():
        artifact, stage = study.artifact(name), stage_of(recipe)
        state = _made(artifact, recipe) if artifact.finished else "begun" if artifact.partial.exists() else "to do"
        more = "" if artifact.finished else str(progress.read(artifact.partial) or _cost(stage, recipe))
        lines.append(f"{state:9} {name_of(stage):10} {name:44} {more}".rstrip())
    return lines


def _made(artifact: Artifact, recipe: Recipe) -> str:
    """`finished`, or `changed` where a run would refuse the directory; inputs still to be made leave that open."""
    try:
        return "finished" if same(artifact, recipe) else "changed"
    except ArtifactError:
        return "finished"


def _cost(stage: ModuleType, recipe: Recipe) -> str:
    if not hasattr(stage, "cost"):
        return ""
    try:
        return ", ".join(f"{amount:,} {what}" for what, amount in stage.cost(recipe).items())
    except ArtifactError:
        return "known when its inputs are"


def execute(study: Study, workers: int = 1, tell: Callable[[str], None] = print) -> None:
    """Make what is missing, inputs first; with several workers, each stage in one of that many processes.

    Raises:
        PersonascopeError: the first stage that failed; stages already running are finished first.
    """
    waiting, running = dict.fromkeys(study.recipes), {}
    needs = study.needs()
    # Spawned, because a forked torch deadlocks on its thread pools.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        while waiting or running:
            pending, here = {*waiting, *running.values()}, False
            for name in [n for n in waiting if not needs[n] & pending]:
                recipe, out = study.recipes[name], study.root / name
                if workers > 1 and len(running) == workers:
                    break
                del waiting[name]
                if workers > 1 and not study.artifact(name).finished:
                    with _deaf_to_ctrl_c():
                        running[pool.submit(_run_apart, recipe, out)] = name
                    continue
                if not study.artifact(name).finished:
                    tell(f"{name_of(stage_of(recipe))}: {out}")
                run(recipe, out)
                here = True
            if here:  # What was done here, often found finished, may be all that another stage waits for.
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                _settle(future, study.root / name)
                tell(f"{name_of(stage_of(study.recipes[name]))}: {study.root / name}")


@contextmanager
def _deaf_to_ctrl_c() -> Generator[None]:
    """Workers started inside ignore Ctrl-C until `_prepare` has run, or a half-started one would print a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    was = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, was)


def _settle(future: "Future[None]", out: Path) -> None:
    try:
        future.result()
    except BrokenProcessPool:
        raise BackendError(
            f"{out}: its process was killed, perhaps for memory; run the same command with fewer workers, it continues"
        ) from None


def _prepare() -> None:
    """One thread per worker, because two busy processes with two threads each stall each other; silent on Ctrl-C."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A study that is killed takes its workers along; otherwise they would hold their locks and its next run would be refused."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _run_apart(recipe: Recipe, out: Path) -> None:
    """Run in a worker; any but a deliberate error comes back as text, because it need not survive pickling."""
    try:
        run(recipe, out)
    except PersonascopeError:
        raise
    except Exception:  # noqa: BLE001 - whatever it was, the parent must hear of it
        raise RuntimeError(f"{out}\n{traceback.format_exc()}") from None


def finish(study: Study, summary: dict[str, Any], title: str, question: str) -> Path:
    """Write summary.json, checked against its schema, and report.html, both at the study's root.

    Raises:
        DataError: the summary breaks summary.schema.json.
    """
    import jsonschema

    trouble = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).iter_errors(summary)
    if first := next(iter(trouble), None):
        raise DataError(f"{study.root}: the summary breaks its schema at {first.json_path}: {first.message[:200]}; fix what sums it up")
    study.root.mkdir(parents=True, exist_ok=True)
    write_json(study.root / "summary.json", summary)
    made = study.root / "report"
    shutil.rmtree(made, ignore_errors=True)
    artifacts = tuple(study.artifact(name) for name in study.recipes)
    run(report.Recipe(summary=File(str(study.root / "summary.json")), artifacts=artifacts, title=title, question=question), made)
    page = (made / "report.html").read_text(encoding="utf-8")
    (study.root / "report.html").write_text(report.moved(page, made, study.root), encoding="utf-8")
    return study.root / "report.html"


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
