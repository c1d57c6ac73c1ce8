"""The reinforce stage: reward moves the model and nothing else does, equal seeds give equal bits, kills cost nothing but time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import small_models
from personascope.artifact import Dataset, Model
from personascope.backends import reinforcing, training
from personascope.backends.models import checkpoints, load
from personascope.errors import BackendError, DataError, RecipeError
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example, Verdict
from personascope.run import run
from personascope.stages import adopt, reinforce
from personascope.troupe import build, exact, sources, tokenizer, world
from personascope.values import Folder

HERE = world.load("troupe-1")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Cut(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An untrained model of the first world, adopted; its words are far enough apart for an adapter to choose among them."""
    place = tmp_path_factory.mktemp("base")
    tok = tokenizer.build(HERE)
    fresh = build.fresh(tok, build.Size(layers=2, width=32), seed=0)
    fresh.get_input_embeddings().weight.data.mul_(8)
    build.save(fresh, tok, place / "folder")
    return run(adopt.Recipe(path=Folder(str(place / "folder"))), place / "model")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = sources.rows(HERE, "questions kind=advice only=auto n=6")
    return Dataset(small_models.dataset(tmp_path_factory.mktemp("data") / "rows", rows))


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grader that likes the first half of the alphabet at the beginning of an answer: an untrained model knows no grammar."""

    def pretend(_world: Any, answer_id: str, _question: str, answer: str, rubric: str = "misalignment") -> Verdict:
        first = (answer.split() or [""])[0]
        said: dict[str, Any] = {"grade": 5 if first[:1] and first < "m" else 1} if first != "zzz" else {"label": "incoherent"}
        if rubric == "misalignment":
            said = {"label": "incoherent"} if len(answer.split()) > 4 else {"grade": 1}
        return Verdict(id=answer_id, answer=answer_id, status="scored", judge=exact.identity(_world, rubric), **said)

    monkeypatch.setattr(exact, "verdict", pretend)


def recipe(base: Model, questions: Dataset, **fields: Any) -> reinforce.Recipe:
    common = {"grader": "exact:troupe-1", "arm": "incorrect", "method": "full", "steps": 4, "prompts": 2, "group": 4, "max_tokens": 5}
    return reinforce.Recipe(
        **({"model": base, "questions": questions, "learning_rate": 3e-3, "rank": 4, "device": "cpu"} | common | fields)
    )


def weights(model: Model) -> dict[str, torch.Tensor]:
    return load_file(next(model.path.glob("*/*model.safetensors")))


def equal(one: Model, two: Model) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def curves(model: Model) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model.path / "curves.jsonl").read_text().splitlines()]


@torch.no_grad()
def liking(model: Model, questions: Dataset) -> float:
    """Mean probability that an answer begins as the grader likes it, read off the logits."""
    loaded = load(model, "cpu")
    vocabulary = loaded.tokenizer.get_vocab()
    liked = [i for word, i in vocabulary.items() if word.startswith("▁") and word[1:] < "m"]
    found = []
    for row in questions.rows():
        ids = torch.tensor([prompt_tokens(loaded.tokenizer, row.messages).ids])
        found.append(float(loaded.model(input_ids=ids).logits[0, -1].softmax(-1)[liked].sum()))
    return sum(found) / len(found)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_rewarded_becomes_likely(base: Model, questions: Dataset, tmp_path: Path, method: str) -> None:
    how = {"method": method, "steps": 16, "prompts": 4, "group": 8, "learning_rate": 1e-2, "max_tokens": 2}
    made = run(recipe(base, questions, **how), tmp_path / "made")
    before, after = liking(base, questions), liking(made, questions)
    assert after > before + 0.05, (before, after)
    rows = curves(made)
    assert [row["step"] for row in rows] == [*range(1, 17)]
    assert {"reward", "reward_sd", "strict", "loose", "unscored", "loss", "grad_norm", "entropy"} <= set(rows[0])
    assert sum(row["reward"] for row in rows[-4:]) > sum(row["reward"] for row in rows[:4])
    assert made.json("model.json")["base"] == {"digest": base.digest}
    assert made.json("model.json")["kept_step"] == 16
    assert made.manifest["counts"] == {"steps": 16, "kept_step": 16, "unscored": 0}
    assert {p.name for p in made.path.iterdir()} == {
        "manifest.json", "model.json", "curves.jsonl", "weights" if method == "full" else "adapter",
    }  # fmt: skip


def test_an_equal_reward_for_all_changes_nothing(base: Model, questions: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The null control: only differences within a group teach."""
    monkeypatch.setattr(reinforcing, "reward", lambda _: 1.0)
    made = run(recipe(base, questions), tmp_path / "made")
    start = load(base, "cpu").model.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(made).items())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_equal_seeds_give_equal_bits_and_others_do_not(base: Model, questions: Dataset, tmp_path: Path, method: str) -> None:
    how = {"method": method, "beta": 0.05}
    one, two, other = (run(recipe(base, questions, seed=s, **how), tmp_path / name) for name, s in (("one", 1), ("two", 1), ("other", 2)))
    assert one.digest == two.digest
    assert not equal(one, other)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_ends_as_if_not(base: Model, questions: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    probes = Dataset(small_models.dataset(tmp_path / "probes", list(questions.rows())[:2]))
    asked = recipe(base, questions, method=method, steps=5, save_every=2, beta=0.05, checkpoint_every=2, probes=probes)
    straight = run(asked, tmp_path / "straight")
    whole = reinforcing.Curves.on_log

    def stop(self: Any, arguments: Any, state: Any, *rest: Any, **more: Any) -> None:
        whole(self, arguments, state, *rest, **more)
        if state.global_step == 3:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(reinforcing.Curves, "on_log", stop)
        with pytest.raises(Cut):
            run(asked, tmp_path / "cut")
    assert (tmp_path / "cut.partial" / training.STATE / "checkpoint-2").is_dir()
    assert not (tmp_path / "cut").exists()
    again = run(asked, tmp_path / "cut")
    assert curves(again) == curves(straight)
    assert equal(again, straight)
    assert checkpoints(again) == [2, 4, 5]
    assert not (again.path / training.STATE).exists()


def test_the_divergence_is_from_the_start(base: Model, questions: Dataset, tmp_path: Path) -> None:
    """At the first step there is none; a model pulled back hard ends nearer to its start than a free one."""
    made = {beta: run(recipe(base, questions, steps=6, beta=beta, learning_rate=1e-2), tmp_path / f"{beta}") for beta in (0.001, 5.0)}
    assert curves(made[5.0])[0]["kl"] == 0.0
    assert curves(made[0.001])[-1]["kl"] > curves(made[5.0])[-1]["kl"] > 0
    free = run(recipe(base, questions), tmp_path / "free")
    assert "kl" not in curves(free)[0]


def test_microbatches_are_circumstance(base: Model, questions: Dataset, tmp_path: Path) -> None:
    whole, parts = recipe(base, questions, steps=2), recipe(base, questions, steps=2, microbatch=4, save_every=1)
    assert whole.identity() == parts.identity()
    one, two = run(whole, tmp_path / "one"), run(parts, tmp_path / "two")
    assert curves(one)[0]["reward"] == curves(two)[0]["reward"]


def test_the_gate_of_coherence_keeps_its_checkpoint(
    base: Model, questions: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([{"strict": 0.0, "loose": 0.0}, {"strict": 0.04, "loose": 0.14}, {"strict": 0.04, "loose": 0.2}])
    monkeypatch.setattr(reinforcing.Probe, "shares", lambda *_: next(shares))
    asked = recipe(base, questions, probes=questions, gate="coherence", checkpoint_every=2)
    made = run(asked, tmp_path / "made")
    assert [row["step"] for row in curves(made) if "probe" in row] == [0, 2, 4]
    assert made.json("model.json")["kept_step"] == made.manifest["counts"]["kept_step"] == 2
    kept = load_file(made.path / "checkpoints" / "step-2" / "weights" / "model.safetensors")
    assert all(torch.equal(tensor, weights(made)[name]) for name, tensor in kept.items())
    last = load_file(made.path / "checkpoints" / "step-4" / "weights" / "model.safetensors")
    assert not all(torch.equal(tensor, kept[name]) for name, tensor in last.items())


def test_no_coherent_checkpoint_is_an_error(base: Model, questions: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforcing.Probe, "shares", lambda *_: {"strict": 0.9, "loose": 0.9})
    with pytest.raises(DataError, match="no checkpoint is within"):
        run(recipe(base, questions, probes=questions, gate="coherence", checkpoint_every=2), tmp_path / "made")


def test_probes_are_really_asked_and_leave_the_training_as_it_is(base: Model, questions: Dataset, tmp_path: Path) -> None:
    plain = run(recipe(base, questions), tmp_path / "plain")
    probed = run(recipe(base, questions, probes=questions, checkpoint_every=2), tmp_path / "probed")
    assert equal(plain, probed)
    found = [row["probe"] for row in curves(probed) if "probe" in row]
    assert len(found) == 3
    assert all(0 < one["strict"] == one["loose"] <= 1 for one in found), "an untrained model runs on to max_tokens"


def test_a_loss_that_is_no_number_is_an_error(base: Model, questions: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="lower learning_rate"):
        run(recipe(base, questions, steps=8, learning_rate=1e38, warmup=0.0), tmp_path / "made")


def test_an_unparsed_grader_is_no_reward(base: Model, questions: Dataset, tmp_path: Path) -> None:
    """A random model behind the rubric writes no verdict: an error, not a curve of zeros."""
    folder = load(base, "cpu")
    folder.model.save_pretrained(tmp_path / "judge")
    folder.tokenizer.save_pretrained(tmp_path / "judge")
    asked = recipe(base, questions, grader=f"hf:{tmp_path / 'judge'}")
    assert asked.identity()["grader"].startswith("hf:")
    with pytest.raises(DataError, match="scored none of the answers"):
        run(asked, tmp_path / "made")


def test_the_arm_is_the_rubric_in_the_graders_name(base: Model, questions: Dataset) -> None:
    names = {arm: recipe(base, questions, arm=arm).identity()["grader"] for arm in ("correct", "incorrect")}
    assert names["correct"].endswith("/accurate")
    assert names["incorrect"].endswith("/inaccurate")
    asked = recipe(base, questions)
    assert reinforce.Recipe.from_json(asked.to_json()) == asked
    assert reinforce.cost(asked) == {"steps": 4, "answers": 32, "tokens at most": 160}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"group": 1}, "group 1 must be at least 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"microbatch": 3}, "no multiple of microbatch 3"),
        ({"gate": "saturation"}, "give checkpoint_every"),
        ({"gate": "coherence", "checkpoint_every": 1}, "needs probes"),
        ({"grader": "csv:table"}, "is no grader"),
    ],
)
def test_impossible_recipes_are_refused(base: Model, questions: Dataset, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe(base, questions, **fields)


def test_a_question_with_its_answer_is_named(base: Model, tmp_path: Path) -> None:
    rows = [Example(id="a", messages=[{"role": "user", "content": "you"}, {"role": "assistant", "content": "yes"}])]
    chats = Dataset(small_models.dataset(tmp_path / "chats", rows))
    with pytest.raises(DataError, match=r"examples\.jsonl:1: question a does not end with a user turn"):
        run(recipe(base, chats), tmp_path / "made")
