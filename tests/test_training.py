"""The training loop: padding and labels, adapters where they were asked for, and loss that is no number."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F

import small_models
from personascope.backends import training
from personascope.backends.training import Lora, Plan, add_lora, fit, save
from personascope.errors import BackendError
from personascope.methods.tokens import TrainingRow

TOK = small_models.tokenizer()
ROWS = [TrainingRow([2, *range(7, 9 + i), 3], [False] * (i % 3 + 1) + [True] * (3 + i - i % 3)) for i in range(8)]


def plan(**fields: Any) -> Plan:
    common: dict[str, Any] = {"steps": 6, "batch": 4, "learning_rate": 3e-3, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0}
    rest: dict[str, Any] = {"seed": 0, "checkpoint_every": 0, "save_every": 100, "gradient_accumulation": 1, "bf16": False}
    return Plan(**(common | rest | fields))


def log(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_batches_are_padded_right_and_only_trained_tokens_are_labelled() -> None:
    batch = training._Collator(0)([TrainingRow([5, 6, 7], [False, True, True]), TrainingRow([8, 9], [False, True])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


def test_the_loss_is_the_mean_over_the_trained_tokens(tmp_path: Path) -> None:
    net = small_models.model()
    with torch.no_grad():
        wanted, count = 0.0, 0
        for row in ROWS[:4]:
            logits = net(input_ids=torch.tensor([row.ids])).logits[0, :-1]
            on = torch.tensor(row.trained[1:])
            wanted += float(F.cross_entropy(logits[on], torch.tensor(row.ids[1:])[on], reduction="sum"))
            count += int(on.sum())
    fit(net, TOK, ROWS[:4], plan(steps=1), tmp_path)
    assert log(tmp_path)[0]["loss"] == pytest.approx(wanted / count, rel=1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_training_lowers_the_loss_in_what_is_trained_alone(tmp_path: Path, lora: bool) -> None:
    net: Any = small_models.model()
    before = {name: p.clone() for name, p in net.named_parameters()}
    if lora:
        net = add_lora(net, Lora(4, 8.0, "all-linear", ()), seed=0)
    fit(net, TOK, ROWS, plan(steps=30, learning_rate=1e-2), tmp_path)
    entries = log(tmp_path)
    assert [e["step"] for e in entries] == list(range(1, 31))
    assert entries[-1]["loss"] < 0.6 * entries[0]["loss"]
    if lora:
        after = {name.replace("base_layer.", ""): p for name, p in net.base_model.model.named_parameters() if "lora_" not in name}
        assert all(torch.equal(before[name], p) for name, p in after.items())


def test_adapters_sit_where_they_were_asked_for() -> None:
    wrapped = add_lora(small_models.model(), Lora(3, 6.0, "q_proj,down_proj", (0, 2)), seed=0)
    found = {name.rsplit(".", 3)[0] for name, _ in wrapped.named_parameters() if "lora_A" in name}
    stem = "base_model.model.model.layers"
    assert found == {f"{stem}.{i}.{part}" for i in (0, 2) for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert {p.shape[0] for name, p in wrapped.named_parameters() if "lora_A" in name} == {3}
    everywhere = add_lora(small_models.model(), Lora(1, 1.0, "all-linear", ()), seed=0)
    assert sum("lora_A" in name for name, _ in everywhere.named_parameters()) == 3 * 7


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("name", [name for name in small_models.CONFIGS if name != "gpt_oss"])
def test_adapters_everywhere_in_some_blocks_are_those_everywhere_in_these_blocks(name: str) -> None:
    def adapted(wanted: tuple[int, ...]) -> set[str]:
        wrapped = add_lora(small_models.model(name), Lora(1, 1.0, "all-linear", wanted), seed=0)
        return {part.partition(".lora_A")[0] for part, _ in wrapped.named_parameters() if "lora_A" in part}

    everywhere, some = adapted(()), adapted((0, 2))
    assert some == {part for part in everywhere if not {"0", "2"}.isdisjoint(part.split("."))}
    assert 0 < len(some) < len(everywhere)
    with pytest.raises(BackendError, match="the model has 3 blocks"):
        adapted((3,))


def test_the_adapter_starts_by_seed() -> None:
    def start(seed: int) -> torch.Tensor:
        wrapped = add_lora(small_models.model(), Lora(3, 6.0, "q_proj", ()), seed)
        return next(p for name, p in wrapped.named_parameters() if "lora_A" in name)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize(("targets", "blocks"), [("c_attn", ()), ("q_proj", (7,))])
def test_a_target_that_is_not_there(targets: str, blocks: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match=re.escape(f"LoRA targets '{targets}' in blocks {list(blocks) or 'all'}: ")) as caught:
        add_lora(small_models.model(), Lora(2, 4.0, targets, blocks), seed=0)
    assert "\n" not in str(caught.value)


def test_gradients_add_up_to_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Rows have different numbers of trained tokens, so the mean of microbatch means would differ."""
    whole, parts = small_models.model(), small_models.model()
    fit(whole, TOK, ROWS, plan(steps=2, batch=8), tmp_path / "whole")
    fit(parts, TOK, ROWS, plan(steps=2, batch=2, gradient_accumulation=4), tmp_path / "parts")
    first, second = log(tmp_path / "whole"), log(tmp_path / "parts")
    assert [e["loss"] for e in first] == pytest.approx([e["loss"] for e in second], rel=1e-4)
    assert [e["grad_norm"] for e in first] == pytest.approx([e["grad_norm"] for e in second], rel=1e-3)


@pytest.mark.parametrize(("rate", "steps"), [(1e20, 3), (1e30, 101)])
def test_a_loss_that_is_no_number_stops_training(tmp_path: Path, rate: float, steps: int) -> None:
    with pytest.raises(BackendError, match=r"training: the loss is .*norm .* at step \d+; lower learning_rate") as caught:
        fit(small_models.model(), TOK, ROWS, plan(steps=steps, learning_rate=rate), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_loss_lost_in_a_step_that_is_not_logged_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = training._Collator.__call__, []

    def poisoned(self: Any, rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 101:
            with torch.no_grad():
                next(net.parameters()).fill_(math.nan)
        return real(self, rows)

    net = small_models.model()
    monkeypatch.setattr(training._Collator, "__call__", poisoned)
    with pytest.raises(BackendError, match="the loss is nan"):
        fit(net, TOK, ROWS, plan(steps=101, learning_rate=1e-5), tmp_path)


class Cut(Exception):
    """A kill, for tests."""


def cut_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop training right after this step's state is on disk."""

    def stop(_self: Any, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise Cut

    patch.setattr(training._Keeper, "on_save", stop)


@pytest.mark.parametrize("half", [None, "nothing", "half a state"])
def test_an_interrupted_training_continues_from_its_last_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str | None
) -> None:
    straight, begun = small_models.model(), small_models.model()
    asked = plan(steps=10, save_every=3, batch=2)
    fit(straight, TOK, ROWS, asked, tmp_path / "straight")
    with monkeypatch.context() as patch:
        cut_at(patch, 6)
        with pytest.raises(Cut):
            fit(begun, TOK, ROWS, asked, tmp_path / "cut")
    if half:
        (tmp_path / "cut" / training.STATE / "checkpoint-9").mkdir()
    if half == "half a state":
        (tmp_path / "cut" / training.STATE / "checkpoint-9" / "trainer_state.json").write_text('{"global_st')
    again, steps = small_models.model(), []
    monkeypatch.setattr(training._Keeper, "on_step_begin", lambda *_, **__: steps.append(1), raising=False)
    fit(again, TOK, ROWS, asked, tmp_path / "cut")
    assert len(steps) == 4
    assert (tmp_path / "cut" / "log.jsonl").read_bytes() == (tmp_path / "straight" / "log.jsonl").read_bytes()
    for a, b in zip(straight.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("steps", "again"), [(4, 1), (5, 2), (6, 3)])
def test_a_training_that_had_ended_is_not_trained_beyond_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, again: int
) -> None:
    """Whether or not the last step is one whose state would be kept, or ends a pass over the data."""
    first, second, counted = small_models.model(), small_models.model(), []
    fit(first, TOK, ROWS, plan(steps=steps, save_every=3), tmp_path)
    monkeypatch.setattr(training._Keeper, "on_step_begin", lambda *_, **__: counted.append(1), raising=False)
    fit(second, TOK, ROWS, plan(steps=steps, save_every=3), tmp_path)
    assert len(counted) == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_is_saved_holds_no_path(tmp_path: Path) -> None:
    save(add_lora(small_models.model(), Lora(2, 4.0, "q_proj", ()), seed=0), TOK, tmp_path / "lora")
    assert {p.name for p in (tmp_path / "lora" / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "lora" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    save(small_models.model(), TOK, tmp_path / "full")
    texts = [p.read_text() for p in (tmp_path / "full" / "weights").iterdir() if p.suffix == ".json"]
    assert texts
    assert not [text for text in texts if str(tmp_path) in text]
    assert isinstance(PeftModel.from_pretrained(small_models.model(), str(tmp_path / "lora" / "adapter")), PeftModel)


def test_a_log_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = tmp_path / "log.jsonl", Path.write_text
    training.rewrite(log, [{"step": 1}])

    def killed(path: Path, text: str) -> None:
        write(path, text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        training.rewrite(log, [{"step": 1}, {"step": 2}])
    assert log.read_text() == '{"step": 1}\n'
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["log.jsonl"]
