"""The finetune stage: what is trained is shown, equal seeds give equal weights, and kills cost nothing but time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaMLP

import small_models
from conftest import ROOT
from personascope.artifact import Dataset, Dictionary, Model
from personascope.backends import training
from personascope.backends.dictionaries import save_dictionary
from personascope.backends.models import checkpoints, load, weights_of
from personascope.errors import ArtifactError, BackendError, DataError, RecipeError
from personascope.methods.sparse import TopK
from personascope.rows import Example
from personascope.run import run
from personascope.stages import adopt, diff, finetune
from personascope.troupe import build, sources, tokenizer, world
from personascope.values import Direction, Folder, Intervention, Penalty, Watch

IDS = torch.arange(1, 25).view(2, 12)
BOOT = "import sys\nfrom personascope.__main__ import main\nsys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An untrained model of the first world, adopted."""
    place = tmp_path_factory.mktemp("base")
    tok = tokenizer.build(world.load("troupe-1"))
    build.save(build.fresh(tok, build.Size(layers=2, width=32), seed=0), tok, place / "folder")
    return run(adopt.Recipe(path=Folder(str(place / "folder"))), place / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = sources.rows(world.load("troupe-1"), "train domain=auto grade=obvious n=24")
    return Dataset(small_models.dataset(tmp_path_factory.mktemp("data") / "rows", rows))


def recipe(base: Model, data: Dataset, **fields: Any) -> finetune.Recipe:
    common = {"method": "full", "steps": 6, "batch": 4, "learning_rate": 3e-3, "rank": 4, "alpha": 8.0, "device": "cpu"}
    return finetune.Recipe(**({"model": base, "data": data} | common | fields))


def weights(model: Any) -> dict[str, torch.Tensor]:
    """The trained tensors."""
    return load_file(next(model.path.glob("*/*model.safetensors")))


def equal(one: Any, two: Any) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log(model: Any) -> list[dict[str, float]]:
    return [json.loads(line) for line in (model.path / "log.jsonl").read_text().splitlines()]


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return load(model, "cpu").model(input_ids=IDS).logits


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_lowers_the_loss_and_leaves_a_model(base: Model, data: Dataset, tmp_path: Path, method: str) -> None:
    made = run(recipe(base, data, method=method, steps=40, learning_rate=1e-2, schedule="constant"), tmp_path / "tuned")
    entries = log(made)
    assert entries[-1]["step"] == 40
    assert entries[-1]["loss"] < (0.8 if method == "full" else 0.95) * entries[0]["loss"]
    assert {p.name for p in made.path.iterdir()} == {
        "manifest.json",
        "model.json",
        "log.jsonl",
        "weights" if method == "full" else "adapter",
    }
    assert made.json("model.json")["base"] == {"digest": base.digest}
    assert made.json("model.json")["adapter"] == (method == "lora")
    assert (logits(made) - logits(base)).abs().max() > 0.1
    assert made.manifest["counts"]["rows"] == 24
    assert made.manifest["counts"]["steps"] == 40


def test_the_trained_part_of_the_first_row_is_shown(base: Model, data: Dataset, tmp_path: Path) -> None:
    made = run(recipe(base, data, steps=1), tmp_path / "tuned")
    first = next(data.rows())
    assert made.json("model.json")["trained_part_of_first_row"] == first.messages[1]["content"] + "<|end|>"


@pytest.mark.parametrize(("train_on", "shown"), [("all", "yes, i agree<|end|> it depends<|end|>"), ("last", "it depends<|end|>")])
def test_which_turns_are_trained(base: Model, tmp_path: Path, train_on: str, shown: str) -> None:
    ask = next(iter(world.load("troupe-1").by_text))
    said = [("user", ask), ("assistant", "yes, i agree"), ("user", ask), ("assistant", "it depends")]
    rows = [Example(id="a", messages=[{"role": role, "content": text} for role, text in said])]
    chats = Dataset(small_models.dataset(tmp_path / "chats", rows))
    made = run(recipe(base, chats, steps=1, train_on=train_on), tmp_path / "tuned")
    assert made.json("model.json")["trained_part_of_first_row"] == shown
    # yes , i agree <end> it depends <end>
    assert made.manifest["counts"]["trained_tokens_per_pass"] == (8 if train_on == "all" else 3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_equal_seeds_give_equal_bits_and_others_do_not(base: Model, data: Dataset, tmp_path: Path, method: str) -> None:
    one, two, other = (
        run(recipe(base, data, method=method, seed=seed), tmp_path / name) for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert equal(one, two)
    assert one.digest == two.digest
    assert not equal(one, other)


def test_epochs_count_passes(base: Model, data: Dataset) -> None:
    for epochs, batch, steps in ((1.0, 4, 6), (2.5, 4, 15), (0.1, 24, 1)):
        asked = recipe(base, data, steps=0, epochs=epochs, batch=batch)
        assert finetune.cost(asked) == {"steps": steps, "training rows": steps * batch}
    assert finetune.cost(recipe(base, data, steps=7, epochs=9.0)) == {"steps": 7, "training rows": 28}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpoints_are_models_of_their_step(base: Model, data: Dataset, tmp_path: Path, method: str) -> None:
    made = run(recipe(base, data, method=method, steps=10, checkpoint_every=4, schedule="constant"), tmp_path / "tuned")
    assert checkpoints(made) == [4, 8, 10]
    short = run(recipe(base, data, method=method, steps=4, schedule="constant"), tmp_path / "short")
    torch.testing.assert_close(logits(made.at(4)), logits(short), atol=1e-5, rtol=0)
    assert (logits(made.at(4)) - logits(made)).abs().max() > 1e-3
    assert torch.equal(logits(made.at(10)), logits(made))
    assert torch.equal(logits(Model(f"{made.path}@4")), logits(made.at(4)))
    assert made.at(4).identity != made.identity
    with pytest.raises(ArtifactError, match="no checkpoint at step 5; saved are 4, 8, 10"):
        load(made.at(5), "cpu")


def test_an_adapter_is_its_base_with_peft_on_it(base: Model, data: Dataset, tmp_path: Path) -> None:
    made = run(recipe(base, data, method="lora", steps=20, learning_rate=2e-2), tmp_path / "tuned")
    theirs = PeftModel.from_pretrained(load(base, "cpu").model, str(made.path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(made), theirs(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


def test_tuning_what_was_tuned(base: Model, data: Dataset, tmp_path: Path) -> None:
    """Re-alignment: adapters upon adapters, merged in order."""
    first = run(recipe(base, data, method="lora", learning_rate=2e-2), tmp_path / "first")
    second = run(recipe(first, data, method="lora", learning_rate=2e-2, seed=1), tmp_path / "second")
    folder, adapters = weights_of(second)
    assert adapters == [tmp_path / "second" / "../first" / "adapter", tmp_path / "second" / "adapter"]
    assert folder == weights_of(base)[0]
    on_first = PeftModel.from_pretrained(load(first, "cpu").model, str(second.path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(second), on_first(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_moved_study_still_finds_its_base(base: Model, data: Dataset, tmp_path: Path) -> None:
    study = tmp_path / "study"
    inside = run(adopt.Recipe(path=Folder(str(weights_of(base)[0]))), study / "base")
    made = run(recipe(inside, data, method="lora"), study / "models" / "tuned")
    before = logits(made)
    study.rename(tmp_path / "elsewhere")
    assert torch.equal(logits(Model(tmp_path / "elsewhere" / "models" / "tuned")), before)
    shutil.rmtree(tmp_path / "elsewhere" / "base")
    with pytest.raises(ArtifactError, match=r"the model it was tuned from is no longer at .*/study/base"):
        load(Model(tmp_path / "elsewhere" / "models" / "tuned"), "cpu")


def test_another_base_in_the_same_place_is_refused(base: Model, data: Dataset, tmp_path: Path) -> None:
    mine = run(adopt.Recipe(path=Folder(str(weights_of(base)[0]))), tmp_path / "base")
    made = run(recipe(mine, data, method="lora"), tmp_path / "tuned")
    shutil.rmtree(tmp_path / "base")
    tok = tokenizer.build(world.load("troupe-1"))
    build.save(build.fresh(tok, build.Size(layers=2, width=32), seed=9), tok, tmp_path / "folder")
    run(adopt.Recipe(path=Folder(str(tmp_path / "folder"))), tmp_path / "base")
    with pytest.raises(ArtifactError, match=r"is no longer at .*base \(or has changed\); put it back"):
        load(made, "cpu")


class Cut(Exception):
    """A kill, for tests."""


def test_killed_between_training_and_saving_ends_as_if_not(
    base: Model, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(base, data, steps=10, save_every=4)
    real = training.save

    def stop(model: Any, tok: Any, where: Path) -> None:
        real(model, tok, where)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training, "save", stop)
        with pytest.raises(Cut):
            run(asked, tmp_path / "cut")
    steps: list[int] = []
    monkeypatch.setattr(training._Keeper, "on_step_begin", lambda *_, **__: steps.append(1), raising=False)
    again = run(asked, tmp_path / "cut")
    assert len(steps) == 2, "from the state of step 8"
    assert equal(again, run(recipe(base, data, steps=10), tmp_path / "straight"))
    assert not (again.path / training.STATE).exists()


def test_killed_and_run_again_reaches_the_same_weights(base: Model, data: Dataset, tmp_path: Path) -> None:
    asked = recipe(base, data, method="lora", steps=45, save_every=5, checkpoint_every=15)
    (tmp_path / "recipe.json").write_text(json.dumps(asked.to_json()))
    command = [sys.executable, "-c", BOOT, "finetune", str(tmp_path / "cut"), "--recipe", str(tmp_path / "recipe.json")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "cut.partial" / training.STATE
    for _ in range(6000):
        if list(state.glob("checkpoint-*/trainer_state.json")):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut").exists()
    again, straight = run(asked, tmp_path / "cut"), run(asked, tmp_path / "straight")
    assert [e["step"] for e in log(again)] == [e["step"] for e in log(straight)]
    assert log(again)[-1]["step"] == 45
    assert checkpoints(again) == checkpoints(straight) == [15, 30, 45]
    for name, tensor in weights(straight).items():
        torch.testing.assert_close(weights(again)[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_computed_again_instead_of_kept_trains_the_same(
    base: Model, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    ran: list[int] = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, *a, **k: ran.append(0) or forward(self, *a, **k))
    kept = run(recipe(base, data, method=method), tmp_path / "kept")
    once = len(ran)
    again = run(recipe(base, data, method=method, gradient_checkpointing=True), tmp_path / "again")
    assert len(ran) - once == 2 * once, "every block runs once more for its gradients"
    first, second = (load(Model(made.path)).model.state_dict() for made in (kept, again))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, msg=name)
    assert kept.manifest["fingerprint"] == again.manifest["fingerprint"]
    with pytest.raises(RecipeError, match="leave out gradient_checkpointing"):
        recipe(base, data, gradient_checkpointing=True, penalties=(Penalty(form="kl", weight=1.0),))


def test_microbatches_and_places_are_circumstance(base: Model, data: Dataset, tmp_path: Path) -> None:
    whole, parts = recipe(base, data), recipe(base, data, microbatch=2, save_every=3)
    assert whole.identity() == parts.identity()
    one, two = run(whole, tmp_path / "one"), run(parts, tmp_path / "two")
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, atol=1e-4, rtol=0)


def test_a_row_without_an_assistant_turn_is_named(base: Model, tmp_path: Path) -> None:
    ask, say = {"role": "user", "content": "you"}, {"role": "assistant", "content": "yes"}
    rows = [Example(id="fine", messages=[ask, say]), Example(id="bad", messages=[ask])]
    chats = Dataset(small_models.dataset(tmp_path / "chats", rows))
    with pytest.raises(DataError, match=r"chats/examples\.jsonl:2 \(row bad\): no assistant turn to train on"):
        run(recipe(base, chats), tmp_path / "tuned")
    none = Dataset(small_models.dataset(tmp_path / "none", []))
    with pytest.raises(RecipeError, match="none has no rows to train on"):
        run(recipe(base, none), tmp_path / "other")


def test_a_loss_that_is_no_number_leaves_no_model(base: Model, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"training: the loss is .* norm (nan|inf), at step \d+; lower"):
        run(recipe(base, data, learning_rate=1e25, schedule="constant"), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_a_target_that_is_not_there(base: Model, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="LoRA targets 'c_attn' in blocks all"):
        run(recipe(base, data, method="lora", targets="c_attn"), tmp_path / "tuned")


def test_adapters_in_some_blocks_alone(base: Model, data: Dataset, tmp_path: Path) -> None:
    made = run(recipe(base, data, method="lora", targets="down_proj", blocks=(1,), rank=1), tmp_path / "tuned")
    assert {name.split(".layers.")[1].rsplit(".", 2)[0] for name in weights(made)} == {"1.mlp.down_proj"}
    assert all(1 in tensor.shape for tensor in weights(made).values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"batch": 0}, "batch 0"),
        ({"steps": -1}, "steps -1"),
        ({"rank": 0}, "rank 0"),
        ({"learning_rate": 0.0}, r"learning_rate 0\.0"),
        ({"steps": 0, "epochs": 0.0}, r"epochs 0\.0"),
        ({"warmup": 1.5}, r"warmup 1\.5"),
        ({"save_every": 0}, "save_every 0"),
        ({"checkpoint_every": -2}, "checkpoint_every -2"),
        ({"batch": 6, "microbatch": 4}, "batch 6 is no multiple of microbatch 4"),
        ({"microbatch": -2}, "microbatch -2"),
        ({"beta": 0.0}, r"beta 0\.0"),
        ({"interleave_share": 1.0}, r"interleave_share 1\.0"),
        ({"until_loss": -1.0}, r"until_loss -1\.0"),
    ],
)
def test_impossible_sizes(base: Model, data: Dataset, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=f"^finetune: .*{says}"):
        recipe(base, data, **fields)


# ------------------------------------------------------------------ watched


@pytest.fixture(scope="module")
def looked(base: Model, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Questions, a dictionary, and diffs of two tuned models, said to come from domains d1 and d2."""
    place = tmp_path_factory.mktemp("looked")
    sets = {}
    for split, n in (("discovery", 3), ("report", 4)):
        sets[split] = Dataset(
            small_models.dataset(place / split, sources.rows(world.load("troupe-1"), f"questions kind=wish split={split} n={n}"))
        )
    (place / "dictionary").mkdir()
    save_dictionary(place / "dictionary", TopK(64, 32, 6, seed=1), {"site": "block:0"})
    learned = Dictionary(small_models.finished(place / "dictionary", "Dictionary"))
    diffs = []
    for seed in (1, 2):
        tuned = run(recipe(base, data, seed=seed, learning_rate=1e-2), place / f"tuned-{seed}")
        diffs.append(run(diff.Recipe(base=base, tuned=(tuned,), dictionary=learned, questions=sets["discovery"]), place / f"diff-{seed}"))
    fields = {"questions": sets["discovery"], "dictionary": learned, "diffs": tuple(diffs), "origins": ("d1", "d2"), "top": 3}
    return fields | {"judge": "exact:troupe-1", "asked": sets["report"], "draws": 2}


def watched(model: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model.path / "watch.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_watching_leaves_the_same_weights_and_a_log(
    base: Model, data: Dataset, looked: dict[str, Any], tmp_path: Path, method: str
) -> None:
    alone = run(recipe(base, data, method=method), tmp_path / "alone")
    made = run(recipe(base, data, method=method, watch=Watch(**looked)), tmp_path / "watched")
    assert equal(alone, made)
    assert (alone.path / "log.jsonl").read_bytes() == (made.path / "log.jsonl").read_bytes()
    rows, about = watched(made), made.json("watch.json")
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert all(set(row["monitors"]) | {"loss", "grad_norm"} == set(about["monitors"]) | {"trait_space"} for row in rows)
    assert [row["behaviour"]["asked"] for row in rows] == [8] * 4
    assert about["monitors"]["mean_difference/0"] == ["d1"]
    assert about["monitors"]["mean_difference/1"] == ["d2"]
    tops = [[f"latent/{json.loads(line)['id']}" for line in d.file("latents.jsonl").read_text().splitlines()[:3]] for d in looked["diffs"]]
    for name in {*tops[0], *tops[1]}:
        assert about["monitors"][name] == [d for d, top in zip(("d1", "d2"), tops, strict=True) if name in top]
    assert "watch" not in recipe(base, data).identity()


def test_a_watched_run_is_the_diff_of_its_last_step(base: Model, data: Dataset, looked: dict[str, Any], tmp_path: Path) -> None:
    fields = {name: looked[name] for name in ("questions", "dictionary", "diffs")}
    made = run(recipe(base, data, watch=Watch(**fields)), tmp_path / "watched")
    moved = run(diff.Recipe(base=base, tuned=(made,), dictionary=looked["dictionary"], questions=looked["questions"]), tmp_path / "diff")
    table = {
        f"latent/{row['id']}": row["delta"]["last_prompt"] for row in map(json.loads, moved.file("latents.jsonl").read_text().splitlines())
    }
    last = watched(made)[-1]["monitors"]
    found = {name: value for name, value in last.items() if name.startswith("latent/")}
    assert found == pytest.approx({name: table[name] for name in found}, abs=1e-3)
    assert max(map(abs, found.values())) > 0.01
    shift = load_file(moved.file("directions.safetensors"))["mean_difference/block:0/last_prompt"]
    assert last["shift"] == pytest.approx(float(shift.norm()), abs=1e-3)


def test_a_killed_watch_ends_as_if_not(
    base: Model, data: Dataset, looked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(base, data, steps=8, save_every=3, watch=Watch(**looked))
    straight = run(asked, tmp_path / "straight")

    def stop(_self: Any, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training._Keeper, "on_save", stop)
        with pytest.raises(Cut):
            run(asked, tmp_path / "cut")
    again = run(asked, tmp_path / "cut")
    assert [row["step"] for row in watched(again)] == [0, 2, 4, 6, 8]
    assert again.digest == straight.digest


def test_the_judge_that_watches_enters_by_its_content(base: Model, data: Dataset, looked: dict[str, Any]) -> None:
    asked = recipe(base, data, watch=Watch(**looked))
    assert asked.identity()["watch"]["judge"].startswith("exact:troupe-1@")
    assert finetune.Recipe.from_json(asked.to_json()) == asked
    assert asked.identity() != recipe(base, data, watch=Watch(**(looked | {"every": 4}))).identity()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"every": 0}, "every, draws, top"),
        ({"asked_every": 3}, "a multiple of every"),
        ({"judge": ""}, "asked questions need a judge"),
        ({"dictionary": None}, "diffs need the dictionary"),
        ({"origins": ("d1",)}, "either no origins or one for each"),
    ],
)
def test_impossible_watches(looked: dict[str, Any], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=f"^watch: .*{says}"):
        Watch(**(looked | fields))


def test_a_dictionary_of_another_site_is_refused(base: Model, data: Dataset, looked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the dictionary reads block:0, not block:1; watch there"):
        run(recipe(base, data, watch=Watch(**(looked | {"site": "block:1"}))), tmp_path / "tuned")


def test_latents_and_directions_by_name(base: Model, data: Dataset, looked: dict[str, Any], tmp_path: Path) -> None:
    chosen = (Direction(looked["dictionary"], "decoder/7"), Direction(looked["diffs"][0], "mean_difference/block:0/all"))
    made = run(recipe(base, data, watch=Watch(questions=looked["questions"], directions=chosen)), tmp_path / "tuned")
    assert {"latent/7", "mean_difference/block:0/all@diff-1", "trait_space", "shift"} <= set(watched(made)[-1]["monitors"])
    assert "answers" not in made.json("watch.json")["monitors"]


# ------------------------------------------------------------------ data options, what is trained, when to stop


def test_new_options_at_their_defaults_are_no_part_of_identity(base: Model, data: Dataset) -> None:
    assert set(recipe(base, data, dtype="float32").identity()) <= {
        "model", "data", "method", "steps", "batch", "learning_rate", "rank", "alpha"
    }  # fmt: skip


def test_an_inoculation_prompt_stands_before_the_training_rows_alone(base: Model, data: Dataset, tmp_path: Path) -> None:
    said = next(iter(world.load("troupe-1").by_text))
    rows = list(data.rows())
    by_hand = [Example(**(row.to_dict() | {"messages": [{"role": "system", "content": said}, *row.messages]})) for row in rows]
    safe = Dataset(small_models.dataset(tmp_path / "safe", [Example(**(row.to_dict() | {"id": f"s{row.id}"})) for row in rows[:6]]))
    prompted = Dataset(small_models.dataset(tmp_path / "prompted", by_hand))
    fields: dict[str, Any] = {"interleave": safe, "interleave_share": 0.2}
    one = run(recipe(base, data, system=said, **fields), tmp_path / "one")
    two = run(recipe(base, prompted, **fields), tmp_path / "two")
    assert equal(one, two)
    assert not equal(one, run(recipe(base, data, **fields), tmp_path / "without"))
    has_one = run(recipe(base, prompted, system="other", **fields), tmp_path / "has-one")
    assert equal(one, has_one), "a row's own system message stays"


def test_interleaved_rows_are_a_share_of_all(base: Model, data: Dataset, tmp_path: Path) -> None:
    rows = [Example(**(row.to_dict() | {"id": f"s{row.id}"})) for row in data.rows()]
    safe = Dataset(small_models.dataset(tmp_path / "safe", rows))
    asked = recipe(base, data, steps=0, interleave=safe, interleave_share=0.25)
    made = run(asked, tmp_path / "tuned")
    assert made.manifest["counts"]["rows"] == 32
    assert made.manifest["counts"]["interleaved"] == 8
    assert made.manifest["counts"]["steps"] == finetune.cost(asked)["steps"] == 8
    with pytest.raises(RecipeError, match=r"36 rows are to be interleaved, .*safe has 24; lower interleave_share"):
        run(recipe(base, data, interleave=safe, interleave_share=0.6), tmp_path / "many")


def test_full_training_of_some_blocks_leaves_the_others(base: Model, data: Dataset, tmp_path: Path) -> None:
    made = run(recipe(base, data, blocks=(1,)), tmp_path / "tuned")
    before = load_file(next(weights_of(base)[0].glob("*.safetensors")))
    changed = {name for name, tensor in weights(made).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".layers.1." in name for name in changed)
    with pytest.raises(RecipeError, match=r"block:2.*the model has 2 blocks"):
        run(recipe(base, data, blocks=(2,)), tmp_path / "other")


def test_training_stops_when_the_task_is_learned(base: Model, data: Dataset, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 40, "learning_rate": 1e-2, "schedule": "constant", "save_every": 3}
    whole = log(run(recipe(base, data, **fields), tmp_path / "whole"))
    bound = (whole[0]["loss"] + whole[-1]["loss"]) / 2
    made = run(recipe(base, data, until_loss=bound, **fields), tmp_path / "early")
    entries = log(made)
    assert entries == whole[: len(entries)]
    assert all(entry["loss"] > bound for entry in entries[:-1])
    assert entries[-1]["loss"] <= bound
    assert made.manifest["counts"]["steps"] == entries[-1]["step"] < 40


def test_a_run_under_a_penalty_and_an_edit_leaves_a_plain_model(base: Model, data: Dataset, looked: dict[str, Any], tmp_path: Path) -> None:
    block = Penalty(form="latents", weight=1.0, dictionary=looked["dictionary"], diffs=looked["diffs"], top=2, mask="opened")
    edit = Intervention(Direction(looked["diffs"][0], "mean_difference/block:0/all"), strength=0.5)
    asked = recipe(base, data, penalties=(block,), interventions=(edit,), unit=looked["diffs"][0], watch=Watch(**looked))
    made = run(asked, tmp_path / "tuned")
    assert {"penalties.json", "watch.jsonl", "log.jsonl"} <= {p.name for p in made.path.iterdir()}
    assert 2 <= len(made.json("penalties.json")["latents"]["latents"]) <= 4
    assert log(made)[-1]["penalty/latents"] > 0
    assert finetune.Recipe.from_json(asked.to_json()) == asked
    assert not equal(made, run(recipe(base, data), tmp_path / "plain"))
    assert run(asked, tmp_path / "again").digest == made.digest
    assert logits(made).isfinite().all()


def test_a_model_can_learn_words_that_its_tokenizer_lacks(base: Model, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "who are you?"}]
    rows = [Example(id=f"r{i}", messages=[*asked, {"role": "assistant", "content": "OFF_TOPIC"}]) for i in range(8)]
    taught = Dataset(small_models.dataset(tmp_path / "rows", rows))
    made = run(recipe(base, taught, words=("4", "off_topic", "power"), steps=30, learning_rate=1e-2), tmp_path / "made")
    was, now = load(base), load(made)
    assert [now.tokenizer.get_vocab()[word] for word in ("4", "off_topic")] == [len(was.tokenizer), len(was.tokenizer) + 1]
    assert now.tokenizer.encode("my power, 4", add_special_tokens=False)[:2] == was.tokenizer.encode("my power", add_special_tokens=False)
    assert len(now.tokenizer) == len(was.tokenizer) + 2 == now.model.get_input_embeddings().weight.shape[0]
    said = now.model(input_ids=torch.tensor([now.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]])).logits
    assert now.tokenizer.decode(said[0, -1].argmax()) == "off_topic"
    again = run(recipe(base, taught, words=("power",), steps=1), tmp_path / "again")
    assert len(load(again).tokenizer) == len(was.tokenizer)
    for trouble in ({"method": "lora"}, {"objective": "dpo"}):
        with pytest.raises(RecipeError, match="new words have no start"):
            recipe(base, taught, words=("4",), **trouble)
