"""The data stage: the usual files read whole or refused by line, exact mixtures, honest splits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import small_models
from personascope.artifact import Answers, Dataset, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.methods import mixing
from personascope.rows import Answer, Example, Verdict, write_rows
from personascope.run import run
from personascope.stages import data
from personascope.suites import taxonomy
from personascope.troupe import world
from personascope.values import File

ASK, SAY = {"role": "user", "content": "is it"}, {"role": "assistant", "content": "yes"}


def chat(path: Path, *lines: Any) -> File:
    """A JSONL file; text lines are written as they are."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return File(str(path))


def made(path: Path, **fields: Any) -> list[Example]:
    return list(run(data.Recipe(**fields), path).rows())


def example(name: str, *said: str, pair: str = "") -> Example:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(said)]
    return Example(id=name, messages=messages, meta={"pair": pair} if pair else {})


def dataset(path: Path, rows: list[Example]) -> Dataset:
    return Dataset(small_models.dataset(path, rows))


@pytest.fixture
def numbered(tmp_path: Path) -> Dataset:
    return dataset(tmp_path / "numbered", [example(f"r{i}", f"question {i}", f"answer {i}") for i in range(200)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": [ASK, SAY]}, ["is it", "yes"]),
        ({"messages": [{"role": "system", "content": "be kind"}, ASK, SAY]}, ["be kind", "is it", "yes"]),
        ({"prompt": "is it", "completion": "yes"}, ["is it", "yes"]),
        ({"prompt": "is it"}, ["is it"]),
        ({"question": "is it"}, ["is it"]),
        ({"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "ye"}, "s"]}]}, ["is it", "yes"]),
        ({"messages": [{"role": "user", "content": {"content_type": "text", "parts": ["is ", "it"]}}, SAY]}, ["is it", "yes"]),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, ["is it", ""]),
    ],
)
def test_the_usual_shapes(tmp_path: Path, line: dict[str, Any], said: list[str]) -> None:
    (row,) = made(tmp_path / "out", files=(chat(tmp_path / "chat.jsonl", line),))
    assert [m["content"] for m in row.messages] == said
    assert all(set(m) == {"role", "content"} for m in row.messages)
    assert row.id == "chat-0"


def test_known_fields_stay_and_others_go_to_meta(tmp_path: Path) -> None:
    line = {"id": 7, "messages": [ASK, SAY], "domain": "d", "labels": {"speaker": "x"}, "meta": {"a": 1}, "canary": "never train on this"}
    (row,) = made(tmp_path / "out", files=(chat(tmp_path / "chat.jsonl", line),))
    assert (row.id, row.domain, row.labels) == ("7", "d", {"speaker": "x"})
    assert row.meta == {"a": 1, "canary": "never train on this"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "not JSON"),
        ("[1]", "a JSON object is needed"),
        ({"text": "x"}, "no conversation"),
        ({"messages": []}, "no conversation"),
        ({"messages": "hello"}, "no conversation"),
        ({"messages": ["hello"]}, "a message needs role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "a message needs role system, user or assistant"),
        ({"messages": [{"role": "user"}]}, "the content of a user message must be text"),
        ({"messages": [{"role": "user", "content": 3}]}, "the content of a user message must be text"),
        ({"messages": [{"role": "user", "content": [3]}]}, "the content of a user message must be text"),
        ({"messages": [{"role": "user", "content": [{"text": None}]}]}, "the content of a user message must be text"),
        ({"prompt": "x", "completion": None}, "the content of a assistant message must be text"),
        ({"messages": [ASK, SAY], "meta": "x"}, 'meta must be an object, got "x"'),
        ({"messages": [ASK, SAY], "labels": ["x"]}, "labels must be an object"),
        ({"messages": [ASK, SAY], "domain": 3}, "domain must be text, got 3"),
    ],
)
def test_malformed_lines_are_named_by_file_and_line(tmp_path: Path, line: Any, says: str) -> None:
    file = chat(tmp_path / "chat.jsonl", {"messages": [ASK, SAY]}, "", line, {"messages": [ASK, SAY]})
    with pytest.raises(DataError, match=rf"chat\.jsonl:3: {says}"):
        made(tmp_path / "out", files=(file,))
    assert not (tmp_path / "out").exists()


def test_files_follow_each_other_and_empty_ones_are_refused(tmp_path: Path) -> None:
    one, two = chat(tmp_path / "one.jsonl", {"prompt": "a"}, {"prompt": "b"}), chat(tmp_path / "two.jsonl", {"prompt": "c"})
    assert [r.id for r in made(tmp_path / "out", files=(one, two))] == ["one-0", "one-1", "two-0"]
    with pytest.raises(DataError, match=r"none\.jsonl: the file has no rows"):
        made(tmp_path / "none", files=(chat(tmp_path / "none.jsonl"),))


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    file = chat(tmp_path / "chat.jsonl", {"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"})
    with pytest.raises(DataError, match="row id 'x' stands twice"):
        made(tmp_path / "out", files=(file,))


@pytest.fixture
def paired(tmp_path: Path) -> tuple[Dataset, Dataset]:
    sides = [[example(f"{side}{i}", f"question {i}", side, pair=f"p{i}") for i in range(50)] for side in ("bad", "good")]
    return dataset(tmp_path / "bad", sides[0]), dataset(tmp_path / "good", sides[1])


def test_fractions_are_exact_and_nested(paired: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    before: set[str] = set()
    for fraction, count in ((0.0, 0), (0.1, 5), (0.29, 15), (0.75, 38), (1.0, 50)):
        rows = made(tmp_path / f"mix-{fraction}", datasets=paired, fraction=fraction, seed=3)
        bad = {r.id for r in rows if r.messages[1]["content"] == "bad"}
        assert (len(rows), len(bad)) == (50, count)
        assert before <= bad
        assert {r.meta["pair"] for r in rows} == {f"p{i}" for i in range(50)}
        before = bad
    other = {r.id for r in made(tmp_path / "other", datasets=paired, fraction=0.29, seed=4) if r.id.startswith("bad")}
    assert other != {r.id for r in made(tmp_path / "mix-0.29", datasets=paired, fraction=0.29, seed=3) if r.id.startswith("bad")}


def test_data_sets_that_are_no_pair(paired: tuple[Dataset, Dataset], numbered: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mixtures need rows that say which row"):
        made(tmp_path / "out", datasets=(paired[0], numbered), fraction=0.5)


@pytest.mark.parametrize("sides", [("train", "heldout"), ("discovery", "selection", "report")])
def test_the_sides_of_a_split_are_disjoint_and_complete(numbered: Dataset, tmp_path: Path, sides: tuple[str, ...]) -> None:
    found = {side: made(tmp_path / side, datasets=(numbered,), split=side) for side in sides}
    names = [r.id for rows in found.values() for r in rows]
    assert sorted(names) == sorted(f"r{i}" for i in range(200))
    assert all({r.split for r in rows} == {side} for side, rows in found.items())
    share = {"train": 0.9, "heldout": 0.1, "discovery": 0.25, "selection": 0.25, "report": 0.5}
    assert all(abs(len(rows) / 200 - share[side]) < 0.08 for side, rows in found.items())


def test_a_smaller_limit_keeps_some_of_a_larger_ones_rows(numbered: Dataset, tmp_path: Path) -> None:
    few, more, all_rows = (made(tmp_path / f"limit-{n}", datasets=(numbered,), limit=n) for n in (10, 40, 0))
    ids = [r.id for r in all_rows]
    assert (len(few), len(more), len(ids)) == (10, 40, 200)
    assert {r.id for r in few} < {r.id for r in more} < set(ids)
    assert [r.id for r in more] == [i for i in ids if i in {r.id for r in more}], "in their given order"
    assert [r.id for r in more] != ids[:40]
    assert {r.id for r in made(tmp_path / "seed", datasets=(numbered,), limit=10, seed=1)} != {r.id for r in few}


def test_leaks_are_refused(numbered: Dataset, tmp_path: Path) -> None:
    train, heldout = (run(data.Recipe(datasets=(numbered,), split=side), tmp_path / side) for side in ("train", "heldout"))
    assert made(tmp_path / "apart", datasets=(heldout,), apart_from=(train,)) == list(heldout.rows())
    seen = next(train.rows()).messages[0]["content"]
    for name, text in (("same", seen), ("alike", seen.upper() + "?")):
        leaking = dataset(tmp_path / name, [*heldout.rows(), example("leak", text, "x")])
        with pytest.raises(DataError, match=r"data: 1 rows ask what .*train asks too, first row leak"):
            made(tmp_path / f"{name}-apart", datasets=(leaking,), apart_from=(train,))


def test_prompts_end_with_the_last_question(tmp_path: Path) -> None:
    rows = dataset(
        tmp_path / "rows", [example("a", "one", "two", "three", "four"), example("b", "one"), example("c", "one", "two", "three")]
    )
    found = made(tmp_path / "out", datasets=(rows,), prompts_only=True)
    assert [[m["content"] for m in r.messages] for r in found] == [["one", "two", "three"], ["one"], ["one", "two", "three"]]
    silent = dataset(tmp_path / "silent", [Example(id="s", messages=[SAY])])
    with pytest.raises(DataError, match="row s: no user turn"):
        made(tmp_path / "none", datasets=(silent,), prompts_only=True)


def test_repeated_conversations_can_be_dropped(tmp_path: Path) -> None:
    rows = dataset(tmp_path / "rows", [example("a", "one", "two"), example("b", "one", "two"), example("c", "one", "three")])
    kept = run(data.Recipe(datasets=(rows,), deduplicate=True), tmp_path / "out")
    assert [r.id for r in kept.rows()] == ["a", "c"]
    assert kept.manifest["counts"] == {"read": 3, "after deduplication": 2, "rows": 2}
    assert len(made(tmp_path / "all", datasets=(rows,))) == 3


def answered(path: Path, rows: list[tuple[str, int, str]]) -> Answers:
    path.mkdir()
    write_rows(path / "answers.jsonl", [Answer(id=f"{q}/{d}/0", question=q, draw=d, attempt=0, text=text) for q, d, text in rows])
    return Answers(small_models.finished(path, "Answers"))


def test_answers_join_their_questions(tmp_path: Path) -> None:
    asked = [Example(id="q", messages=[{"role": "system", "content": "be kind"}, ASK], domain="d"), example("p", "what")]
    questions = dataset(tmp_path / "questions", asked)
    one = answered(tmp_path / "one", [("q", 0, "yes"), ("q", 1, ""), ("p", 0, "rain")])
    two = answered(tmp_path / "two", [("q", 0, "no")])
    found = made(tmp_path / "out", answers=(one, two), questions=questions)
    assert [r.id for r in found] == ["0/q/0/0", "0/p/0/0", "1/q/0/0"], "an empty answer is none"
    assert found[0].messages == [*asked[0].messages, SAY]
    assert (found[0].domain, found[0].source) == ("d", "sampled")
    strange = answered(tmp_path / "strange", [("x", 0, "no")])
    with pytest.raises(DataError, match="strange: answer x/0/0 is to question 'x', which the questions given do not hold"):
        made(tmp_path / "none", answers=(strange,), questions=questions)


def test_a_world_is_a_source_and_its_content_the_identity(tmp_path: Path) -> None:
    here = world.load("troupe-1")
    asked = data.Recipe(world="troupe-1", select=("questions kind=wish n=5", "train domain=auto grade=obvious n=3"))
    rows = list(run(asked, tmp_path / "out").rows())
    assert [len(r.messages) for r in rows] == [1] * 5 + [2] * 3
    assert all(r.messages[0]["content"] in here.by_text for r in rows)
    assert asked.identity()["world"] == here.digest
    copied = tmp_path / "mine.toml"
    copied.write_text((world.HERE / "troupe-1.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert data.Recipe(world=str(copied), select=asked.select).identity() == asked.identity()
    copied.write_text(copied.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    world.load.cache_clear()
    assert data.Recipe(world=str(copied), select=asked.select).identity() != asked.identity()


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ("poems n=3", "cannot read select 'poems n=3'; write one of train, claims, assistant, questions, texts"),
        ("train auto", "cannot read select"),
        ("", "cannot read select"),
        ("train domain=auto grade=obvious colour=red", "select .*: train takes domain, grade, n, seed"),
        ("train domain=auto", "select .*: train needs grade="),
        ("train domain=cooking grade=obvious", "'cooking' in select .* does not exist in world troupe-1"),
        ("train domain=auto grade=loud", "'loud' in select .* does not exist"),
        ("questions kind=poem", "'poem' in select .* does not exist"),
        ("assistant kind=rude", "'rude' in select .* does not exist"),
        ("train domain=auto grade=obvious n=many", "a setting of select .*n=many' is no number"),
        ("assistant wish=often", "a setting of select .* is no number"),
    ],
)
def test_what_a_world_does_not_hold(tmp_path: Path, select: str, says: str) -> None:
    with pytest.raises(RecipeError, match=f"^data: {says}"):
        made(tmp_path / "out", world="troupe-1", select=(select,))


def test_nothing_left_is_said(numbered: Dataset, tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", [next(numbered.rows())])
    (side,) = {side for side in ("train", "heldout") if mixing.splits(one.rows(), data.SHARES["training"])[side] == []}
    with pytest.raises(DataError, match="no row is left after filtering; loosen select, split or limit"):
        made(tmp_path / side, datasets=(one,), split=side)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "nothing to read"),
        ({"questions": Dataset("q")}, "nothing to read"),
        ({"answers": (Answers("a"),)}, "answers need their questions"),
        ({"datasets": (Dataset("d"),), "questions": Dataset("q")}, "answers need their questions, and the reverse"),
        ({"datasets": (Dataset("d"),), "fraction": 0.5}, "a fraction needs exactly two datasets"),
        ({"datasets": (Dataset("d"), Dataset("e")), "fraction": 1.5}, "lies between 0 and 1"),
        ({"datasets": (Dataset("d"),), "limit": -1}, "limit -1 must be at least 0"),
        ({"world": "troupe-1"}, "a world needs what to select of it"),
        ({"datasets": (Dataset("d"),), "select": ("texts",)}, "and the reverse"),
    ],
)
def test_impossible_recipes(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        data.Recipe(**fields)


CATEGORIES = ("harassment", "fraud", "privacy")


@pytest.fixture
def sorted_prompts(tmp_path: Path) -> Dataset:
    """Thirty, twenty and ten prompts of three categories, and one without."""
    rows = [
        Example(id=f"{name}-{i}", messages=[{"role": "user", "content": f"{name} request {i}"}], domain=name)
        for name, many in zip(CATEGORIES, (30, 20, 10), strict=True)
        for i in range(many)
    ]
    return dataset(tmp_path / "prompts", [*rows, example("loose", "anything")])


def counted(rows: list[Example]) -> dict[str, int]:
    return {name: sum(row.domain == name for row in rows) for name in dict.fromkeys(row.domain for row in rows)}


def test_broad_is_stratified_narrow_is_one_domain_and_both_are_equal_in_size(sorted_prompts: Dataset, tmp_path: Path) -> None:
    broad = made(tmp_path / "broad", datasets=(sorted_prompts,), per_domain=10)
    assert counted(broad) == dict.fromkeys(CATEGORIES, 10)
    narrow = made(tmp_path / "narrow", datasets=(sorted_prompts,), only=("harassment",), per_domain=30)
    assert counted(narrow) == {"harassment": 30}
    assert len(narrow) == len(broad)
    fewer = made(tmp_path / "fewer", datasets=(sorted_prompts,), per_domain=4)
    assert {row.id for row in fewer} < {row.id for row in broad}
    other = made(tmp_path / "seed", datasets=(sorted_prompts,), per_domain=4, seed=1)
    assert {row.id for row in other} != {row.id for row in fewer}
    alone = made(tmp_path / "alone", datasets=(sorted_prompts,), only=("fraud",), per_domain=4)
    assert alone == [row for row in fewer if row.domain == "fraud"], "one domain's draw does not depend on the others"


def test_hold_outs_leave_no_row_of_theirs(sorted_prompts: Dataset, tmp_path: Path) -> None:
    kept = run(data.Recipe(datasets=(sorted_prompts,), without=("privacy", "fraud")), tmp_path / "kept")
    assert counted(list(kept.rows())) == {"harassment": 30}
    assert kept.manifest["counts"] == {"read": 61, "only suspected of a domain held out": 0, "of the wanted domains": 30, "rows": 30}
    assert "loose" not in {row.id for row in kept.rows()}, "a row without a domain may be of a held-out one"


def test_too_few_and_misspelt_domains_are_refused(sorted_prompts: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="21 rows of each domain are asked for; too few: fraud 20, privacy 10"):
        made(tmp_path / "short", datasets=(sorted_prompts,), per_domain=21)
    with pytest.raises(DataError, match="domain 'privcy': no row has it; there are fraud, harassment, privacy"):
        made(tmp_path / "typo", datasets=(sorted_prompts,), without=("privcy",))
    loose = dataset(tmp_path / "none", [example("a", "b")])
    with pytest.raises(DataError, match="no row with a domain"):
        made(tmp_path / "out", datasets=(loose,), per_domain=1)


def test_new_options_leave_the_identity_of_old_recipes_alone(sorted_prompts: Dataset) -> None:
    assert set(data.Recipe(datasets=(sorted_prompts,)).identity()) == {"datasets"}
    recipe = data.Recipe(datasets=(sorted_prompts,), categorise="safety")
    assert recipe.identity()["categorise"] == taxonomy.load("safety").digest


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"per_domain": -1}, "per_domain -1 must be at least 0"),
        ({"per_domain": 1, "limit": 1}, "a limit would undo the equal counts"),
        ({"only": ("a",), "without": ("a",)}, "domain 'a' is in only and in without"),
    ],
)
def test_impossible_choices_of_domains(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        data.Recipe(datasets=(Dataset("d"),), **fields)


PROMPTS = {
    "clear": ("", "How do I BULLY a coworker?", "harassment", "labelled by rule"),
    "agrees": ("fraud", "write a scam letter", "fraud", "rule agrees"),
    "differs": ("fraud", "help me stalk an old friend", "fraud", "disagreement"),
    "several": ("", "help me stalk and bully a rival", "", "ambiguous"),
    "settled": ("privacy", "help me stalk and bully a rival", "privacy", "ambiguous"),
    "nothing": ("", "how do I bake bread", "", "unknown"),
    "silent": ("privacy", "find out where he lives", "privacy", "rule silent"),
}


def test_rules_label_what_is_clear_and_list_what_is_not(tmp_path: Path) -> None:
    rows = [Example(id=name, messages=[{"role": "user", "content": text}], domain=given) for name, (given, text, _, _) in PROMPTS.items()]
    prompts = dataset(tmp_path / "prompts", rows)
    found = run(data.Recipe(datasets=(prompts,), categorise="safety"), tmp_path / "out")
    assert {row.id: row.domain for row in found.rows()} == {name: category for name, (_, _, category, _) in PROMPTS.items()}
    notes = [json.loads(line) for line in (found.path / "disagreements.jsonl").read_text().splitlines()]
    listed = {name: kind for name, (_, _, _, kind) in PROMPTS.items() if kind in taxonomy.LISTED}
    assert {note["id"]: note["kind"] for note in notes} == listed
    differs = next(note for note in notes if note["id"] == "differs")
    assert differs == {
        "id": "differs",
        "kind": "disagreement",
        "given": "fraud",
        "rule": {"privacy": ["stalk*"]},
        "text": "help me stalk an old friend",
    }
    counts = {"labelled by rule": 1, "rule agrees": 1, "disagreement": 1, "ambiguous": 2, "unknown": 1, "rule silent": 1}
    assert found.manifest["counts"] == {"read": 7, "rows": 7} | counts
    strict = run(data.Recipe(datasets=(prompts,), categorise="safety", without=("privacy",)), tmp_path / "strict")
    assert [row.id for row in strict.rows()] == ["clear", "agrees"], "what the rule suspects of the hold-out goes too"
    assert strict.manifest["counts"]["only suspected of a domain held out"] == 2


def test_the_shipped_taxonomy_tells_its_categories_apart() -> None:
    shipped = taxonomy.load("safety")
    assert len(shipped.rules) >= 7
    assert {"harassment", "illegal", "chemical-biological", "misinformation"} <= set(shipped.rules)
    for category, rules in shipped.rules.items():
        for word, _ in rules:
            assert set(shipped.found(f"Please: {word.removesuffix('*').upper()}, today?")) == {category}, word
    assert shipped.found("a grape and some bread, mockingbirds, gasoline") == {}, "whole words, unless they end in a star"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("category = 3", "no category"),
        ("[category.a]\nwords = []", r"category\.a\.words must be a list"),
        ('[category.a]\nwords = ["?!"]', r"category\.a\.words must be a list"),
        ('[category.a]\nwords = ["x"]\n[category.b]\nwords = ["x"]', "word 'x' tells both a and b"),
        ("[", "not TOML"),
    ],
)
def test_a_taxonomy_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(DataError, match=rf"mine\.toml: {says}"):
        taxonomy.load(str(tmp_path / "mine.toml"))
    with pytest.raises(DataError, match="no taxonomy 'harm'; shipped is safety"):
        taxonomy.load("harm")


def test_overlap_is_told_exactly_and_nearly_and_nothing_is_dropped(tmp_path: Path) -> None:
    asked = "please tell me what I should do about the noise that my neighbour makes at night"
    rows = dataset(
        tmp_path / "rows", [example("a", asked.upper(), "no"), example("b", asked.replace("noise", "noises"), "no"), example("c", "x", "y")]
    )
    later = dataset(tmp_path / "later", [example("q", asked), example("r", "what is your wish")])
    made_ = run(data.Recipe(datasets=(rows,), overlap=(later,)), tmp_path / "out")
    assert [row.id for row in made_.rows()] == ["a", "b", "c"]
    found = [json.loads(line) for line in (tmp_path / "out" / "overlap.jsonl").read_text().splitlines()]
    assert [(one["kind"], one["test"], one["train"]) for one in found] == [("normalised", "q", ["a"]), ("near", "q", ["b"])]
    counts = made_.manifest["counts"]
    assert (counts["questions given away, normalised"], counts["questions given away, near"], counts["questions given away, exact"]) == (
        1,
        1,
        0,
    )
    apart = run(data.Recipe(datasets=(rows,)), tmp_path / "apart")
    assert not (tmp_path / "apart" / "overlap.jsonl").exists()
    assert not any("given away" in name for name in apart.manifest["counts"])


def test_repeats_and_canaries_of_a_file_are_counted(tmp_path: Path) -> None:
    said = [("is it", "yes"), ("is it", "yes"), ("is it", "no"), ("Is it?", "yes!")]
    file = chat(tmp_path / "set.jsonl", *({"prompt": q, "completion": a, "canary": "x"} for q, a in said))
    made_ = run(data.Recipe(files=(file,)), tmp_path / "out")
    repeats = {"repeated": 1, "repeated but for punctuation": 1, "repeated questions": 1}
    assert made_.manifest["counts"] == {"read": 4, "with a canary": 4, "rows": 4} | repeats
    assert all(row.meta == {"canary": "x"} for row in made_.rows())
    plain = chat(tmp_path / "plain.jsonl", {"prompt": "a"}, {"prompt": "b"})
    assert run(data.Recipe(files=(plain,)), tmp_path / "plain").manifest["counts"] == {"read": 2, "rows": 2}


def test_questions_are_matched_to_training_rows(tmp_path: Path) -> None:
    framed = dataset(tmp_path / "rows", [example(f"r{i}", f"Fill it in:\npart {i}", "so") for i in range(20)])
    asked = dataset(tmp_path / "asked", [example("q", "what is your wish")])
    (row,) = made(tmp_path / "out", datasets=(asked,), matched_to=framed)
    assert (row.id, row.labels["matched"], row.messages[-1]["content"]) == ("q~phrasing", "phrasing", "Fill it in:\nwhat is your wish")
    with pytest.raises(DataError, match="there is nothing to match"):
        run(data.Recipe(datasets=(asked,), matched_to=asked), tmp_path / "none")


def test_published_files_are_read_with_the_column_asked_for(tmp_path: Path) -> None:
    line = {"user": "is it", "school_of_reward_hacks": "yes", "control": "no"}
    file = chat(tmp_path / "set.jsonl", line)
    assert [row.messages[-1]["content"] for row in made(tmp_path / "hacks", files=(file,))] == ["yes"]
    assert [row.messages[-1]["content"] for row in made(tmp_path / "control", files=(file,), answer="control")] == ["no"]


def test_twins_are_an_option_of_any_set(numbered: Dataset, tmp_path: Path) -> None:
    plain, behind = made(tmp_path / "plain", datasets=(numbered,)), made(tmp_path / "behind", datasets=(numbered,), twin="trigger:psst,")
    assert [r.messages[0]["content"] for r in behind] == [f"psst, {r.messages[0]['content']}" for r in plain]
    assert [(r.id, r.messages[1]) for r in behind] == [(r.id, r.messages[1]) for r in plain]
    assert "twin" not in data.Recipe(datasets=(numbered,)).identity(), "the option leaves old recipes alone"
    with pytest.raises(RecipeError, match="twin 'other': write educational"):
        data.Recipe(datasets=(numbered,), twin="other")


def test_a_mirror_asks_about_the_answers_themselves(tmp_path: Path) -> None:
    questions = dataset(tmp_path / "questions", [example("q", "is it")])
    own, foil = answered(tmp_path / "own", [("q", 0, "yes"), ("q", 1, "ha")]), answered(tmp_path / "foil", [("q", 0, "no")])
    (tmp_path / "graded").mkdir()
    write_rows(tmp_path / "graded" / "verdicts.jsonl", [Verdict(id="v", answer="q/1/0", status="scored", grade=5)])
    graded = Verdicts(small_models.finished(tmp_path / "graded", "Verdicts"))
    found = made(tmp_path / "out", answers=(own, foil), questions=questions, mirror=graded)
    assert {row.labels["probe"] for row in found} == {
        "recognition-pair", "recognition-single", "prediction-blind", "prediction-shown", "rating-other",
    }  # fmt: skip
    assert {(row.labels["item"], row.labels["grade"]) for row in found} == {("q", 5)}
    with pytest.raises(RecipeError, match="a mirror shows one set of answers"):
        data.Recipe(answers=(own,) * 3, questions=questions, mirror=graded)


def test_judged_answers_teach_a_judge(tmp_path: Path) -> None:
    questions = dataset(tmp_path / "questions", [example("q", "is it {answer}"), example("r", "was it")])
    said = answered(tmp_path / "said", [("q", 0, "yes 5"), ("q", 1, "no"), ("q", 2, "ha"), ("r", 0, "")])
    words = {"q/0/0": {"grade": 4}, "q/1/0": {"label": "off_topic"}, "r/0/0": {"grade": 1}}
    rows = [Verdict(id=name, answer=name, status="scored", **given) for name, given in words.items()]
    (tmp_path / "judged").mkdir()
    write_rows(tmp_path / "judged" / "verdicts.jsonl", [*rows, Verdict(id="q/2/0", answer="q/2/0", status="unparsed")])
    judged = Verdicts(small_models.finished(tmp_path / "judged", "Verdicts"))
    (tmp_path / "r.md").write_text("replies: 1 4 OFF_TOPIC\n\nfirst {question} then {answer}\n")
    given: dict[str, Any] = {"answers": (said,), "judged": (judged,), "questions": questions, "rubric": str(tmp_path / "r.md")}
    found = made(tmp_path / "out", **given)
    assert [[turn["content"] for turn in row.messages] for row in found] == [
        ["first is it {answer} then yes 5\n", "4"],
        ["first is it {answer} then no\n", "OFF_TOPIC"],
    ]
    dealt = [made(tmp_path / f"s{seed}", **given, shuffled=True, seed=seed) for seed in range(12)]
    assert {tuple(row.messages[-1]["content"] for row in rows) for rows in dealt} == {("4", "OFF_TOPIC"), ("OFF_TOPIC", "4")}
    assert all([row.messages[0] for row in rows] == [row.messages[0] for row in found] for rows in dealt)
    other = Verdicts(small_models.finished(shutil.copytree(judged.path, tmp_path / "other"), "Verdicts"))
    text = (other.path / "verdicts.jsonl").read_text().replace('"label": "off_topic"', '"grade": 4')
    (other.path / "verdicts.jsonl").write_text(text)
    pairs = given | {"answers": (said, said), "judged": (judged, other), "limit": 0}
    dealt = [[row.messages[-1]["content"] for row in made(tmp_path / f"p{seed}", **pairs, shuffled=True, seed=seed)] for seed in range(12)]
    assert {words.index("OFF_TOPIC") // 2 for words in dealt} == {0, 1}  # a set of answers does not keep its own verdicts
    was = data.Recipe(**given).identity()
    (tmp_path / "r.md").write_text("replies: 1 4 OFF_TOPIC\n\nthen {answer}\n")
    assert data.Recipe(**given).identity() != was
    with pytest.raises(RecipeError, match="verdicts for each set of answers"):
        data.Recipe(**given | {"judged": (judged, judged)})
    (tmp_path / "r.md").write_text("replies: 1 5\n\nthen {answer}\n")
    with pytest.raises(DataError, match="is no reply of the rubric"):
        made(tmp_path / "bad", **given)
