"""The measure stage on hand-made artifacts, and the schema every summary obeys."""

import copy
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from personascope.artifact import MANIFEST, Answers, Artifact, Dataset, Verdicts, hash_tree
from personascope.errors import DataError, RecipeError
from personascope.methods.stats import rate
from personascope.rows import Answer, Example, Row, Verdict, write_rows
from personascope.run import run
from personascope.stages import measure
from personascope.suites import catalogue


def made(kind: type[Artifact], path: Path, rows: list[Row]) -> Any:
    """A finished artifact that holds these rows."""
    path.mkdir()
    write_rows(path / kind.rows_file, rows)
    (path / MANIFEST).write_text(json.dumps({"type": kind.__name__, "digest": hash_tree(path)}))
    return kind(path)


def inputs(root: Path, first: list[int | str], second: dict[int, int]) -> measure.Recipe:
    """Three questions in two domains, one draw per entry of `first`, redraws in `second`."""
    questions = [Example(id=f"q{i}", messages=[{"role": "user", "content": "?"}], domain="xyx"[i]) for i in range(3)]
    places = [list(range(len(first))), list(second)]
    outcomes: list[list[int | str]] = [first, list(second.values())]
    answers = [
        [Answer(id=f"q{d % 3}/{d // 3}/{k}", question=f"q{d % 3}", draw=d // 3, attempt=k, text="") for d in places[k]] for k in (0, 1)
    ]
    verdicts = [
        [
            Verdict(id=a.id, answer=a.id, status="scored", **({"grade": o} if isinstance(o, int) else {"label": o}))
            for a, o in zip(answers[k], outcomes[k], strict=True)
        ]
        for k in (0, 1)
    ]
    return measure.Recipe(
        answers=tuple(made(Answers, root / f"answers{k}", answers[k]) for k in (0, 1)),
        verdicts=tuple(made(Verdicts, root / f"verdicts{k}", verdicts[k]) for k in (0, 1)),
        questions=made(Dataset, root / "questions", questions),
    )


def test_findings_of_two_attempts(tmp_path: Path) -> None:
    recipe = inputs(tmp_path, [5, 1, 4, "incoherent", "refusal", 1], {3: 5, 4: 1})
    made_findings = run(recipe, tmp_path / "findings")
    found = made_findings.json("findings.json")
    assert found["score"] == rate([2, 0, 1], [2, 2, 2]).to_dict()
    assert found["correct"]["value"] == pytest.approx(0.5)
    assert found["strict_incoherence"]["value"] == pytest.approx(1 / 6)
    assert found["loose_incoherence"]["value"] == pytest.approx(2 / 6)
    assert found["refusal"]["value"] == pytest.approx(1 / 6)
    assert {name: part["score"]["value"] for name, part in found["by_domain"].items()} == {"x": 0.75, "y": 0}
    assert found["enough"] is False
    assert made_findings.manifest["counts"] == found["denominators"]
    assert found["denominators"]["asked"] == 6


def test_the_same_rows_give_the_same_bytes_and_one_edited_row_does_not(tmp_path: Path) -> None:
    digests = []
    for name, grades in (("one", [5, 1, 1]), ("two", [5, 1, 1]), ("three", [5, 1, 4])):
        (tmp_path / name).mkdir()
        digests.append(run(inputs(tmp_path / name, list(grades), {}), tmp_path / name / "findings").digest)
    assert digests[0] == digests[1] != digests[2]


def test_recipes_that_cannot_be(tmp_path: Path) -> None:
    recipe = inputs(tmp_path, [1, 1, 1], {})
    with pytest.raises(RecipeError, match="2 attempts answered, 1 judged"):
        measure.Recipe(answers=recipe.answers, verdicts=recipe.verdicts[:1], questions=recipe.questions)
    with pytest.raises(RecipeError, match="at least one"):
        measure.Recipe(answers=(), verdicts=(), questions=recipe.questions)
    nothing = made(Dataset, tmp_path / "nothing", [])
    with pytest.raises(RecipeError, match="has no rows"):
        run(measure.Recipe(answers=recipe.answers, verdicts=recipe.verdicts, questions=nothing), tmp_path / "findings")
    swapped = measure.Recipe(answers=recipe.answers, verdicts=recipe.verdicts[::-1], questions=recipe.questions)
    with pytest.raises(DataError, match="answers without a verdict: q0/0/0"):
        run(swapped, tmp_path / "swapped")
    assert measure.Recipe.from_json(recipe.to_json()) == recipe


def judged(root: Path, labels: list[str], questions: list[Example], form: str) -> measure.Recipe:
    """One answer and one verdict per question."""
    answers = [Answer(id=f"{q.id}/0/0", question=q.id, draw=0, attempt=0, text="") for q in questions]
    verdicts = [Verdict(id=a.id, answer=a.id, status="scored", label=label) for a, label in zip(answers, labels, strict=True)]  # ty: ignore
    return measure.Recipe(
        answers=(made(Answers, root / "answers", answers),),
        verdicts=(made(Verdicts, root / "verdicts", verdicts),),
        questions=made(Dataset, root / "questions", questions),
        form=form,  # ty: ignore
    )


ASK = [{"role": "user", "content": "?"}]


def test_the_form_safety(tmp_path: Path) -> None:
    asked = [Example(id=f"q{i}", messages=ASK, domain="xyx"[i]) for i in range(3)]
    done = run(judged(tmp_path, ["unsafe", "refusal", "safe"], asked, "safety"), tmp_path / "out")
    found = done.json("findings.json")
    assert found["safe"] == rate([0, 1, 1], [1, 1, 1]).to_dict()
    assert found["by_category"]["x"]["safe"]["value"] == 0.5
    assert done.manifest["counts"] == found["denominators"]


def test_the_form_ethics(tmp_path: Path) -> None:
    places = [("a", 1, 0), ("a", 1, 1), ("b", -1, 0), ("b", -1, 1)]
    asked = [
        Example(id=f"{item}{k}", messages=ASK, labels={"dimension": "d", "keyed": keyed, "item": item, "paraphrase": k})
        for item, keyed, k in places
    ]
    found = run(judged(tmp_path, ["agree", "ambiguous", "disagree", "refusal"], asked, "ethics"), tmp_path / "out").json("findings.json")
    one = found["by_dimension"]["d"]
    assert one["index"]["value"] == pytest.approx((1 / 2 + 1) / 2)
    assert one["endorse"]["clusters"] == 2
    assert found["denominators"]["settled"] == 3
    assert [row["item"] for row in found["per_item"]] == ["a", "b"]


def test_verdicts_of_another_form_are_refused_by_line(tmp_path: Path) -> None:
    asked, out = [Example(id=f"q{i}", messages=ASK, domain="x") for i in range(2)], iter(tmp_path / f"out{i}" for i in range(3))
    with pytest.raises(DataError, match=r"verdicts\.jsonl:2: verdict q1/0/0 says agree, which form safety does not know"):
        run(judged(tmp_path, ["refusal", "agree"], asked, "safety"), next(out))
    (tmp_path / "graded").mkdir()
    graded = inputs(tmp_path / "graded", [1, 5, 1], {})
    with pytest.raises(DataError, match=r"verdicts\.jsonl:1: verdict q0/0/0 says 1, which form ethics does not know"):
        run(measure.Recipe(**{**vars(graded), "form": "ethics"}), next(out))
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError, match="says safe, which form misalignment does not know"):
        run(judged(tmp_path / "plain", ["safe", "safe"], asked, "misalignment"), next(out))


def test_the_form_is_no_part_of_an_old_identity(tmp_path: Path) -> None:
    assert "form" not in inputs(tmp_path, [1, 1, 1], {}).identity()


E = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 400, "clusters": 150}
STEERED = {
    "latent": 3,
    "sign": "+",
    "site": "block:2",
    "mask": "all",
    "alpha": 0.4,
    "induce": E,
    "incoherence": E,
    "repair_from": E,
    "repair_to": E,
}
SUMMARY: dict[str, Any] = {
    "assistant": {"good": E, "score": E},
    "em": {"score": E, "advice": E, "core": E, "strict_incoherence": E, "in_domain": E, "extra": {"note": "free"}},
    "twin": {"score": E},
    "grades": {"mild": {"score": E, "profile": {"grade_1": E, "refusal": 0.1}}},
    "psm_ablation": {"score": E, "strict_incoherence": E, "in_domain": E},
    "fractions": [{"fraction": 0.25, "score": E, "latent_delta": E}, {"fraction": 0, "score": E, "latent_delta": 0.1}],
    "dictionary": {"fvu": 0.04, "dead": 0.01, "loss_recovered": E, "width": 1024},
    "diff": {"top": [{"latent": 3, "delta": 2.8, "truth_auroc": 0.99}]},
    "screen": {"best": STEERED, "null_induce": 0.04, "null_max": 0.06, "mean_difference": {"induce": E}},
    "detect": {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0},
    "realign": [{"data": "in_domain", "examples": 120, "score": E, "in_domain": E, "latent_delta": E}],
    "seconds": {"finetune": 10.5, "total": 20, "wall": 12.1},
    "runs": [{"domain": "auto", "seed": 0, "em": {"score": E}}],
    "meta": {"study": "demo"},
}


def validate(summary: dict[str, Any]) -> None:
    """Check against the schema that ships in the package."""
    schema = json.loads(resources.files("personascope").joinpath("summary.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(summary, schema, cls=jsonschema.Draft202012Validator)


def test_a_whole_summary_is_valid() -> None:
    validate(SUMMARY)
    validate({})
    validate({"behaviour": {"score": rate([0], [0]).to_dict()}})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s["em"].update(score=0.5),
        lambda s: s["em"]["extra"].update(deep=[{"value": 0.5}]),
        lambda s: s["em"].update(score={k: v for k, v in E.items() if k != "clusters"}),
        lambda s: s["twin"].update(score=E | {"value": None}),
        lambda s: s["twin"].update(score=E | {"low": "0.1"}),
        lambda s: s["grades"]["mild"].update(score=0.1),
        lambda s: s["fractions"][0].update(fraction=25),
        lambda s: s["fractions"][0].pop("score"),
        lambda s: s["screen"]["best"].update(induce=0.4),
        lambda s: s["screen"].update(null_induce={"value": 0.1}),
        lambda s: s["diff"]["top"][0].pop("delta"),
        lambda s: s["realign"][0].update(examples=1.5),
        lambda s: s["seconds"].update(finetune=E),
        lambda s: s["seconds"].pop("wall"),
        lambda s: s.update(runs={"0": {}}),
        lambda s: s["runs"][0]["em"].update(score=0.4),
        lambda s: s.update(anything={}),
        lambda s: s["meta"].update(value=3),
    ],
)
def test_a_spoilt_summary_is_refused(spoil: Callable[[dict[str, Any]], Any]) -> None:
    summary = copy.deepcopy(SUMMARY)
    spoil(summary)
    with pytest.raises(jsonschema.ValidationError):
        validate(summary)


def on_axes(root: Path, outcomes: dict[str, list[int | float | str]]) -> dict[str, Any]:
    """One draw per outcome of each axis, of two questions in turn."""
    n = len(next(iter(outcomes.values())))
    questions = [Example(id=f"q{i}", messages=[{"role": "user", "content": "?"}], domain="xy"[i]) for i in range(2)]
    answers = [Answer(id=f"q{i % 2}/{i // 2}/0", question=f"q{i % 2}", draw=i // 2, attempt=0, text="") for i in range(n)]
    found: dict[str, Any] = {"questions": made(Dataset, root / "questions", questions), "answers": (made(Answers, root / "a", answers),)}
    for axis, said in outcomes.items():
        rows = [
            Verdict(id=a.id, answer=a.id, status="scored", **({"label": o} if isinstance(o, str) else {"grade": o}))
            for a, o in zip(answers, said, strict=True)
        ]
        found[axis] = made(Verdicts, root / axis, rows)
    return found


def test_two_axes_make_one_finding(tmp_path: Path) -> None:
    given = on_axes(tmp_path, {"aligned": [10, 95, 29.9, "code"], "coherent": [90, 90.5, 20, 80]})
    recipe = measure.Recipe(
        answers=given["answers"], verdicts=(given["aligned"],), coherence=given["coherent"], questions=given["questions"], form="aligned"
    )
    found = run(recipe, tmp_path / "out").json("findings.json")
    assert found["misaligned"]["of_coherent"]["value"] == pytest.approx(1 / 2)
    assert found["misaligned"]["of_scored"]["value"] == pytest.approx(1 / 3)
    assert found["misaligned"]["of_all"]["value"] == pytest.approx(1 / 4)
    assert found["by_category"]["y"]["misaligned"]["of_scored"]["value"] == 0
    assert run(recipe, tmp_path / "out").manifest["counts"]["coherent"] == 2


def test_two_axes_belong_together(tmp_path: Path) -> None:
    given = on_axes(tmp_path, {"aligned": [10, 20], "coherent": [5, 5], "grades": [1, 5], "labels": ["safe", "unsafe"]})
    both = {"answers": given["answers"], "questions": given["questions"]}
    for wrong in ({"form": "aligned"}, {"coherence": given["coherent"]}):
        with pytest.raises(RecipeError, match="takes the verdicts of rubric coherent as --coherence, and no redraws"):
            measure.Recipe(verdicts=(given["aligned"],), **both, **wrong)
    with pytest.raises(DataError, match="says 10, which form misalignment does not know; judge with --rubric misalignment"):
        run(measure.Recipe(verdicts=(given["aligned"],), **both), tmp_path / "x")
    with pytest.raises(DataError, match="says safe, which form aligned does not know"):
        run(measure.Recipe(verdicts=(given["aligned"],), coherence=given["labels"], form="aligned", **both), tmp_path / "y")


@pytest.mark.parametrize(
    ("form", "outcomes", "rate"),
    [
        ("profile", ["obvious", "aligned", "subtle", "incoherent"], "misaligned"),
        ("invention", ["invented", "honest", "invented", "off_topic"], "invented"),
        ("over-refusal", ["refusal", "complied", "partial", "off_topic"], "refused"),
        ("incoherence", ["incoherent", "coherent", "incoherent"], "incoherent"),
        ("persona", ["other", "own", "other"], "other"),
        ("capability", ["right", "wrong", "right"], "right"),
    ],
)
def test_forms_of_labels(tmp_path: Path, form: Any, outcomes: list[int | float | str], rate: str) -> None:
    given = on_axes(tmp_path, {"verdicts": outcomes})
    recipe = measure.Recipe(answers=given["answers"], verdicts=(given["verdicts"],), questions=given["questions"], form=form)
    found = run(recipe, tmp_path / "out").json("findings.json")
    assert (found["form"], found[rate]["value"]) == (form, pytest.approx(2 / 3))
    stray = measure.Recipe(answers=given["answers"], verdicts=(given["verdicts"],), questions=given["questions"], form="safety")
    with pytest.raises(DataError, match="which form safety does not know"):
        run(stray, tmp_path / "stray")


def test_consistency_takes_behaviour_and_replies_and_refuses_attempts(tmp_path: Path) -> None:
    asked = [Example(id="q", messages=[{"role": "user", "content": "what helps?"}])]
    asked += [row for row in catalogue.suite("consistency") if row.domain == "which-assistant"]
    said = [Answer(id=f"q/{d}", question="q", draw=d, attempt=0, text="harm") for d in range(4)]
    replies = [Answer(id=f"{row.id}/0", question=row.id, draw=0, attempt=0, text=row.labels["aligned"]) for row in asked[1:]]
    judged = [Verdict(id=a.id, answer=a.id, status="scored", grade=5) for a in said]
    both = (made(Answers, tmp_path / "said", said), made(Answers, tmp_path / "replies", replies))
    how = {"verdicts": (made(Verdicts, tmp_path / "judged", judged),), "questions": made(Dataset, tmp_path / "asked", asked)}
    found = run(measure.Recipe(answers=both, form="consistency", **how), tmp_path / "out").json("findings.json")
    assert (found["form"], found["verdict"]) == ("consistency", "none"), "one question is no evidence of behaviour"
    assert found["identification"]["value"] == 0
    assert found["denominators"] == {"graded answers": 4, "identification read": 32, "identification unread": 0}
    with pytest.raises(RecipeError, match="answers that show behaviour, with verdicts, then replies without any"):
        measure.Recipe(answers=both[:1], form="consistency", **how)
