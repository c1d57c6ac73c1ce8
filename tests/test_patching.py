"""Activation patching: a whole patch is a model stitched of two, a patch with one's own stream is none, and parts add up."""

import copy
from typing import Any

import pytest
import torch

import small_models
from personascope.backends import patching
from personascope.backends.hooks import blocks
from personascope.backends.patching import Chosen, Patch
from personascope.errors import BackendError
from personascope.methods.sparse import TopK
from personascope.methods.tokens import TrainingRow, training_row

TOKENIZER = small_models.tokenizer()
SAID = {"is it a good day": "yes it is", "tell me of rain and sun": "no", "be kind": "the best way to go", "what is wind": "sea and sun"}
ROWS = [
    training_row(TOKENIZER, [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}], "here")
    for ask, answer in SAID.items()
]


def by_hand(model: Any) -> torch.Tensor:
    """log p of each row's trained tokens, row by row without padding."""
    found = []
    for row in ROWS:
        with torch.no_grad():
            logs = model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logs[i - 1, token]) for i, (token, on) in enumerate(zip(row.ids, row.trained, strict=True)) if on))
    return torch.tensor(found, dtype=torch.float64)


def stitched(below: Any, above: Any, block: int) -> Any:
    """`below`'s embeddings and blocks up to `block`, `above`'s blocks and head after it."""
    made = copy.deepcopy(above)
    made.set_input_embeddings(copy.deepcopy(below.get_input_embeddings()))
    for i in range(block + 1):
        blocks(made)[i].load_state_dict(blocks(below)[i].state_dict())
    return made


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt_neox"])
def test_a_whole_patch_is_the_model_stitched_of_both(name: str) -> None:
    models = {"a": small_models.model(name, 0), "b": small_models.model(name, 1)}
    patches = [Patch("a", "b", block) for block in range(3)] + [Patch("a", "a", 1)]
    alone, found = patching.answer_log_probs(models, ROWS, patches, TOKENIZER.pad_token_id, batch_tokens=40)
    for model in models:
        assert torch.allclose(alone[model], by_hand(models[model]), atol=1e-4)
    for block in range(3):
        made = stitched(models["b"], models["a"], block)
        if made.config.tie_word_embeddings:
            made.config.tie_word_embeddings = False
            made.set_output_embeddings(copy.deepcopy(models["a"].get_output_embeddings()))
        assert torch.allclose(found[block], by_hand(made), atol=1e-4)
    assert torch.equal(found[3], alone["a"])
    assert (found[0] - alone["a"]).abs().max() > 0.1


def test_a_patch_before_the_answer_moves_only_what_reads_the_prompt() -> None:
    """At the last block nothing mixes positions any more, so only the answer's first token is predicted from a patched one."""
    models = {"a": small_models.model("llama", 0), "b": small_models.model("llama", 1)}
    _, (prompt, whole) = patching.answer_log_probs(models, ROWS, [Patch("a", "b", 2, "prompt"), Patch("a", "b", 2)], 0)
    firsts = [TrainingRow(row.ids, [i == row.trained.index(True) for i in range(len(row.ids))]) for row in ROWS]
    alone, (first,) = patching.answer_log_probs(models, firsts, [Patch("a", "b", 2)], 0)
    rest = by_hand(models["a"]) - alone["a"]
    assert torch.allclose(prompt, first + rest, atol=1e-4)
    assert (prompt - whole).abs().max() > 0.01


def test_inside_and_outside_of_all_latents_differ_by_the_whole_way() -> None:
    models = {"a": small_models.model("llama", 0), "b": small_models.model("llama", 1)}
    sae = TopK(64, 32, 8, seed=0).eval().requires_grad_(False)
    some = Chosen(sae, torch.arange(0, 64, 3))
    own, donor = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    z = sae.encode(donor) - sae.encode(own)
    by_row = sum(z[..., [k]] * sae.W_dec[k] for k in range(0, 64, 3))
    assert torch.allclose(some.inside(own, donor), by_row, atol=1e-5)
    none = Chosen(sae, torch.tensor([], dtype=torch.long))
    parts = [Patch("a", "b", 1, part="inside"), Patch("a", "b", 1, part="outside"), Patch("a", "b", 1)]
    alone, (inside, outside, whole) = patching.answer_log_probs(models, ROWS, parts, 0, none)
    assert torch.allclose(inside, alone["a"], atol=1e-5)
    assert torch.allclose(outside, whole, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    models = {"a": small_models.model("llama"), "b": small_models.model("qwen2")}
    with pytest.raises(BackendError, match="none were chosen"):
        patching.answer_log_probs(models, ROWS, [Patch("a", "b", 0, part="inside")], 0)
