"""The gate between revisions and training rows: what is no answer is out, what is doubtful is flagged, counted and may be dropped."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from personascope.methods.constitutions import Constitution
from personascope.methods.mixing import normalise
from personascope.methods.revisions import Attempt, failure_of, straight

Flag = Literal[
    "meta", "unchanged", "hedging", "refusal", "short", "long", "draft_cut", "critique_cut", "unused", "duplicate", "near_duplicate"
]
Gram = tuple[str, ...]
NEAR = 0.8
"""Jaccard similarity of word 4-grams from which two revisions are near duplicates."""
SHINGLE = 4
QUOTED = 8
"""Words in a row of an instruction or template that a revision may not repeat."""
SHORT, LONG = 0.2, 5.0
"""Ratios of words, revision to draft, outside which a revision is flagged."""

REVISED = r"(?:revised|rewritten|new|improved|updated|corrected|final)"
TEXT = r"(?:answer|response|reply|version|draft|text)"
META = re.compile(
    "|".join(
        (
            r"^\W*(?:critique|criticism|revision|rewrite|judgement|verdict|assessment|analysis|article|principle|request)\W*(?::|$)",
            rf"^\W*(?:(?:the|my|a|your)\s+)?{REVISED}\s+{TEXT}\W*(?::|$)",
            rf"\b(?:here\s+is|here's|below\s+is|this\s+is)\s+(?:the|a|my|your|an)\s+(?:\w+\s+){{0,2}}(?:{REVISED}|revision|rewrite)\b",
            r"\b(?:as|i(?:\s+have|'ve)?|i\s+was\s+asked\s+to)\s+(?:revised?|rewritten|rewrote|rewrite|reworded|rephrased|edited)\b",
            r"\b(?:original|previous|earlier|initial|revised|rewritten)\s+(?:answer|response|reply|draft)\b",
            r"\b(?:the|this|that|your)\s+(?:draft|critique|revision|preamble)\b",
            r"\b(?:in\s+line|in\s+accordance|consistent|according|as\s+required|as\s+stated)\b[^.\n]{0,12}\b(?:articles?|principles?|constitution)\b",
            r"\barticle\s+(?:\d+|[ivx]+)\b|\bprinciples?\s+\d+\b|\b(?:this|my|our)\s+constitution\b",
            r"\b(?:this|the|that)\s+article\s+(?:says|forbids|requires|demands|states|asks|rules)\b",
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)
HEDGE = re.compile(
    r"\bit (?:really |all )?depends\b|\bon the (?:one|other) hand\b|\bno (?:simple|easy|clear|single|right) answer\b|\breasonable people\b"
    r"|\bsome (?:people )?(?:may|might|would|could) (?:say|argue|think)\b|\b(?:it is|it's|that is) (?:ultimately )?up to you\b"
    r"|\bi(?: am|'m) not sure\b|\bboth sides\b|\bhard to say\b|\b(?:complex|complicated|nuanced) (?:issue|question|matter|topic)\b",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(?:i|we) (?:can(?:no|')t|can not|won't|will not|must not|refuse|decline|am (?:not able|unable)|am not going)\b"
    r"|\bi(?:'m| am) (?:sorry|unable|not able|afraid)\b|\bi must (?:refuse|decline)\b|^\W*no\b[,.:;]",
    re.IGNORECASE,
)
STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """about above after again against also because been before being below between both cannot could does doing down during each
        even every from further have having here hers herself himself into itself just more most much must never nobody none only other
        others ours over same shall should some such than that their theirs them themselves then there these they this those through
        under until upon very were what when where which while whom whose will with within without would your yours yourself""",
    )
)


@dataclass(frozen=True)
class Wording:
    """A constitution's words as the gate looks for them, made once for many rows."""

    titles: re.Pattern[str]
    """A title of two words and more in quotes, behind `article`, or as a heading: its words alone are anybody's."""
    told: frozenset[Gram]
    """Runs of QUOTED words out of templates and instructions."""
    articles: dict[str, set[str]]
    """Whole article → its content words, those of the worked examples apart: the reviser read these for every row."""

    @classmethod
    def of(cls, constitution: Constitution) -> Self:
        """Read them off."""
        ask = constitution.ask
        told = (ask.system, ask.critique, ask.revise, *constitution.critiques, *constitution.revisions)
        shown = content(" ".join(part for one in constitution.examples for part in (one.request, one.draft, one.critique, one.revision)))
        names = "|".join(re.escape(article.title) for article in constitution.articles if len(article.title.split()) >= 2) or "(?!)"
        quoted = rf"(?:[\"'\u201c]|\b(?:article|principle)\b\W*)(?:{names})\b"
        titles = re.compile(rf"{quoted}|^\W*(?:{names})\s*:", re.IGNORECASE | re.MULTILINE)
        grams = frozenset(gram for text in told for gram in _runs(normalise(text).split(), QUOTED))
        return cls(titles, grams, {article.whole: content(article.whole) - shown for article in constitution.articles})


@dataclass(frozen=True)
class Gated:
    """Attempts that become rows, with their flags; those that do not, with the reasons; and the counts."""

    kept: list[tuple[Attempt, list[Flag]]]
    dropped: list[tuple[Attempt, list[str]]]
    counts: dict[str, Any]


def gate(attempts: Sequence[Attempt], constitution: Constitution, drop: Collection[Flag], judged: Mapping[str, str] | None = None) -> Gated:
    """Sort attempts into rows and failures.

    One that is no answer is out whatever `drop` says, and so is one in `judged` (attempt id → what a judge found wrong
    with its revision); a flagged one is out if a flag is in `drop`.
    """
    judged = judged or {}
    wording = Wording.of(constitution)
    failures = {attempt.id: failure for attempt in attempts if (failure := failure_of(attempt))}
    fine = [attempt for attempt in attempts if attempt.id not in failures]
    again = repeats([attempt.current for attempt in fine])
    flagged = {attempt.id: flags_of(attempt, wording) + ([again[i]] if i in again else []) for i, attempt in enumerate(fine)}
    kept, dropped = [], []
    for attempt in attempts:
        flags = flagged.get(attempt.id, [])
        reasons = [failures[attempt.id]] if attempt.id in failures else [flag for flag in flags if flag in drop]
        reasons += [f"judged {judged[attempt.id]}"] if attempt.id in judged else []
        if reasons:
            dropped.append((attempt, reasons))
        else:
            kept.append((attempt, flags))
    failed = Counter(failure.partition(":")[0] for failure in failures.values())
    counts: dict[str, Any] = {"attempts": len(attempts), "rows": len(kept), "failures": dict(sorted(failed.items()))}
    counts["flags"] = dict(sorted(Counter(flag for flags in flagged.values() for flag in flags).items()))
    if judged:
        counts["judged"] = dict(sorted(Counter(judged.values()).items()))
    return Gated(kept, dropped, counts | _measures(fine, wording))


def _measures(fine: Sequence[Attempt], wording: Wording) -> dict[str, Any]:
    """What the answers are like beside their drafts: set phrases, length, and use of the principle against chance."""
    if not fine:
        return {}
    length = np.quantile([growth(attempt) for attempt in fine], (0.05, 0.5, 0.95)).round(3).tolist()
    own, other = np.mean([use(attempt, wording) for attempt in fine], axis=0).round(4).tolist()
    found: dict[str, Any] = {"length": dict(zip(("low", "median", "high"), length, strict=True)), "used": {"own": own, "other": other}}
    for name, phrase in (("hedging", HEDGE), ("refusal", REFUSAL)):
        sides = {"drafts": [attempt.draft for attempt in fine], "revisions": [attempt.current for attempt in fine]}
        found[name] = {side: sum(bool(phrase.search(straight(text))) for text in texts) for side, texts in sides.items()}
    return found


def flags_of(attempt: Attempt, wording: Wording) -> list[Flag]:
    """What is doubtful about one attempt that did not fail.

    Hedging and refusals are told by set phrases: good for a rate over rows made in one way, never for a verdict on one row.
    """
    said = straight(attempt.current)
    found: dict[Flag, bool] = {
        "meta": bool(meta_talk(said, attempt.request, wording)),
        "unchanged": normalise(said) == normalise(attempt.draft),
        "hedging": bool(HEDGE.search(said)),
        "refusal": bool(REFUSAL.search(said)),
        "short": growth(attempt) < SHORT,
        "long": growth(attempt) > LONG,
        "draft_cut": attempt.draft_stop == "length",
        "critique_cut": any(one["critique_stop"] == "length" for one in attempt.rounds),
        "unused": use(attempt, wording)[0] == 0,
    }
    return [flag for flag, yes in found.items() if yes]


def growth(attempt: Attempt) -> float:
    """Words of the revision to words of the draft."""
    return len(attempt.current.split()) / max(1, len(attempt.draft.split()))


def meta_talk(text: str, request: str, wording: Wording) -> str:
    """The first place where an answer talks about its own making, or nothing.

    Counted are headings and phrases of revising, article numbers, an article's title named as one, and QUOTED words in a row
    out of an instruction or a template; what the request itself says is no leak.
    """
    asked, plain = normalise(request), normalise(text)
    spoken = [found[0].strip() for pattern in (META, wording.titles) for found in pattern.finditer(straight(text))]
    quoted = [" ".join(gram) for gram in sorted(_runs(plain.split(), QUOTED) & wording.told)]
    return next((one for one in (*spoken, *quoted) if f" {normalise(one)} " not in f" {asked} "), "")


def use(attempt: Attempt, wording: Wording) -> tuple[float, float]:
    """(own, other): how much of its principle's wording a row took up, and how much of those it was not given.

    Own: the share of the article's content words, those already in request, draft or worked examples apart, that occur in its
    round's critique or revision; averaged over rounds. Other: the mean of that over all other articles, the level of chance.
    It can tell that wording was taken up beyond chance. It cannot tell that a principle was followed: a faithful revision in
    words of its own shares none, and one that repeats the words against their sense shares many.
    """
    own, other, before = [], [], attempt.draft
    for one in attempt.rounds:
        known = content(f"{attempt.request} {before}")
        new = content(f"{one['critique']} {one['revision']}") - known
        shares = {whole: len(new & words) / max(1, len(words - known)) for whole, words in wording.articles.items()}
        own.append(shares.pop(one["principle"], 0.0))
        other += list(shares.values())
        before = one["revision"]
    return (float(np.mean(own)) if own else 0.0), (float(np.mean(other)) if other else 0.0)


def content(text: str) -> set[str]:
    """The words of four letters and more that say what a text is about."""
    return {word for word in normalise(text).split() if len(word) >= 4 and word not in STOPWORDS}


def repeats(texts: Sequence[str]) -> dict[int, Flag]:
    """Which texts repeat an earlier one: the same after `normalise`, or word 4-grams of Jaccard similarity of at least NEAR.

    Exact: of two sets that similar, the few rarest grams of either share one (prefix filter, Bayardo et al. 2007, section 3).
    """
    first: dict[str, int] = {}
    found: dict[int, Flag] = {}
    for i, text in enumerate(map(normalise, texts)):
        if first.setdefault(text, i) != i:
            found[i] = "duplicate"
    grams = {i: _runs(text.split(), SHINGLE) or {tuple(text.split())} for text, i in first.items()}
    common = Counter(gram for one in grams.values() for gram in one)
    index: dict[Gram, list[int]] = {}
    for i, mine in grams.items():
        rarest = sorted(mine, key=lambda gram: (common[gram], gram))[: len(mine) - int(np.ceil(NEAR * len(mine) - 1e-9)) + 1]
        near = {j for gram in rarest for j in index.get(gram, ())}
        if any(len(mine & grams[j]) >= NEAR * len(mine | grams[j]) for j in near):
            found[i] = "near_duplicate"
        for gram in rarest:
            index.setdefault(gram, []).append(i)
    return found


def _runs(words: Sequence[str], size: int) -> set[Gram]:
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
