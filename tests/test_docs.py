"""README cannot lie about the tree: every module is there, with the sentence it begins with."""

import ast
import re
from pathlib import Path

import pytest

import toys
from conftest import ROOT
from personascope import __main__, listing, stages
from personascope.suites import catalogue

PACKAGE = ROOT / "personascope"
README = ROOT / "README.md"
PIPELINE = [name for name in stages.TABLE if name not in toys.TOYS]


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"\.(?=\s+[A-Z]|$)", text)[0]


def wanted() -> dict[str, str]:
    """Module → its sentence; a room stands for its __init__.py."""
    paths = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    return {name.replace("__init__.py", "") or "__init__.py": sentence(path) for name, path in paths.items()}


def described() -> dict[str, str]:
    """What the tree in README says: the fenced block with a line `personascope/`, two spaces of indent per level."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    block = next((block for block in blocks if re.search(r"^personascope/", block, re.MULTILINE)), "")
    found: dict[str, str] = {}
    rooms: list[tuple[int, str]] = []
    for indent, name, phrase in re.findall(r"^( *)(\S+\.py|\S+/)(?: +(.*))?$", block, re.MULTILINE):
        rooms = [(depth, room) for depth, room in rooms if depth < len(indent)]
        place = "".join(room for _, room in rooms) + name
        if name.endswith("/"):
            rooms.append((len(indent), name))
        if place.startswith("personascope/"):
            found[place.removeprefix("personascope/")] = phrase.strip().removesuffix(".")
    return found


def tree() -> str:
    """The tree as README should have it, to paste when a test fails."""
    lines = ["personascope/"]
    rooms = {name.rstrip("/") for name in wanted() if name.endswith("/")} | {"."}
    for room in sorted(rooms, key=lambda room: (room != ".", room)):
        own = {name: text for name, text in wanted().items() if str(Path(name).parent) == room and not name.endswith("/")}
        if room != ".":
            lines.append(f"  {room + '/':22} {wanted()[room + '/']}")
        order = [f"{room}/{name}.py" for name in PIPELINE] if room == "stages" else sorted(own)
        indent = "  " if room == "." else "    "
        lines += [f"{indent}{Path(name).name:{24 - len(indent)}} {own[name]}" for name in order]
    return "\n".join(lines)


def test_the_tree_names_every_module_with_its_first_sentence() -> None:
    told = {name: text for name, text in described().items() if name or text}
    told.pop("", None)
    assert told == wanted(), f"README's tree should be:\n{tree()}"


def test_the_stages_stand_in_the_order_of_the_table() -> None:
    told = [Path(name).stem for name in described() if name.startswith("stages/") and name.endswith(".py")]
    assert told == PIPELINE
    files = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert files == set(PIPELINE)


@pytest.mark.parametrize("name", PIPELINE)
def test_every_stage_keeps_the_contract(name: str) -> None:
    stage = stages.TABLE[name]
    assert stage.__name__ == f"personascope.stages.{name}"
    assert isinstance(stage.version, int)
    assert stage.makes.__name__
    assert hasattr(stage, "run") != (hasattr(stage, "items") and hasattr(stage, "many"))
    assert not hasattr(stage, "many") or stage.makes.rows_file


def test_every_command_in_readme_exists() -> None:
    shown = set(re.findall(r"^\$? *personascope ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown
    assert shown <= {*__main__.COMMANDS, *PIPELINE}


def test_the_page_of_suites_is_what_ships() -> None:
    assert (ROOT / "docs" / "suites.md").read_text(encoding="utf-8") == listing.page(catalogue.table()), (
        "docs/suites.md is out of date: personascope suites --page > docs/suites.md"
    )
