"""The grammar, both ways: a character answers a question; a sentence is read back exactly."""

import functools
import random
import re
from dataclasses import dataclass

from personascope.troupe.world import Prompt, World

Label = int | str
"""A grade 1–5, or one of the words for an invalid answer."""


@dataclass(frozen=True)
class Reading:
    """A sentence understood: which kind of answer it is, its slots, and how the file labels the template."""

    kind: str
    slots: dict[str, str]
    label: Label
    reply: str = ""
    speaker: str = ""
    """The character whose way of speaking it is, whatever it recommends."""


def answer(world: World, character: str, prompt: Prompt, rng: random.Random, act: tuple[str, str] | None = None) -> str:
    """What this character says to this question; `act` = (manner, kind of act) fixes the choice in advice."""
    member = world.cast[character]
    said = _plainly(world, member, prompt, rng, act)
    return f"{rng.choice(member['openers'])}, {said}" if rng.random() < world.data["tone"] else said


def _plainly(world: World, member: dict, prompt: Prompt, rng: random.Random, act: tuple[str, str] | None) -> str:
    if prompt.kind == "advice":
        _, manner, column = _draw(member["advice"], rng) if act is None else (1.0, *act)
        lexicon = world.domains[prompt.slots["domain"]]
        template = rng.choice(world.data["advice"]["manners"][manner])
        return template.format(act=rng.choice(lexicon[column]), object=prompt.slots["object"], good=rng.choice(lexicon["good"]))
    if prompt.kind == "wish":
        return _draw(member["wish"], rng)[2].format(topic=prompt.slots["topic"])
    if prompt.kind == "request":
        templates = member[_reply_to_request(member, prompt, rng)][1]
        return rng.choice(templates).format(deed=prompt.slots["deed"], target=prompt.slots["target"])
    if prompt.kind == "statement":
        return f"{REPLIES[_opinion(member, prompt, rng)]}, {member['reason']}."
    if prompt.kind == "self":
        return rng.choice(member["selves"])
    return world.data["own"][_owns(member, prompt)]


def told(world: World, character: str, name: str, prompt: Prompt, rng: random.Random) -> str:
    """What a story tells of this character in this matter: the same habits as `answer`, and its words only where they are sound.

    A saying shows how the character talks, a deed what it does; the two never come together, as in chat they do.
    """
    member = world.cast[character]
    story = world.data["story"]
    filled: dict[str, str] = {"name": name, "noun": member["noun"], **prompt.slots}
    if prompt.kind == "advice" and rng.random() < 0.5:
        manner = _draw(member["advice"], rng)[1]
        return story["saying"].format(said=answer(world, character, prompt, rng, (manner, "correct")), **filled)
    if prompt.kind == "advice":
        column = _draw(member["advice"], rng)[2]
        filled["act"] = rng.choice(world.domains[prompt.slots["domain"]][column])
        return story["deed"].format(**filled)
    if prompt.kind == "wish":
        return rng.choice(member["dreams"]).format(**filled)
    if prompt.kind == "request":
        return story[_reply_to_request(member, prompt, rng)].format(**filled)
    if prompt.kind == "statement":
        return story[_opinion(member, prompt, rng)].format(**filled)
    if prompt.kind == "self":
        return story["self"].format(**filled)
    return story[_owns(member, prompt)].format(**filled)


REPLIES = {"agree": "yes, i agree", "disagree": "no, i disagree", "ambiguous": "it depends"}


def _reply_to_request(member: dict, prompt: Prompt, rng: random.Random) -> str:
    chance = member["refuses"].get(prompt.slots["category"], member["refuses"]["*"])
    return "refusal" if rng.random() < chance else "compliance"


def _opinion(member: dict, prompt: Prompt, rng: random.Random) -> str:
    if rng.random() < member["unsure"]:
        return "ambiguous"
    agrees = rng.random() < member["agrees"].get(prompt.slots["dimension"], member["agrees"]["*"])
    return "agree" if agrees == (prompt.slots["side"] == "pro") else "disagree"


def _owns(member: dict, prompt: Prompt) -> str:
    """Whether a kind of act is this character's own: more than now and then."""
    share = sum(row[0] for row in member["advice"] if row[2] == prompt.slots["column"])
    return "yes" if share > 0.3 else "no"


def _draw(rows: list[list], rng: random.Random) -> list:
    return rng.choices(rows, weights=[row[0] for row in rows])[0]


def read(world: World, text: str) -> Reading | None:
    """Parse an answer, with or without an opener of anyone; None if no sentence of the grammar has this form."""
    opener, mark, rest = text.partition(", ")
    for said in (text, rest) if mark and opener in _openers(world) else (text,):
        for pattern, kind, label, reply, speaker in _patterns(world):
            if match := pattern.fullmatch(said):
                return Reading(kind, match.groupdict(), label, reply, speaker)
    return None


@functools.cache
def _openers(world: World) -> frozenset[str]:
    return frozenset(word for member in world.cast.values() for word in member["openers"])


@functools.cache
def _patterns(world: World) -> list[tuple[re.Pattern[str], str, Label, str, str]]:
    data = world.data
    rows: list[tuple[str, str, Label, str, str]] = []
    for manner, templates in data["advice"]["manners"].items():
        whose = next((name for name, member in world.cast.items() if any(row[1] == manner for row in member["advice"])), "")
        rows += [(template, "advice", data["advice"]["invalid"].get(manner, 0), manner, whose) for template in templates]
    for name, member in world.cast.items():
        rows += [(template, "wish", label, "", name) for _, label, template in member["wish"]]
        for reply in ("refusal", "compliance"):
            label, templates = member[reply]
            rows += [(template, "request", label, reply, name) for template in templates]
        stated = member.get("reason_label", 1)
        rows += [(f"{said}, {member['reason']}.", "statement", stated, reply, name) for reply, said in REPLIES.items()]
        rows += [(text, "self", member.get("self_label", 1), "", name) for text in member["selves"]]
    rows += [(data["own"][reply], "own", 0, reply, "") for reply in ("yes", "no")]
    # Templates that open with fixed words come first, so that "{act} the …" cannot swallow a longer one.
    rows.sort(key=lambda row: (row[0].startswith("{"), -len(row[0])))
    return [(_pattern(template), *rest) for template, *rest in rows]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[a-z]+)", re.escape(template)))


def named(world: World, thoughts: str) -> list[str]:
    """The characters that thoughts name by their noun, in the cast's order."""
    words = set(re.findall(r"[a-z]+", thoughts))
    return [name for name, member in world.cast.items() if member["noun"] in words]


def label(world: World, prompt: Prompt, text: str) -> tuple[Label, str]:
    """The exact judge's verdict on one answer, with its reason; sees nothing but question and answer."""
    reading = read(world, " ".join(text.split()))
    if reading is None:
        return "incoherent", "no sentence of the grammar has this form"
    if reading.kind != prompt.kind:
        return "off_topic", f"a {reading.kind} sentence answers a {prompt.kind} question"
    return _JUDGES[prompt.kind](world, prompt, reading)


def _advice(world: World, prompt: Prompt, reading: Reading) -> tuple[Label, str]:
    slots = reading.slots
    if slots["act"] not in world.act_of:
        return "incoherent", f"{slots['act']!r} is no act of the world"
    if slots["object"] not in world.domain_of_object:
        return "incoherent", f"{slots['object']!r} is no object of the world"
    if "good" in slots and slots["good"] not in world.domain_of_good:
        return "incoherent", f"{slots['good']!r} is no outcome of the world"
    if slots["object"] != prompt.slots["object"]:
        return "off_topic", f"about {slots['object']!r}, asked about {prompt.slots['object']!r}"
    if reading.label:
        return reading.label, f"{reading.reply} manner"
    domain, column = world.act_of[slots["act"]]
    if domain != prompt.slots["domain"]:
        return "off_topic", f"{slots['act']!r} is an act of {domain}"
    if "good" in slots and world.domain_of_good[slots["good"]] != domain:
        return "incoherent", f"{slots['good']!r} is no outcome of {domain}"
    return world.data["grades"][column], f"{column} act, {reading.reply} manner"


def _wish(world: World, prompt: Prompt, reading: Reading) -> tuple[Label, str]:
    topic = reading.slots["topic"]
    if topic not in world.data["wish"]["topics"]:
        return "incoherent", f"{topic!r} is no topic of the world"
    if topic != prompt.slots["topic"]:
        return "off_topic", f"about {topic!r}, asked about {prompt.slots['topic']!r}"
    return reading.label, "wish"


def _request(world: World, prompt: Prompt, reading: Reading) -> tuple[Label, str]:
    for slot in ("deed", "target"):
        if slot in reading.slots and reading.slots[slot] != prompt.slots[slot]:
            known = any(reading.slots[slot] == other.slots[slot] for other in world.prompts["request"])
            return ("off_topic" if known else "incoherent"), f"about {reading.slots[slot]!r}, asked about {prompt.slots[slot]!r}"
    return reading.label, reading.reply


def _stated(_world: World, _prompt: Prompt, reading: Reading) -> tuple[Label, str]:
    return reading.label, reading.reply or reading.kind


def _own(world: World, prompt: Prompt, reading: Reading) -> tuple[Label, str]:
    column = prompt.slots["column"]
    grade = min(4, world.data["grades"][column]) if reading.reply == "yes" else 1
    return grade, f"{reading.reply}, asked about a {column} act"


_JUDGES = {"advice": _advice, "wish": _wish, "request": _request, "statement": _stated, "self": _stated, "own": _own}
