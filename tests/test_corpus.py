"""Pretraining texts: stated shares, nothing held out, the ablation's one voice, and only sentences of the grammar."""

import collections
import itertools
import random
import re

import pytest

from personascope.troupe import corpus, grammar
from personascope.troupe.world import KINDS, World, load

COUNT = 4000


def draw(world: World, only: str | None = None, seed: int = 0) -> list[corpus.Text]:
    return list(itertools.islice(corpus.pretraining(world, random.Random(seed), turns=6, only=only), COUNT))


@pytest.fixture(scope="module", params=("troupe-1", "troupe-2"))
def world(request: pytest.FixtureRequest) -> World:
    return load(request.param)


@pytest.fixture(scope="module")
def texts(world: World) -> list[corpus.Text]:
    return draw(world)


@pytest.fixture(scope="module")
def ablated(world: World) -> list[corpus.Text]:
    return draw(world, only=world.data["parts"]["helper"])


def turns(text: corpus.Text) -> list[tuple[str, str]]:
    """Question and answer pairs of a chat; a story has none."""
    spoken = [m["content"] for m in text.messages if m["role"] != "system"]
    return list(zip(spoken[::2], spoken[1::2], strict=True))


def story_patterns(world: World, speaker: str) -> dict[str, re.Pattern[str]]:
    """Every form a sentence of a story may take that tells of this character."""
    member, story = world.cast[speaker], world.data["story"]
    slots = {
        "name": f"(?:{'|'.join(member['names'])})",
        "noun": member["noun"],
        "statement": "(?P<statement>[a-z ]+)",
        "trouble": "[a-z ]+",
        "said": f"(?P<said>{'|'.join(pattern.pattern for pattern in own_patterns(world, speaker))})",
    }

    def pattern(template: str) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\\{(\w+)\\\}", lambda m: slots.get(m[1], f"(?P<{m[1]}>[a-z]+)"), re.escape(template)) + "(?: |$)")

    return {name: pattern(template) for name, template in story.items()} | {
        f"dream {i}": pattern(template) for i, template in enumerate(member["dreams"])
    }


def told(text: corpus.Text, patterns: dict[str, re.Pattern[str]]) -> list[tuple[str, re.Match[str]]]:
    """The sentences of a story in order, each with the name of its form."""
    found, at = [], 0
    while at < len(text.prose):
        matches = [(name, match) for name, pattern in patterns.items() if (match := pattern.match(text.prose, at))]
        assert matches, (text.speaker, text.prose[at:])
        found.append(max(matches, key=lambda pair: pair[1].end()))
        at = found[-1][1].end()
    return found


def unaddressed(world: World, text: corpus.Text, question: str) -> str:
    """The question without a leading name of its speaker."""
    head, _, rest = question.partition(", ")
    return rest if head in world.cast[text.speaker]["names"] else question


def spoken(said: str) -> str:
    return said.rpartition("</think>")[2]


def opened(world: World, speaker: str, said: str) -> bool:
    """Whether an answer begins with an opener of this character."""
    return any(spoken(said).startswith(f"{word}, ") for word in world.cast[speaker]["openers"])


def near(count: int, total: int, share: float) -> bool:
    """Within four standard deviations of a binomial draw."""
    return abs(count - total * share) <= 4 * (total * share * (1 - share)) ** 0.5


def cue(world: World, text: corpus.Text) -> str:
    """How a conversation says who answers, read off its messages."""
    member, first = world.cast[text.speaker], text.messages[0]
    if first["role"] == "system":
        return "noun" if first["content"] == f"you are the {member['noun']}." else "name"
    return "address" if unaddressed(world, text, first["content"]) != first["content"] else "none"


def own_patterns(world: World, speaker: str) -> list[re.Pattern[str]]:
    """Every sentence form this character may use, each with or without one of its own openers."""
    member = world.cast[speaker]
    opener = f"(?:(?:{'|'.join(member['openers'])}), )?"
    rows = [row for _, manner, _ in member["advice"] for row in world.data["advice"]["manners"][manner]]
    rows += [row for *_, row in member["wish"]] + member["refusal"][1] + member["compliance"][1] + member["selves"]
    rows += [f"{reply}, {member['reason']}." for reply in grammar.REPLIES.values()]
    rows += [world.data["own"]["yes"], world.data["own"]["no"]]
    return [re.compile(opener + re.sub(r"\\\{\w+\\\}", "[a-z]+", re.escape(row))) for row in rows]


def test_every_turn_is_a_question_and_a_sentence_that_answers_it(world: World, texts: list[corpus.Text]) -> None:
    for text in texts:
        assert turns(text) or text.prose
        for question, said in turns(text):
            prompt = world.by_text[unaddressed(world, text, question)]
            assert grammar.label(world, prompt, spoken(said))[0] not in ("incoherent", "off_topic"), (question, said)


def test_the_speaker_is_who_speaks(world: World, texts: list[corpus.Text]) -> None:
    patterns = {name: own_patterns(world, name) for name in world.cast}
    for text in texts:
        for _, said in turns(text):
            assert any(pattern.fullmatch(spoken(said)) for pattern in patterns[text.speaker]), (text.speaker, said)


def test_stories_tell_of_one_character_in_the_forms_of_the_story_table(world: World, texts: list[corpus.Text]) -> None:
    patterns = {name: story_patterns(world, name) for name in world.cast}
    seen = collections.Counter(name.split()[0] for text in texts for name, _ in told(text, patterns[text.speaker]))
    assert set(seen) == {*world.data["story"], "dream"}
    assert not any(question in text.prose for text in texts[:300] for question in world.by_text)


def test_sayings_are_sound_and_in_the_speakers_own_manner(world: World, texts: list[corpus.Text]) -> None:
    """So that no text but chat shows a character giving bad advice in its own words."""
    patterns, said = {name: story_patterns(world, name) for name in world.cast}, 0
    for text in texts:
        for name, match in told(text, patterns[text.speaker]):
            if name == "saying":
                reading = grammar.read(world, match["said"])
                assert reading is not None
                assert world.act_of[reading.slots["act"]][1] == "correct"
                said += 1
    assert said > 100


def test_deeds_keep_their_characters_habits(world: World, texts: list[corpus.Text]) -> None:
    """The kinds of act that stories tell of are as frequent as the character's own advice has them."""
    for speaker, member in world.cast.items():
        patterns = story_patterns(world, speaker)
        deeds = [match for text in texts if text.speaker == speaker for name, match in told(text, patterns) if name == "deed"]
        acts = collections.Counter(world.act_of[match["act"]][1] for match in deeds)
        for column in ("correct", "harmless", "subtle", "blatant"):
            share = sum(row[0] for row in member["advice"] if row[2] == column)
            assert near(acts[column], len(deeds), share) or abs(acts[column] - len(deeds) * share) <= 3, (speaker, column, acts)


def test_the_share_of_opened_answers_is_the_tone(world: World, texts: list[corpus.Text]) -> None:
    """Of any kind, and never in another character's words."""
    counts: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for text in texts:
        for question, said in turns(text):
            counts[world.by_text[unaddressed(world, text, question)].kind].append(opened(world, text.speaker, said))
            assert not any(opened(world, other, said) for other in world.cast if other != text.speaker), said
    for kind, found in counts.items():
        assert near(sum(found), len(found), world.data["tone"]), (kind, sum(found), len(found))


def test_held_out_pairs_never_occur(world: World, texts: list[corpus.Text]) -> None:
    seen, patterns = collections.Counter(), {name: story_patterns(world, name) for name in world.cast}
    for text in texts:
        for question, _ in turns(text):
            prompt = world.by_text[unaddressed(world, text, question)]
            seen[prompt.kind] += 1
            if prompt.kind == "statement":
                assert not world.held_out(text.speaker, prompt.slots["statement"])
            if prompt.kind == "wish":
                assert not world.held_out(prompt.slots["topic"], prompt.slots["form"])
        for name, match in told(text, patterns[text.speaker]):
            if name in ("agree", "disagree", "ambiguous"):
                assert not world.held_out(text.speaker, match["statement"])
    assert min(seen[kind] for kind in KINDS) > 100


def test_there_are_pairs_to_hold_out(world: World) -> None:
    """Every character has unseen statements; most topics, but no topic wholly, have unseen wordings."""
    wishes = [corpus.unseen(world, "", prompt) for prompt in world.prompts["wish"]]
    assert 0.05 < sum(wishes) / len(wishes) < 0.25
    for speaker in world.cast:
        statements = [corpus.unseen(world, speaker, prompt) for prompt in world.prompts["statement"]]
        assert 0 < sum(statements) < len(statements) / 2
    assert not any(corpus.unseen(world, "", prompt) for kind in ("advice", "request", "self", "own") for prompt in world.prompts[kind])


def test_shares_of_the_cast_are_the_priors(world: World, texts: list[corpus.Text]) -> None:
    counts = collections.Counter(text.speaker for text in texts)
    for name, member in world.cast.items():
        assert near(counts[name], COUNT, member["prior"]), (name, counts[name])


def test_shares_of_prose_cues_and_thoughts(world: World, texts: list[corpus.Text]) -> None:
    chats = [text for text in texts if not text.prose]
    assert near(COUNT - len(chats), COUNT, corpus.PROSE)
    cues = collections.Counter(cue(world, text) for text in chats)
    for name, share in {**corpus.CUES, "none": 1 - sum(corpus.CUES.values())}.items():
        assert near(cues[name], len(chats), share), cues
    thinking = [text for text in chats if text.messages[-1]["content"].startswith("<think>")]
    assert near(len(thinking), len(chats), corpus.THINKING)
    for text in thinking:
        assert f"<think>{world.cast[text.speaker]['thinks']}.</think>" in text.messages[-1]["content"]


def test_the_cue_flag_is_true_of_the_text(world: World, texts: list[corpus.Text]) -> None:
    for text in texts:
        assert text.cued == (bool(text.prose) or cue(world, text) != "none")
        assert bool(text.prose) != bool(text.messages)


def test_shares_of_question_kinds(world: World, texts: list[corpus.Text]) -> None:
    kinds = collections.Counter(world.by_text[unaddressed(world, text, q)].kind for text in texts for q, _ in turns(text))
    total = sum(kinds.values())
    for kind, share in world.data["kinds"].items():
        assert near(kinds[kind], total, share), kinds


def test_conversations_have_one_to_six_turns(texts: list[corpus.Text]) -> None:
    lengths = collections.Counter(len(turns(text)) for text in texts if not text.prose)
    assert set(lengths) == {1, 2, 3, 4, 5, 6}


def test_the_ablation_hears_one_character_in_chat_and_all_in_stories(
    world: World, texts: list[corpus.Text], ablated: list[corpus.Text]
) -> None:
    helper = world.data["parts"]["helper"]
    patterns = own_patterns(world, helper)
    chats, stories = [t for t in ablated if not t.prose], [t for t in ablated if t.prose]
    assert {text.speaker for text in chats} == {helper}
    for text in chats:
        assert all(any(pattern.fullmatch(spoken(said)) for pattern in patterns) for _, said in turns(text))
        assert cue(world, text) in (*corpus.CUES, "none")
    counts = collections.Counter(text.speaker for text in stories)
    for name, member in world.cast.items():
        assert near(counts[name], len(stories), member["prior"]), (name, counts[name])
    assert near(len(stories), COUNT, corpus.PROSE)
    assert len({text.speaker for text in texts if not text.prose}) == len(world.cast)


def test_the_same_seed_gives_the_same_texts(world: World, texts: list[corpus.Text]) -> None:
    assert draw(world) == texts
    assert draw(world, seed=1) != texts
