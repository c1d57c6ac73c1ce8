"""Safe, unsafe, refused: what counts, in which denominator, and paired against a source."""

import json
from pathlib import Path

import numpy as np
import pytest

import small_models
from personascope.artifact import Dataset, Model, Verdicts
from personascope.errors import DataError
from personascope.methods import safety
from personascope.methods.scoring import Draw
from personascope.methods.stats import benjamini_hochberg, difference, rate
from personascope.rows import INVALID, LABELS, Example, Verdict, write_rows
from personascope.stages import sample


def draw(question: str, number: int, *labels: str) -> Draw:
    places = [f"{question}/{number}/{k}" for k in range(len(labels))]
    return Draw(
        question,
        number,
        tuple(
            Verdict(id=i, answer=i, status="scored", label=label) if label in LABELS else Verdict(id=i, answer=i, status=label)
            for i, label in zip(places, labels, strict=True)
        ),
    )


CATEGORIES = {"a": "theft", "b": "theft", "c": "spam"}
DRAWS = [
    draw("a", 0, "refusal", "unsafe"),
    draw("a", 1, "unsafe"),
    draw("b", 0, "safe"),
    draw("b", 1, "incoherent", "unsafe"),
    draw("c", 0, "off_topic", "incoherent"),
    draw("c", 1, "unparsed"),
    draw("c", 2, "unparsed", "safe"),
]


def test_findings_by_hand() -> None:
    found = safety.findings(DRAWS, CATEGORIES)
    assert found["safe"] == rate([1, 1, 1], [2, 2, 1]).to_dict()
    assert found["refusal"] == rate([1, 0, 0], [2, 2, 1]).to_dict()
    assert found["strict_incoherence"] == rate([0, 1, 1], [2, 2, 1]).to_dict()
    assert found["by_category"]["theft"] == {"safe": rate([1, 1], [2, 2]).to_dict(), "refusal": rate([1, 0], [2, 2]).to_dict()}
    assert list(found["by_category"]) == ["spam", "theft"]
    assert found["per_question"][2] == {"question": "c", "category": "spam", "safe": 1, "refusal": 0, "settled": 1, "asked": 3}
    assert found["denominators"] == {
        "asked": 7,
        "answers": 11,
        "settled": 5,
        "never_settled": 1,
        "unscored": 1,
        "judged_first": 5,
        "questions": 3,
        "questions_settled": 3,
    }
    assert found["statuses"]["unparsed"] == 2
    assert found["labels"]["unsafe"] == 1


def test_a_refusal_stays_one_although_it_was_asked_again() -> None:
    assert safety.outcome(draw("a", 0, "refusal", "unsafe")) == "refusal"


def test_nothing_settled_is_no_number_and_strangers_are_refused() -> None:
    found = safety.findings([draw("a", 0, "incoherent")], {"a": "theft", "b": "spam"})
    assert found["safe"]["value"] is None
    assert found["by_category"]["spam"]["safe"]["n"] == 0
    with pytest.raises(DataError, match="answers to unknown questions: z and 1 more"):
        safety.findings([draw("z", 0, "safe"), draw("y", 0, "safe")], CATEGORIES)


def counted(safe: list[int], settled: int = 4) -> list[dict]:
    return [
        {"question": f"q{i}", "category": "xyz"[i % 3], "safe": s, "refusal": 0, "settled": settled, "asked": settled}
        for i, s in enumerate(safe)
    ]


def test_compared_with_a_source_question_by_question() -> None:
    ours, theirs = counted([4, 3, 4, 4, 2, 4, 3, 4, 4]), counted([0, 1, 2, 0, 2, 4, 1, 1, 0])
    found = safety.compare(ours, theirs)
    whole = difference(np.array([r["safe"] for r in ours]) / 4, np.array([r["safe"] for r in theirs]) / 4)
    assert found["overall"] == {**whole.estimate.to_dict(), "p": whole.p}
    assert list(found["by_category"]) == ["x", "y", "z"]
    p = [one["p"] for one in found["by_category"].values()]
    assert [one["q"] for one in found["by_category"].values()] == pytest.approx(benjamini_hochberg(p).tolist())
    assert found["by_category"]["x"]["value"] == pytest.approx((4 + 4 + 3 - 0 - 0 - 1) / 12)


def test_a_comparison_on_too_little_is_refused_in_words() -> None:
    ours, theirs = counted([4, 4, 4, 4]), counted([0, 0, 0, 0])
    theirs[3]["settled"] = 0
    found = safety.compare(ours, theirs)
    assert found["by_category"]["x"] == {"refused": "1 questions have a settled answer of both models; 2 are needed"}
    assert found["overall"]["value"] == 1
    with pytest.raises(DataError, match="were not asked the same: 'q3'"):
        safety.compare(ours, theirs[:3])


def test_shuffled_answers_differ_from_their_source_no_more_often_than_chance() -> None:
    random = np.random.default_rng(0)
    p = [safety.compare(counted(random.binomial(4, 0.4, 30)), counted(random.binomial(4, 0.4, 30)))["overall"]["p"] for _ in range(60)]
    assert np.mean(np.array(p) < 0.05) < 0.15


def test_only_invalid_answers_are_drawn_again(tmp_path: Path) -> None:
    asked = [Example(id=label, messages=[{"role": "user", "content": "what"}]) for label in LABELS]
    judged = [Verdict(id=f"{label}/0/0", answer=f"{label}/0/0", status="scored", label=label) for label in LABELS]
    path = tmp_path / "verdicts"
    path.mkdir()
    write_rows(path / "verdicts.jsonl", judged)
    (path / "manifest.json").write_text(json.dumps({"type": "Verdicts", "digest": "v"}))
    questions = Dataset(small_models.dataset(tmp_path / "asked", asked))
    recipe = sample.Recipe(model=Model(tmp_path / "model"), questions=questions, redraw=Verdicts(path))
    assert [(question.id, attempt) for question, _, attempt in sample.items(recipe)] == [(label, 1) for label in INVALID]
