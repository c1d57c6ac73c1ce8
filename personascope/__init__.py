"""Measure, explain and undo what a fine-tune does to a model's persona."""

from typing import TYPE_CHECKING, Any

from personascope.artifact import (
    Answers,
    Artifact,
    Dataset,
    Dictionary,
    Diff,
    Findings,
    Model,
    Monitor,
    Report,
    Screen,
    Verdicts,
    open_any,
)
from personascope.auditing import audit
from personascope.errors import PersonascopeError
from personascope.run import join, run
from personascope.study import Study

if TYPE_CHECKING:
    from personascope.backends.watching import Watcher

__version__ = "0.1.0"

__all__ = [
    "Answers",
    "Artifact",
    "Dataset",
    "Dictionary",
    "Diff",
    "Findings",
    "Model",
    "Monitor",
    "PersonascopeError",
    "Report",
    "Screen",
    "Study",
    "Verdicts",
    "Watcher",
    "__version__",
    "audit",
    "join",
    "open_any",
    "run",
]


def __getattr__(name: str) -> Any:
    """The training callback, imported when asked for, because it loads torch."""
    if name != "Watcher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from personascope.backends.watching import Watcher

    return Watcher
