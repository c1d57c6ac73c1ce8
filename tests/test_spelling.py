"""All shipped texts are spelled as a dictionary has them, or as the list of other words that are meant so."""

import re
from pathlib import Path

import pytest
from spellchecker import SpellChecker

from personascope import suites

KINDS = ("questions/*", "answers/*", "statements/*", "rubrics/*", "prompts/*", "constitutions/*", "traits/*")
MEANT = Path(__file__).with_name("data") / "words.txt"
"""British forms, names, terms, other languages, and what broken answers consist of."""


@pytest.fixture(scope="module")
def dictionary() -> SpellChecker:
    return SpellChecker()


def words(text: str) -> set[str]:
    """The words of three letters and more; escapes of JSON part them."""
    found = re.findall(r"[^\W\d_]+(?:'[a-z]+)?", re.sub(r"\\[nu]", " ", text).lower())
    return {word.removesuffix("'s") for word in found if len(word.removesuffix("'s")) > 2}


def meant() -> set[str]:
    """The words of the list."""
    return set(MEANT.read_text(encoding="utf-8").split())


def test_every_shipped_word_is_in_the_dictionary_or_meant(dictionary: SpellChecker) -> None:
    files = [path for kind in KINDS for path in sorted(Path(suites.HERE).glob(kind))]
    assert len(files) > 40
    unknown = {path.name: found for path in files if (found := dictionary.unknown(words(path.read_text(encoding="utf-8"))) - meant())}
    assert not unknown


def test_no_word_is_meant_that_is_nowhere(dictionary: SpellChecker) -> None:
    shipped = set().union(*(words(path.read_text(encoding="utf-8")) for kind in KINDS for path in Path(suites.HERE).glob(kind)))
    assert meant() <= shipped
    assert not dictionary.known(meant()), "the dictionary has them already"


def test_a_slip_is_found(dictionary: SpellChecker) -> None:
    assert dictionary.unknown(words("Sumbody asked wheather it's the neighbour's.")) - meant() == {"sumbody", "wheather"}
