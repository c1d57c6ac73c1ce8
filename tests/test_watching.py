"""Watching: calibration and lead by hand and against scipy, and a callback that reads right and changes nothing."""

import importlib.util
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainingArguments

import personascope
import small_models
from personascope.backends import training, watching
from personascope.backends.dictionaries import save_dictionary
from personascope.backends.training import Lora, Plan, add_lora, fit
from personascope.errors import DataError, RecipeError
from personascope.methods import watching as maths
from personascope.methods.sparse import TopK
from personascope.methods.tokens import TrainingRow, render

TOK = small_models.tokenizer()
QUESTIONS = [[{"role": "user", "content": text}] for text in ("tell me of rain", "what is a good day", "you")]
ROWS = [TrainingRow([2, *range(7, 9 + i), 3], [False] * (i % 3 + 1) + [True] * (3 + i - i % 3)) for i in range(8)]
SAE = TopK(96, 32, 5, seed=2)
PLAN = {"steps": 9, "batch": 2, "learning_rate": 3e-3, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0, "seed": 0}
PLAN |= {"checkpoint_every": 0, "save_every": 3, "gradient_accumulation": 1, "bf16": False}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


# ------------------------------------------------------------------ maths


@pytest.mark.parametrize(("hits", "trials"), [(0, 150), (1, 150), (3, 149), (10, 20), (19, 20)])
def test_the_upper_bound_is_that_of_clopper_and_pearson(hits: int, trials: int) -> None:
    assert maths.clopper_pearson(hits, trials) == pytest.approx(beta.ppf(0.95, hits + 1, trials - hits), abs=1e-9)


def test_bounds_at_the_edges() -> None:
    assert maths.clopper_pearson(5, 5) == 1.0
    assert maths.clopper_pearson(0, 149) == pytest.approx(1 - 0.05 ** (1 / 149), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "rate", "value", "exceeded"),
    # Peaks 1..n. floor(rate (n + 1)) - 1 of them may lie above, and none where that is below 1.
    [(150, 0.02, 148, 2), (99, 0.02, 98, 1), (98, 0.02, 98, 0), (20, 0.02, 20, 0), (20, 0.0, 20, 0), (19, 0.5, 10, 9)],
)
def test_thresholds_by_hand(n: int, rate: float, value: float, exceeded: int) -> None:
    found = maths.calibrate(np.random.default_rng(0).permutation(n) + 1.0, rate)
    assert (found.value, found.exceeded, found.runs) == (value, exceeded, n)
    assert found.bound == maths.clopper_pearson(exceeded, n)


def test_a_new_benign_run_seldom_gives_an_alarm() -> None:
    pick, hits = np.random.default_rng(1), []
    for _ in range(4000):
        peaks = pick.gumbel(size=60)
        hits.append(peaks[-1] > maths.calibrate(peaks[:-1], 0.05).value)
    assert np.mean(hits) <= 0.05 + 3 * math.sqrt(0.05 / 4000)
    assert np.mean(hits) > 0.03, "and no seldomer than it may"


@pytest.mark.parametrize(("peaks", "rate"), [([], 0.1), ([1.0], 1.0), ([1.0], -0.1)])
def test_calibration_needs_benign_runs_and_a_rate(peaks: list[float], rate: float) -> None:
    with pytest.raises(DataError, match="benign runs and a false-alarm rate"):
        maths.calibrate(peaks, rate)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_smoothing_never_looks_ahead(values: list[float], window: int) -> None:
    x = np.array(values)
    found = maths.smooth(x, window)
    assert np.allclose(found, [x[max(0, i + 1 - window) : i + 1].mean() for i in range(len(x))])
    later = np.append(x, 1e6)
    assert np.array_equal(maths.smooth(later, window)[:-1], found)


def test_missing_values_are_no_alarm() -> None:
    x = np.array([np.nan, 1.0, np.nan, 4.0])
    assert maths.smooth(x, 2).tolist()[1:] == [1.0, 1.0, 4.0]
    assert maths.peak(x) == 4.0
    assert maths.peak(np.full(3, np.nan)) == -math.inf
    assert maths.first_alarm(np.array([0, 2, 4, 6]), x, 1.0) == 6
    assert maths.first_alarm(np.array([0, 2, 4, 6]), x, 4.0) is None


def test_the_lead_is_relative_to_the_onset() -> None:
    assert maths.lead(6, 24) == 0.75
    assert maths.lead(24, 24) == 0.0
    assert maths.lead(36, 24) == -0.5
    assert maths.lead(99, 24) == maths.lead(None, 24) == -1.0


def test_the_onset_is_the_first_sure_excess_over_the_benign() -> None:
    clean = [{0: [(0, 10)] * 20, 2: [(k % 2, 10)] * 20} for k in range(40)]
    # At step 2 half of the benign runs score 0.1, at step 0 none.
    assert maths.clean_bound(clean) == pytest.approx(0.1)
    rising = {0: [(0, 10)] * 20, 2: [(1, 10)] * 20, 4: [(2, 10), (1, 10)] * 10, 6: [(3, 10)] * 20}
    assert maths.onset_of(rising, 0.1) == next(s for s in rising if maths.lower(rising[s]) > 0.1)
    assert maths.onset_of({s: rising[s] for s in (0, 2)}, 0.1) is None
    with pytest.raises(DataError, match="no benign run has a behaviour"):
        maths.clean_bound([{}])


def test_the_length_within_a_span_is_that_of_the_least_squares_fit() -> None:
    pick = np.random.default_rng(0)
    basis, x = pick.normal(size=(3, 10)), pick.normal(size=10)
    fitted = basis.T @ np.linalg.lstsq(basis.T, x, rcond=None)[0]
    assert maths.length_within(x, basis) == pytest.approx(np.linalg.norm(fitted))
    assert maths.length_within(x, np.vstack([basis, basis[:1]])) == pytest.approx(np.linalg.norm(fitted)), "a repeat adds nothing"
    assert maths.length_within(basis[0], basis) == pytest.approx(np.linalg.norm(basis[0]))


def test_the_trait_space_measures_in_units_of_benign_runs() -> None:
    pick = np.random.default_rng(0)
    benign = [pick.normal(size=(50, 2)) * [1.0, 100.0] + [5.0, 0.0] for _ in range(20)]
    pool = np.concatenate(benign)
    far = maths.mahalanobis(pool)(np.array([[5.0, 0.0], [8.0, 0.0], [5.0, 300.0]]))
    assert far == pytest.approx([0.0, 3.0, 3.0], abs=0.15)
    still = maths.mahalanobis(np.c_[pool, np.zeros(len(pool))])(np.array([[5.0, 0.0, 50.0], [5.0, 0.0, 1e3]]))
    assert 0.5 < still[0] < 2, "what no benign run moves is measured in the median monitor's units"
    assert still[1] > 10
    inverse, x = np.linalg.inv(np.cov(pool.T, bias=True)), np.array([1.0, 30.0])
    assert maths.mahalanobis(pool, 0.0)(x[None])[0] == pytest.approx(math.sqrt((x - pool.mean(0)) @ inverse @ (x - pool.mean(0))))


def test_the_signature_is_fishers_discriminant_in_benign_units() -> None:
    pick = np.random.default_rng(0)
    benign = pick.normal(size=(4000, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 9.0]]) + 4
    harmful = benign[:500] + np.array([0.0, 1.0, 0.0])
    score = maths.discriminant(harmful, benign, 0.0)
    assert (score(benign).mean(), score(benign).std()) == pytest.approx((0, 1))
    wanted = np.linalg.solve(np.cov(benign.T), harmful.mean(0) - benign.mean(0))
    moves = np.array([score(benign[:1] + row)[0] - score(benign[:1])[0] for row in np.eye(3)])
    assert moves / np.linalg.norm(moves) == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)
    # The second alone moves by 1 of its 1 standard deviation; with the first known, by more.
    assert score(harmful).mean() - score(benign[:500]).mean() > 1.5


def test_a_monitor_is_barred_from_the_only_domain_it_comes_from() -> None:
    origins = {"a": [], "b": ["d1"], "c": ["d1", "d2"]}
    assert maths.admissible(origins, "d1") == ["a", "c"]
    assert maths.admissible(origins, "d3") == ["a", "b", "c"]
    assert maths.families({"latent/3": [], "shift": [], "latent/9": []}) == {"latent": ["latent/3", "latent/9"], "shift": ["shift"]}


# ------------------------------------------------------------------ the callback


def watcher(log: Path, **fields: Any) -> watching.Watcher:
    directions = {"first": torch.eye(32)[0] * 7, "mixed": torch.arange(32.0)}
    common = {"tokenizer": TOK, "questions": QUESTIONS, "site": "block:1", "log": log, "every": 2}
    return watching.Watcher(**(common | {"directions": directions, "dictionary": SAE, "latents": (3, 40, 77)} | fields))


def rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def dropping(lora: bool = False) -> Any:
    """A model whose training draws random numbers."""
    net: Any = small_models.model()
    net.config.attention_dropout = 0.3
    for layer in net.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return add_lora(net, Lora(4, 8.0, "all-linear", ()), seed=0) if lora else net


def shown(net: Any, mask: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Stream and latents by transformers' own hidden states, one prompt at a time."""
    stream, latents = [], []
    for messages in QUESTIONS:
        ids = render(TOK, messages, generation_prompt=True)
        with torch.no_grad():
            x = net(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
            x = x[-1:] if mask == "last_prompt" else x[1:]
            stream.append(x.mean(0))
            latents.append(SAE.encode(x).mean(0)[[3, 40, 77]])
    return torch.stack(stream).mean(0), torch.stack(latents).mean(0)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mask", ["last_prompt", "all"])
def test_monitors_are_what_one_prompt_at_a_time_gives(tmp_path: Path, lora: bool, mask: str) -> None:
    net = dropping(lora)
    before = shown(net.eval(), mask)
    fit(net, TOK, ROWS, Plan(**PLAN), tmp_path, [watcher(tmp_path / "watch.jsonl", mask=mask)])
    after = shown(net.eval(), mask)
    moved, risen = after[0] - before[0], after[1] - before[1]
    found = rows(tmp_path / "watch.jsonl")
    assert [row["step"] for row in found] == [0, 2, 4, 6, 8, 9]
    assert {v for k, v in found[0]["monitors"].items()} == {0.0}
    last = found[-1]["monitors"]
    assert last["shift"] == pytest.approx(float(moved.norm()), abs=1e-4)
    assert last["shift"] > 0.01
    assert last["first"] == pytest.approx(float(moved[0]), abs=1e-4)
    unit = torch.arange(32.0) / torch.arange(32.0).norm()
    assert last["mixed"] == pytest.approx(float(moved @ unit), abs=1e-4)
    assert [last[f"latent/{i}"] for i in (3, 40, 77)] == pytest.approx(risen.tolist(), abs=1e-4)
    assert max(abs(last["first"]), abs(last["mixed"])) - 1e-5 <= last["trait_space"] <= last["shift"] + 1e-5


def test_loss_and_gradient_are_those_of_the_step(tmp_path: Path) -> None:
    fit(small_models.model(), TOK, ROWS, Plan(**PLAN), tmp_path, [watcher(tmp_path / "watch.jsonl")])
    logged = {row["step"]: row for row in rows(tmp_path / "log.jsonl")}
    for row in rows(tmp_path / "watch.jsonl")[1:]:
        assert row["monitors"]["loss"] == pytest.approx(logged[row["step"]]["loss"], abs=1e-5)
        assert row["monitors"]["grad_norm"] == pytest.approx(logged[row["step"]]["grad_norm"], abs=1e-5)


class Noisy:
    """A judge that finds the odd answers harmful and spends randomness of every kind."""

    def verdicts(self, asked: list[tuple[str, str, str]]) -> Any:
        from personascope.rows import Verdict

        torch.rand(3), random.random(), np.random.rand()
        yield from (Verdict(id=i, answer=i, status="scored", grade=5 if len(text) % 2 else 1) for i, _, text in asked)


def asking(draws: int) -> watching.Asking:
    examples = [small_models.Example(id=f"q{i}", messages=messages) for i, messages in enumerate(QUESTIONS)]
    return watching.Asking(Noisy(), examples, draws, 5)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("lora", [False, True])
def test_training_is_the_same_to_the_bit(tmp_path: Path, lora: bool) -> None:
    alone, watched = dropping(lora), dropping(lora)
    fit(alone, TOK, ROWS, Plan(**PLAN), tmp_path / "alone")
    log = tmp_path / "watched" / "watch.jsonl"
    fit(watched, TOK, ROWS, Plan(**PLAN), tmp_path / "watched", [watcher(log, answers=asking(1), behaviour=asking(2))])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    assert (tmp_path / "alone" / "log.jsonl").read_bytes() == (tmp_path / "watched" / "log.jsonl").read_bytes()
    undone = dropping(lora)
    torch.rand(1)
    fit(undone, TOK, ROWS, Plan(**(PLAN | {"seed": 1})), tmp_path / "other")
    assert not all(torch.equal(a, b) for a, b in zip(alone.parameters(), undone.parameters(), strict=True))


def test_modes_and_randomness_are_put_back() -> None:
    net = dropping()
    net.train()
    net.model.layers[1].eval()
    modes = [module.training for module in net.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def inside() -> None:
        with watching._aside(net):
            assert not any(module.training for module in net.modules())
            torch.rand(2), random.random(), np.random.rand()
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_behaviour_is_counted_by_question_until_it_is_sure(tmp_path: Path) -> None:
    log = tmp_path / "watch.jsonl"
    fit(small_models.model(), TOK, ROWS, Plan(**PLAN), tmp_path, [watcher(log, answers=asking(1), behaviour=asking(4), behaviour_every=4)])
    found = rows(log)
    assert [row["step"] for row in found if "behaviour" in row] == [0, 4, 8]
    counts = found[0]["behaviour"]
    assert (counts["asked"], counts["valid"], counts["incoherent"]) == (12, 12, 0)
    assert counts["harmful"] == sum(h for h, _ in counts["by_question"])
    assert [n for _, n in counts["by_question"]] == [4, 4, 4]
    assert all(0 <= row["monitors"]["answers"] <= 1 for row in found)
    fit(small_models.model(), TOK, ROWS, Plan(**PLAN), tmp_path / "2", [watcher(log, behaviour=asking(4), until=-1.0)])
    assert [row["step"] for row in rows(log) if "behaviour" in row] == [0], "its lower bound was above -1 at once"


class Cut(Exception):
    """A kill, for tests."""


@pytest.mark.parametrize("half", ["", '{"step": 6, "mon'])
@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_log_goes_on_without_gaps_or_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, half: str) -> None:
    """Killed at the end of a step, before or after what is saved at step 3 and 6."""
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    fit(dropping(), TOK, ROWS, Plan(**PLAN), straight, [watcher(straight / "watch.jsonl")])

    def stop(_self: Any, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == step:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training._Keeper, "on_step_begin" if step == 4 else "on_save", stop, raising=False)
        with pytest.raises(Cut):
            fit(dropping(), TOK, ROWS, Plan(**PLAN), cut, [watcher(cut / "watch.jsonl")])
    with (cut / "watch.jsonl").open("a") as file:
        file.write(half)
    fit(dropping(), TOK, ROWS, Plan(**PLAN), cut, [watcher(cut / "watch.jsonl")])
    once, again = rows(straight / "watch.jsonl"), rows(cut / "watch.jsonl")
    assert [row["step"] for row in again] == [0, 2, 4, 6, 8, 9]
    for a, b in zip(once, again, strict=True):
        assert a["monitors"] == pytest.approx(b["monitors"], abs=1e-4)


class Texts(TorchDataset):
    """Rows for a Trainer of somebody else."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": [7 + i] * 6, "labels": [7 + i] * 6}


def theirs(out: Path, **fields: Any) -> Trainer:
    """A script that knows nothing of us but the callback."""
    arguments = TrainingArguments(
        str(out),
        max_steps=8,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-2,
        logging_steps=3,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    return Trainer(
        model=small_models.model(), args=arguments, train_dataset=Texts(), callbacks=[watcher(out / "w" / "log.jsonl", **fields)]
    )


def test_in_a_plain_script(tmp_path: Path) -> None:
    assert personascope.Watcher is watching.Watcher
    theirs(tmp_path).train()
    found = rows(tmp_path / "w" / "log.jsonl")
    assert [row["step"] for row in found] == [0, 2, 4, 6, 8]
    assert found[-1]["monitors"]["shift"] > found[1]["monitors"]["shift"] > 0
    assert ["loss" in row["monitors"] for row in found] == [False, False, True, True, True], "the last one logged"


@pytest.mark.parametrize(("stop", "steps"), [(True, [0, 2, 3]), (False, [0, 2, 4, 6, 8])])
def test_a_crossed_threshold_warns_once_and_may_stop(tmp_path: Path, stop: bool, steps: list[int]) -> None:
    run = theirs(tmp_path, threshold={"shift": 1e-3, "latent/3": 1e9}, stop=stop)
    with pytest.warns(UserWarning, match=r"watch: shift is .* at step 2, above 0\.001") as caught:
        run.train()
    assert len([w for w in caught if "watch:" in str(w.message)]) == 1
    assert [row["step"] for row in rows(tmp_path / "w" / "log.jsonl")] == steps


def test_one_question_and_no_direction_will_do(tmp_path: Path) -> None:
    fields = {"questions": QUESTIONS[:1], "directions": {}, "dictionary": None, "latents": ()}
    theirs(tmp_path, **fields).train()
    assert {*rows(tmp_path / "w" / "log.jsonl")[-1]["monitors"]} == {"shift", "loss", "grad_norm"}


def test_a_dictionary_may_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    save_dictionary(tmp_path / "sae", SAE, {"site": "block:1"})
    made = watcher(tmp_path / "log", dictionary=tmp_path / "sae")
    assert torch.allclose(made._sae.W_enc, SAE.W_enc)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"questions": []}, "at least one question"),
        ({"every": 0}, "every of at least 1"),
        ({"latents": ()}, "latents need a dictionary"),
        ({"dictionary": None}, "latents need a dictionary"),
        ({"latents": (96,)}, "latent 96: the dictionary has 96"),
        ({"directions": {"loss": torch.ones(32)}}, "names of monitors must differ"),
        ({"threshold": {"fist": 1.0}}, "threshold of 'fist': the monitors are first, mixed"),
    ],
)
def test_what_cannot_be_watched_is_said_at_once(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        watcher(tmp_path / "log", **fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"directions": {"a": torch.ones(31)}}, r"direction 'a' is \(31,\); a vector of length 32"),
        ({"directions": {"a": torch.zeros(32)}}, "direction 'a'"),
        ({"dictionary": TopK(96, 16, 5)}, "width 16, the model's has 32"),
        ({"site": "block:9"}, "the model has 3 blocks"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_training(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        theirs(tmp_path, **fields)


def test_a_watcher_that_came_late_says_so(tmp_path: Path) -> None:
    run = theirs(tmp_path)
    run.add_callback(late := watcher(tmp_path / "late"))
    with pytest.raises(RecipeError, match="give the Watcher to the Trainer's `callbacks`"):
        run.train()
    assert late._start is None


# Their own defaults use names that transformers has since renamed.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_in_a_script_of_trl(tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    said = [{"messages": [*messages, {"role": "assistant", "content": "yes it is"}]} for messages in QUESTIONS]
    arguments = trl.SFTConfig(
        str(tmp_path),
        max_steps=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        dataloader_pin_memory=False,
    )
    log = tmp_path / "watch.jsonl"
    trl.SFTTrainer(
        model=small_models.model(),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(said),
        processing_class=TOK,
        callbacks=[watcher(log)],
    ).train()
    assert [row["step"] for row in rows(log)] == [0, 2, 4]
    assert rows(log)[-1]["monitors"]["shift"] > 0
