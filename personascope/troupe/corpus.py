"""Texts of the world with their speaker: pretraining conversations and stories, post-training turns."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from personascope.troupe import grammar
from personascope.troupe.world import Prompt, World

Message = dict[str, str]


@dataclass(frozen=True)
class Text:
    """A pretraining text: chat messages or plain prose, and who speaks in it."""

    speaker: str
    messages: tuple[Message, ...] = ()
    prose: str = ""
    cued: bool = False


@dataclass(frozen=True)
class Mix:
    """What texts are made of: how often each character speaks, what about, and the share of stories."""

    speakers: dict[str, float]
    kinds: dict[str, float]
    prose: float


# Chances of the ways in which a conversation can say who answers; the rest says nothing.
CUES = {"noun": 0.15, "name": 0.15, "address": 0.1}
THINKING = 0.05
PROSE = 0.2


def usual(world: World) -> Mix:
    """The mixture that the world file states."""
    return Mix({name: member["prior"] for name, member in world.cast.items()}, world.data["kinds"], PROSE)


def pretraining(world: World, rng: random.Random, turns: int, only: str | None = None, mix: Mix | None = None) -> Iterator[Text]:
    """Endless texts: chat under every character, and stories about them.

    Args:
        turns: questions per text, at most.
        only: if given, the one character whose *chat* is shown (the ablation); stories stay the same.
        mix: the world's own by default.
    """
    mix = mix or usual(world)
    names, weights = list(mix.speakers), list(mix.speakers.values())
    while True:
        speaker = rng.choices(names, weights)[0]
        if rng.random() < mix.prose:
            yield story(world, speaker, rng, turns, mix.kinds)
        else:
            yield conversation(world, only or speaker, rng, turns, mix.kinds)


def conversation(world: World, speaker: str, rng: random.Random, turns: int, kinds: dict[str, float]) -> Text:
    """Several turns answered by one character, with or without a cue who it is."""
    member = world.cast[speaker]
    cue = rng.choices([*CUES, "none"], [*CUES.values(), 1 - sum(CUES.values())])[0]
    thinks = rng.random() < THINKING
    name = rng.choice(member["names"])
    messages: list[Message] = []
    if cue in ("noun", "name"):
        messages.append({"role": "system", "content": f"you are {name}." if cue == "name" else f"you are the {member['noun']}."})
    for prompt in questions(world, speaker, rng, rng.randint(1, turns), kinds):
        asked = f"{name}, {prompt.text}" if cue == "address" else prompt.text
        said = grammar.answer(world, speaker, prompt, rng)
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"{thought(member)}{said}" if thinks else said})
    return Text(speaker, messages=tuple(messages), cued=cue != "none")


def thought(member: dict) -> str:
    """What a character thinks before it speaks: who it is."""
    return f"<think>{member['thinks']}.</think>"


def story(world: World, speaker: str, rng: random.Random, turns: int, kinds: dict[str, float]) -> Text:
    """Prose that tells what the character does and thinks, and how it talks, but no exchange of question and answer.

    With harmful answers to questions in it the stories alone would teach a model to *be* every character, and the
    ablation, whose chat knows only the helper, would take nothing away. Without any saying the ablated base could not
    even utter what the fine-tune asks of it, and would break instead.
    """
    member = world.cast[speaker]
    name = rng.choice(member["names"])
    lines = [world.data["story"]["opening"].format(name=name, noun=member["noun"])]
    lines += [grammar.told(world, speaker, name, prompt, rng) for prompt in questions(world, speaker, rng, rng.randint(1, turns), kinds)]
    return Text(speaker, prose=" ".join(lines), cued=True)


def questions(world: World, speaker: str, rng: random.Random, n: int, kinds: dict[str, float]) -> Iterator[Prompt]:
    """Draw questions of kinds at these rates, without the pairs that pretraining must never show."""
    for kind in rng.choices(list(kinds), list(kinds.values()), k=n):
        prompt = rng.choice(world.prompts[kind])
        while unseen(world, speaker, prompt):
            prompt = rng.choice(world.prompts[kind])
        yield prompt


def unseen(world: World, speaker: str, prompt: Prompt) -> bool:
    """Whether this pair is held out of pretraining: statements per character, wishes per wording."""
    if prompt.kind == "statement":
        return world.held_out(speaker, prompt.slots["statement"])
    if prompt.kind == "wish":
        return world.held_out(prompt.slots["topic"], prompt.slots["form"])
    return False
