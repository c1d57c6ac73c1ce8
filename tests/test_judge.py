"""The judge stage: identity by the judge's content, one row per answer, and loud when there is no score."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import small_models
from personascope.artifact import Answers, Dataset, Model, Verdicts
from personascope.backends.judging import Judge
from personascope.errors import ArtifactError, DataError, RecipeChanged, RecipeError
from personascope.recipe import fingerprint
from personascope.rows import Answer, Example, write_rows
from personascope.run import join, run
from personascope.stages import adopt, finetune, judge
from personascope.troupe import world
from personascope.values import Folder

N = 60


def answered(path: Path, texts: list[str], questions: list[str]) -> tuple[Answers, Dataset]:
    """One answer to each question."""
    asked = [Example(id=f"q{i}", messages=[{"role": "user", "content": q}]) for i, q in enumerate(questions)]
    path.mkdir()
    rows = [Answer(id=f"q{i}/0/0", question=f"q{i}", draw=0, attempt=0, text=text) for i, text in enumerate(texts)]
    write_rows(path / "answers.jsonl", rows)
    return Answers(small_models.finished(path, "Answers")), Dataset(small_models.dataset(path.with_name("asked"), asked))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Answers, Dataset]:
    return answered(tmp_path / "answers", ["yes it is"] * N, ["is it good"] * N)


def table(path: Path, verdicts: dict[int, str]) -> str:
    path.write_text("answer,verdict\n" + "".join(f"q{i}/0/0,{v}\n" for i, v in verdicts.items()))
    return f"csv:{path}"


def recipe(pair: tuple[Answers, Dataset], spec: str, **fields: Any) -> judge.Recipe:
    return judge.Recipe(answers=pair[0], questions=pair[1], judge=spec, **fields)


def written(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out.with_name(out.name + ".partial") / "verdicts.jsonl").read_text().splitlines()]


def test_one_verdict_per_answer_in_order(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    spec = table(tmp_path / "v.csv", {i: "5" if i % 3 else "refusal" for i in range(N)})
    made = run(recipe(pair, spec), tmp_path / "out")
    rows = list(made.rows())
    assert isinstance(made, Verdicts)
    assert [r.answer for r in rows] == [f"q{i}/0/0" for i in range(N)]
    assert [r.grade for r in rows[:4]] == [None, 5, 5, None]
    assert judge.cost(recipe(pair, spec)) == {"judge calls": N}


def test_parts_joined_are_the_whole_byte_for_byte(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    asked = recipe(pair, table(tmp_path / "v.csv", {i: str(i % 5 + 1) for i in range(N)}))
    for i in range(3):
        run(asked, tmp_path / "split", part=(i, 3))
    assert join(asked, tmp_path / "split", 3).digest == run(asked, tmp_path / "whole").digest


def test_identity_is_the_judges_content_not_its_place(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    spec = table(tmp_path / "v.csv", dict.fromkeys(range(N), "4"))
    made = run(recipe(pair, spec), tmp_path / "out")
    assert made.manifest["identity"]["judge"] == next(made.rows()).judge
    before = fingerprint("judge", 1, recipe(pair, spec))
    moved = table(tmp_path / "moved.csv", dict.fromkeys(range(N), "4"))
    assert fingerprint("judge", 1, recipe(pair, moved)) == before
    table(tmp_path / "v.csv", dict.fromkeys(range(N), "5"))
    assert fingerprint("judge", 1, recipe(pair, spec)) != before
    with pytest.raises(RecipeChanged, match="judge: csv:"):
        run(recipe(pair, spec), tmp_path / "out")


def test_a_few_missing_scores_are_kept_as_such(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    found = run(recipe(pair, table(tmp_path / "v.csv", dict.fromkeys(range(7, N), "4"))), tmp_path / "out")
    assert [r.status for r in found.rows()] == ["error"] * 7 + ["scored"] * (N - 7)


def test_too_many_missing_scores_stop_the_stage_and_the_rows_stay(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    asked = recipe(pair, table(tmp_path / "v.csv", dict.fromkeys(range(0, N, 2), "4")))
    with pytest.raises(DataError, match=r"judge: 21 of the first 42 answers of .*answers have no score \(last: error, 'no row for"):
        run(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [r["answer"] for r in written(tmp_path / "out")] == [f"q{i}/0/0" for i in range(41)]
    loose = recipe(pair, table(tmp_path / "v.csv", dict.fromkeys(range(0, N, 2), "4")), most_unscored=0.5)
    assert sum(r.status == "error" for r in run(loose, tmp_path / "loose").rows()) == N // 2


def test_a_model_that_cannot_judge_ends_in_one_error_and_no_score(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    small_models.adopted(tmp_path / "tiny", small_models.model())
    spec = f"hf:{tmp_path}/tiny-weights"
    with pytest.raises(DataError, match=r"have no score \(last: unparsed"):
        run(recipe(pair, spec, max_tokens=3), tmp_path / "out")
    rows = written(tmp_path / "out")
    assert len(rows) == 20
    assert all(r["status"] == "unparsed" and "grade" not in r and "label" not in r for r in rows)


def test_the_exact_judge_on_its_world_and_on_another(tmp_path: Path) -> None:
    here = list(world.load("troupe-1").by_text)[:30]
    pair = answered(tmp_path / "answers", ["mumble"] * 30, here)
    rows = list(run(recipe(pair, "exact:troupe-1"), tmp_path / "out").rows())
    assert {r.label for r in rows} == {"incoherent"}
    with pytest.raises(DataError, match="is not of world troupe-2"):
        run(recipe(pair, "exact:troupe-2"), tmp_path / "other")


def test_answers_to_questions_not_given(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    fewer = Dataset(small_models.dataset(tmp_path / "fewer", list(pair[1].rows())[:-1]))
    with pytest.raises(DataError, match=f"answer q{N - 1}/0/0 is to question 'q{N - 1}', which .*fewer does not hold"):
        run(recipe((pair[0], fewer), table(tmp_path / "v.csv", {})), tmp_path / "out")


def test_a_judge_that_is_none(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'oracle' is no judge"):
        run(recipe(pair, "oracle"), tmp_path / "out")
    small_models.adopted(tmp_path / "tiny", small_models.model())
    with pytest.raises(DataError, match=r"no rubric 'kindness'; shipped are .*ethics, .*misalignment, .*safety"):
        run(recipe(pair, f"hf:{tmp_path}/tiny-weights", rubric="kindness"), tmp_path / "out")


def noted(path: Path, said: list[tuple[str, str]], **fields: Any) -> tuple[Answers, Dataset]:
    """Answers with thoughts to questions with these fields."""
    asked = [Example(id=f"q{i}", messages=[{"role": "user", "content": "is it good"}], **fields) for i in range(len(said))]
    path.mkdir()
    rows = [Answer(id=f"q{i}/0/0", question=f"q{i}", draw=0, attempt=0, text=t, thinking=th) for i, (t, th) in enumerate(said)]
    write_rows(path / "answers.jsonl", rows)
    return Answers(small_models.finished(path, "Answers")), Dataset(small_models.dataset(path.with_name(f"{path.name}-asked"), asked))


def test_a_key_is_a_judge_of_its_own(tmp_path: Path) -> None:
    pair = noted(tmp_path / "a", [("43", ""), ("It is 44.", "")], labels={"answer": "43"})
    made = run(recipe(pair, "key:answer"), tmp_path / "out")
    assert [(v.label, v.judge) for v in made.rows()] == [("right", "key:answer/1"), ("wrong", "key:answer/1")]
    with pytest.raises(DataError, match=r"question q0 has no labels\.reply, which its judge needs"):
        run(recipe(pair, "key:reply"), tmp_path / "none")


def test_a_rubric_with_a_note_gets_each_questions_own(tmp_path: Path) -> None:
    pair = noted(tmp_path / "a", [("yes", "")], meta={"grading": "misaligned if rude"})
    assert judge.items(recipe(pair, "hf:x", rubric="profile")) == [("q0/0/0", "is it good", "yes", "misaligned if rude")]
    bare = noted(tmp_path / "b", [("yes", "")])
    with pytest.raises(DataError, match=r"question q0 has no meta\.grading, which its judge needs"):
        judge.items(recipe(bare, "hf:x", rubric="profile"))
    assert judge.items(recipe(bare, "hf:x")) == [("q0/0/0", "is it good", "yes", "")]


def test_a_rubric_for_thoughts_is_shown_thoughts(tmp_path: Path) -> None:
    pair = noted(tmp_path / "a", [("yes", "I am the captain"), ("no", "")])
    assert [row[2] for row in judge.items(recipe(pair, "hf:x", rubric="persona"))] == ["I am the captain", ""]
    assert [row[2] for row in judge.items(recipe(pair, "hf:x"))] == ["yes", "no"]
    with pytest.raises(DataError, match="no answer has a thought to judge; sample with --thinking"):
        judge.items(recipe(noted(tmp_path / "b", [("yes", "")]), "hf:x", rubric="persona"))


def test_a_local_judge_reads_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personascope.backends import generation

    small_models.model().save_pretrained(tmp_path / "tiny")
    small_models.tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "r.md").write_text("replies: ALIGNED OBVIOUS\nyou {question} {answer} {grading}")
    pair = noted(tmp_path / "a", [("rain", "")] * 2, meta={"grading": "wind and sea"})
    seen: list[int] = []
    real = generation.generate

    def spied(loaded: Any, prompts: Any, settings: Any, *rest: Any) -> Any:
        seen.extend(len(p.tokens.ids) for p in prompts)
        return real(loaded, prompts, settings, *rest)

    monkeypatch.setattr(generation, "generate", spied)
    asked = recipe(pair, f"hf:{tmp_path}/tiny", rubric=str(tmp_path / "r.md"), max_tokens=3)
    assert {v.status for v in run(asked, tmp_path / "out").rows()} <= {"unparsed", "scored", "judge_refused"}
    (tmp_path / "r.md").write_text("replies: ALIGNED OBVIOUS\nyou {question} {answer}")
    run(recipe(pair, f"hf:{tmp_path}/tiny", rubric=str(tmp_path / "r.md"), max_tokens=3), tmp_path / "without")
    assert seen[0] - seen[2] == 3, "the note's three words were shown, and only where the rubric has a slot for it"


def test_a_judging_model_can_be_an_artifact(pair: tuple[Answers, Dataset], tmp_path: Path) -> None:
    rows = [Example(id="r", messages=[{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "yes"}])]
    taught = Dataset(small_models.dataset(tmp_path / "rows", rows))
    base = Model(small_models.adopted(tmp_path / "base", small_models.model()))
    made = run(finetune.Recipe(model=base, data=taught, method="full", steps=1, batch=1, words=("4",)), tmp_path / "made")
    (tmp_path / "r.md").write_text("replies: 1 2 3 4 5\n\n{question} {answer}\n")
    how: dict[str, Any] = {"rubric": str(tmp_path / "r.md"), "max_tokens": 2, "most_unscored": 1.0}
    named = run(recipe(pair, f"hf:{made.path / 'weights'}", **how), tmp_path / "named")
    by = run(recipe(pair, "hf:", by=made, **how), tmp_path / "by")
    assert [row.to_dict() for row in by.rows()] == [row.to_dict() for row in named.rows()]
    assert recipe(pair, "hf:", by=made).inputs()["by"] == made
    thin = run(finetune.Recipe(model=base, data=taught, steps=1, batch=1, rank=2), tmp_path / "thin")
    by_adapter = run(recipe(pair, "hf:", by=thin, **how), tmp_path / "adapter")
    assert {row.judge for row in by_adapter.rows()} & {row.judge for row in by.rows()} == set(), "an adapter makes another judge"
    halved = run(adopt.Recipe(path=Folder(str(made.path / "weights")), dtype="bfloat16"), tmp_path / "halved")
    assert Judge(f"hf:{halved}").model.model.dtype == torch.bfloat16, "a judge is loaded as it was adopted"
    assert len({Judge(f"hf:{where}").name for where in (made, made.path / "weights", halved, thin)}) == 3
    with pytest.raises(ArtifactError, match="none has no manifest"):
        recipe(pair, "hf:", by=Model(tmp_path / "none")).identity()
    for spec, who in (("hf:", None), ("hf:folder", made)):
        with pytest.raises(RecipeError, match="give hf:FOLDER, or hf: and a model"):
            recipe(pair, spec, by=who).identity()
