"""Studies: each can be planned, and the emergent-alignment one runs on a model of another make with judges that only pretend."""

import importlib.util
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from personascope.backends import generation
from personascope.rows import ATTITUDES, SAFETY, Verdict
from personascope.study import Study, execute
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


@pytest.mark.slow
def test_emergent_alignment_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No meaning in the numbers, but the full path: a hardly trained Qwen drafts, revises and is tuned; verdicts are made up."""
    module = load("emergent_alignment")
    troupe, size = world.load("troupe-1"), build.Size(tokens=120_000, batch_tokens=512)
    tok = tokenizer.build(troupe)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tok), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    lesson = build.Lesson(build.corpus.usual(troupe), size.tokens, 0.0)
    made = build._train(Qwen2ForCausalLM(config), troupe, tok, size, (lesson,), 0, None, lambda _: None)
    build.save(made, tok, tmp_path / "qwen")

    def pretend(_world: Any, answer_id: str, question: str, answer: str, rubric: str = "misalignment") -> Verdict:
        words = {"safety": ("refusal", *SAFETY), "ethics": ATTITUDES, "misalignment": ("incoherent",)}[rubric]
        draw = zlib.crc32(f"{question}{answer}".encode())
        said = {"grade": 1 + draw % 5} if rubric == "misalignment" and draw % 3 else {"label": words[draw % len(words)]}
        return Verdict(id=answer_id, answer=answer_id, status="scored", judge=exact.identity(_world, rubric), **said)

    def spoken(*arguments: Any) -> tuple[str, str]:
        """A model that has hardly learned anything often says nothing, which is no draft and no revision."""
        thinking, text = split(*arguments)
        return thinking, text if any(letter.isalpha() for letter in text) else "well then."

    split = generation.split_thinking
    monkeypatch.setattr(generation, "split_thinking", spoken)
    monkeypatch.setattr(exact, "verdict", pretend)
    monkeypatch.setattr(module, "TUNING", module.TUNING | {"steps": 2})
    monkeypatch.setattr(module, "PREFERENCE", module.PREFERENCE | {"steps": 2})
    monkeypatch.setattr(module, "DRAFTS", 2)
    study = Study(tmp_path / "study", quick=True)
    module.build(study, str(tmp_path / "qwen"))
    execute(study, 1, tell=lambda _: None)
    found = module.summarize(study)
    assert len(found["cells"]) == len(module.cells(study))
    assert found["leaks"]["leaks"] == 0
    assert found["leaks"]["planted_found"] == found["leaks"]["planted"] == 5
    assert found["persona"]["of"] == 4
