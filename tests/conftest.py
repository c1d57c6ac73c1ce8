"""Shared fixtures: the toy stages, the command line in this process and in another, no network."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

import toys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
settings.register_profile("tests", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tests")

ROOT = Path(__file__).parent.parent
# A background shell passes SIGINT on as ignored; the tests want it as in a terminal.
BOOT = """
import signal, sys, toys
from personascope.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line in this process."""
    from personascope.__main__ import main

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """The command line in another process and process group, with the toy stages in its table."""

    def call(*arguments: object) -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, "-c", BOOT, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    return call


@pytest.fixture
def grown(tmp_path: Path) -> toys.grow.Dataset:
    """A finished toy data set of seven rows."""
    from personascope.run import run

    return run(toys.grow.Recipe(count=7), tmp_path / "grown")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU"))
