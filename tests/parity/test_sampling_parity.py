"""Our generation against Hugging Face's: greedy texts, and the distribution that temperature and top-p leave."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from personascope.backends.generation import Prompt, Sampling, draw, generate, stop_ids
from personascope.backends.models import Loaded
from personascope.methods.tokens import prompt_tokens
from small_models import CONFIGS, WORDS, model, tokenizer


@pytest.mark.parametrize("name", list(CONFIGS))
def test_greedy_texts_equal_those_of_generate(name: str) -> None:
    one = Loaded(model(name), tokenizer())
    said = [" ".join(WORDS[(5 * i + j) % len(WORDS)] for j in range(1 + i % 5 * 3)) for i in range(9)]
    asked = [Prompt(prompt_tokens(one.tokenizer, [{"role": "user", "content": text}]), str(i)) for i, text in enumerate(said)]
    ours = dict(generate(one, asked, Sampling(max_tokens=12, temperature=0)))
    inputs = one.tokenizer.pad({"input_ids": [p.ids for p in asked]}, padding_side="left", return_tensors="pt")
    theirs = one.model.generate(
        **inputs, do_sample=False, max_new_tokens=12, eos_token_id=sorted(stop_ids(one)), pad_token_id=one.tokenizer.pad_token_id
    )[:, inputs["input_ids"].shape[1] :]
    for i, row in enumerate(theirs.tolist()):
        ended = next((n for n, token in enumerate(row) if token in stop_ids(one)), None)
        assert ours[i].ids == row[:ended]
        assert ours[i].stop == ("length" if ended is None else "end")


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.05])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_the_distribution_is_that_of_the_warpers(temperature: float, top_p: float) -> None:
    """Evenly spread noise makes the share of each token its probability, to one part in the number of draws."""
    n = 4000
    logits = 2 * torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    noise = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for row in logits:
        warped = TemperatureLogitsWarper(temperature)(None, row[None])
        expected = (TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped).softmax(-1)[0]
        drawn = draw(row.expand(n, -1), noise, temperature, top_p)
        found = torch.bincount(drawn, minlength=len(row)) / n
        assert (found - expected).abs().max() <= 1.01 / n
        assert (found[expected == 0] == 0).all()
