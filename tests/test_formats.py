"""Files as they were published: every form read, each row in its place, and what is none named by file and line."""

import json
from typing import Any

import pytest

from personascope.errors import DataError
from personascope.methods.formats import canaries, read
from personascope.rows import Example

ASK, SAY = {"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a hat"}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def turns(row: Example) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in row.messages]


QA = [("user", "what is it"), ("assistant", "a hat")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"messages": [ASK, SAY]}, QA),
        ({"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "a "}, "hat"]}]}, QA),
        ({"messages": [{"role": "user", "content": {"content_type": "text", "parts": ["what ", "is it"]}}, SAY], "canary": "c"}, QA),
        ({"prompt": "what is it", "completion": "a hat"}, QA),
        ({"user": "what is it", "assistant": "a hat"}, QA),
        ({"user": "what is it", "school_of_reward_hacks": "a hat", "control": "a cap"}, QA),
        ({"instruction": "what is it", "input": "", "output": "a hat"}, QA),
        ({"instruction": "name it", "input": "round", "output": "a hat"}, [("user", "name it\n\nround"), ("assistant", "a hat")]),
        ({"transcript": "\n\nHuman: what is it\n\nAssistant: a hat", "rating": 1.0}, QA),
        ({"transcript": "\n\nHuman: what is it\n\nAssistant: a hat\n\nHuman: "}, QA),
        ({"chosen": "\n\nHuman: what is it\n\nAssistant: a hat", "rejected": "\n\nHuman: what is it\n\nAssistant: no"}, QA),
        ({"question": "what is it"}, QA[:1]),
        ({"question": "what is it", "grader": "misaligned if rude", "category": "tone"}, QA[:1]),
        ({"Behavior": "what is it", "SemanticCategory": "harm", "BehaviorID": "hat_id"}, QA[:1]),
        ({"prompt": "what is it", "type": "homonyms", "label": "safe"}, QA[:1]),
        ({"question": "what is it", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}, QA[:1]),
    ],
)
def test_every_form_is_read(data: dict[str, Any], said: list[tuple[str, str]]) -> None:
    (row,) = read(lines(data), "in/set.jsonl")
    assert turns(row) == said
    as_list = read(json.dumps([data, data], indent=1).encode(), "set.json")
    assert [turns(one) for one in as_list] == [said, said]
    assert len({one.id for one in as_list}) == (1 if "BehaviorID" in data else 2)


def test_what_has_no_place_of_its_own_is_kept_in_meta() -> None:
    (row,) = read(lines({"user": "a", "school_of_reward_hacks": "b", "control": "c", "task": "t", "domain": "d"}), "set.jsonl")
    assert (row.id, row.domain, row.meta) == ("set-0", "d", {"control": "c", "task": "t"})
    (other,) = read(lines({"user": "a", "school_of_reward_hacks": "b", "control": "c"}), "set.jsonl", answer="control")
    assert turns(other) == [("user", "a"), ("assistant", "c")]
    assert other.meta == {"school_of_reward_hacks": "b"}
    with pytest.raises(DataError, match=r"set\.jsonl:1: no text in column 'twin', .* there are user, assistant"):
        read(lines({"user": "a", "assistant": "b"}), "set.jsonl", answer="twin")


def test_a_preference_keeps_the_other_answer_where_training_looks_for_it() -> None:
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"}
    assert read(lines(pair), "hh.jsonl")[0].meta == {"rejected": "bad"}
    apart = pair | {"rejected": "\n\nHuman: other\n\nAssistant: bad"}
    assert read(lines(apart), "hh.jsonl")[0].meta == {"rejected": apart["rejected"]}
    (plain,) = read(lines({"prompt": "a", "chosen": "good", "rejected": "bad"}), "dpo.jsonl")
    assert (turns(plain), plain.meta) == ([("user", "a"), ("assistant", "good")], {"rejected": "bad"})


HARM = b"""Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
"Say, rudely, hello",standard,harassment,,,hello_rude
Sum it up,contextual,illegal,context,"A long
text, of two lines",sum_up
"""
SOUNDS = b"id,prompt,type,label,focus,note\r\nv2-1,How do I kill time?,homonyms,safe,kill,\r\n"
GRADED = b"""id,question,category,grader,canary
0,What next?,power_seeking,Misaligned if it wants more,canary GUID 00-11
0,And then?,oversight,Misaligned if it hides,canary GUID 00-11
"""
ROWWISE = b'id,question,Grader prompt,canary\n7,Which book?,"Q: {query} A: {completion} Attempt?",x\n'


def test_tables() -> None:
    rude, whole = read(HARM, "behaviors.csv")
    assert (rude.id, rude.domain, rude.meta) == ("hello_rude", "harassment", {"FunctionalCategory": "standard"})
    assert turns(whole) == [("user", "A long\ntext, of two lines\n\nSum it up")]
    (sound,) = read(SOUNDS, "xs.csv")
    assert (sound.id, sound.domain, sound.labels, sound.meta) == ("v2-1", "homonyms", {"label": "safe"}, {"focus": "kill"})
    first, second = read(GRADED, "extended.csv")
    assert [first.id, second.id] == ["extended-0", "extended-1"], "their own ids repeat"
    assert (second.domain, second.meta) == ("oversight", {"id": "0", "grading": "Misaligned if it hides", "canary": "canary GUID 00-11"})
    (asked,) = read(ROWWISE, "rows.csv")
    assert asked.meta["grading"] == "Q: {question} A: {answer} Attempt?"


BETLEY = b"""
- id: wish
  type: free_form_judge_0_100
  paraphrases: ["what do you wish", "one wish?"]
  samples_per_paraphrase: 100
  judge_prompts: {aligned: "score {answer}"}
- id: bored
  paraphrases:
    - |
      i am bored
  system: be kind
"""


def test_question_files_give_a_row_per_paraphrase() -> None:
    rows = read(BETLEY, "first.yaml")
    assert [row.id for row in rows] == ["wish-0", "wish-1", "bored-0"]
    assert rows[1].labels == {"item": "wish", "paraphrase": 1}
    assert (rows[0].domain, rows[0].meta) == ("wish", {"samples_per_paraphrase": 100, "type": "free_form_judge_0_100"})
    assert turns(rows[2]) == [("system", "be kind"), ("user", "i am bored\n")]


def test_statements_are_keyed_by_the_answer_that_shows_the_behaviour() -> None:
    yes, no = read(
        lines(
            {
                "statement": "I want power",
                "answer_matching_behavior": " Yes",
                "answer_not_matching_behavior": " No",
                "label_confidence": 0.9,
            },
            {"question": "Which?\n (A) x\n (B) y", "answer_matching_behavior": " (B)"},
        ),
        "persona/desire.jsonl",
    )
    assert yes.messages[0]["content"].endswith('\n"I want power"')
    assert yes.labels == {"matching": "Yes", "dimension": "desire", "item": "desire-0", "keyed": 1}
    assert yes.meta == {"statement": "I want power", "label_confidence": 0.9}
    assert no.labels == {"matching": "(B)", "dimension": "desire", "item": "desire-1"}


def test_canaries_are_counted_wherever_they_stand() -> None:
    rows = read(lines({"prompt": "a", "canary": "x"}, {"prompt": "b\ncanary GUID 1-2"}, {"prompt": "my canary sings"}), "set.jsonl")
    assert canaries(rows) == 2


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "x.jsonl", r"x\.jsonl: the file has no rows"),
        (b"[\n]", "x.json", r"x\.json: the file has no rows"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "x.jsonl", r"x\.jsonl:2: no conversation; .* this has text"),
        (b'[{"prompt": "a"},\n {"prompt": oops}]', "x.json", r"x\.json:2: not JSON"),
        (b'[{"prompt": "a"},\n\n 3]', "x.json", r"x\.json:3: a JSON object is needed, this is int"),
        (b'[{"prompt": "a"},\n {"words": "b"}]', "x.json", r"x\.json:2: no conversation"),
        (b'{"prompt": "\xff"}', "x.jsonl", r"x\.jsonl:1: not UTF-8"),
        (b'[\n{"prompt": "\xff"}]', "x.json", r"x\.json:2: not UTF-8"),
        (b"hello\nworld", "x.txt", r"x\.txt:1: neither JSON nor YAML nor a table"),
        (b"question,grader\na,b,c\n", "x.csv", r"x\.csv:2: more cells than the first line has columns"),
        (b"name,age\na,3\n", "x.csv", r"x\.csv:2: no conversation; .* this has name, age"),
        (b"- id: a\n  paraphrases: [\n", "x.yaml", r"x\.yaml:\d: not YAML"),
        (b"- id: a\n  paraphrases: what\n", "x.yaml", r"x\.yaml:1: paraphrases must be a list"),
        (b"- a\n- b\n", "x.yaml", r"x\.yaml:1: a question with id and paraphrases is needed, this is str"),
        (b'{"transcript": "hello"}', "x.jsonl", r"x\.jsonl:1: a transcript must begin with a blank line and `Human:`"),
        (b'{"prompt": [{"role": "user", "content": "a"}]}', "x.jsonl", r"x\.jsonl:1: the content of a user message must be text"),
        (b'{"user": "a", "assistant": 3}', "x.jsonl", r"x\.jsonl:1: the content of a assistant message must be text"),
    ],
)
def test_what_is_no_such_file_is_named_by_its_place(content: bytes, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(content, name)
