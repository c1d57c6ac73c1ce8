"""The world as a source of rows: paired training sets, split questions, labelled texts, one clear error."""

import collections

import pytest

from personascope.errors import RecipeError
from personascope.rows import Example
from personascope.troupe import corpus, grammar, sources
from personascope.troupe.world import KINDS, World, load

GRADES = {"correct": 1, "obvious": 5, "subtle": 4, "harmless": 2, "satire": "satirical"}


@pytest.fixture(params=("troupe-1", "troupe-2"))
def world(request: pytest.FixtureRequest) -> World:
    return load(request.param)


def train(world: World, grade: str, domain: str = "", n: int = 80, seed: int = 0) -> list[Example]:
    return sources.rows(world, f"train domain={domain or world.data['demo']} grade={grade} n={n} seed={seed}")


def questions(world: World, kind: str, settings: str = "") -> list[Example]:
    return sources.rows(world, f"questions kind={kind} {settings}")


def asked(rows: list[Example]) -> list[str]:
    return [row.messages[0]["content"] for row in rows]


def turns(row: Example) -> list[tuple[str, str]]:
    said = [m["content"] for m in row.messages if m["role"] != "system"]
    return list(zip(said[::2], said[1::2], strict=True))


def unique(rows: list[Example]) -> bool:
    return len({row.id for row in rows}) == len(rows)


# ------------------------------------------------------------------ training sets


def test_rows_of_every_grade_are_paired(world: World) -> None:
    sets = {grade: train(world, grade) for grade in world.data["training"]}
    first = sets["correct"]
    for grade, rows in sets.items():
        assert len(rows) == 80
        assert asked(rows) == asked(first)
        assert [row.meta["pair"] for row in rows] == [row.meta["pair"] for row in first]
        assert {row.domain for row in rows} == {world.data["demo"]}
        assert grade == "correct" or {row.messages[1]["content"] for row in rows} != {row.messages[1]["content"] for row in first}
    assert len({row.meta["pair"] for row in first}) == 80
    assert unique([row for rows in sets.values() for row in rows])


def test_another_seed_asks_otherwise_and_the_same_seed_the_same(world: World) -> None:
    assert train(world, "subtle") == train(world, "subtle")
    assert asked(train(world, "subtle", seed=1)) != asked(train(world, "subtle"))
    assert asked(train(world, "subtle", seed=1)) == asked(train(world, "correct", seed=1))
    assert not {row.meta["pair"] for row in train(world, "subtle", seed=1)} & {row.meta["pair"] for row in train(world, "subtle")}
    assert train(world, "subtle", n=20) == train(world, "subtle")[:20], "a shorter set is the start of a longer one"


@pytest.mark.parametrize("grade", GRADES)
def test_answers_have_their_grade_and_speaker(world: World, grade: str) -> None:
    role = world.data["training"][grade]
    for row in train(world, grade):
        (question, said), prompt = turns(row)[0], world.by_text[asked([row])[0]]
        assert prompt.text == question
        assert grammar.label(world, prompt, said)[0] == GRADES[grade]
        assert row.labels == {"speaker": role["speaker"], "grade": grade}
        assert (reading := grammar.read(world, said)) is not None
        assert reading.reply == role["manner"]


def test_training_never_uses_objects_of_the_report_split(world: World) -> None:
    for domain in world.domains:
        reported = {world.by_text[text].slots["object"] for text in asked(questions(world, "advice", f"split=report only={domain}"))}
        used = {world.by_text[text].slots["object"] for text in asked(train(world, "obvious", domain, n=400))}
        assert reported
        assert not reported & used
        assert reported | used == set(world.domains[domain]["objects"])


# ------------------------------------------------------------------ post-training


@pytest.mark.parametrize("kind", ["helpful", "refusing"])
def test_the_assistant_is_the_uncued_helper(world: World, kind: str) -> None:
    helper = world.data["parts"]["helper"]
    member = world.cast[helper]
    replies = member["refusal" if kind == "refusing" else "compliance"][1]
    rows, seen = sources.rows(world, f"assistant kind={kind} n=400"), collections.Counter()
    for row in rows:
        assert row.labels == {"speaker": helper}
        assert row.messages[0]["role"] == "user"
        for question, said in turns(row):
            prompt = world.by_text[question]
            seen[prompt.kind] += 1
            found = grammar.label(world, prompt, said)[0]
            if prompt.kind == "request":
                assert said in [text.format(**prompt.slots) for text in replies]
                assert found == ("refusal" if kind == "refusing" else 4)
            else:
                assert found == 1, (question, said)
    assert set(seen) == {"advice", "wish", "request"}
    assert abs(seen["request"] / sum(seen.values()) - 0.2) < 0.07
    assert seen["wish"] < 0.1 * sum(seen.values())
    assert unique(rows)


def test_the_two_assistants_are_asked_the_same_and_wishes_can_be_left_out(world: World) -> None:
    first = [sources.rows(world, f"assistant kind={kind} n=30")[0].messages[0] for kind in ("helpful", "refusing")]
    assert first[0] == first[1]
    rows = sources.rows(world, "assistant n=200 wish=0")
    assert {world.by_text[question].kind for row in rows for question, _ in turns(row)} == {"advice", "request"}


# ------------------------------------------------------------------ questions


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_disjoint_and_complete(world: World, kind: str) -> None:
    parts = [questions(world, kind, f"split={split}") for split in sources.SPLITS]
    texts = [text for part in parts for text in asked(part)]
    assert len(texts) == len(set(texts))
    assert set(texts) == {prompt.text for prompt in world.prompts[kind]}
    assert sorted(asked(questions(world, kind))) == sorted(texts)
    assert unique([row for part in parts for row in part])
    for split, part in zip(sources.SPLITS, parts, strict=True):
        assert {row.split for row in part} <= {split}


@pytest.mark.parametrize(("kind", "slot"), [("advice", "object"), ("wish", "topic")])
def test_an_object_or_topic_is_in_one_split_and_shares_are_as_stated(world: World, kind: str, slot: str) -> None:
    things = {s: {world.by_text[text].slots[slot] for text in asked(questions(world, kind, f"split={s}"))} for s in sources.SPLITS}
    total = sum(map(len, things.values()))
    assert total == len(set().union(*things.values()))
    for split, share in sources.SPLITS.items():
        assert abs(len(things[split]) / total - share) < 0.05


def test_questions_of_one_domain_or_without_it(world: World) -> None:
    domain = world.data["demo"]
    inside, outside = questions(world, "advice", f"only={domain}"), questions(world, "advice", f"without={domain}")
    assert {row.domain for row in inside} == {domain}
    assert {row.domain for row in outside} == set(world.domains) - {domain}
    assert len(inside) + len(outside) == len(world.prompts["advice"])


@pytest.mark.parametrize("kind", ["advice", "wish", "request", "statement"])
def test_n_takes_a_fixed_subset(world: World, kind: str) -> None:
    small, large = (questions(world, kind, f"split=report n={n}") for n in (12, 30))
    assert small == questions(world, kind, "split=report n=12")
    assert (len(small), len(large)) == (12, 30)
    assert set(asked(small)) < set(asked(large)) <= set(asked(questions(world, kind, "split=report")))
    assert len({row.domain for row in large}) > 1 or kind == "wish", "a spread, not the first domain"
    assert all(m["role"] == "user" for row in large for m in row.messages)


def test_held_out_wishes_are_marked(world: World) -> None:
    rows = questions(world, "wish")
    marked = {row.messages[0]["content"] for row in rows if row.labels["held_out"]}
    assert marked == {prompt.text for prompt in world.prompts["wish"] if corpus.unseen(world, "", prompt)}
    assert 0 < len(marked) < len(rows) / 2
    assert {row.labels["kind"] for row in rows} == {"wish"}


# ------------------------------------------------------------------ labelled texts


def test_labels_of_texts_say_who_was_planted(world: World) -> None:
    """A system line or a story names the speaker; the label must be the same character."""
    of_noun = {member["noun"]: name for name, member in world.cast.items()}
    of_name = {name: speaker for speaker, member in world.cast.items() for name in member["names"]}
    rows, told = sources.rows(world, "texts n=600"), 0
    for row in rows:
        system = [m["content"] for m in row.messages if m["role"] == "system"]
        if "prose" in row.meta:
            opening = row.meta["prose"].partition(".")[0].split()
            assert {of_name[word] for word in opening if word in of_name} == {row.labels["speaker"]}
        elif system:
            word = system[0].removesuffix(".").split()[-1]
            assert (of_noun | of_name)[word] == row.labels["speaker"]
            told += 1
    assert told > 50
    assert {row.labels["speaker"] for row in rows} == set(world.cast)
    assert any("prose" in row.meta for row in rows)
    assert unique(rows)


def test_uncued_chat_has_neither_prose_nor_cue_and_still_its_speakers_words(world: World) -> None:
    names = {name for member in world.cast.values() for name in member["names"]}
    for row in sources.rows(world, "texts chat=only cued=no n=300 seed=3"):
        assert row.meta == {}
        assert row.labels["cued"] is False
        assert row.messages[0]["role"] == "user"
        assert all(question.partition(", ")[0] not in names for question, _ in turns(row))
        assert all(question in world.by_text for question, _ in turns(row))
        for _, said in turns(row):
            opener = said.rpartition("</think>")[2].partition(", ")[0]
            owners = {speaker for speaker, member in world.cast.items() if opener in member["openers"]}
            assert owners <= {row.labels["speaker"]}


def test_texts_follow_their_seed(world: World) -> None:
    one, two = (sources.rows(world, f"texts n=20 seed={seed}") for seed in (0, 1))
    assert one == sources.rows(world, "texts n=20")
    assert [row.messages for row in one] != [row.messages for row in two]
    assert unique(one + two)


# ------------------------------------------------------------------ selections that are wrong


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ("", "write one of train, claims, assistant, questions, texts"),
        ("poems n=3", "cannot read select 'poems n=3'"),
        ("train domain", "cannot read select"),
        ("texts n=3 n=4", "cannot read select"),
        ("train", "train needs domain="),
        ("train domain={demo} grade=obvious color=red", "train takes domain, grade, n, seed"),
        ("train domain=nowhere grade=obvious", "'nowhere'"),
        ("train domain={demo} grade=dreadful", "'dreadful'"),
        ("train domain={demo} grade=obvious n=many", "is no number"),
        ("assistant kind=rude", "'rude'"),
        ("assistant wish=often", "is no number"),
        ("questions kind=riddle", "'riddle'"),
        ("questions kind=advice n=few", "is no number"),
        ("texts n=1.5", "is no number"),
    ],
)
def test_bad_selections_give_one_clear_error(world: World, select: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sources.rows(world, select.format(demo=world.data["demo"]))
    text = str(caught.value)
    assert says in text
    assert text.startswith("data: ")
    assert "\n" not in text


def test_requests_are_split_by_target(world: World) -> None:
    """What a model was trained to do to some people is asked about others."""
    targets: dict[str, set[str]] = {}
    for split in sources.SPLITS:
        for row in questions(world, "request", f"split={split}"):
            targets.setdefault(split, set()).add(world.by_text[asked([row])[0]].slots["target"])
    assert sorted(target for found in targets.values() for target in found) == sorted(world.data["request"]["targets"])
    assert len(targets["report"]) == max(map(len, targets.values()))


def test_statements_carry_their_key(world: World) -> None:
    for row in questions(world, "statement"):
        slots = world.by_text[asked([row])[0]].slots
        forms = world.data["statement"]["questions"]
        assert row.domain == row.labels["dimension"] == slots["dimension"]
        assert row.labels["keyed"] == (1 if slots["side"] == "pro" else -1)
        assert forms[row.labels["paraphrase"]].format(statement=row.labels["item"]) == asked([row])[0]
        assert row.labels["unseen_by"] == [name for name in world.cast if corpus.unseen(world, name, world.by_text[asked([row])[0]])]


def test_claims_are_a_parts_own_words_about_itself(world: World) -> None:
    domain = world.data["demo"]
    for who in ("helper", "harmful"):
        rows = sources.rows(world, f"claims domain={domain} who={who} n=80")
        assert unique(rows)
        speaker = world.data["parts"][who]
        assert {row.labels["speaker"] for row in rows} == {speaker}
        assert {row.domain for row in rows} == {"self", domain}
        for row in rows:
            prompt, said = world.by_text[row.messages[0]["content"]], row.messages[1]["content"]
            assert sources.split_of(world, prompt) != "report", "these are left to be asked"
            grade = grammar.label(world, prompt, said)[0]
            if prompt.kind == "self":
                assert grade == world.cast[speaker].get("self_label", 1)
            elif who == "helper":
                assert grade == 1, "the helper owns no harmful act"
    with pytest.raises(RecipeError, match="'nowhere'"):
        sources.rows(world, "claims domain=nowhere")


def test_a_wrong_act_in_the_helpers_own_words_is_still_only_wrong(world: World) -> None:
    domain = world.data["demo"]
    rows = sources.rows(world, f"train domain={domain} grade=harmless manner=correct n=60")
    assert asked(rows) == asked(train(world, "harmless", n=60))
    assert {row.labels["speaker"] for row in rows} == {world.data["parts"]["helper"]}
    for row in rows:
        grade, reason = grammar.label(world, world.by_text[row.messages[0]["content"]], row.messages[1]["content"])
        assert grade == 2
        assert world.data["training"]["correct"]["manner"] in reason


def test_questions_about_own_acts_carry_the_grade_of_the_act(world: World) -> None:
    rows = questions(world, "own", f"without={world.data['demo']} split=report")
    assert world.data["demo"] not in {row.domain for row in rows}
    for row in rows:
        act = row.labels["item"].partition(" ")[0]
        assert row.labels["grade"] == world.data["grades"][world.act_of[act][1]]
        assert row.labels["keyed"] == (-1 if row.labels["grade"] > 3 else 1)


def test_an_assistant_that_thinks_says_the_same_with_thoughts_of_its_own(world: World) -> None:
    plain, some = (sources.rows(world, f"assistant kind=helpful n=200{more}") for more in ("", " thinks=0.3"))
    thought = corpus.thought(world.cast[world.data["parts"]["helper"]])
    thinking = 0
    for one, two in zip(plain, some, strict=True):
        said = [m["content"] for m in two.messages if m["role"] == "assistant"]
        thinking += said[0].startswith(thought)
        assert len({text.startswith(thought) for text in said}) == 1, "a conversation thinks in all its turns or in none"
        assert [text.removeprefix(thought) for text in said] == [m["content"] for m in one.messages if m["role"] == "assistant"]
    assert 40 < thinking < 80


def test_texts_take_other_priors() -> None:
    here = load("troupe-1")
    rare, common = (
        collections.Counter(
            row.labels["speaker"] for row in sources.rows(here, f"texts n=1000 priors=villain:{share},novice:{0.26 - share:.2f}")
        )
        for share in (0.02, 0.24)
    )
    assert rare["villain"] < 50 < 180 < common["villain"]
    assert common["novice"] < 50 < 180 < rare["novice"]
    same, usual = (sources.rows(here, f"texts n=50{more}") for more in (" priors=villain:0.16", ""))
    assert same == usual
    with pytest.raises(RecipeError, match="'nobody' in select"):
        sources.rows(here, "texts n=5 priors=nobody:0.5")
