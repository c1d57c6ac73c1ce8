"""Measure, explain and undo what a fine-tune does to a model's persona."""

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
    "__version__",
    "audit",
    "join",
    "open_any",
    "run",
]
