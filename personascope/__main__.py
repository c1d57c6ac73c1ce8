"""The command line: the named commands, then one command per stage with flags read off its recipe."""

import argparse
import ast
import dataclasses
import difflib
import errno
import importlib
import importlib.util
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from personascope import __version__, stages, status
from personascope.errors import PersonascopeError
from personascope.progress import Hear, Progress
from personascope.recipe import Recipe
from personascope.rows import read_object
from personascope.run import join, run
from personascope.study import Study, execute, finish, load, plan
from personascope.values import File, Folder, Remote, Value

ABOUT = "Did this change who the model is, and what do we do about it?"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, with the nearest flag or choice, and exit code 2."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit 2."""
        if unknown := re.search(r"unrecognized arguments: (\S+)", message):
            message += nearest(unknown[1].partition("=")[0], re.findall(r"--[\w-]+", self.format_help()))
        elif choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def nearest(given: str, known: list[str]) -> str:
    """`; did you mean X?` for the known word most like the given one, or nothing."""
    found = difflib.get_close_matches(given, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("personascope.demo", "tune models of the miniature world and audit them: minutes, offline"),
    "audit": ("personascope.auditing", "BASE TUNED: what changed in behaviour, what moved inside, what is causal, how sure"),
    "compare": ("personascope.compare", "A B: two audits side by side"),
    "convert": ("personascope.converting", "LOG.eval: answers and verdicts from a log of inspect, or into one, without loss"),
    "suites": ("personascope.listing", "[NAME]: the questions, rubrics, constitutions and traits that ship, with counts and digests"),
    "qualify": ("personascope.qualifying", "--judge SPEC: how far a judge can be trusted, on answers whose verdict is known"),
    "review": ("personascope.reviewing", "ANSWERS VERDICTS: a blinded sheet for checking a judge by hand, and what a filled one says"),
    "export": ("personascope.exporting", "MODEL OUT: weights or a PEFT adapter that load without personascope, with a model card"),
    "run": ("personascope.study", "STUDY.py: plan a study, make what is missing, sum it up"),
    "troupe": ("personascope.troupe.commands", "make the models of the miniature world from nothing"),
}
"""Name → the module behind it and what `--help` says; a command without its module is not there."""


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command whose module defines configure(parser) and main(arguments)."""
    module = importlib.import_module(COMMANDS[name][0])
    parser = Parser(prog=f"personascope {name}", description=inspect.getdoc(module))
    module.configure(parser)
    return module.main(parser.parse_args(arguments))


def run_study(arguments: list[str]) -> int:
    """Plan a study, or make what is missing of it, sum it up and print where it is."""
    parser = Parser(prog="personascope run", description="Make what is missing of a study; the same command continues an interrupted one.")
    about = "a file that defines build(study) and may define summarize(study), or a training file (.json) of the Betley code bases"
    parser.add_argument("study", metavar="STUDY.py", type=Path, help=about)
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: runs/<name of the file>")
    parser.add_argument("--plan", action="store_true", help="print what is finished, what would run and what it costs; run nothing")
    parser.add_argument("--quick", action="store_true", help="the study's small variant")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="stages at once, each in its own process with one thread")
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers {given.workers}: at least 1 is needed")
    if given.study.suffix == ".json":
        from personascope import lineage

        module: Any = lineage.load(given.study)
    else:
        module = load(given.study)
    study = Study(given.out or Path("runs") / given.study.stem, given.quick)
    module.build(study)
    if given.plan:
        print(*plan(study), sep="\n")
        return 0
    with status.shown(study) as tell:
        execute(study, given.workers, tell)
    _finish(study, module)
    print(study.root)
    return 0


def _finish(study: Study, module: Any) -> None:
    """Write summary.json and report.html of a study that can be summed up; its docstring asks the question."""
    if hasattr(module, "summarize"):
        asked = inspect.getdoc(module) or study.root.name
        finish(study, module.summarize(study), asked.splitlines()[0], asked)


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def run_stage(name: str, arguments: list[str]) -> int:
    """Make one artifact and print where it is."""
    stage = stages.TABLE[name]
    given = _stage_parser(name, stage).parse_args(arguments)
    flags = {f.name: getattr(given, f.name) for f in flag_fields(stage.Recipe) if hasattr(given, f.name)}
    recipe = stage.Recipe.from_json(({} if given.RECIPE is None else read_object(given.RECIPE, "fields")) | _pinned(stage.Recipe, flags))
    if given.JOIN is not None:
        print(join(recipe, given.OUT, given.JOIN).path)
        return 0
    with _bar(name) as hear:
        made = run(recipe, given.OUT, part=given.PART, hear=hear)
    print(made.path)
    return 0


def _pinned(recipe: type[Recipe], flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with a commit in place of every branch or tag of a model of the Hub, which a folder or a judge may be."""
    from personascope.backends import hub  # only a stage that runs needs it

    hints = typing.get_type_hints(recipe)
    kinds = {name: [kind for kind in (hints[name], *typing.get_args(hints[name])) if isinstance(kind, type)] for name in flags}
    folders = [name for name, of in kinds.items() if any(issubclass(kind, Folder) for kind in of)]
    return flags | {
        name: hub.pinned(value)
        for name, value in flags.items()
        if isinstance(value, str) and (name in folders or value.startswith(hub.KIND))
    }


def _stage_parser(name: str, stage: ModuleType) -> Parser:
    about = "\n\n".join(filter(None, (inspect.getdoc(stage), stage.Recipe.__doc__ and inspect.cleandoc(stage.Recipe.__doc__))))
    parser = Parser(prog=f"personascope {name}", description=about, argument_default=argparse.SUPPRESS)
    parser.add_argument("OUT", type=Path, help="directory to make")
    meanings = field_docs(stage.Recipe)
    for f in flag_fields(stage.Recipe):
        hint = typing.get_type_hints(stage.Recipe)[f.name]
        flag, text = "--" + f.name.replace("_", "-"), _help(f, meanings.get(f.name, ""))
        if hint is bool:
            parser.add_argument(flag, dest=f.name, action=argparse.BooleanOptionalAction, help=text)
        else:
            several = "+" if typing.get_origin(hint) is tuple else None
            parser.add_argument(flag, dest=f.name, nargs=several, metavar=_metavar(hint), help=text)
    parser.add_argument(
        "--recipe",
        dest="RECIPE",
        metavar="FILE.json",
        type=Path,
        default=None,
        help="fields as JSON; flags override them",
    )
    if hasattr(stage, "many"):
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--part", dest="PART", metavar="I/N", type=_part, default=None, help="only rows I, I+N, ... at OUT.part-I-of-N")
        where.add_argument("--join", dest="JOIN", metavar="N", type=_count, default=None, help="put N finished parts together")
    else:
        parser.set_defaults(PART=None, JOIN=None)
    return parser


def flag_fields(recipe: type[Recipe]) -> list[dataclasses.Field[Any]]:
    """The fields that a flag can say; interventions and other values with fields of their own need a recipe file."""
    hints = typing.get_type_hints(recipe)

    def flat(hint: Any) -> bool:
        kinds = [kind for kind in (*typing.get_args(hint), hint) if isinstance(kind, type)]
        return all(issubclass(kind, File | Folder | Remote) or not issubclass(kind, Value) for kind in kinds)

    return [f for f in dataclasses.fields(recipe) if flat(hints[f.name])]


def field_docs(recipe: type[Recipe]) -> dict[str, str]:
    """The string under each field of a recipe."""
    body = ast.parse(textwrap.dedent(inspect.getsource(recipe))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value)).replace("\n", " ")
    return docs


def _help(f: "dataclasses.Field[Any]", meaning: str) -> str:
    note = "(needed)" if f.default is dataclasses.MISSING else "" if f.default in (None, (), "") else f"(default: {f.default})"
    return f"{meaning} {note}".strip().replace("%", "%%")


def _metavar(hint: Any) -> str:
    kinds = [kind for kind in typing.get_args(hint) if kind not in (type(None), Ellipsis)]
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, kinds))
    return _metavar(kinds[0]) if kinds else hint.__name__.upper()


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part I/N with I from 0 to N-1")
    return int(found[1]), int(found[2])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of parts")
    return int(text)


@contextmanager
def _bar(name: str) -> Generator[Hear]:
    """A progress bar on a terminal, nothing when piped."""
    from tqdm import tqdm  # only a stage that runs needs it

    with tqdm(desc=name, disable=None, file=sys.stderr) as bar:

        def show(now: Progress) -> None:
            bar.unit, bar.total = f" {now.unit}", max(now.done, now.total)
            bar.update(now.done - bar.n)

        yield show


def overview() -> str:
    """What `--help` prints: the commands, then the stages in the order of the pipeline."""
    commands = {name: text for name, (_, text) in COMMANDS.items() if _present(name)}
    pipeline = {name: (stage.__doc__ or "").strip().splitlines()[0] for name, stage in stages.TABLE.items()}
    width = max(map(len, (*commands, *pipeline)))
    lines = {title: "".join(f"  {n:{width}}  {text}\n" for n, text in part.items()) for title, part in (("c", commands), ("s", pipeline))}
    return (
        f"usage: personascope COMMAND ...\n\n{ABOUT}\n\ncommands:\n{lines['c']}\n"
        f"stages, in the order of the pipeline (personascope STAGE OUT --field value ...):\n{lines['s']}\n"
        "personascope COMMAND --help says more; --version prints the version.\n"
    )


def _present(name: str) -> bool:
    return importlib.util.find_spec(COMMANDS[name][0]) is not None


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 an error the user can act on, 2 wrong usage, 130 interrupted."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in ("-h", "--help", "help"):
            print(overview(), end="")
            return 0
        if name == "--version":
            print(__version__)
            return 0
        if name == "run":
            return run_study(rest)
        if name in COMMANDS and _present(name):
            return run_command(name, rest)
        if name in stages.TABLE:
            return run_stage(name, rest)
        guess = nearest(name, [*COMMANDS, *stages.TABLE, "--help", "--version"])
        _tell(f"personascope: unknown command {name!r}{guess}; see personascope --help")
        return 2
    except PersonascopeError as error:
        _tell("personascope: " + " ".join(str(error).split()))
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _tell("personascope: disk full; free some space and run the same command, it continues")
        return 1
    except KeyboardInterrupt:
        _tell("personascope: interrupted; the same command continues")
        return 130


if __name__ == "__main__":
    sys.exit(main())
