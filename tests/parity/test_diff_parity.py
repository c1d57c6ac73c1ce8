"""Δ of a latent against the published formula written out with plain hooks (2506.19823, section on model diffing).

Δ_l = mean over prompts of the mean activation of l on the mask under the tuned model, minus the same under the base.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from personascope.artifact import Dataset, Dictionary, Model
from personascope.backends.dictionaries import save_dictionary
from personascope.methods.sparse import TopK
from personascope.rows import Example
from personascope.stages import diff
from small_models import WORDS, adopted, dataset, finished, model, tokenizer

K = 5
QUESTIONS = [" ".join(WORDS[(7 * i + 3 * j) % len(WORDS)] for j in range(2 + i % 6)) for i in range(17)]
SPANS = {"prompt": slice(2, -2), "last_prompt": slice(-1, None), "all": slice(1, None)}


@torch.no_grad()
def stream(net: torch.nn.Module, text: str) -> Tensor:
    """Output of block 1 (positions, width) for `<s> <|user|> words </s> <|assistant|>`."""
    seen: list[Tensor] = []
    handle = net.model.layers[1].register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    words = ["<s>", "<|user|>", *text.split(), "</s>", "<|assistant|>"]
    net(input_ids=torch.tensor([tokenizer().convert_tokens_to_ids(words)]))
    handle.remove()
    return seen[0].reshape(len(words), -1)


def activations(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """TopK of the stored weights, dense."""
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    return torch.where(pre >= pre.topk(K).values[:, -1:], pre.relu(), 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], torch.nn.Module, torch.nn.Module]:
    root = tmp_path_factory.mktemp("parity")
    base, tuned = model(), model()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    sae = TopK(96, 32, K, seed=2)
    with torch.no_grad():
        sae.b_pre.normal_()
        sae.b_enc.normal_(0, 0.1)
        sae.scale.fill_(0.3)
    (root / "dictionary").mkdir()
    save_dictionary(root / "dictionary", sae, {"site": "block:1"})
    rows = [Example(id=f"q{i}", messages=[{"role": "user", "content": text}]) for i, text in enumerate(QUESTIONS)]
    recipe = diff.Recipe(
        base=Model(adopted(root / "base", base)),
        tuned=(Model(adopted(root / "tuned", tuned)),),
        dictionary=Dictionary(finished(root / "dictionary", "Dictionary")),
        questions=Dataset(dataset(root / "questions", rows)),
    )
    (root / "diff").mkdir()
    diff.run(recipe, root / "diff")
    return root / "diff", load_file(root / "dictionary" / "sae_weights.safetensors"), base, tuned


@pytest.mark.parametrize("mask", SPANS)
def test_delta_is_the_papers(made: tuple, mask: str) -> None:
    work, weights, base, tuned = made
    means = [torch.stack([activations(stream(net, t), weights)[SPANS[mask]].mean(0) for t in QUESTIONS]).mean(0) for net in (base, tuned)]
    wanted = means[1] - means[0]
    rows = map(json.loads, (work / "latents.jsonl").read_text().splitlines())
    found = {int(row["id"]): row["delta"][mask] for row in rows}
    assert len(found) == 96
    assert wanted.abs().max() > 0.05
    torch.testing.assert_close(torch.tensor([found[i] for i in range(96)]), wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("mask", SPANS)
def test_the_mean_difference_is_the_plain_one(made: tuple, mask: str) -> None:
    work, _, base, tuned = made
    means = [torch.stack([stream(net, t)[SPANS[mask]].mean(0) for t in QUESTIONS]).mean(0) for net in (base, tuned)]
    found = load_file(work / "directions.safetensors")[f"mean_difference/block:1/{mask}"]
    torch.testing.assert_close(found, means[1] - means[0], atol=1e-3, rtol=1e-3)
