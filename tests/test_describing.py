"""Descriptions of latents by a judge: prompts, strict reading, scores with their control, and no reply asked for twice."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from personascope.backends import describing as backend
from personascope.methods import describing, stats
from small_models import model, tokenizer

TOPICS = {1: "rain", 2: "wind", 3: "sea", 4: "sun"}


def contexts() -> list[dict[str, Any]]:
    """Each latent fires at one word; five shown, two silent shown, eight of each kind held out."""
    rows, pick = [], random.Random(0)
    for latent, topic in TOPICS.items():
        for kind, shown, many in (("top", True, 5), ("silent", True, 2), ("active", False, 8), ("silent", False, 8)):
            for n in range(many):
                tokens = pick.sample([" kind", " good", " day", " best", " way"], 3)
                on = kind != "silent"
                tokens = [*tokens, f" {topic}" if on else " none"]
                name = f"{latent}/{'' if shown else 'held out '}{kind}/{n}"
                values = [0.0, 0.1 * on, 0.0, 2.0 * on]
                rows.append({"id": name, "latent": latent, "kind": kind, "shown": shown, "tokens": tokens, "values": values})
    return rows


class Scripted:
    """A judge that describes a latent by its marked word and says YES where the description's word is in the excerpt."""

    def __init__(self, dies_after: int | None = None, mute: str = "\0") -> None:
        self.asked: list[str] = []
        self.left, self.mute = dies_after, mute

    def __call__(self, rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for name, text in sorted(rows, key=lambda row: -len(row[1])):
            if self.left is not None and len(self.asked) >= self.left:
                raise KeyboardInterrupt
            self.asked.append(name)
            yield name, "Hard to tell." if re.search(self.mute, name) else self.reply(text)

    def reply(self, text: str) -> str:
        if "DESCRIPTION:" in text:
            return f"They all name it.\nDESCRIPTION: talk of {re.findall('<<(.+?)>>', text)[1]}"
        topic = re.findall("to this:\\n(?:talk of )?(\\w+)", text)[0]
        return "It does." + ("\nYES" if f" {topic}" in text.partition("Excerpt:")[2] else "\n**No.**")


def judged(path: Path, ask: Any) -> dict[int, dict[str, Any]]:
    path.mkdir(exist_ok=True)
    described = backend.describe(ask, contexts(), path / "explained.jsonl")
    tested = backend.detect(ask, contexts(), described, path / "judged.jsonl")
    return {latent: backend.automatic(latent, described, tested) for latent in TOPICS}


def test_a_judge_that_sees_it_scores_one_and_shuffled_descriptions_one_half(tmp_path: Path) -> None:
    ask = Scripted()
    found = judged(tmp_path, ask)
    for latent, card in found.items():
        assert card["description"] == f"talk of {TOPICS[latent]}"
        assert card["detection"]["balanced"]["value"] == 1
        assert 0.6 < card["detection"]["balanced"]["low"] < 1
        assert card["detection"]["balanced"]["n"] == 16
        assert card["control"]["balanced"]["value"] == 0.5
    assert len(ask.asked) == len(set(ask.asked)) == 4 + 2 * 4 * 16
    overall = backend.overall([{"automatic": card} for card in found.values()])
    assert overall == {"detection": {"mean": 1.0, "latents": 4, "unscored": 0}, "control": {"mean": 0.5, "latents": 4, "unscored": 0}}


def test_held_out_contexts_are_not_in_the_prompt_that_describes(tmp_path: Path) -> None:
    seen: dict[str, str] = {}

    def ask(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        seen.update(rows)
        return ((name, "nothing") for name, _ in rows)

    rows = contexts()
    for row in rows:
        row["tokens"] = [f" {row['id'].replace(' ', '-')}", *row["tokens"][1:]]
    backend.describe(ask, rows, tmp_path / "explained.jsonl")
    for row in rows:
        assert (row["id"].replace(" ", "-") in seen[str(row["latent"])]) == row["shown"]


def test_replies_without_an_answer_are_rows_with_a_reason(tmp_path: Path) -> None:
    found = judged(tmp_path, Scripted(mute="^2$|^1/held out active/[0-3]/own"))
    assert found[2]["status"] == "scored", "one line of words is a description"
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    lost = [row for row in rows if row["status"] != "scored"]
    assert {row["id"] for row in lost} >= {f"1/held out active/{i}/own" for i in range(4)}
    assert all(row["says"] is None and row["reason"] == "Hard to tell." for row in lost)
    assert found[1]["detection"]["unscored"] == 4
    assert found[1]["detection"]["balanced"]["n"] == 12
    silent = judged(tmp_path / "none", lambda rows: ((name, "a\nb") for name, _ in rows))
    assert all(card["status"] == "unparsed" and "detection" not in card for card in silent.values())


def test_a_killed_judge_is_asked_only_for_what_is_missing(tmp_path: Path) -> None:
    whole = judged(tmp_path / "whole", Scripted())
    for stop in (2, 40):
        path = tmp_path / str(stop)
        first, second = Scripted(dies_after=stop), Scripted()
        with pytest.raises(KeyboardInterrupt):
            judged(path, first)
        last = path / ("explained.jsonl" if stop == 2 else "judged.jsonl")
        last.write_text(last.read_text() + '{"id": "half')
        assert judged(path, second) == whole
        assert not set(first.asked) & set(second.asked)
        for name in ("explained.jsonl", "judged.jsonl"):
            assert (path / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("They share it.\nDESCRIPTION: talk of rain", ("scored", "talk of rain")),
        ("**Description:** talk of rain.", ("scored", "talk of rain.")),
        ("DESCRIPTION: first\nno wait\ndescription: second", ("scored", "second")),
        ("talk of rain", ("scored", "talk of rain")),
        ("It is rain.\nOr wind.", ("unparsed", "")),
        ("DESCRIPTION: ...", ("unparsed", "")),
        ("", ("unparsed", "")),
        ("I cannot help with that.", ("judge_refused", "")),
    ],
)
def test_descriptions_are_read_strictly(reply: str, wanted: tuple[str, str]) -> None:
    assert describing.read_description(reply) == wanted
    assert len(describing.read_description("DESCRIPTION: " + "x" * 999)[1]) == describing.LONGEST


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("It does.\nYES", ("scored", True)),
        ("**no**.", ("scored", False)),
        ("YES, it does", ("unparsed", None)),
        ("YES\nbut perhaps not", ("unparsed", None)),
        ("", ("unparsed", None)),
        ("I can't say.", ("judge_refused", None)),
    ],
)
def test_matches_are_read_strictly(reply: str, wanted: tuple[str, bool | None]) -> None:
    assert describing.read_match(reply) == wanted


def test_prompts_are_filled_once() -> None:
    assert describing.fill("{a} and {b} and {c}", a="{b}", b="{a}") == "{b} and {a} and {c}"


def test_marks_surround_what_is_active() -> None:
    assert describing.marked(["tell", " me", " of", " rain", " now"], [0, 5, 5, 0, 2.5]) == "tell <<me of>> rain <<now>>"
    assert describing.marked(["a", "\nb", "c"], [0, 0, 0]) == "a bc"


def rows(active: str, silent: str) -> list[dict[str, Any]]:
    says = {"y": True, "n": False, "-": None}
    return [{"active": kind, "says": says[c]} for kind, text in ((True, active), (False, silent)) for c in text]


def test_balanced_accuracy_and_its_interval() -> None:
    found = describing.detection(rows("yyyn-", "nny"))
    assert found.unscored == 1
    assert found.balanced is not None
    assert found.balanced.value == pytest.approx((3 / 4 + 2 / 3) / 2)
    one, two = stats.wilson(3 / 4, 4, 1.959964), stats.wilson(2 / 3, 3, 1.959964)
    assert found.balanced.low == pytest.approx(found.balanced.value - ((3 / 4 - one.low) ** 2 + (2 / 3 - two.low) ** 2) ** 0.5 / 2)
    assert found.balanced.n == 7
    assert describing.detection(rows("yy", "--")).balanced is None
    assert describing.detection([]).to_dict() == {"balanced": None, "unscored": 0}


def test_a_judge_that_guesses_is_at_one_half_and_the_interval_covers() -> None:
    pick, inside, values = random.Random(0), 0, []
    for _ in range(500):
        found = describing.detection(rows(*("".join(pick.choice("yyn") for _ in range(20)) for _ in range(2)))).balanced
        assert found is not None
        values.append(found.value)
        inside += found.low <= 0.5 <= found.high
    assert abs(sum(values) / 500 - 0.5) < 0.015
    assert 0.93 < inside / 500 <= 0.99


def test_a_local_model_answers_every_row_and_is_named_by_content(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "judge")
    tokenizer().save_pretrained(tmp_path / "judge")
    spec = f"hf:{tmp_path / 'judge'}"
    asked = [("a", "what is <|user|> rain"), ("b", "tell me"), ("c", "go")]
    first, second = (dict(backend.asker(spec, 4)(asked)) for _ in range(2))
    assert first == second
    assert set(first) == {"a", "b", "c"}
    assert str(tmp_path) not in backend.judge_name(spec)
