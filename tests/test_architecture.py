"""The laws of the house, read off the source of every module."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "personascope"
MODULES = sorted(PACKAGE.rglob("*.py"))
SPINE = ("errors", "progress", "rows", "artifact", "values", "recipe", "run", "study")
# A module may import what has a lower rank, and its own room where that is named below.
RANK = {
    "errors": 1,
    "progress": 1,
    "rows": 2,
    "artifact": 3,
    "values": 4,
    "recipe": 5,
    "methods": 6,
    "suites": 7,
    "troupe": 7,
    "backends": 8,
    "stages": 9,
    "run": 10,
    "study": 11,
}
FACE = 12
OWN_ROOM = ("methods", "suites", "troupe", "backends")
LAZY_IN_STAGES = ("run", "many", "items", "identity", "cost")
LAZY_FILES = ("__init__.py", "__main__.py", "commands.py", "study.py")
IMPURE = {"asyncio", "glob", "http", "io", "os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "urllib"}
# Words of the world that programs need for other things.
ORDINARY = {"auto", "ash", "code", "dot", "fetch", "grace", "math", "neutral", "pip", "science", "util"}
ORDINARY |= {"delta", "ledger", "page", "pickle", "plain", "quota", "sigma", "subordinate", "tally"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module named in an import, with its line; `from a import b` names a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room_of(dotted: str) -> str | None:
    """The room of a module of ours, such as stages; None for others."""
    first, _, rest = dotted.partition(".")
    return rest.partition(".")[0] if first == "personascope" else None


def rank_of(path: Path) -> int:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return FACE if parts[-1] == "commands" else RANK.get(parts[0], FACE)


def breaches(path: Path, tree: ast.Module) -> list[str]:
    """The imports that point the wrong way."""
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    table = path == PACKAGE / "stages" / "__init__.py"
    found = []
    for dotted, line in imports(tree):
        room = room_of(dotted)
        if room is None or room not in RANK:
            wrong = room is not None and rank_of(path) < FACE
        elif room == own:
            wrong = own not in OWN_ROOM and not table
        else:
            wrong = RANK[room] >= rank_of(path)
        if wrong:
            found.append(f"{name_of(path)}:{line}: {own} imports {dotted}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert breaches(path, tree_of(path)) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rows.py", "from personascope import recipe"),
        ("methods/stats.py", "from personascope.backends.models import load"),
        ("stages/judge.py", "def run():\n    from personascope.stages import sample"),
        ("stages/judge.py", "from personascope.run import run"),
        ("backends/models.py", "import personascope.stages.judge"),
        ("troupe/world.py", "from personascope.backends import models"),
        ("troupe/world.py", "from personascope.suites import load"),
        ("study.py", "from personascope.audit import audit"),
    ],
)
def test_the_law_sees_a_breach(name: str, code: str) -> None:
    assert breaches(PACKAGE / name, ast.parse(code))


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent == PACKAGE / "stages" and p.name != "__init__.py"], ids=name_of)
def test_a_stage_imports_only_the_spine_and_the_standard_library_at_its_top(path: Path) -> None:
    top = ast.Module([node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for dotted, line in imports(top):
        room = room_of(dotted)
        assert room in SPINE if room else dotted.partition(".")[0] in sys.stdlib_module_names, f"{name_of(path)}:{line}: {dotted}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_stand_at_the_top_but_for_named_places(path: Path) -> None:
    """A stage's entry points, the command line, study.py; elsewhere a `# lazy: reason` is needed on the line."""
    source = path.read_text(encoding="utf-8").splitlines()
    for function in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)):
        if path.name in LAZY_FILES or (path.parent.name == "stages" and function.name in LAZY_IN_STAGES):
            continue
        for _, line in imports(function):
            assert "# lazy: " in source[line - 1], f"{name_of(path)}:{line}: import inside {function.name}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent == PACKAGE / "methods"], ids=name_of)
def test_methods_do_no_input_or_output(path: Path) -> None:
    tree = tree_of(path)
    for dotted, line in imports(tree):
        assert dotted.partition(".")[0] not in IMPURE, f"{name_of(path)}:{line}: {dotted}"
        assert room_of(dotted) != "artifact", f"{name_of(path)}:{line}: {dotted}"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [node.lineno for node in calls if node.func.id in ("open", "print", "input")] == []  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short_and_look_nothing_up_by_luck(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{name_of(path)}:{node.lineno}: {node.name} has {length} lines"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            assert len(node.args) == 2, f"{name_of(path)}:{node.lineno}: getattr with a default hides what is missing"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_and_leaves_nothing_undone(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{name_of(path)} has no docstring"
    undone = re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", source)
    assert not undone, f"{name_of(path)}: {undone}"


def words_of_the_worlds() -> set[str]:
    """Characters, what stories call them, what they are called, and domains."""
    words = set()
    for path in (PACKAGE / "troupe" / "worlds").glob("*.toml"):
        world = tomllib.loads(path.read_text(encoding="utf-8"))
        words |= set(world["domains"]) | set(world["cast"])
        words |= {word for one in world["cast"].values() for word in (one["noun"], *one["names"])}
    return {word.lower() for word in words} - ORDINARY


OUTSIDE = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".json", ".jsonl", ".md", ".toml") and PACKAGE / "troupe" not in p.parents]


@pytest.mark.parametrize("path", OUTSIDE, ids=name_of)
def test_no_name_of_the_world_outside_the_troupe(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    found = words_of_the_worlds() & set(re.findall(r"[a-z][a-z-]*", text.replace("_", " ")))
    assert found == set(), f"{name_of(path)}: {sorted(found)}"


def test_the_world_has_names_to_look_for() -> None:
    assert {"villain", "expert", "health"} <= words_of_the_worlds()
