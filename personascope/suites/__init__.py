"""Content that ships with personascope: rubrics and the report's template, versioned by digest."""

import hashlib
from pathlib import Path

from personascope.errors import DataError

HERE = Path(__file__).parent


def rubric(name: str) -> str:
    """The text of a rubric with its `{question}` and `{answer}` slots: a shipped one by name, or a `.md` file.

    Raises:
        DataError: neither shipped nor a file.
    """
    if name.endswith(".md"):
        if not Path(name).is_file():
            raise DataError(f"{name}: no such file; check the path")
        return Path(name).read_text(encoding="utf-8")
    shipped = sorted(path.stem for path in (HERE / "rubrics").glob("*.md"))
    if name not in shipped:
        raise DataError(f"no rubric {name!r}; shipped are {', '.join(shipped)}")
    return (HERE / "rubrics" / f"{name}.md").read_text(encoding="utf-8")


def digest(text: str) -> str:
    """A short name for exactly this text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def prompt(name: str) -> str:
    """The text of a shipped prompt with its slots in braces; raises DataError for one that is not shipped."""
    shipped = sorted(path.stem for path in (HERE / "prompts").glob("*.md"))
    if name not in shipped:
        raise DataError(f"no prompt {name!r}; shipped are {', '.join(shipped)}")
    return (HERE / "prompts" / f"{name}.md").read_text(encoding="utf-8")
