import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import toys
from conftest import BOOT, ROOT, Ended
from personascope import __main__, stages
from personascope.artifact import Dataset
from personascope.run import run
from toys import grow

Cli = Callable[..., Ended]

STUDY = '''
"""How much text there is."""

from toys import grow, tally


def build(study):
    data = study.run("data", grow.Recipe(count=2 if study.quick else 5))
    study.run("sum", tally.Recipe(source=data))


def summarize(study):
    return {"seconds": study.seconds()} | ({"letters": 3} if study.root.name == "odd" else {})
'''


def python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


def test_help_reads_like_the_pipeline(cli: Cli) -> None:
    shown = cli("--help").out
    names = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    commands = [name for name in __main__.COMMANDS if name in names]
    assert "run" in commands
    assert names == [*commands, *stages.TABLE]
    for name, stage in stages.TABLE.items():
        assert f"  {name:10}  {(stage.__doc__ or '').splitlines()[0]}" in shown
    assert cli().out == shown
    assert cli("--version").out.strip() == __main__.__version__


def test_help_and_import_are_quick_and_load_no_torch() -> None:
    """Processor seconds, because the wall clock depends on who else is at work."""
    code = "import sys, time; from personascope.__main__ import main; main(['--help']); print(time.process_time(), 'torch' in sys.modules)"
    seconds, torch = min(python(code).splitlines()[-1].split() for _ in range(3))
    assert torch == "False"
    assert float(seconds) < 0.6
    assert python("import sys, personascope; print('torch' in sys.modules)") == "False\n"


def test_the_public_names_are_sorted_and_there() -> None:
    import personascope

    assert personascope.__all__ == sorted(personascope.__all__)
    assert callable(personascope.run)
    for name in personascope.__all__:
        assert hasattr(personascope, name), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = personascope.nonsense
    assert (
        python("import personascope; import personascope.study; print(callable(personascope.audit), callable(personascope.run))")
        == "True True\n"
    )


def test_a_stage_is_called_with_flags_and_prints_its_directory_only(cli: Cli, tmp_path: Path, grown: Dataset) -> None:
    flags = ["--count", "3", "--mode", "loud", "--twice", "--notes", "a", "b", "--scale", "2.5", "--source", grown.path]
    ended = cli("grow", tmp_path / "out", *flags)
    assert ended == Ended(0, f"{tmp_path / 'out'}\n", "")
    wanted = grow.Recipe(count=3, mode="loud", twice=True, notes=("a", "b"), scale=2.5, source=grown)
    assert Dataset(tmp_path / "out").manifest["identity"] == wanted.identity()
    assert cli("grow", tmp_path / "out", *flags).code == 0
    assert cli("grow", tmp_path / "out", *flags, "--no-twice").code == 1


def test_a_recipe_file_gives_what_flags_cannot(cli: Cli, tmp_path: Path, grown: Dataset) -> None:
    edit = {"direction": {"source": str(grown.path), "tensor": "decoder/1"}, "strength": 2}
    (tmp_path / "recipe.json").write_text(json.dumps({"count": 3, "interventions": [edit]}))
    assert cli("grow", tmp_path / "out", "--recipe", tmp_path / "recipe.json", "--count", 4).code == 0
    manifest = Dataset(tmp_path / "out").manifest
    assert manifest["counts"] == {"rows": 4}
    assert manifest["identity"]["interventions"][0]["strength"] == 2
    (tmp_path / "again.json").write_text(json.dumps(manifest["recipe"]))
    assert cli("grow", tmp_path / "out", "--recipe", tmp_path / "again.json").code == 0


def test_help_of_a_stage_is_read_off_its_recipe(cli: Cli) -> None:
    shown = " ".join(cli("grow", "--help").out.split())
    assert "A number or a data set → Dataset: one row per item." in shown
    assert "A toy whose rows depend on the word and the item only." in shown
    assert "--count INT How many rows, 100 % of them. (default: 0)" in shown
    assert "--mode plain|loud (default: plain)" in shown
    assert "--twice, --no-twice Say the word two times. (default: False)" in shown
    assert "--notes STR [STR ...]" in shown
    assert "--source DATASET" in shown
    assert "--interventions" not in shown
    assert "--source DATASET (needed)" in " ".join(cli("tally", "--help").out.split())


@pytest.mark.parametrize("name", [name for name in stages.TABLE if name not in toys.TOYS])
def test_every_stage_has_help(cli: Cli, name: str) -> None:
    ended = cli(name, "--help")
    assert ended.code == 0
    assert ended.err == ""
    for field in __main__.flag_fields(stages.TABLE[name].Recipe):
        assert f"--{field.name.replace('_', '-')}" in ended.out


def test_parts_are_made_and_joined(cli: Cli, tmp_path: Path) -> None:
    whole = run(grow.Recipe(count=5), tmp_path / "whole")
    for i in range(2):
        assert cli("grow", tmp_path / "out", "--count", 5, "--part", f"{i}/2").out == f"{tmp_path}/out.part-{i}-of-2\n"
    assert cli("grow", tmp_path / "out", "--count", 5, "--join", 2).out == f"{tmp_path / 'out'}\n"
    assert Dataset(tmp_path / "out").digest == whole.digest
    for flags in (["--part", "2/2"], ["--part", "x"], ["--join", "0"], ["--join", "2", "--part", "0/2"]):
        assert cli("grow", tmp_path / "other", "--count", 5, *flags).code == 2
    assert cli("tally", tmp_path / "sum", "--source", whole.path, "--part", "0/2").code == 2


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    command = [sys.executable, "-c", BOOT, "grow", str(tmp_path / "out"), "--count", "3"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=child, check=True, text=True)
    os.close(child)
    assert done.stdout == f"{tmp_path / 'out'}\n"
    shown = os.read(parent, 4096).decode()
    os.close(parent)
    assert "grow" in shown
    assert "3/3" in shown


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.py").write_text(STUDY)
    return Path("letters.py")


def test_run_plans_makes_and_sums_up(cli: Cli, study: Path) -> None:
    planned = cli("run", study, "--plan")
    assert [line.split()[:4] for line in planned.out.splitlines()] == [["to", "do", "grow", "data"], ["to", "do", "tally", "sum"]]
    assert not Path("runs").exists()
    ended = cli("run", study)
    assert (ended.code, ended.out) == (0, "runs/letters\n")
    assert "tally: runs/letters/sum" in ended.err
    summary = json.loads(Path("runs/letters/summary.json").read_text())
    assert set(summary["seconds"]) == {"grow", "tally", "total", "wall"}
    assert "How much text there is." in Path("runs/letters/report.html").read_text()
    assert "finished" in cli("run", study, "--plan").out
    again = cli("run", study)
    assert (again.out, again.err) == ("runs/letters\n", "")


def test_run_takes_another_place_quick_and_workers(cli: Cli, study: Path) -> None:
    ended = cli("run", study, "--quick", "--out", "here/small", "--workers", 2)
    assert ended.out == "here/small\n"
    assert Dataset("here/small/data").manifest["counts"] == {"rows": 2}
    assert cli("run", study, "--workers", 0).code == 2


def test_a_summary_that_breaks_the_schema_is_not_written(cli: Cli, study: Path) -> None:
    ended = cli("run", study, "--out", "runs/odd")
    assert ended.code == 1
    assert "the summary breaks its schema at $: Additional properties are not allowed ('letters'" in ended.err
    assert not Path("runs/odd/summary.json").exists()


def test_a_command_comes_from_its_module(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shout.py").write_text(
        '"""Say it loud."""\n'
        "def configure(parser):\n    parser.add_argument('word')\n    parser.add_argument('--louder', action='store_true')\n"
        "def main(arguments):\n    print(arguments.word.upper())\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(__main__.COMMANDS, "shout", ("shout", "say it loud"))
    monkeypatch.setitem(__main__.COMMANDS, "absent", ("absent_module", "not here"))
    assert cli("shout", "hello") == Ended(3, "HELLO\n", "")
    assert "Say it loud." in cli("shout", "--help").out
    assert "did you mean --louder?" in cli("shout", "x", "--loudr").err
    assert "  shout" in cli("--help").out
    assert "absent" not in cli("--help").out
    assert cli("absent").code == 2


def test_ctrl_c_says_that_the_same_command_continues(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = grow.many

    def interrupted(recipe: grow.Recipe, items: list[str]) -> Iterator[Any]:
        yield next(real(recipe, items))
        raise KeyboardInterrupt

    monkeypatch.setattr(grow, "many", interrupted)
    ended = cli("grow", tmp_path / "out", "--count", 3)
    assert ended == Ended(130, "", "personascope: interrupted; the same command continues\n")
    monkeypatch.setattr(grow, "many", real)
    assert cli("grow", tmp_path / "out", "--count", 3).code == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_a_study_and_its_workers_at_once(tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], workers: int) -> None:
    slow = "from toys import grow\ndef build(study):\n    for i in '012': study.run(i, grow.Recipe(count=3, word=i, pause=60.0))\n"
    (tmp_path / "slow.py").write_text(slow)
    process = start("run", tmp_path / "slow.py", "--out", tmp_path / "out", "--workers", workers)
    begun = tmp_path / "out" / "0.partial" / "examples.jsonl"
    for _ in range(2000):
        if begun.exists():
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("personascope: interrupted; the same command continues\n")
    assert "Traceback" not in err


def test_a_killed_study_takes_its_workers_along(tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """Killed alone, not with its group: what its workers were making can be continued at once."""
    slow = "from toys import grow\ndef build(study):\n    for i in '01': study.run(i, grow.Recipe(count=3, word=i, pause={}))\n"
    (tmp_path / "slow.py").write_text(slow.format(60.0))
    process = start("run", tmp_path / "slow.py", "--out", tmp_path / "out", "--workers", 2)
    begun = tmp_path / "out" / "0.partial" / "examples.jsonl"
    for _ in range(2000):
        if begun.exists():
            break
        time.sleep(0.01)
    process.kill()
    # Its pipes close when its workers are gone too.
    process.communicate(timeout=20)
    (tmp_path / "slow.py").write_text(slow.format(0.0))
    again = start("run", tmp_path / "slow.py", "--out", tmp_path / "out", "--workers", 1)
    _, err = again.communicate(timeout=20)
    assert again.returncode == 0, err


@pytest.mark.parametrize("name", [name for name in __main__.COMMANDS if __main__._present(name)])
def test_a_command_explains_itself_without_torch(name: str) -> None:
    call = f"import sys\nfrom personascope.__main__ import main\ntry: main(['{name}', '--help'])\n"
    said = python(call + "except SystemExit: print('torch' in sys.modules)")
    assert said.startswith(f"usage: personascope {name} ")
    assert said.endswith("False\n")
