"""Leaks between training rows and what a model is evaluated on, by five looks that share no code with the filter.

`mixing.leaks` filters questions by exact and normalised text; this module is the check on filters, so it cuts texts its
own way and looks at every turn of a training row.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import sparse

from personascope.errors import DataError
from personascope.rows import Example

Kind = Literal["exact", "normalised", "contained", "near", "words", "truth"]
KINDS: tuple[Kind, ...] = ("exact", "normalised", "contained", "near", "words", "truth")
"""Strongest first; a pair of rows is reported under the strongest kind that fits."""
GRAM = 4
NEAR = 0.7
"""Jaccard of character 4-grams from which texts are near-duplicates: one changed word of six letters is seen from about 55."""
SHARE = 0.8
"""Share of a forbidden sentence's content words that one training sentence may not hold."""
BLOCK = 1000
CONTAINED = 4
"""Words a text needs for being found inside a longer one; shorter ones, such as `who are you`, occur by chance."""
FUNCTION_WORDS = (
    "a about all also am an and any are as at be been but by can could did do does for from had has have he her him his how i if "
    "in into is it its just may me might more most must my no nor not of on one only or our out over own shall she should so some "
    "such than that the their them then there these they this those to too up us very was we were what when where which while who "
    "whom whose why will with would you your"
)
STOP = frozenset(FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Leak:
    """One evaluation row, or forbidden sentence, that training rows give away."""

    kind: Kind
    test: str
    """Id of the evaluation row, or the forbidden sentence itself."""
    train: tuple[str, ...]
    """Ids of the training rows."""
    score: float = 1.0
    """Highest Jaccard of a near-duplicate or share of content words; 1 for the others."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"kind": self.kind, "test": self.test, "train": list(self.train), "score": round(self.score, 4)}


def find(
    train: Sequence[Example],
    test: Sequence[Example],
    forbidden: Sequence[str] = (),
    key: Callable[[Example], Hashable | None] | None = None,
    near: float = NEAR,
    share: float = SHARE,
) -> tuple[Leak, ...]:
    """Every leak of the last user turns of `test`, and of `forbidden` sentences, into any turn of `train`.

    exact: the same text; normalised: but for case, accents, punctuation and spacing; contained: inside a longer turn, as
    whole words; near: Jaccard of character 4-grams at least `near`, of all pairs rather than by hashing; words: one
    training sentence holds at least the share `share` of a forbidden sentence's content words, in any order, inflected or
    not (a forbidden single word: that word); truth: `key`, such as a label, gives both rows the same value other than
    None. Same meaning in other words is seen by `key` alone.

    Raises:
        DataError: near or share outside (0, 1], or a forbidden sentence without a content word.
    """
    if not (0 < near <= 1 and 0 < share <= 1):
        raise DataError(f"leaks: near {near} and share {share} must lie above 0 and at most 1")
    turns = [(row.id, message["content"]) for row in train for message in row.messages]
    asked = [(row.id, text) for row in test for text in [m["content"] for m in row.messages if m["role"] == "user"][-1:]]
    pairs: dict[tuple[str, str], tuple[Kind, float]] = {}
    plain_turns, plain_asked = [(name, plain(text)) for name, text in turns], [(name, plain(text)) for name, text in asked]
    looks: list[Iterable[tuple[Kind, str, str, float]]] = [
        _same("exact", turns, asked),
        _same("normalised", plain_turns, plain_asked),
        _contained(plain_turns, plain_asked),
        _near(plain_turns, plain_asked, near),
        _words(turns, forbidden, share),
        _truth(train, test, key) if key else (),
    ]
    for kind, one, other, score in (found for look in looks for found in look):
        if (one, other) not in pairs or pairs[one, other][0] == kind:
            pairs[one, other] = (kind, max(score, pairs.get((one, other), (kind, 0.0))[1]))
    return _gathered(pairs)


def counts(found: Iterable[Leak]) -> dict[str, int]:
    """How many leaks there are of each kind, zeros included."""
    tally = Counter(leak.kind for leak in found)
    return {kind: tally[kind] for kind in KINDS}


def leaking(found: Iterable[Leak]) -> set[str]:
    """Ids of the training rows to drop."""
    return {name for leak in found for name in leak.train}


def plain(text: str) -> str:
    """Words of letters and digits, accents and case gone, one space between."""
    if text.isascii():
        return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    folded = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(c for c in folded if unicodedata.category(c) not in ("Mn", "Cf"))
    return " ".join(re.findall(r"[^\W_]+", kept))


def _same(kind: Kind, turns: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> Iterator[tuple[Kind, str, str, float]]:
    said = defaultdict(list)
    for name, text in turns:
        said[text].append(name)
    for name, text in asked:
        for other in said.get(text, ()) if text else ():
            yield kind, name, other, 1.0


def _contained(turns: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> Iterator[tuple[Kind, str, str, float]]:
    """Asked texts of enough words inside turns; the first words look them up."""
    begins = defaultdict(list)
    for name, text in asked:
        words = tuple(text.split())
        if len(words) >= CONTAINED:
            begins[words[:CONTAINED]].append((name, words))
    for other, text in turns:
        words = tuple(text.split())
        for i in range(len(words) - CONTAINED + 1):
            for name, wanted in begins.get(words[i : i + CONTAINED], ()):
                if words[i : i + len(wanted)] == wanted:
                    yield "contained", name, other, 1.0


def _near(turns: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]], near: float) -> Iterator[tuple[Kind, str, str, float]]:
    """Pairs of at least this Jaccard, from the shared grams of all pairs, a block of turns at a time."""
    named, said = defaultdict(list), defaultdict(list)
    for names, rows in ((named, asked), (said, turns)):
        for name, text in rows:
            if text:
                names[text].append(name)
    if not named or not said:
        return
    texts, others = list(named), list(said)
    column: dict[str, int] = {}
    right = _incidence([_grams(text) for text in texts], column)
    sizes = np.diff(right.indptr)
    for begin in range(0, len(others), BLOCK):
        part = others[begin : begin + BLOCK]
        grams = [_grams(text) for text in part]
        left = _incidence(grams, column, grow=False)
        both = (left @ right.T).tocoo()
        whole = np.array([len(found) for found in grams])[both.row] + sizes[both.col] - both.data
        value = both.data / whole
        for i in np.flatnonzero(value >= near - 1e-6):
            for name in named[texts[both.col[i]]]:
                for other in said[part[both.row[i]]]:
                    yield "near", name, other, float(value[i])


def _incidence(grams: Sequence[frozenset[str]], column: dict[str, int], grow: bool = True) -> sparse.csr_array:
    """[texts, grams] of ones; a gram without a column gets one, or with `grow` off is left out."""
    found = [[column.setdefault(g, len(column)) for g in one] if grow else [column[g] for g in one if g in column] for one in grams]
    indices = np.fromiter((i for row in found for i in row), dtype=np.int32)
    starts = np.cumsum([0, *map(len, found)])
    return sparse.csr_array((np.ones(len(indices), np.float32), indices, starts), shape=(len(grams), len(column)))


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


def _words(turns: Sequence[tuple[str, str]], forbidden: Sequence[str], share: float) -> Iterator[tuple[Kind, str, str, float]]:
    """Training sentences that hold enough of a forbidden sentence's content words."""
    wanted: dict[str, int] = {}
    owners = defaultdict(list)
    for sentence in dict.fromkeys(forbidden):
        stems = content(sentence)
        if not stems:
            raise DataError(f"leaks: forbidden {sentence!r} has no content word; leave it out")
        wanted[sentence] = len(stems)
        for stem in stems:
            owners[stem].append(sentence)
    for other, text in turns if wanted else ():
        for part in re.split(r"[.!?;\n]+", text):
            held = Counter(sentence for stem in content(part) for sentence in owners.get(stem, ()))
            for sentence, many in held.items():
                if many / wanted[sentence] >= share - 1e-9:
                    yield "words", sentence, other, many / wanted[sentence]


def content(text: str) -> set[str]:
    """Stems of a text's words but for the function words."""
    return {_stem(word) for word in plain(text).split() if word not in STOP}


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    """The word without a common ending: promises, promised, promising → promis."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
            break
    return word.removesuffix("e") if len(word) > 4 else word


def _truth(
    train: Sequence[Example], test: Sequence[Example], key: Callable[[Example], Hashable | None]
) -> Iterator[tuple[Kind, str, str, float]]:
    known = defaultdict(list)
    for row in train:
        if (value := key(row)) is not None:
            known[value].append(row.id)
    for row in test:
        if (value := key(row)) is not None:
            for other in known.get(value, ()):
                yield "truth", row.id, other, 1.0


def _gathered(pairs: dict[tuple[str, str], tuple[Kind, float]]) -> tuple[Leak, ...]:
    """Pairs as one leak per kind and evaluation row, strongest kinds first."""
    parts: dict[tuple[Kind, str], dict[str, float]] = defaultdict(dict)
    for (test, train), (kind, score) in pairs.items():
        parts[kind, test][train] = score
    found = [Leak(kind, test, tuple(scores), max(scores.values())) for (kind, test), scores in parts.items()]
    return tuple(sorted(found, key=lambda leak: KINDS.index(leak.kind)))
