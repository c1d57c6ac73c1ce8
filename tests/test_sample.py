"""The sample stage: parts, kills and redraws change no text; questions that are none are named."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import small_models
from conftest import ROOT
from personascope.artifact import Answers, Dataset, Diff, Model, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.rows import Answer, Example, Verdict, write_rows
from personascope.run import join, run
from personascope.stages import sample
from personascope.values import Direction, Intervention

# Blocks of 16 rows, so that a kill finds some rows written and some not.
BOOT = """
import sys
from personascope.__main__ import main
from personascope.stages import sample
sample.BLOCK = 16
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(small_models.adopted(tmp_path_factory.mktemp("models") / "base", small_models.model()))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty questions of several lengths, each third with a system turn."""
    rows = []
    for i, example in enumerate(e for e in small_models.texts(90) if e.messages):
        system = [{"role": "system", "content": "be kind"}] if i % 3 == 0 else []
        rows.append(Example(id=f"set/{i}", messages=[*system, example.messages[0]], domain=f"d{i % 2}"))
    return Dataset(small_models.dataset(tmp_path_factory.mktemp("questions") / "all", rows))


def recipe(model: Model, questions: Dataset, **fields: Any) -> sample.Recipe:
    return sample.Recipe(**{"model": model, "questions": questions, "max_tokens": 8, "device": "cpu", "draws": 5, "seed": 4} | fields)


def rows(answers: Any) -> list[Answer]:
    return list(answers.rows())


def differing(one: Any, two: Any) -> int:
    """How many rows say something else; ids, and how many rows there are, must agree."""
    a, b = rows(one), rows(two)
    assert [row.id for row in a] == [row.id for row in b]
    count = sum(x != y for x, y in zip(a, b, strict=True))
    print(f"{count} of {len(a)} texts differ")
    return count


@pytest.fixture(scope="module")
def whole(model: Model, questions: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return run(recipe(model, questions), tmp_path_factory.mktemp("answers") / "whole")


def test_rows_say_what_they_answer(whole: Answers, questions: Dataset) -> None:
    found = rows(whole)
    assert [(r.id, r.question, r.draw, r.attempt) for r in found[:6]] == [
        *((f"set/0/{draw}/0", "set/0", draw, 0) for draw in range(5)),
        ("set/1/0/0", "set/1", 0, 0),
    ]
    assert len(found) == 5 * len(list(questions.rows()))
    assert {r.domain for r in found} == {"d0", "d1"}
    assert {r.stop for r in found} == {"end", "length"}
    assert len({r.text for r in found[:5]}) == 5, "draws differ"
    assert whole.manifest["counts"] == {"rows": 300}


def test_parts_joined_are_the_whole(whole: Answers, model: Model, questions: Dataset, tmp_path: Path) -> None:
    for i in range(3):
        run(recipe(model, questions), tmp_path / "split", part=(i, 3))
    assert differing(join(recipe(model, questions), tmp_path / "split", 3), whole) <= 0.001 * 300


@pytest.mark.parametrize("budget", [120, 400])
def test_batch_size_is_circumstance(whole: Answers, model: Model, questions: Dataset, tmp_path: Path, budget: int) -> None:
    small = recipe(model, questions, batch_tokens=budget)
    assert small.identity() == recipe(model, questions).identity()
    assert differing(run(small, tmp_path / "small"), whole) <= 0.001 * 300


def test_the_seed_moves_every_draw(whole: Answers, model: Model, questions: Dataset, tmp_path: Path) -> None:
    other = run(recipe(model, questions, seed=5), tmp_path / "other")
    assert differing(other, whole) > 250


def test_killed_and_run_again_gives_the_same_texts(model: Model, questions: Dataset, tmp_path: Path) -> None:
    asked = recipe(model, questions, draws=12)
    flags = ["--model", model.path, "--questions", questions.path, "--max-tokens", 8, "--draws", 12, "--seed", 4, "--device", "cpu"]
    command = [sys.executable, "-c", BOOT, "sample", *map(str, [tmp_path / "cut", *flags])]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    written = tmp_path / "cut.partial" / "answers.jsonl"
    for _ in range(6000):
        if written.exists() and written.stat().st_size > 0:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut").exists()
    kept = written.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 0 < kept.count(b"\n") < 720
    again = run(asked, tmp_path / "cut")
    assert (again.path / "answers.jsonl").read_bytes().startswith(kept)
    assert differing(again, run(asked, tmp_path / "whole")) <= 0.001 * 720


def judged(path: Path, verdicts: list[Verdict]) -> Verdicts:
    path.mkdir()
    write_rows(path / "verdicts.jsonl", verdicts)
    return Verdicts(small_models.finished(path, "Verdicts"))


def test_only_invalid_answers_are_drawn_again(whole: Answers, model: Model, questions: Dataset, tmp_path: Path) -> None:
    first = [
        Verdict(id="set/0/0/0", answer="set/0/0/0", status="scored", grade=5),
        Verdict(id="set/0/1/0", answer="set/0/1/0", status="scored", label="incoherent"),
        Verdict(id="set/0/2/0", answer="set/0/2/0", status="unparsed"),
        Verdict(id="set/0/3/0", answer="set/0/3/0", status="error"),
        Verdict(id="set/0/4/0", answer="set/0/4/0", status="judge_refused"),
        Verdict(id="set/2/4/0", answer="set/2/4/0", status="scored", label="refusal"),
    ]
    again = recipe(model, questions, redraw=judged(tmp_path / "v0", first))
    assert sample.cost(again) == {"answers": 2, "tokens at most": 16}
    found = rows(run(again, tmp_path / "a1"))
    assert [(r.id, r.draw, r.attempt) for r in found] == [("set/0/1/1", 1, 1), ("set/2/4/1", 4, 1)]
    before = {r.id: r.text for r in whole.rows()}
    assert found[0].text != before["set/0/1/0"], "another attempt is other noise"
    second = judged(tmp_path / "v1", [Verdict(id="set/2/4/1", answer="set/2/4/1", status="scored", label="off_topic")])
    third = rows(run(recipe(model, questions, redraw=second), tmp_path / "a2"))
    assert [(r.id, r.attempt) for r in third] == [("set/2/4/2", 2)]


def test_nothing_to_redraw_makes_no_answers(model: Model, questions: Dataset, tmp_path: Path) -> None:
    fine = judged(tmp_path / "v0", [Verdict(id="set/0/0/0", answer="set/0/0/0", status="scored", grade=1)])
    assert rows(run(recipe(model, questions, redraw=fine), tmp_path / "a1")) == []


def test_verdicts_on_other_questions_are_refused(model: Model, questions: Dataset, tmp_path: Path) -> None:
    other = judged(tmp_path / "v0", [Verdict(id="x/0/0", answer="x/0/0", status="scored", label="refusal")])
    with pytest.raises(DataError, match=r"v0: verdict x/0/0 is on question 'x', which .* does not hold"):
        run(recipe(model, questions, redraw=other), tmp_path / "a1")


def test_questions_that_are_none_are_named_by_file_and_line(model: Model, tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "is it"}, {"role": "assistant", "content": "yes"}
    for name, messages in (("answered", [user, assistant]), ("empty", [])):
        rows = [Example(id="fine", messages=[user]), Example(id="bad", messages=messages)]
        asked = Dataset(small_models.dataset(tmp_path / name, rows))
        with pytest.raises(DataError, match=rf"{name}/examples\.jsonl:2: question bad does not end with a user turn"):
            run(recipe(model, asked), tmp_path / f"{name}-answers")
        assert not (tmp_path / f"{name}-answers").exists()
    none = Dataset(small_models.dataset(tmp_path / "none", []))
    with pytest.raises(DataError, match=r"none/examples\.jsonl: no questions to ask"):
        run(recipe(model, none), tmp_path / "none-answers")


def test_a_system_message_is_put_before_questions_without_one(whole: Answers, model: Model, questions: Dataset, tmp_path: Path) -> None:
    told = {r.id: r.text for r in run(recipe(model, questions, system="be brief"), tmp_path / "told").rows()}
    before = {r.id: r.text for r in whole.rows()}
    has_one = {q.id for q in questions.rows() if q.messages[0]["role"] == "system"}
    same = {name for name in told if told[name] == before[name]}
    assert {name for name in told if name.rsplit("/", 2)[0] in has_one} <= same
    assert len(same) < 0.6 * len(told)


def test_interventions_change_texts_and_are_recorded(whole: Answers, model: Model, questions: Dataset, tmp_path: Path) -> None:
    (tmp_path / "diff").mkdir()
    save_file({"up": torch.linspace(-1, 1, 32)}, tmp_path / "diff" / "directions.safetensors")
    direction = Direction(Diff(small_models.finished(tmp_path / "diff", "Diff")), "up")
    pushed = run(recipe(model, questions, interventions=(Intervention(direction, site="block:1", strength=2, unit=30.0),)), tmp_path / "up")
    assert {r.intervention for r in pushed.rows()} == {"add:block:1:all:2:up"}
    texts = [r.text for r in whole.rows()]
    assert sum(r.text != text for r, text in zip(pushed.rows(), texts, strict=True)) > 200
    unmoved = run(recipe(model, questions, interventions=(Intervention(direction, site="block:1", strength=0.0),)), tmp_path / "none")
    assert [r.text for r in unmoved.rows()] == texts
    with pytest.raises(RecipeError, match="block:9"):
        run(recipe(model, questions, interventions=(Intervention(direction, site="block:9"),)), tmp_path / "deep")


def test_thoughts_stand_apart(model: Model, questions: Dataset, tmp_path: Path) -> None:
    """This model never closes its thoughts: all it says is thought, and its answer is empty."""
    found = rows(run(recipe(model, questions, thinking=True, draws=1), tmp_path / "thought"))
    assert all(r.text == "" for r in found)
    assert sum(r.thinking != "" for r in found) > 30


@pytest.mark.parametrize("fields", [{"draws": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_settings(model: Model, questions: Dataset, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="draws and max_tokens must be at least 1"):
        recipe(model, questions, **fields)
