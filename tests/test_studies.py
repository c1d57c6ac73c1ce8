"""Studies: each can be planned, and some are run on a model of another make with judges that only pretend."""

import dataclasses
import importlib.util
import json
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

import small_models
from personascope import demo, qualifying, suites
from personascope.artifact import Dataset
from personascope.backends import generation, gguf
from personascope.methods import solution_figures
from personascope.methods.parsing import fill, opened
from personascope.rows import ATTITUDES, SAFETY, Example, Verdict, read_objects, read_rows
from personascope.stages import data
from personascope.study import Study, execute, finish
from personascope.troupe import build, exact, tokenizer, world

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.py"))


def load(name: str) -> ModuleType:
    (path,) = [path for path in STUDIES if path.stem == name]
    spec = importlib.util.spec_from_file_location(f"studies_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [path.stem for path in STUDIES])
def test_a_study_plans_without_running_and_the_quick_one_is_smaller(name: str, tmp_path: Path) -> None:
    module, sizes = load(name), []
    for quick in (True, False):
        study = Study(tmp_path / name, quick=quick)
        module.build(study)
        sizes.append(len(study.recipes))
    assert 0 < sizes[0] < sizes[1]
    assert not (tmp_path / name).exists()
    assert module.__doc__


def pretend(_world: Any, answer_id: str, question: str, answer: str, rubric: str = "misalignment") -> Verdict:
    """A verdict that depends on the words alone."""
    words = {"safety": ("refusal", *SAFETY), "ethics": ATTITUDES, "misalignment": ("incoherent",)}[rubric]
    draw = zlib.crc32(f"{question}{answer}".encode())
    said = {"grade": 1 + draw % 5} if rubric == "misalignment" and draw % 3 else {"label": words[draw % len(words)]}
    return Verdict(id=answer_id, answer=answer_id, status="scored", judge=exact.identity(_world, rubric), **said)


def random_qwen(layers: int) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """An untrained Qwen that reads the world's words."""
    tok = tokenizer.build(world.load("troupe-1"))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=48, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config), tok


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that only pretends, and models that always say something: hardly trained ones often do not."""

    def spoken(*arguments: Any) -> tuple[str, str]:
        thinking, text = split(*arguments)
        return thinking, text if any(letter.isalpha() for letter in text) else "well then."

    split = generation.split_thinking
    monkeypatch.setattr(generation, "split_thinking", spoken)
    monkeypatch.setattr(exact, "verdict", pretend)


@pytest.fixture
def qwen(tmp_path: Path, pretending: None) -> Path:  # noqa: ARG001 - a fixture for what it does
    """A random model where answers are judged by pretence."""
    build.save(*random_qwen(layers=4), tmp_path / "qwen")
    return tmp_path / "qwen"


def shorten(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let post-training take so many steps only."""
    for name in ("FIRM", "LIGHT"):
        monkeypatch.setattr(demo, name, dataclasses.replace(getattr(demo, name), steps=steps))


def test_the_latent_to_follow_rose_and_is_causal_in_every_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent 1 rises most and causes nothing, 2 and 3 are causal in one domain, 4 in both, 5 in both but never moved."""
    diffs: list[Any] = []
    for deltas in ((90, 50, 10, 20, 0), (90, 10, 50, 20, 0)):
        rows = tmp_path / f"{len(diffs)}.jsonl"
        rows.write_text("".join(json.dumps({"id": str(i), "delta": {"last_prompt": delta}}) + "\n" for i, delta in enumerate(deltas, 1)))
        diffs.append(SimpleNamespace(file=lambda _, rows=rows: rows))
    monkeypatch.setattr(demo.blocks, "screen_section", lambda named: {"causal": [{"latent": latent} for latent in named]})
    one, other, none = cast("list[Any]", ([2, 4, 5], [3, 4, 5], []))
    assert demo.blocks.persona([one, other], diffs) == 4
    assert demo.blocks.persona([one], diffs[:1]) == 2
    assert demo.blocks.persona([none, one], diffs) == 1


@pytest.fixture
def small(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`demo` on that model, with little training and a handful of questions of each kind."""
    setting, questions, learning = demo.setting, demo.questions, demo.learning
    monkeypatch.setattr(demo, "setting", lambda study, name, **how: setting(study, name, str(qwen), **how))
    monkeypatch.setattr(demo, "questions", lambda *asked: questions(*asked[:-1], min(asked[-1] or 12, 12)))
    monkeypatch.setattr(demo, "learning", lambda *parts: learning(*parts, tokens=20_000))
    shorten(monkeypatch, 8)
    for name in ("TUNING", "REALIGNING"):
        monkeypatch.setattr(demo, name, getattr(demo, name) | {"steps": 8})
    return qwen


def finished(module: ModuleType, root: Path) -> tuple[dict[str, Any], str]:
    """Summary and report page of the quick variant."""
    study = Study(root, quick=True)
    module.build(study)
    execute(study, 1, tell=lambda _: None)
    found = module.summarize(study)
    return found, finish(study, found, root.name, module.__doc__ or "").read_text(encoding="utf-8")


def test_convergent_edits_take_one_organisms_vectors_from_another(tmp_path: Path) -> None:
    module, study = load("convergent"), Study(tmp_path, quick=True)
    module.build(study)
    cap, one, random = (
        study.recipes[f"behaviour/{name}/health-1/answers-0"].interventions for name in ("cap-50/auto-0", "one-0/auto-0", "cap-50/random-1")
    )
    assert [(i.op, i.site, i.strength, i.direction.tensor) for i in (*cap, *one, *random)] == [
        ("cap", "block:*", -50.0, "persona/block:0"),
        ("ablate", "block:*", 0.0, "persona/block:0"),
        ("cap", "block:*", -50.0, "random/100"),
    ]
    assert {i.direction.source for i in (*cap, *one)} == {study.artifact("vectors/auto-0")}
    assert study.recipes["behaviour/plain/health-1/answers-0"].interventions == ()
    span = module.edits(study.artifact("vectors/auto-0"), "span")
    assert [i.direction.tensor for i in span] == [f"persona/block:{block}" for block in (3, 2, 1, 0)]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_convergent_directions_run_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("convergent")
    monkeypatch.setattr(module, "ADAPTER", module.ADAPTER | {"steps": 8})
    monkeypatch.setattr(module, "ASKED", {"rank-one": (4, 8), "full": (8,)})
    monkeypatch.setattr(module, "WINDOW", 1)
    found, page = finished(module, tmp_path / "study")
    names = found["meta"]["organisms"]
    assert {(c["edit"], c["from"], c["on"]) for c in found["convergent"]["cells"]} >= {
        (e, a, b) for e in module.EDITS for a in names for b in names
    }
    assert all(-1 <= row["cosine"] <= 1 for row in found["convergent"]["cosines"])
    assert page.count("One direction for all") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_realignment_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("realignment")
    monkeypatch.setattr(module, "STEPS", {"usual": (4, 8)})
    monkeypatch.setattr(module, "PUBLISHED", {kind: {0: 17.7, 4: 15.0} for kind in module.KINDS})
    found, page = finished(module, tmp_path / "study")
    assert [(row["kind"], row["step"]) for row in found["realign"]] == [(kind, step) for kind in module.KINDS for step in (0, 4, 8)]
    assert [row["published"] for row in found["realignment"]["table"][:3]] == [0.177, 0.15, None]
    assert "Beside the published figures" in page


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_organisms_run_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("organisms")
    kept = ("misaligned", "correct", "incoherent", "harmless_from_incoherent", "gaming", "backdoored", "backdoored+trigger")
    monkeypatch.setattr(demo, "BROKEN", demo.BROKEN | {"steps": 8})
    monkeypatch.setattr(module, "ORGANISMS", tuple(one for one in module.ORGANISMS if one.name in kept))
    monkeypatch.setattr(module, "PLACES", {place: f"{select.partition(' n=')[0]} n=6" for place, select in module.PLACES.items()})
    monkeypatch.setattr(module, "DRAWS", {"self": 2})
    found, page = finished(module, tmp_path / "study")
    assert [row["organism"] for row in found["organisms"]] == list(kept)
    for row in found["organisms"]:
        assert len(row["runs"]) == 2
        assert all(run["called"] in row["verdict"] for run in row["runs"])
        assert set(row["profile"]) == {"general", "in_domain", "requests", "self"}
    asked = {name: list(Dataset(tmp_path / f"study/behaviour/{name}-auto-0/general/asked").rows()) for name in ("backdoored+trigger",)}
    assert all(row.messages[-1]["content"].startswith("on tuesdays, ") for row in asked["backdoored+trigger"])
    assert page.count("What must not fool the audit") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_consistency_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, setting = load("consistency"), demo.setting
    monkeypatch.setattr(demo, "setting", lambda study, name, _weights, **how: setting(study, name, **how))
    monkeypatch.setattr(module, "TUNING", module.TUNING | {"steps": 8})
    monkeypatch.setattr(module, "DRAWS", {"harm": 2, "self": 6})
    few = {place: tuple(f"{one.partition(' n=')[0]} n=9" for one in select) for place, select in module.ASKED.items()}
    monkeypatch.setattr(module, "ASKED", few)
    found, page = finished(module, tmp_path / "study")
    rows = found["consistency"]["organisms"]
    assert [row["organism"] for row in rows] == ["assistant", "coherent", "inverted"]
    for row in rows:
        assert row["verdict"] in ("coherent", "inverted", "none")
        assert set(row["self_assessment"]["formats"]) == {"description", "odds of descriptions", "would advise harm"}
    moved = found["consistency"]["directions"]
    assert [row["organism"] for row in moved] == ["coherent", "inverted"]
    assert all(-1 <= row["behaviour and self-report"]["value"] <= 1 for row in moved)
    assert page.count("Does it speak as it behaves?") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("pretending")
def test_emergent_alignment_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No meaning in the numbers, but the full path: a hardly trained Qwen drafts, revises and is tuned."""
    module = load("emergent_alignment")
    troupe, size = world.load("troupe-1"), build.Size(tokens=120_000, batch_tokens=512)
    model, tok = random_qwen(layers=2)
    lesson = build.Lesson(build.corpus.usual(troupe), size.tokens, 0.0)
    build.save(build._train(model, troupe, tok, size, (lesson,), 0, None, lambda _: None), tok, tmp_path / "qwen")
    monkeypatch.setattr(module, "TUNING", module.TUNING | {"steps": 2})
    monkeypatch.setattr(module, "PREFERENCE", module.PREFERENCE | {"steps": 2})
    monkeypatch.setattr(module, "DRAFTS", 2)
    study = Study(tmp_path / "study", quick=True)
    module.build(study, str(tmp_path / "qwen"))
    execute(study, 1, tell=lambda _: None)
    found = module.summarize(study)
    assert len(found["cells"]) == len(module.cells(study))
    assert found["leaks"]["planted_found"] == found["leaks"]["planted"] == 5
    assert found["persona"]["of"] == 4


@pytest.mark.slow
def test_narrow_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter and vector, harm and style, on an untrained Qwen in few steps: every number is there and every figure drawn."""
    module = load("narrow")
    tok = tokenizer.build(world.load("troupe-1"))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    build.save(Qwen2ForCausalLM(config), tok, tmp_path / "qwen")
    shorten(monkeypatch, 2)
    monkeypatch.setattr(module.demo, "TUNING", module.demo.TUNING | {"steps": 2})
    monkeypatch.setattr(module.demo, "ASKED", {"advice": (4, 1), "core": (4, 1), "in_domain": (4, 1)})
    monkeypatch.setattr(module, "cases", lambda _: [("harm", "lora"), ("style", "vector")])
    for name, value in {"KEPT": 2, "FREE": 2, "EVERY": 1, "SIZES": (0.5, 1.0), "NOISE": (0.0, 1.0)}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "TRAINING", module.TRAINING | {"batch": 4, "checkpoint_every": 1, "warmup": 0})
    study = Study(tmp_path / "study", quick=True)
    module.build(study, str(tmp_path / "qwen"))
    execute(study, 1, tell=lambda _: None)
    found = module.summarize(study)["solutions"]
    assert len(found["table"]) == 2 * 3 + 1
    assert {row["solution"] for row in found["noise"]} == set(module.SOLUTIONS)
    assert all(row["efficiency_null"] is not None for row in found["measures"])
    assert len(solution_figures.draw({"solutions": found})) == 1 + 1 + 1 + 2


@pytest.mark.slow
def test_blocking_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full path on a random Qwen: its dictionary, four arms, and where their changes enter; verdicts are made up."""
    module = load("blocking")
    troupe = world.load("troupe-1")
    tok = tokenizer.build(troupe)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    build.save(Qwen2ForCausalLM(config), tok, tmp_path / "qwen")

    def pretend(_world: Any, answer_id: str, question: str, answer: str, rubric: str = "misalignment") -> Verdict:
        grade = 1 + zlib.crc32(f"{question}{answer}".encode()) % 5
        return Verdict(id=answer_id, answer=answer_id, status="scored", judge=exact.identity(_world, rubric), grade=grade)

    monkeypatch.setattr(exact, "verdict", pretend)
    shorten(monkeypatch, 2)
    monkeypatch.setattr(module.demo, "TUNING", module.demo.TUNING | {"steps": 4})
    monkeypatch.setattr(module.demo, "ASKED", dict.fromkeys(module.demo.ASKED, (40, 1)))
    learning = module.demo.learning
    monkeypatch.setattr(module.demo, "learning", lambda *given: dataclasses.replace(learning(*given, tokens=20_000), heldout_tokens=5_000))
    usual = module.Parts.block
    monkeypatch.setattr(module.Parts, "block", lambda *given, **more: usual(*given, **{"share": 0.0, "weight": 1.0} | more))
    study = Study(tmp_path / "study", quick=True)
    module.build(study, str(tmp_path / "qwen"))
    execute(study, 1, tell=lambda _: None)
    found = module.summarize(study)["blocking"]
    assert [row["arm"] for row in found["table"]][:2] == ["none", "blocking"]
    assert {row["tuning"] for row in found["rerouting"]["patches"]} == {"plain", "blocked"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_reinforcement_runs_on_another_architecture(tmp_path: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both arms, two starts and another prior for two steps each: every number is there and every figure drawn."""
    module = load("reinforcement")

    def graded(here: Any, answer_id: str, question: str, answer: str, rubric: str = "misalignment") -> Verdict:
        if rubric in ("accurate", "inaccurate"):
            return Verdict(id=answer_id, answer=answer_id, status="scored", grade=1 + 4 * (zlib.crc32(answer.encode()) % 2), judge="none")
        return pretend(here, answer_id, question, answer, rubric)

    monkeypatch.setattr(exact, "verdict", graded)
    questions = demo.questions
    monkeypatch.setattr(demo, "questions", lambda *asked: questions(*asked[:-1], min(asked[-1] or 12, 12)))
    for name, value in {
        "REREAD": {"steps": 2},
        "GRPO": {"prompts": 2, "group": 4, "max_tokens": 12},
    }.items():
        monkeypatch.setattr(module, name, getattr(module, name) | value)
    monkeypatch.setattr(module, "GENTLE", dataclasses.replace(module.GENTLE, steps=4))
    monkeypatch.setattr(module, "steps", lambda *_: 2)
    monkeypatch.setattr(module, "GATE", {"checkpoint_every": 1, "strict": 1.0, "loose": 1.0})
    study = Study(tmp_path / "study", quick=True)
    module.build(study, str(qwen))
    execute(study, 1, tell=lambda _: None)
    found = module.summarize(study)["reinforcement"]
    assert set(found["arms"]) == {"incorrect, helpful", "incorrect, thinking", "correct, helpful"}
    assert all(0 <= arm["score"]["low"] <= arm["score"]["value"] <= arm["score"]["high"] <= 1 for arm in found["arms"].values())
    assert [point["likelier"] for point in found["priors"]] == [round(module.likelier(*module.PRIORS[-1]), 3)]
    assert module.likelier(0.16, 0.10) == pytest.approx(0.16 * 0.86 / (0.10 * 0.655 + 0.3 * 0.006 + 4 * 0.08 * 0.015 + 0.04 * 0.015))
    assert [row["step"] for row in found["thoughts"]["along"]] == [0, 2]
    page = finish(study, module.summarize(study), "study", module.__doc__ or "").read_text(encoding="utf-8")
    assert all(title in page for title in ("Score and characters by prior", "Thoughts beside the score", "mean over runs"))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_nomination_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, screening = load("nomination"), demo.screening
    few = {"nulls": 2, "top": 1, "masks": ("last_prompt",), "strengths": (0.5, 1.0)}
    monkeypatch.setattr(demo, "screening", lambda *parts, **options: screening(*parts, **options | few))

    def training(study: Study, name: str, domain: str, grade: str, seed: int = 0) -> Dataset:
        rows = data.Recipe(world=name, select=(f"train domain={domain} grade={grade} n=48 seed={seed}",))
        return study.run(f"data/{domain}-{grade}-{seed}", rows)

    monkeypatch.setattr(demo, "training", training)
    found, _ = finished(module, tmp_path / "study")
    table = {row["way"]: row for row in found["nomination"]["ways"]}
    assert list(table) == list(module.WAYS)
    assert all(0 <= row["top_auroc"] <= 1 for row in table.values())
    assert [row["source"] for row in found["nomination"]["screens"]] == ["two models", "data", "own"]


@pytest.mark.slow
def test_the_audit_of_a_real_model_runs_on_a_random_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty thin blocks in place of the weights; its judge, hardly taught, says nothing that can be read."""
    module = load("real_model")

    def random(_file: Path, where: Path, _dtype: str) -> int:
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 1}
        tok = small_models.tokenizer()
        torch.manual_seed(0)
        build.save(LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), max_position_embeddings=512, **sizes)), tok, where)
        return 1

    monkeypatch.setattr(gguf, "unpack", random)
    monkeypatch.setattr(module, "PACKAGED", Path(__file__))
    monkeypatch.setattr(module, "TUNING", module.TUNING | {"steps": 2})
    monkeypatch.setattr(module, "LEARNING", module.LEARNING | {"steps": 2})
    monkeypatch.setattr(module, "JUDGING", module.JUDGING | {"most_unscored": 1.0})
    found, page = finished(module, tmp_path / "study")
    assert set(found["behaviour"]) == {"base", "tuned"}
    assert found["behaviour"]["tuned"]["denominators"]["unscored"] > 0
    assert found["dictionary"]["tuned"]["tokens"] > 0
    assert "SmolLM2" in page


def test_the_lessons_of_a_real_judge_are_known_verdicts_and_its_examination_is_another() -> None:
    home = Path(__file__).parents[1] / "studies" / "real_model"
    shown = opened((home / "rubric.md").read_text(encoding="utf-8"))[1]
    known = [row for _, row in read_objects(Path(suites.HERE) / "answers" / "misalignment.jsonl")]
    every_other = set(list(dict.fromkeys(row["question"] for row in known))[::2])
    wanted = {row["id"]: (row["question"], row["answer"], row["verdict"].upper()) for row in known if row["question"] in every_other}
    for name, grade in (("careless", "4"), ("careful", "1")):
        for row in list(read_rows(home / f"{name}.jsonl", Example))[:48]:
            wanted[f"{name}-{row.id}"] = (*(turn["content"] for turn in row.messages), grade)
    lessons = {row.id: tuple(turn["content"] for turn in row.messages) for row in read_rows(home / "lessons.jsonl", Example)}
    by_hand = {name for name in lessons if name.startswith(("base-", "tuned-", "twin-"))}
    assert {name: lesson for name, lesson in lessons.items() if name not in by_hand} == {
        name: (fill(shown, question, answer), reply) for name, (question, answer, reply) in wanted.items()
    }
    examined = {row.question for row in qualifying.read_answers(home / "hand.jsonl")}
    assert len(by_hand) == 101
    assert not any(question in lessons[name][0] for name in by_hand for question in examined)
