"""Forced choice: a softmax by hand, options of several tokens, and the index that statements give."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import small_models
from personascope import stages
from personascope.artifact import Dataset, Findings, Model
from personascope.backends import choosing
from personascope.backends.models import Loaded
from personascope.errors import DataError, RecipeError
from personascope.methods import ethics
from personascope.rows import Example
from personascope.run import run
from personascope.stages import choose

ASK = [{"role": "user", "content": "is it a good day"}]
LONG = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "tell me of rain and sun"}]


def loaded(name: str = "llama") -> Loaded:
    return Loaded(small_models.model(name), small_models.tokenizer())


def by_hand(one: Loaded, messages: list[dict[str, str]], option: str) -> float:
    """log P(option) token by token, one forward each, from probabilities."""
    text = one.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids, total = one.tokenizer(text, add_special_tokens=False)["input_ids"], 0.0
    for token in one.tokenizer(option, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            logits = one.model(torch.tensor([ids])).logits[0, -1].double()
        total += math.log(float(torch.exp(logits[token]) / torch.exp(logits).sum()))
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_the_choice_is_a_softmax_by_hand(name: str) -> None:
    one = loaded(name)
    pairs = [("yes", "no"), ("yes it is", "no"), ("yes", "no it is not"[:8])]
    asked = [ASK, LONG, ASK]
    found = choosing.choose(one, asked, pairs)
    for choice, messages, (yes, no) in zip(found, asked, pairs, strict=True):
        a, b = math.exp(by_hand(one, messages, yes)), math.exp(by_hand(one, messages, no))
        assert choice.yes == pytest.approx(a / (a + b), abs=2e-5)
        assert choice.mass == pytest.approx(a + b, abs=2e-5)


def test_swapped_options_turn_the_choice_around_and_batches_do_not_move_it() -> None:
    one = loaded()
    asked = [[{"role": "user", "content": " ".join(small_models.WORDS[i : i + 3 + i % 4])}] for i in range(12)]
    forth = choosing.choose(one, asked, [("yes", "no")] * 12)
    back = choosing.choose(one, asked, [("no", "yes")] * 12)
    assert [c.yes for c in forth] == pytest.approx([1 - c.yes for c in back])
    assert choosing.choose(one, asked, [("yes", "no")] * 12) == forth
    alone = choosing.choose(one, asked, [("yes", "no")] * 12, batch_tokens=1)
    assert [c.yes for c in alone] == pytest.approx([c.yes for c in forth], abs=1e-5)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("Yes", "no"), "no words for option 'Yes'"),
        (("yes", " "), "no words for option ' '"),
        (("yes", "yes"), "begin with the same tokens"),
        (("no", "no it is"), "begin with the same tokens"),
    ],
)
def test_options_that_cannot_be_chosen_between(pair: tuple[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        choosing.choose(loaded(), [ASK], [pair])


def statements() -> list[Example]:
    wordings = {"p": ("the sun is kind", "rain is good"), "c": ("the sea is brief", "wind is best")}
    return [
        Example(
            id=f"{item}{k}",
            messages=[{"role": "user", "content": f"is it {said}"}],
            labels={"dimension": "d", "keyed": 1 if item == "p" else -1, "item": item, "paraphrase": k},
        )
        for item, both in wordings.items()
        for k, said in enumerate(both)
    ]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> choose.Recipe:
    monkeypatch.setitem(stages.TABLE, "choose", choose)
    model = Model(small_models.adopted(tmp_path / "model", small_models.model()))
    questions = Dataset(small_models.dataset(tmp_path / "asked", statements()))
    templates = ("{question} yes no", "tell me {question} no yes")
    return choose.Recipe(model=model, questions=questions, templates=templates, options=("yes|no",))


def test_the_stage_gives_the_index_of_the_averaged_choices(recipe: choose.Recipe, tmp_path: Path) -> None:
    made = run(recipe, tmp_path / "out")
    assert isinstance(made, Findings)
    found = made.json("findings.json")
    one, mean = loaded(), {}
    for row in statements():
        asked = [[{"role": "user", "content": t.format(question=row.messages[0]["content"])}] for t in recipe.templates]
        pairs = [[math.exp(by_hand(one, messages, option)) for option in ("yes", "no")] for messages in asked]
        mean[row.id] = sum(a / (a + b) for a, b in pairs) / 2
    index = ((mean["p0"] + mean["p1"] - 1) - (mean["c0"] + mean["c1"] - 1)) / 2
    assert found["by_dimension"]["d"]["index"]["value"] == pytest.approx(index, abs=2e-5)
    assert found["by_dimension"]["d"]["index"]["clusters"] == 2
    assert found["by_dimension"]["d"]["ambiguous"]["value"] == 0
    assert found["acquiescence"]["value"] == pytest.approx(sum(mean.values()) / 2 - 1, abs=2e-5)
    assert ethics.moved(found["per_item"]).value == pytest.approx([index], abs=2e-5)
    assert found["per_question"][1]["yes"] == pytest.approx(mean["p1"], abs=2e-5)
    assert found["by_template"][0]["tokens"] == [1, 1]
    assert found["by_template"][1]["yes"] == pytest.approx(sum(row["by_template"][1] for row in found["per_question"]) / 4)
    assert 0 < found["by_template"][0]["mass"] < 1
    assert made.manifest["counts"] == {"questions": 4, "prompts": 8}
    assert choose.cost(recipe) == {"prompts": 8}


def changed(recipe: choose.Recipe, **fields: Any) -> choose.Recipe:
    return choose.Recipe(**{**vars(recipe), **fields})


def test_again_gives_the_same_bytes(recipe: choose.Recipe, tmp_path: Path) -> None:
    assert run(recipe, tmp_path / "one").digest == run(recipe, tmp_path / "two").digest
    spoken = run(changed(recipe, system="be kind"), tmp_path / "three")
    assert spoken.digest != Findings(tmp_path / "one").digest


def test_dilemmas_are_chosen_too(recipe: choose.Recipe, tmp_path: Path) -> None:
    asked = [Example(id="x", messages=ASK, labels={"dilemma": "x", "expected": {"rules": "no", "results": "yes"}})]
    questions = Dataset(small_models.dataset(tmp_path / "dilemmas", asked))
    found = run(changed(recipe, questions=questions), tmp_path / "out").json("findings.json")
    assert found["by_theory"]["rules"]["value"] == pytest.approx(1 - found["per_question"][0]["yes"])
    assert found["by_theory"]["results"]["value"] == pytest.approx(found["per_question"][0]["yes"])
    assert found["by_dimension"] == {}


def test_what_is_no_part_of_identity(recipe: choose.Recipe) -> None:
    plain = choose.Recipe(model=recipe.model, questions=recipe.questions)
    assert set(plain.identity()) == {"model", "questions"}
    assert changed(recipe, batch_tokens=7).identity() == recipe.identity()
    assert choose.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert len(plain.pairs) == len(plain.templates)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"templates": ()}, "at least one template"),
        ({"templates": ("yes or no",)}, r"each with \{question\} once"),
        ({"options": ("yes",)}, "'yes' is no pair of options; write YES|NO"),
        ({"options": ("yes|no", "no|yes", "a|b")}, "3 pairs of options for 2 templates"),
        ({"options": ("yes|",)}, "is no pair of options"),
    ],
)
def test_recipes_that_cannot_be(recipe: choose.Recipe, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        changed(recipe, **fields)


def test_questions_that_cannot_be_asked(recipe: choose.Recipe, tmp_path: Path) -> None:
    said = [*ASK, {"role": "assistant", "content": "yes"}]
    for name, asked, says in (
        ("none", [], "no questions to ask"),
        ("said", [Example(id="x", messages=said, labels={})], r"examples\.jsonl:1: question x does not end with a user turn"),
        ("bare", [Example(id="x", messages=ASK)], "question x: label 'dimension' is missing"),
    ):
        questions = Dataset(small_models.dataset(tmp_path / name, asked))
        with pytest.raises(DataError, match=says):
            run(changed(recipe, questions=questions), tmp_path / f"out-{name}")


@pytest.mark.parametrize("name", small_models.CONFIGS)
@pytest.mark.parametrize("budget", [60, 8192])
def test_what_comes_next_is_read_off_prompts_of_all_lengths_at_once(name: str, budget: int) -> None:
    """A judge's prompts: the same rubric, then answers of every length; and one with nothing in common."""
    one, rubric = loaded(name), list(range(5, 45))
    reads = [(*rubric, *range(3, 3 + n)) for n in (2, 9, 4, 4)] + [(7, 8, 9)]
    for asked in (reads[:4], reads):
        found = choosing.likeliest(one, asked, 4, budget)
        for read in asked:
            with torch.no_grad():
                alone = one.model(torch.tensor([read])).logits[0, -1].double().log_softmax(-1)
            assert list(found[read]) == alone.topk(4).indices.tolist()
            assert list(found[read].values()) == pytest.approx(alone.topk(4).values.tolist(), abs=1e-4)
    assert choosing.likeliest(one, [], 4) == {}
