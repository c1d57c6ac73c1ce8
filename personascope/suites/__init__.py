"""Content that ships with personascope: rubrics and the report's template, versioned by digest."""

import hashlib
from pathlib import Path

from personascope.errors import DataError

HERE = Path(__file__).parent


def rubric(name: str) -> str:
    """The text of a rubric with its `{question}` and `{answer}` slots; raises DataError for one that is not shipped."""
    shipped = sorted(path.stem for path in (HERE / "rubrics").glob("*.md"))
    if name not in shipped:
        raise DataError(f"no rubric {name!r}; shipped are {', '.join(shipped)}")
    return (HERE / "rubrics" / f"{name}.md").read_text(encoding="utf-8")


def digest(text: str) -> str:
    """A short name for exactly this text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
