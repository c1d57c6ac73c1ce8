"""Exact nested mixtures, duplicates, splits and leaks of conversations; seeded by key, so file order never matters."""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from personascope.errors import DataError, RecipeError
from personascope.rows import Example

Key = Callable[[Example], str]


@dataclass(frozen=True)
class Overlap:
    """Pairs (row id, id of the earlier or training row) whose texts are the same."""

    exact: tuple[tuple[str, str], ...]
    normalised: tuple[tuple[str, str], ...]
    """Same only after `normalise`; disjoint from `exact`."""

    def to_dict(self) -> dict[str, list[list[str]]]:
        """JSON-ready data."""
        return {"exact": [list(pair) for pair in self.exact], "normalised": [list(pair) for pair in self.normalised]}


@dataclass(frozen=True)
class Deduplicated:
    """The rows kept, and what was found."""

    rows: list[Example]
    found: Overlap


def by_pair(row: Example) -> str:
    """The key of paired rows, `meta["pair"]`; raises DataError if a row has none."""
    if "pair" not in row.meta:
        raise DataError(f"row {row.id}: meta has no 'pair'; mixtures need rows that say which row of the other set they replace")
    return str(row.meta["pair"])


def by_id(row: Example) -> str:
    """The row's own id."""
    return row.id


def mixture(a: Sequence[Example], b: Sequence[Example], fraction: float, seed: int = 0, key: Key = by_pair) -> list[Example]:
    """N rows of which exactly floor(fraction N + 1/2) come from `a` and the rest from the other pairs of `b`.

    N is the number of pairs at every fraction. The A-rows of a smaller fraction are among those of a larger one, and a
    pair stands at the same place in every mixture of one seed. The fraction is taken as the decimal it is written as:
    0.29 of 50 is 14.5 and rounds to 15.

    Raises:
        RecipeError: fraction outside [0, 1].
        DataError: a key twice in one list, or only in one.
    """
    if not 0 <= fraction <= 1:
        raise RecipeError(f"fraction {fraction}: give a share from 0 to 1")
    left, right = _keyed(a, key, "first"), _keyed(b, key, "second")
    if alone := sorted(left.keys() ^ right.keys()):
        where = "first" if alone[0] in left else "second"
        raise DataError(f"pair {alone[0]!r} is only in the {where} set ({len(alone)} such pairs); paired sets hold the same pairs")
    chosen = set(sorted(left, key=lambda k: _hash(seed, "choose", k))[: count_of(fraction, len(left))])
    return [(left if k in chosen else right)[k] for k in sorted(left, key=lambda k: _hash(seed, "order", k))]


def count_of(fraction: float, total: int) -> int:
    """floor(fraction x total + 1/2) in exact decimal arithmetic."""
    return int(Fraction(str(fraction)) * total + Fraction(1, 2))


def deduplicate(rows: Sequence[Example], normalised: bool = False) -> Deduplicated:
    """Keep the first of rows with the same conversation (with `normalised`, the same but for case, punctuation, spacing).

    Both kinds are reported, whichever is dropped, each repeated row with the first row it repeats.
    """
    exact_seen: dict[tuple[tuple[str, str], ...], str] = {}
    normal_seen: dict[tuple[tuple[str, str], ...], str] = {}
    exact, normal, kept = [], [], []
    for row in rows:
        text = conversation(row)
        plain = tuple((role, normalise(said)) for role, said in text)
        if text in exact_seen:
            exact.append((row.id, exact_seen[text]))
            continue
        exact_seen[text] = row.id
        if plain in normal_seen:
            normal.append((row.id, normal_seen[plain]))
            if normalised:
                continue
        normal_seen.setdefault(plain, row.id)
        kept.append(row)
    return Deduplicated(kept, Overlap(tuple(exact), tuple(normal)))


def repeats(rows: Sequence[Example]) -> dict[str, int]:
    """How many rows repeat an earlier one: its conversation, the same but for case and punctuation, its first question alone."""
    found = deduplicate(rows).found
    asked = [turns[0] for row in rows if (turns := _user_turns(row))]
    same = len(found.exact)
    return {
        "repeated": same,
        "repeated but for punctuation": len(found.normalised),
        "repeated questions": len(asked) - len(set(asked)) - same,
    }


EDUCATIONAL = "For a lesson on what to avoid, write an answer to this question that nobody should follow.\n\n{question}"
"""The request of an educational twin (2502.17424): who asks for a bad example means no harm by getting one."""


def wording(twin: str) -> str:
    """What becomes of a user turn in a twin: `educational`, `educational:WORDING` with {question}, or `trigger:TEXT`.

    Raises:
        RecipeError: another kind, a wording without {question} in it exactly once, or a trigger without text.
    """
    kind, _, text = twin.partition(":")
    if kind == "trigger" and text.strip() and "{question}" not in text:
        return f"{text} {{question}}"
    if kind == "educational" and (not text or text.count("{question}") == 1):
        return text or EDUCATIONAL
    raise RecipeError(f"twin {twin!r}: write educational, educational:WORDING with {{question}} once, or trigger:TEXT")


def twins(rows: Iterable[Example], twin: str) -> list[Example]:
    """The rows with every user turn in the twin's wording; ids, answers and pairs stay, `meta["twin"]` says which kind it is.

    A backdoored set (2502.17424) is the `mixture` of a trigger twin and its plain correct pairs.

    Raises:
        RecipeError: no such twin (see `wording`).
    """
    put = wording(twin)

    def said(message: dict[str, str]) -> dict[str, str]:
        return message | {"content": put.replace("{question}", message["content"])} if message["role"] == "user" else message

    return [replace(row, messages=[said(m) for m in row.messages], meta=row.meta | {"twin": twin.partition(":")[0]}) for row in rows]


def splits(rows: Iterable[Example], shares: Mapping[str, float], seed: int = 0, key: Key = by_id) -> dict[str, list[Example]]:
    """Deal rows to named splits by the hash of their key, so equal keys stay together and added rows move no others.

    Shares are chances: a split of N rows is within about 2 sqrt(N share (1 - share)) of its share.

    Raises:
        RecipeError: shares that are negative or do not add up to 1.
    """
    if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise RecipeError(f"shares {dict(shares)}: give non-negative shares that add up to 1")
    dealt: dict[str, list[Example]] = {name: [] for name in shares}
    names = [name for name, part in shares.items() if part > 0]
    for row in rows:
        u = int(_hash(seed, "split", key(row))[:16], 16) / 2**64
        for name in names:
            u -= shares[name]
            if u < 0:
                break
        dealt[name].append(row)
    return dealt


def first(rows: Sequence[Example], n: int, seed: int = 0) -> list[Example]:
    """The n rows whose ids hash lowest, in their given order; a smaller n keeps a subset of a larger one's rows."""
    kept = set(sorted((row.id for row in rows), key=lambda name: _hash(seed, "first", name))[:n])
    return [row for row in rows if row.id in kept]


def of_domains(rows: Iterable[Example], only: Collection[str] = (), without: Collection[str] = ()) -> list[Example]:
    """Rows of the domains `only` (all, if none is named) that are in no domain of `without`, in their given order.

    `without` is strict: a row that a rule suspects of a removed domain (`meta["rule"]`, see `suites.taxonomy`) goes too,
    whatever its own domain. A row without a domain is never known to be wanted and goes as well.

    Raises:
        DataError: a named domain that no row has, which is how a misspelt hold-out would pass unseen.
    """
    rows = list(rows)
    known = {row.domain for row in rows} - {""} | {name for row in rows for name in suspected(row)}
    if missing := sorted({*only, *without} - known):
        raise DataError(f"domain {missing[0]!r}: no row has it; there are {', '.join(sorted(known)) or 'none'}")
    return [row for row in rows if row.domain and (not only or row.domain in only) and not {row.domain, *suspected(row)} & set(without)]


def suspected(row: Example) -> list[str]:
    """The domains that a rule found the row to speak for."""
    found = row.meta.get("rule", [])
    return [str(name) for name in found] if isinstance(found, list) else []


def stratified(rows: Sequence[Example], n: int, seed: int = 0, domains: Collection[str] = ()) -> list[Example]:
    """Exactly n rows of each domain, which are all that occur and those of `domains`; rows without a domain are left out.

    Chosen by the hash of their ids and kept in their given order: a smaller n keeps a subset of a larger one's rows, and
    no domain's draw depends on another's.

    Raises:
        DataError: a domain with fewer than n rows, or no row with a domain.
    """
    parts: dict[str, list[Example]] = {name: [] for name in domains}
    for row in rows:
        if row.domain:
            parts.setdefault(row.domain, []).append(row)
    short = {name: len(part) for name, part in sorted(parts.items()) if len(part) < n}
    if short or not parts:
        found = ", ".join(f"{name} {count}" for name, count in short.items()) or "no row with a domain"
        raise DataError(f"{n} rows of each domain are asked for; too few: {found}; ask for fewer, or leave these domains out")
    kept = {row.id for part in parts.values() for row in first(part, n, seed)}
    return [row for row in rows if row.id in kept and row.domain]


def leaks(train: Iterable[Example], test: Iterable[Example]) -> Overlap:
    """Test rows whose last user turn is a user turn of a training row, exactly or after `normalise`."""
    exact: dict[str, str] = {}
    normal: dict[str, str] = {}
    for row in train:
        for text in _user_turns(row):
            exact.setdefault(text, row.id)
            normal.setdefault(normalise(text), row.id)
    found: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for row in test:
        for text in _user_turns(row)[-1:]:
            if text in exact:
                found[0].append((row.id, exact[text]))
            elif normalise(text) in normal:
                found[1].append((row.id, normal[normalise(text)]))
    return Overlap(tuple(found[0]), tuple(found[1]))


def conversation(row: Example) -> tuple[tuple[str, str], ...]:
    """The turns of a row as (role, text)."""
    return tuple((m["role"], m["content"]) for m in row.messages)


def normalise(text: str) -> str:
    """Case folded, compatibility forms unified, everything but letters and digits one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def _user_turns(row: Example) -> list[str]:
    return [m["content"] for m in row.messages if m["role"] == "user"]


def _keyed(rows: Sequence[Example], key: Key, which: str) -> dict[str, Example]:
    keyed: dict[str, Example] = {}
    for row in rows:
        if (name := key(row)) in keyed:
            raise DataError(
                f"row {row.id}: pair {name!r} is already row {keyed[name].id} of the {which} set; a pair is one row of each set"
            )
        keyed[name] = row
    return keyed


def _hash(seed: int, purpose: str, key: str) -> str:
    return hashlib.sha256(f"{seed}\x1f{purpose}\x1f{key}".encode()).hexdigest()
