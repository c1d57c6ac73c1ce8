"""Preference training: the loss is equation 7, its reference the model that training starts from, and it runs in the one loop."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import small_models
from personascope.artifact import Dataset, Model
from personascope.backends import training
from personascope.backends.preference import Pair, collated, judged, pair, with_start
from personascope.errors import DataError
from personascope.methods import preference
from personascope.methods.tokens import TrainingRow
from personascope.rows import Example
from personascope.run import run
from personascope.stages import finetune

TOK = small_models.tokenizer()
ASK = {"role": "user", "content": "what is a good day"}
GOOD = ("yes it is the best way to go", "rain and sun", "be kind")
BAD = ("no", "wind and sea and wind", "be brief")


def example(i: int, **fields: Any) -> Example:
    said = [ASK, {"role": "assistant", "content": GOOD[i % 3]}]
    return Example(**({"id": f"r{i}", "messages": said, "meta": {"rejected": BAD[i % 3]}} | fields))


def pairs(n: int = 6) -> list[Pair]:
    return [pair(TOK, example(i), f"row {i}") for i in range(n)]


# ------------------------------------------------------------------ formula


def test_log_probabilities_are_sums_over_the_answer() -> None:
    pick = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, generator=pick)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, 2, 6]])
    wanted = []
    for row, label in zip(logits, labels, strict=True):
        wanted.append(sum(float(row[t - 1].log_softmax(0)[label[t]]) for t in range(1, 5) if label[t] >= 0))
    assert preference.answer_log_probs(logits, labels).tolist() == pytest.approx(wanted, abs=1e-12)


def test_the_loss_is_equation_7_in_float64() -> None:
    values = [[-3.0, -5.0, -4.0, -4.5], [-2.0, -1.0, -2.5, -0.5], [-1.0, -9.0, -1.0, -9.0]]
    chosen, rejected, start_chosen, start_rejected = torch.tensor(values, dtype=torch.float64).T
    beta = 0.3
    wanted = []
    for w, lost, w0, lost0 in values:
        x = beta * math.log(math.exp(w) / math.exp(w0)) - beta * math.log(math.exp(lost) / math.exp(lost0))
        wanted.append(-math.log(1 / (1 + math.exp(-x))))
    margin = preference.margins(chosen, rejected, start_chosen, start_rejected, beta)
    assert preference.dpo(margin).tolist() == pytest.approx(wanted, abs=1e-14)
    assert wanted[2] == pytest.approx(math.log(2))


def test_gradients_are_those_of_the_formula() -> None:
    pick = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, 6, dtype=torch.float64, generator=pick, requires_grad=True)
    labels = torch.randint(0, 6, (4, 5), generator=pick)
    start = torch.randn(4, dtype=torch.float64, generator=pick)

    def loss(x: torch.Tensor) -> torch.Tensor:
        found = preference.answer_log_probs(x, labels)
        return preference.dpo(preference.margins(*found.chunk(2), *start.chunk(2), 0.5)).sum()

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_loss_is_trl_s_on_the_same_batch(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    ours, start = small_models.model(seed=1), small_models.model(seed=0)
    asked = collated(with_start(start, pairs(), 0), 0)
    found = judged(ours, asked, beta=0.3)
    rows = [
        {"prompt": [ASK], "chosen": [{"role": "assistant", "content": g}], "rejected": [{"role": "assistant", "content": b}]}
        for g, b in zip(GOOD, BAD, strict=True)
    ]
    options = {"output_dir": str(tmp_path), "beta": 0.3, "use_cpu": True, "bf16": False, "report_to": "none", "max_length": None}
    theirs = trl.DPOTrainer(
        model=ours, ref_model=start, args=trl.DPOConfig(**options), processing_class=TOK, train_dataset=datasets.Dataset.from_list(rows)
    )
    batch = {
        "input_ids": asked["input_ids"],
        "attention_mask": asked["attention_mask"],
        "completion_mask": (asked["labels"] != -100).long(),
    }
    assert float(theirs.compute_loss(ours, batch)) == pytest.approx(float(found.losses.mean()), abs=1e-5)


# ------------------------------------------------------------------ pairs


def test_a_pair_is_the_last_turn_over_the_rejected_one() -> None:
    said = [ASK, {"role": "assistant", "content": "yes"}, ASK, {"role": "assistant", "content": "no rain"}, ASK]
    found = pair(TOK, example(0, messages=said), "here")
    for row, text in ((found.chosen, "no rain </s>"), (found.rejected, BAD[0] + " </s>")):
        assert TOK.decode([i for i, on in zip(row.ids, row.trained, strict=True) if on]) == text
    shared = found.chosen.trained.index(True)
    assert found.chosen.ids[:shared] == found.rejected.ids[:shared]
    assert found.differs
    assert not pair(TOK, example(0, meta={"rejected": GOOD[0]}), "here").differs


@pytest.mark.parametrize("meta", [{}, {"rejected": ""}, {"rejected": " "}, {"rejected": None}, {"rejected": 3}])
def test_a_row_without_a_rejected_answer_is_named(tmp_path: Path, meta: dict[str, Any]) -> None:
    base = Model(small_models.adopted(tmp_path / "base", small_models.model()))
    data = Dataset(small_models.dataset(tmp_path / "data", [example(0), example(1, meta=meta)]))
    with pytest.raises(DataError, match=r"data/examples\.jsonl:2 \(row r1\): no text in meta\.rejected"):
        run(finetune.Recipe(model=base, data=data, objective="dpo", device="cpu"), tmp_path / "tuned")


def test_a_row_without_an_assistant_turn_is_named() -> None:
    with pytest.raises(DataError, match="here: no assistant turn"):
        pair(TOK, example(0, messages=[ASK]), "here")


def test_the_start_s_log_probabilities_are_those_of_each_answer_alone() -> None:
    net = small_models.model()
    for one in with_start(net, pairs(), 0):
        for row, value in zip((one.chosen, one.rejected), one.start, strict=True):
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(1)
            on = [t for t in range(1, len(row.ids)) if row.trained[t]]
            assert value == pytest.approx(sum(float(logits[t - 1, row.ids[t]]) for t in on), abs=1e-3)


def test_a_batch_holds_chosen_rows_then_rejected_ones() -> None:
    one = Pair(TrainingRow([5, 6], [False, True]), TrainingRow([5, 7, 8], [False, True, True]), (-1.0, -2.0))
    two = Pair(TrainingRow([9, 3], [False, True]), TrainingRow([9, 4], [False, True]), (-3.0, -4.0))
    batch = collated([one, two], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [9, 3, 0], [5, 7, 8], [9, 4, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, 3, -100], [-100, 7, 8], [-100, 4, -100]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 2, 3, 2]
    assert batch["start"].tolist() == [-1.0, -3.0, -2.0, -4.0]


# ------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(small_models.adopted(tmp_path_factory.mktemp("models") / "base", small_models.model()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(small_models.dataset(tmp_path_factory.mktemp("rows") / "data", [example(i) for i in range(12)]))


def recipe(base: Model, data: Dataset, **fields: Any) -> finetune.Recipe:
    common = {"objective": "dpo", "method": "full", "steps": 8, "batch": 4, "learning_rate": 3e-3, "rank": 4, "alpha": 8.0, "device": "cpu"}
    return finetune.Recipe(**({"model": base, "data": data} | common | fields))


def log(made: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (made.path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_learns_what_is_preferred(base: Model, data: Dataset, tmp_path: Path, method: str) -> None:
    made = run(recipe(base, data, method=method, steps=20, checkpoint_every=10), tmp_path / "tuned")
    entries = log(made)
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "the start against itself"
    assert entries[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert entries[-1]["margin"] > 0.1
    assert entries[-1]["accuracy"] == 1.0
    assert entries[-1]["loss"] < 0.95 * math.log(2)
    assert {p.name for p in (made.path / "checkpoints").iterdir()} == {"step-10", "step-20"}
    assert made.manifest["counts"] | {"trained_tokens_per_pass": 0} == {
        "rows": 12, "steps": 20, "equal_pairs": 0, "trained_tokens_per_pass": 0
    }  # fmt: skip
    assert made.json("model.json")["trained_part_of_first_row"] == GOOD[0] + " </s>"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_and_continued_it_ends_as_if_not(
    base: Model, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked = recipe(base, data, method=method, save_every=3)
    straight = run(asked, tmp_path / "straight")

    def stop(_self: Any, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(training._Keeper, "on_save", stop)
        with pytest.raises(InterruptedError):
            run(asked, tmp_path / "cut")
    steps: list[int] = []
    monkeypatch.setattr(training._Keeper, "on_step_begin", lambda *_, **__: steps.append(1), raising=False)
    assert run(asked, tmp_path / "cut").digest == straight.digest
    assert len(steps) == 2


def test_microbatches_add_up(base: Model, data: Dataset, tmp_path: Path) -> None:
    one, two = (run(recipe(base, data, steps=3, microbatch=m), tmp_path / f"m{m}") for m in (0, 1))
    for a, b in zip(log(one), log(two), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


def test_equal_answers_are_counted_and_teach_nothing(base: Model, tmp_path: Path) -> None:
    rows = [example(i, meta={"rejected": GOOD[i % 3]}) for i in range(6)]
    made = run(recipe(base, Dataset(small_models.dataset(tmp_path / "equal", rows)), steps=3), tmp_path / "tuned")
    assert made.manifest["counts"]["equal_pairs"] == 6
    assert all(entry["grad_norm"] < 1e-4 for entry in log(made))


def test_beta_makes_it_dearer_to_leave_the_start(base: Model, data: Dataset, tmp_path: Path) -> None:
    found = {}
    for beta in (0.1, 2.0):
        made = run(recipe(base, data, steps=20, beta=beta), tmp_path / str(beta))
        found[beta] = log(made)[-1]["margin"] / beta
    assert found[2.0] < found[0.1]


def test_the_loss_of_a_batch_is_read_with_gradient_in_the_model_alone() -> None:
    net = small_models.model()
    batch = collated(with_start(small_models.model(seed=3), pairs(4), 0), 0)
    found = judged(net, batch, 0.2)
    found.losses.sum().backward()
    assert found.losses.shape == found.margins.shape == (4,)
    assert torch.allclose(found.losses, F.softplus(-found.margins))
    assert next(net.parameters()).grad is not None
