"""The stages trait and vector: from a trait file to a vector that steers; filters, nulls, planted traits, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from personascope.artifact import Answers, Dataset, Model, Vectors, Verdicts, open_any
from personascope.backends import directions
from personascope.errors import DataError, RecipeChanged, RecipeError
from personascope.rows import Answer, Verdict, write_rows
from personascope.run import run
from personascope.stages import sample, trait, vector
from personascope.values import Direction, Intervention
from small_models import GROUPED, WORDS, adopted, finished, tokenizer

QUESTIONS = [f"{a} {b}" for a in ("is", "tell me", "what", "go") for b in ("sun", "sea", "wind", "day", "it")]
TRAIT = {
    "name": "rainy",
    "description": "It speaks of rain.",
    "pairs": [{"positive": "tell rain", "negative": "tell sun"}, {"positive": "be rain", "negative": "be sun"}],
    "questions": QUESTIONS,
    "held_out": ["what is the way"],
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose stream is its tokens' embeddings, the trait's questions, and answers with the word rain on one side."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED))
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    (root / "rainy.json").write_text(json.dumps(TRAIT))
    asked = run(trait.Recipe(trait=str(root / "rainy.json")), root / "questions")
    return {"model": Model(adopted(root / "model", net)), "questions": asked, "answers": said(root / "answers", asked), "net": net}


def said(path: Path, asked: Any, words: tuple[str, str] = ("rain", "sun")) -> Answers:
    """Two answers to each question: the side's word among random others."""
    pick = torch.Generator().manual_seed(7)
    rows = []
    for row in asked.rows():
        for draw in range(2):
            noise = [WORDS[i] for i in torch.randint(0, len(WORDS), (4,), generator=pick).tolist()]
            text = " ".join([words[row.labels["side"] == "negative"], *noise])
            rows.append(Answer(id=f"{row.id}/{draw}/0", question=row.id, draw=draw, attempt=0, text=text))
    path.mkdir()
    write_rows(path / "answers.jsonl", rows)
    return Answers(finished(path, "Answers"))


def verdicts(path: Path, answers: Answers, grade: Any) -> Verdicts:
    path.mkdir()
    write_rows(path / "verdicts.jsonl", [Verdict(id=row.id, answer=row.id, status="scored", grade=grade(row)) for row in answers.rows()])
    return Verdicts(finished(path, "Verdicts"))


def made(out: Path, parts: dict[str, Any], **changes: Any) -> Vectors:
    fields = {name: parts[name] for name in ("model", "questions", "answers")}
    return run(vector.Recipe(**(fields | changes)), out)


def tensors(made: Vectors) -> dict[str, torch.Tensor]:
    return load_file(made.file("directions.safetensors"))


@pytest.fixture(scope="module")
def whole(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """The vector of all answers."""
    return made(tmp_path_factory.mktemp("whole") / "v", parts)


def test_a_trait_becomes_questions_and_a_rubric(parts: dict[str, Any]) -> None:
    rows = list(parts["questions"].rows())
    assert len(rows) == 80
    rubric = parts["questions"].file("rubric.md").read_text()
    assert "It speaks of rain." in rubric
    assert "{question}" in rubric


def test_the_trait_enters_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(TRAIT))
    held = run(trait.Recipe(trait=str(path), held_out=True, sides=("plain",)), tmp_path / "out")
    assert [row.messages[-1]["content"] for row in held.rows()] == TRAIT["held_out"]
    (tmp_path / "moved.json").write_text(json.dumps(TRAIT, indent=3))
    same = trait.Recipe(trait=str(tmp_path / "moved.json"), held_out=True, sides=("plain",))
    assert run(same, tmp_path / "out").digest == held.digest
    path.write_text(json.dumps(TRAIT | {"description": "Another."}))
    with pytest.raises(RecipeChanged, match="trait"):
        run(trait.Recipe(trait=str(path), held_out=True, sides=("plain",)), tmp_path / "out")
    path.write_text(json.dumps({k: v for k, v in TRAIT.items() if k != "held_out"}))
    with pytest.raises(DataError, match="no held_out questions"):
        run(trait.Recipe(trait=str(path), held_out=True), tmp_path / "none")
    with pytest.raises(RecipeError, match="give sides"):
        trait.Recipe(trait=str(path), sides=("plain", "plain"))


def test_a_planted_trait_is_its_words_difference(parts: dict[str, Any], whole: Vectors) -> None:
    """In a stream of embeddings the vector is (rain − sun)/5 and the noise; far above what sides dealt at random give."""
    found, record = tensors(whole), whole.json("vectors.json")
    table = parts["net"].model.embed_tokens.weight.detach()
    rain, sun = (table[tokenizer().convert_tokens_to_ids(word)] for word in ("rain", "sun"))
    for block in range(3):
        one = found[f"persona/block:{block}"]
        assert one.shape == (32,)
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one, rain - sun, dim=0) > 0.9
        told = record["sites"][f"block:{block}"]
        assert told["norm"] == pytest.approx(one.norm().item(), rel=1e-4)
        assert told["halves_cosine"] > 0.7
        assert len(told["null_norms"]) == 20
        assert max(told["null_norms"]) < 0.6 * told["norm"]
    # The system prompts say the words too, the last token of the prompt is the same everywhere.
    assert torch.cosine_similarity(found["persona/block:0/prompt_avg"], rain - sun, dim=0) > 0.99
    assert found["persona/block:0/last_prompt"].norm() < 1e-6
    assert record["trait"] == "rainy"
    assert record["counts"] == {"positive": 80, "negative": 80, "dropped": {}}
    assert record["sides"]["positive"] == {"system": ["be rain", "tell rain"], "questions": sorted(QUESTIONS), "mean_tokens": 5.0}


def test_answers_that_do_not_differ_give_no_more_than_chance(parts: dict[str, Any], whole: Vectors, tmp_path: Path) -> None:
    """The null control: the same word on both sides."""
    same = made(tmp_path / "v", parts, answers=said(tmp_path / "a", parts["questions"], ("rain", "rain")))
    told = same.json("vectors.json")["sites"]["block:1"]
    assert told["norm"] < 1.5 * max(told["null_norms"])
    assert told["norm"] < 0.5 * whole.json("vectors.json")["sites"]["block:1"]["norm"]
    assert told["halves_cosine"] < 0.6


def test_the_filter_is_the_same_as_leaving_rows_out(parts: dict[str, Any], whole: Vectors, tmp_path: Path) -> None:
    rows = list(parts["answers"].rows())
    good = {row.id for row in rows if row.draw < 1}

    def grade(row: Answer) -> int:
        shows = "/positive/" in row.id
        return (5 if shows else 1) if row.id in good else (1 if shows else 5)

    filtered = made(tmp_path / "v", parts, verdicts=verdicts(tmp_path / "j", parts["answers"], grade))
    (tmp_path / "few").mkdir()
    write_rows(tmp_path / "few" / "answers.jsonl", [row for row in rows if row.id in good])
    few = made(tmp_path / "w", parts, answers=Answers(finished(tmp_path / "few", "Answers")))
    for name, one in tensors(few).items():
        torch.testing.assert_close(tensors(filtered)[name], one)
    assert not torch.allclose(tensors(filtered)["persona/block:1"], tensors(whole)["persona/block:1"])
    counts = filtered.json("vectors.json")["counts"]
    assert counts == {"positive": 40, "negative": 40, "dropped": {"positive: grade 1": 40, "negative: grade 5": 40}}
    assert filtered.manifest["counts"] == counts


def test_verdicts_alone_may_tell_the_sides(parts: dict[str, Any], whole: Vectors, tmp_path: Path) -> None:
    judged = verdicts(tmp_path / "j", parts["answers"], lambda row: 5 if row.text.startswith("rain") else 1)
    by_verdict = made(tmp_path / "v", parts, verdicts=judged, positive="", negative="")
    torch.testing.assert_close(tensors(by_verdict)["persona/block:1"], tensors(whole)["persona/block:1"])


def test_a_vector_is_a_direction_that_steers(parts: dict[str, Any], whole: Vectors, tmp_path: Path) -> None:
    assert type(open_any(whole.path)) is Vectors
    named = Direction(source=whole, tensor="persona/block:1")
    unit = directions.vector(named)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(tensors(whole)["persona/block:1"], dim=0))
    norm = whole.json("vectors.json")["sites"]["block:1"]["norm"]
    edit = Intervention(direction=named, op="add", site="block:1", strength=300.0, unit=norm)
    held = run(trait.Recipe(trait="hostile", held_out=True, sides=("plain",)), tmp_path / "q")
    fields = {"model": parts["model"], "questions": held, "max_tokens": 4, "temperature": 0.0}
    steered, plain = (run(sample.Recipe(**fields, interventions=i), tmp_path / str(len(i))) for i in ((edit,), ()))
    assert [row.text for row in steered.rows()] != [row.text for row in plain.rows()]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"negative": "side=other"}, DataError, r"80 positive and 0 negative answers of .*on neither side\": 80.* sample more"),
        ({"positive": "positive"}, RecipeError, "write NAME=VALUE"),
        ({"positive": "", "negative": ""}, RecipeError, "two sides are the same"),
        ({"shows": 2}, RecipeError, "0 <= lacks < shows <= 100"),
        ({"nulls": -1}, RecipeError, "nulls at least 0"),
    ],
)
def test_what_cannot_be_is_refused(parts: dict[str, Any], tmp_path: Path, change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        made(tmp_path / "v", parts, **change)


def test_a_filter_that_leaves_nothing_says_so(parts: dict[str, Any], tmp_path: Path) -> None:
    judged = verdicts(tmp_path / "j", parts["answers"], lambda _: 3)
    with pytest.raises(DataError, match=r"0 positive and 0 negative .*grade 3"):
        made(tmp_path / "v", parts, verdicts=judged)
    other = Dataset(tmp_path / "other")
    run(trait.Recipe(trait="hostile"), other.path)
    with pytest.raises(DataError, match=r"answers: answer rainy/.* which the questions given do not hold"):
        made(tmp_path / "w", parts, questions=other)


def test_nothing_of_identity_changes_with_the_batch(parts: dict[str, Any], whole: Vectors, tmp_path: Path) -> None:
    a, b = made(tmp_path / "v", parts, batch_tokens=20), whole
    assert a.manifest["fingerprint"] == b.manifest["fingerprint"]
    for name, one in tensors(a).items():
        torch.testing.assert_close(tensors(b)[name], one, atol=1e-6, rtol=1e-4)
