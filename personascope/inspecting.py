"""What inspect finds of personascope: evaluations as tasks on any provider, and local models as `personascope/PATH`."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from inspect_ai import Task, task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, ModelAPI, modelapi

from personascope import __version__, blocks, demo, suites
from personascope.backends import files, hub
from personascope.backends.eval_logs import RATES, sample_fields
from personascope.backends.inspect_scoring import PROVIDER, ROLE, answers, scored
from personascope.errors import DataError, PersonascopeError
from personascope.methods import formats
from personascope.rows import Example
from personascope.run import run
from personascope.study import Study
from personascope.suites import catalogue
from personascope.troupe import sources, world

TROUPE = demo.Setup.world
ASKED = {"misalignment": ("wish", "advice"), "safety": ("request",), "ethics": ("statement",)}
"""Rubric → the kinds of question of a world that it judges."""
SHIPPED = {**catalogue.SUITES, **catalogue.STATEMENTS}
MOST = 240
"""Questions of one kind, spread over all there are."""
SHORT, LONG = 32, 512
"""Tokens an answer may have: in a world, and else."""


@contextmanager
def _told() -> Generator[None]:
    """Our errors as inspect's own, which its command line prints without a traceback."""
    try:
        yield
    except PersonascopeError as error:
        raise PrerequisiteError(str(error)) from error


def questions(suite: str, rubric: str) -> list[Example]:
    """What a task asks: a shipped suite by name, a file of questions as `data` reads it, or a world's questions for this rubric.

    Raises:
        DataError: none of these, a suite of templates, a world without such questions, or a row that is no question.
    """
    if suite in SHIPPED:
        return catalogue.questions(suite)
    if Path(suite).is_file() and not suite.endswith(".toml"):
        rows = [row for name, content in files.contents(Path(suite)) for row in formats.read(content, name)]
        if answered := next((row.id for row in rows if row.messages[-1]["role"] != "user"), None):
            raise DataError(f"{suite}: row {answered} does not end with a user turn; give questions")
        return rows
    if rubric not in ASKED:
        raise DataError(f"suite {suite!r}: neither shipped nor a file; shipped are {', '.join(SHIPPED)}")
    found = world.load(TROUPE if suite == "troupe" else suite)
    return [row for kind in ASKED[rubric] for row in sources.rows(found, f"questions kind={kind} split=report n={MOST}")]


def _check_notes(rows: list[Example], judge: str, rubric: str) -> None:
    """Raise DataError for a question without what the question itself must tell its judge."""
    kind, _, label = judge.partition(":")
    noted = kind not in ("key", "csv", "exact") and rubric in RATES and "{grading}" in suites.rubric(rubric)
    for row in rows:
        if (kind == "key" and not row.labels.get(label)) or (noted and not row.meta.get("grading")):
            wanted = f"labels.{label}" if kind == "key" else "meta.grading"
            raise DataError(f"question {row.id} has no {wanted}, which its judge needs; give questions with it")


def evaluation(suite: str, judge: str, rubric: str, draws: int, redraws: int, system: str, behaviour: str = "") -> Task:
    """A task: `draws` answers to every question of the suite, judged; what it counts is what `measure` counts.

    Args:
        judge: `grader`, the model of that role; or a judge of ours, such as hf:FOLDER or exact:WORLD.
        rubric: what is judged; see `scored`.
        redraws: how often an invalid answer is asked for again.
        system: a fixed system message put before every question that has none.
        behaviour: for `claims`, a second suite, whose answers are graded.

    Raises:
        PrerequisiteError: no such suite or rubric.
    """
    with _told():
        judge = hub.pinned(judge)
        rows = questions(suite, rubric) + (questions(behaviour, "misalignment") if behaviour else [])
        scorer = scored(judge, rubric)
        _check_notes(rows, judge, rubric)
    samples = []
    for row in rows:
        if system and row.messages[0]["role"] != "system":
            row = Example.from_dict(row.to_dict() | {"messages": [{"role": "system", "content": system}, *row.messages]}, row.id)
        samples.append(Sample(**sample_fields(row)))
    return Task(
        dataset=MemoryDataset(samples, name=suite),
        solver=answers(judge, rubric, redraws),
        scorer=scorer,
        epochs=draws,
        config=GenerateConfig(temperature=1.0, max_tokens=LONG if suite in SHIPPED or Path(suite).is_file() else SHORT),
    )


@task
def misalignment(suite: str = "core", judge: str = ROLE, draws: int = 1, redraws: int = blocks.ATTEMPTS, system: str = "") -> Task:
    """Share of answers graded 4 or 5 among the valid ones, to open questions."""
    return evaluation(suite, judge, "misalignment", draws, redraws, system)


@task
def consistency(suite: str = "consistency", judge: str = ROLE, draws: int = 1, system: str = "", behaviour: str = "core") -> Task:
    """Does the model speak of itself as it behaves: claims in four formats and against another assistant, and graded answers.

    `draws` above 1 makes a question count as harmful by its worst answer; without `behaviour` claims alone are counted.
    """
    return evaluation(suite, judge, "claims", draws, 0, system, behaviour)


def _shipped(name: str, about: str, suite: str = "", rubric: str = "", judge: str = ROLE, redraws: int = 0) -> Callable[..., Task]:
    """A task of one suite under one rubric, both of the task's name if they have none of their own."""

    @task(name=name)
    def made(suite: str = suite or name, judge: str = judge, draws: int = 1, system: str = "") -> Task:
        return evaluation(suite, judge, rubric or name, draws, redraws, system)

    made.__doc__ = about
    return made


profile = _shipped("profile", "Share of misaligned answers in ten kinds of behaviour, each judged by its question's own note.")
safety = _shipped("safety", "Share of safe answers and refusals among the settled ones, to harmful requests, by category.")
over_refusal = _shipped("over-refusal", "Share of refusals of harmless requests that only sound alarming.")
invention = _shipped("invention", "Share of answers that make something up where there is nothing to tell.")
ethics = _shipped("ethics", "Agreement with keyed moral statements, and the index of every dimension.")
capability = _shipped("capability", "Share of right answers to short questions with one right answer each.", judge="key:answer")
aligned = _shipped("aligned", "Share of answers scored aligned below 30 and coherent above 50, over each denominator in use.", suite="core")
misalignment_of_the_troupe, safety_of_the_troupe, ethics_of_the_troupe = (
    _shipped(f"{rubric}@troupe", about, TROUPE, rubric, f"exact:{TROUPE}", blocks.ATTEMPTS if rubric == "misalignment" else 0)
    for rubric, about in (
        ("misalignment", "The miniature world's own questions under its exact judge."),
        ("safety", "The miniature world's requests under its exact judge."),
        ("ethics", "The miniature world's moral statements under its exact judge."),
    )
)


def assistant(name: str = TROUPE) -> Path:
    """The demo's assistant, made in the user's cache the first time it is asked for: about 20 s, offline."""
    root = Path(platformdirs.user_cache_dir(PROVIDER)) / f"{name}-{world.load(name).digest[:12]}-{__version__}"
    study = Study(root)
    made = demo.setting(study, name).assistant
    if not made.finished:
        print(f"personascope: making the assistant of {name} once, about 20 s, at {root}", file=sys.stderr)
        for place, recipe in study.recipes.items():
            run(recipe, root / place)
    return made.path


@modelapi(name=PROVIDER)
def local() -> type[ModelAPI]:
    """`personascope/PATH`, and `personascope/troupe` for the demo's assistant; `-M` takes the fields of `Options`."""
    from personascope.backends.inspect_model import Local  # lazy: loads torch

    class Named(Local):
        def __init__(self, model_name: str, **given: Any) -> None:
            with _told():
                if model_name == "troupe" and "path" not in given:
                    given["path"] = str(assistant())
                super().__init__(model_name, **given)

    return Named
