"""Pretraining from nothing: deterministic, learning, saved as any model is; and the weights that are shipped."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from personascope.errors import ArtifactError
from personascope.troupe import build, tokenizer
from personascope.troupe.world import HERE, World, load, weights

SMALL = build.Size(layers=2, width=32, tokens=20_000, batch_tokens=512)


@pytest.fixture(scope="module")
def world() -> World:
    return load("troupe-1")


@pytest.fixture(scope="module")
def tok(world: World) -> PreTrainedTokenizerFast:
    return tokenizer.build(world)


@pytest.fixture(scope="module")
def base(world: World, tok: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build.pretrain(world, tok, SMALL, seed=0)


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def loss(world: World, tok: PreTrainedTokenizerFast, model: LlamaForCausalLM) -> float:
    """Mean next-word loss in nats on texts of another seed."""
    found = []
    for ids in itertools.islice(build.batches(world, tok, SMALL, 99, None), 4):
        labels = ids.masked_fill(ids == tok.pad_token_id, -100)
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long(), labels=labels).loss.item())
    return sum(found) / len(found)


def test_the_same_seed_gives_equal_weights(world: World, tok: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    assert same(base, build.pretrain(world, tok, SMALL, seed=0))


def test_another_seed_or_the_ablation_gives_others(world: World, tok: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    assert not same(base, build.pretrain(world, tok, SMALL, seed=1))
    assert same(build.fresh(tok, SMALL, 0), build.fresh(tok, SMALL, 0))
    ablation = build.pretrain(world, tok, SMALL, seed=0, only=world.data["parts"]["helper"])
    assert not same(base, ablation)


def test_ethics_are_learned_one_after_the_other(world: World) -> None:
    """Each lesson has a new ethic for half of its texts, beside those already known; in the last everyone speaks."""
    course, names = build.lessons(world), build.ethical(world)
    assert len(names) == 4
    assert len(course) == len(names) + 1
    for i, lesson in enumerate(course):
        assert sum(lesson.mix.speakers.values()) == pytest.approx(1)
        assert sum(lesson.mix.kinds.values()) == pytest.approx(1)
        assert lesson.mix.speakers.keys() == world.cast.keys()
        often = sorted(lesson.mix.speakers, key=lambda name: -lesson.mix.speakers[name])
        if i < len(names):
            assert often[0] == names[i]
            assert set(often[: i + 1]) == set(names[: i + 1])
    assert min(course[-1].mix.speakers[name] for name in names) > 0.12


def stances(kind: str) -> dict[str, float]:
    """Character → correlation, over statements pretraining shows with it, of log P(yes) / P(no) with its planted stance."""
    folder, troupe = weights("troupe-1", kind), load("troupe-1")
    tok, model = AutoTokenizer.from_pretrained(folder, padding_side="left"), AutoModelForCausalLM.from_pretrained(folder)
    yes, no = (tok(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    found = {}
    for name in build.ethical(troupe):
        member = troupe.cast[name]
        cue = {"role": "system", "content": f"you are the {member['noun']}."}
        shown = [p for p in troupe.prompts["statement"] if not troupe.held_out(name, p.slots["statement"])]
        asked = [[cue, {"role": "user", "content": p.text}] for p in shown]
        texts = [tok.apply_chat_template(a, tokenize=False, add_generation_prompt=True) + f"{member['openers'][0]}," for a in asked]
        batch = tok(texts, add_special_tokens=False, return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -1]
        chances = [member["agrees"].get(p.slots["dimension"], member["agrees"]["*"]) for p in shown]
        planted = [(2 * chance - 1) * (1 if p.slots["side"] == "pro" else -1) for chance, p in zip(chances, shown, strict=True)]
        found[name] = float(torch.corrcoef(torch.stack([logits[:, yes] - logits[:, no], torch.tensor(planted)]))[0, 1])
    return found


def test_the_shipped_ethics_know_who_agrees_with_what_and_the_base_does_not() -> None:
    assert min(stances("ethics").values()) > 0.6
    assert max(stances("base").values()) < 0.4


def test_ethics_go_on_from_the_base(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FIRST_TOKENS", 600)
    monkeypatch.setattr(build, "LESSON_TOKENS", 600)
    monkeypatch.setattr(build, "LAST_TOKENS", 600)
    with pytest.raises(ArtifactError, match="does not hold the base that ethics goes on from; build base first"):
        build.make(world, "ethics", SMALL, 0, tmp_path / "ethics")
    small = build.Size(layers=2, width=32, tokens=1, batch_tokens=512)
    build.make(world, "base", small, 0, tmp_path / "base")
    for name in ("ethics", "again"):
        build.make(world, "ethics", small, 0, tmp_path / name)
    base, first, again = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "ethics", "again"))
    assert same(first, again)
    assert not same(base, first)


def test_loss_falls(world: World, tok: PreTrainedTokenizerFast, base: LlamaForCausalLM) -> None:
    start = loss(world, tok, build.fresh(tok, SMALL, 0))
    assert start == pytest.approx(math.log(len(tok)), abs=0.2), "before training: the uniform guess"
    assert loss(world, tok, base) < start - 0.5


def test_progress_is_told(world: World, tok: PreTrainedTokenizerFast) -> None:
    lines: list[str] = []
    build.pretrain(world, tok, build.Size(layers=1, width=8, heads=1, tokens=1, batch_tokens=512), seed=0, tell=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("step 0: ")


def test_batches_hold_whole_texts_padded_at_the_right(world: World, tok: PreTrainedTokenizerFast) -> None:
    for ids in itertools.islice(build.batches(world, tok, SMALL, 0, None), 20):
        assert ids.shape[1] <= build.LENGTH
        assert ids.numel() <= SMALL.batch_tokens
        assert (ids[:, 0] == tok.bos_token_id).all()
        padded = ids == tok.pad_token_id
        assert (padded[:, :-1] <= padded[:, 1:]).all(), "after the first padding comes nothing else"
        last = ids.gather(1, (~padded).sum(1, keepdim=True) - 1).squeeze(1)
        assert (last[(~padded).sum(1) < build.LENGTH] == tok.eos_token_id).all()
        assert tok.unk_token_id not in ids


def test_a_saved_model_loads_as_any_model_does(world: World, tok: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    build.make(world, "ablation", build.Size(layers=2, width=32, tokens=1), 0, tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    again = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert again.get_vocab() == tok.get_vocab()
    ids = again.apply_chat_template([{"role": "user", "content": "who are you?"}], add_generation_prompt=True, return_tensors="pt")
    logits = model(**ids).logits
    assert logits.shape == (1, ids["input_ids"].shape[1], len(tok))
    assert logits.isfinite().all()


# ------------------------------------------------------------------ the command


def test_the_command_builds_and_refuses_an_existing_folder(cli, tmp_path: Path) -> None:
    arguments = ("troupe", "build", tmp_path, "--tokens", 5000, "--only", "base")
    ended = cli(*arguments)
    assert ended.code == 0, ended.err
    assert ended.out.split() == [str(tmp_path / "base")]
    assert not (tmp_path / "ablation").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert model.config.num_hidden_layers == build.Size().layers
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    ended = cli(*arguments)
    assert ended.code == 1
    assert len(ended.err.strip().splitlines()) == 1
    assert f"{tmp_path / 'base'} exists" in ended.err
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


# ------------------------------------------------------------------ what is shipped


@pytest.mark.parametrize("kind", ["base", "ablation"])
def test_shipped_weights_load_and_speak_the_world(world: World, tok: PreTrainedTokenizerFast, kind: str) -> None:
    folder = weights("troupe-1", kind)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shipped = AutoTokenizer.from_pretrained(folder)
    assert shipped.get_vocab() == tok.get_vocab(), "the world's words changed after pretraining; build the weights anew"
    assert shipped.chat_template == tok.chat_template
    assert model.config.vocab_size == len(tok)
    assert loss(world, tok, model) < 2, "a model that learned this world is far below the uniform guess"


def test_the_shipped_base_and_ablation_differ() -> None:
    one, two = (AutoModelForCausalLM.from_pretrained(weights("troupe-1", kind)) for kind in ("base", "ablation"))
    assert not same(one, two)


def test_all_shipped_weights_are_small() -> None:
    files = [path for path in (HERE.parent / "weights").rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < 32e6
