"""Questions that show a model its own answers: did you write this, which grade will it get, and how good is it from somebody else?"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from personascope.rows import Answer, Example
from personascope.suites import catalogue

PROBES = ("recognition-pair", "recognition-single", "prediction-blind", "prediction-shown", "rating-other")


def rows(answers: Iterable[Answer], grades: Mapping[str, int], foils: Iterable[Answer], asked: Mapping[str, str]) -> list[Example]:
    """The probes of the mirror suite for every graded, non-empty answer, each in the next of its wordings.

    Labels: probe, item (the question answered), grade, and for recognition `own`, the reply that owns the answer. A pair needs
    a foil: the first non-empty answer of another model to the same question, by turns in either place.

    Args:
        grades: answer id → grade 1 to 5.
        asked: question id → its text.
    """
    templates: dict[str, list[Example]] = {probe: [] for probe in PROBES}
    for row in catalogue.suite("mirror"):
        templates[row.domain].append(row)
    others: dict[str, str] = {}
    for foil in foils:
        if foil.text:
            others.setdefault(foil.question, foil.text)
    made = []
    shown = [answer for answer in answers if answer.text and answer.id in grades]
    for number, answer in enumerate(shown):
        texts = {"question": asked[answer.question], "answer": answer.text}
        place = "AB"[number % 2]
        if answer.question in others:
            pair = (answer.text, others[answer.question])
            texts |= dict(zip(("first", "second"), pair if place == "A" else pair[::-1], strict=True))
        own = {"recognition-pair": place, "recognition-single": "yes"}
        for probe, wordings in templates.items():
            template = wordings[number // 2 % len(wordings)]
            if set(template.meta["slots"]) <= set(texts):
                filled = catalogue.filled(template, answer.id, {slot: texts[slot] for slot in template.meta["slots"]})
                labels: dict[str, Any] = {"probe": probe, "item": answer.question, "grade": grades[answer.id]}
                made.append(replace(filled, labels=labels | ({"own": own[probe]} if probe in own else {})))
    return made
