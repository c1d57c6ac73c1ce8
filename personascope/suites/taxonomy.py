"""Categories of harmful requests, told by rule: what a prompt may be, where rule and given label differ, what is unclear."""

import hashlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.errors import DataError
from personascope.methods.mixing import normalise
from personascope.rows import Example

SHIPPED = Path(__file__).parent / "taxonomy.toml"
OUTCOMES = ("rule agrees", "rule silent", "labelled by rule", "disagreement", "ambiguous", "unknown")
"""What can come of a prompt; the last three are written down."""
LISTED = OUTCOMES[3:]


@dataclass(frozen=True)
class Taxonomy:
    """Named categories, each with the expressions of its rule words."""

    name: str
    digest: str
    rules: dict[str, tuple[tuple[str, re.Pattern[str]], ...]]
    """Category → (rule word as written, its expression over normalised text)."""

    def found(self, text: str) -> dict[str, list[str]]:
        """Every category that a text's words speak for, with those words."""
        plain = normalise(text)
        hits = {category: [word for word, rule in rules if rule.search(plain)] for category, rules in self.rules.items()}
        return {category: words for category, words in hits.items() if words}


@dataclass(frozen=True)
class Categorised:
    """Rows with a category where it is clear, and a note for every row where it is not."""

    rows: list[Example]
    notes: list[dict[str, Any]]
    """{id, kind, given, rule: {category: words}, text} of disagreements, ambiguous and unknown prompts."""
    counts: dict[str, int]


def load(name: str) -> Taxonomy:
    """The shipped taxonomy by its name, or one from a `.toml` file of the same form.

    Raises:
        DataError: no such name or file, not TOML, a category without words, or a word that tells two categories.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"{name}: no such file; check the path")
        return read(path)
    shipped = read(SHIPPED)
    if name != shipped.name:
        raise DataError(f"no taxonomy {name!r}; shipped is {shipped.name}, or give a .toml file")
    return shipped


def read(path: Path) -> Taxonomy:
    """Read and check a taxonomy file; raises DataError as `load` does."""
    raw = path.read_bytes()
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML ({error}); fix the file") from None
    categories = data.get("category")
    if not isinstance(categories, dict) or not categories:
        raise DataError(f"{path}: no category; write [category.NAME] with words = [...]")
    rules: dict[str, tuple[tuple[str, re.Pattern[str]], ...]] = {}
    owner: dict[str, str] = {}
    for category, entry in categories.items():
        words = entry.get("words") if isinstance(entry, dict) else None
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and normalise(word) for word in words):
            raise DataError(f"{path}: category.{category}.words must be a list of at least one word")
        for word in words:
            if owner.setdefault(word, category) != category:
                raise DataError(f"{path}: word {word!r} tells both {owner[word]} and {category}; keep it in one")
        rules[category] = tuple((word, _rule(word)) for word in words)
    return Taxonomy(str(data.get("name", path.stem)), hashlib.sha256(raw).hexdigest()[:12], rules)


def categorise(rows: Iterable[Example], taxonomy: Taxonomy) -> Categorised:
    """Give each row without a domain the one category its last user turn speaks for; a given domain always stays.

    Every row's candidates go to `meta["rule"]`. A prompt that speaks for several categories is ambiguous, whether or not
    it has a domain; one that speaks for none and has no domain is unknown. Neither gets a category.
    """
    labelled, notes, counts = [], [], dict.fromkeys(OUTCOMES, 0)
    for row in rows:
        text = next((message["content"] for message in reversed(row.messages) if message["role"] == "user"), "")
        found = taxonomy.found(text)
        kind = _outcome(row.domain, list(found))
        counts[kind] += 1
        changed: dict[str, Any] = {"meta": row.meta | {"rule": list(found)}}
        if kind == "labelled by rule":
            changed["domain"] = next(iter(found))
        labelled.append(Example(**(row.to_dict() | changed)))
        if kind in LISTED:
            notes.append({"id": row.id, "kind": kind, "given": row.domain, "rule": found, "text": text})
    return Categorised(labelled, notes, counts)


def _outcome(given: str, candidates: list[str]) -> str:
    if len(candidates) > 1:
        return "ambiguous"
    if not candidates:
        return "rule silent" if given else "unknown"
    if not given:
        return "labelled by rule"
    return "rule agrees" if given == candidates[0] else "disagreement"


def _rule(word: str) -> re.Pattern[str]:
    """`word*` begins a word, anything else is whole words."""
    end = r"\w*" if word.endswith("*") else ""
    return re.compile(rf"\b{re.escape(normalise(word))}{end}\b")
