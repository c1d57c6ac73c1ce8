"""The logit lens against its formula on norms of each kind, and pieces of tokens that read as their text."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from personascope.backends.lens import WORDS, Lens, pieces
from personascope.backends.models import Loaded
from small_models import CONFIGS, model, tokenizer


def loaded(name: str) -> Loaded:
    made = model(name, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for child in made.get_decoder().children():
            for parameter in child.parameters(recurse=False):
                if parameter.ndim == 1:
                    parameter.add_(torch.rand(parameter.shape, generator=generator))
    return Loaded(made, tokenizer())


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_unembedding_of_the_normed_direction(name: str) -> None:
    one = loaded(name)
    decoder = one.model.get_decoder()
    norm = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(name, "norm")
    lens = Lens.of(one)
    assert lens.name == norm
    weight = dict(decoder.named_children())[norm].weight.detach()
    d = torch.randn(32, generator=torch.Generator().manual_seed(3))
    x = d - d.mean() if norm != "norm" else d
    x = x / x.pow(2).mean().sqrt() * (1 + weight if name.startswith("gemma") else weight)
    wanted = one.model.get_output_embeddings().weight.detach()[: len(one.tokenizer)] @ x
    torch.testing.assert_close(lens.logits(d * 7), wanted - wanted.mean(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(lens.logits(-d), -lens.logits(d))


def test_words_stand_at_their_ends() -> None:
    one = loaded("llama")
    lens = Lens.of(one)
    d = torch.randn(32, generator=torch.Generator().manual_seed(3))
    logits, found = lens.logits(d), lens.words(d)
    assert [len(found[end]) for end in ("raised", "lowered")] == [WORDS, WORDS]
    assert found["raised"][0] == {"token": one.tokenizer.decode([int(logits.argmax())]), "logit": round(float(logits.max()), 4)}
    assert found["lowered"][0]["logit"] == round(float(logits.min()), 4)
    assert all(entry["logit"] > 0 for entry in found["raised"])


def test_a_model_without_a_final_norm_is_read_without_one() -> None:
    one = loaded("llama")
    lens = Lens(Lens.of(one).unembedding, None, "none", one.tokenizer)
    d = torch.randn(32)
    wanted = one.model.get_output_embeddings().weight.detach()[: len(one.tokenizer)] @ d
    torch.testing.assert_close(lens.logits(d) * d.norm() / 32**0.5, wanted - wanted.mean(), atol=1e-4, rtol=1e-4)


def test_pieces_read_as_the_text() -> None:
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    byte_level = PreTrainedTokenizerFast(tokenizer_object=core)
    text = "na\u00efve \U0001f642  and <b>\nmore"
    found = pieces(byte_level, byte_level(text)["input_ids"])
    assert "".join(found) == text
    assert len(found) == len(text.encode())
    assert found[2] == ""
    assert found[3] == "\u00ef"
    words = tokenizer()
    ids = words("tell me of rain")["input_ids"]
    assert pieces(words, ids) == ["tell", " me", " of", " rain"]
