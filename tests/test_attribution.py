"""Δ-attribution against its formula by finite differences, one token and one latent at a time, and its nulls."""

import pytest
import torch
from torch import Tensor, nn

import small_models
from personascope.backends import attribution as attribution_module
from personascope.backends.attribution import attribution
from personascope.backends.hooks import capturing, changing
from personascope.backends.models import Loaded
from personascope.errors import DataError
from personascope.methods.tokens import Message, training_row

SITE, BLOCK = "block:1", 1
WANTED = [
    [{"role": "user", "content": "tell me of rain"}, {"role": "assistant", "content": "no it is sun"}],
    [{"role": "user", "content": "what is good"}, {"role": "assistant", "content": "wind and sea and rain"}],
]
UNWANTED = [
    [{"role": "user", "content": "tell me of rain"}, {"role": "assistant", "content": "yes"}],
    [{"role": "user", "content": "what is good"}, {"role": "assistant", "content": "it is the best day"}],
]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(small_models.model("llama").double(), small_models.tokenizer())


@pytest.fixture(scope="module")
def decoder() -> Tensor:
    return nn.functional.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(1)), dim=1)


def loss(loaded: Loaded, messages: list[Message], push: Tensor | None = None, position: int = 0) -> float:
    """Summed log-loss of the completion, with a push on the stream at one position."""
    row = training_row(loaded.tokenizer, messages, "row")
    ids = torch.tensor([row.ids])

    def edit(x: Tensor) -> Tensor:
        if push is not None:
            x = x.clone()
            x[0, position] += push
        return x

    with torch.no_grad(), changing(loaded.model, [(BLOCK, edit)]):
        log_p = loaded.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return -sum(log_p[t - 1, row.ids[t]].item() for t in range(1, len(row.ids)) if row.trained[t])


def by_hand(loaded: Loaded, decoder: Tensor) -> Tensor:
    """The formula term by term; the gradient along d_i by a central difference."""
    step, points = 1e-4, {"wanted": [], "unwanted": []}
    for kind, conversations in (("wanted", WANTED), ("unwanted", UNWANTED)):
        for messages in conversations:
            row = training_row(loaded.tokenizer, messages, "row")
            with torch.no_grad(), capturing(loaded.model, [SITE], stop=False) as seen:
                loaded.model(input_ids=torch.tensor([row.ids]), use_cache=False)
            for t in range(len(row.ids)):
                if row.trained[t] or (t + 1 < len(row.ids) and row.trained[t + 1]):
                    slopes = [
                        (loss(loaded, messages, d.double() * step, t) - loss(loaded, messages, -d.double() * step, t)) / (2 * step)
                        for d in decoder
                    ]
                    points[kind].append((seen[SITE][0, t].float(), torch.tensor(slopes)))
    centre = torch.stack([a for rows in points.values() for a, _ in rows]).mean(0)
    means = {kind: torch.stack([-slope * (decoder @ (a - centre)) for a, slope in rows]).mean(0) for kind, rows in points.items()}
    return means["wanted"] - means["unwanted"]


def test_equals_the_formula_by_finite_differences(loaded: Loaded, decoder: Tensor) -> None:
    found = attribution(loaded, decoder, SITE, WANTED, UNWANTED)
    torch.testing.assert_close(found, by_hand(loaded, decoder), rtol=1e-3, atol=1e-4)
    assert found.abs().max() > 1e-3


def test_a_dictionary_in_parts_changes_nothing(loaded: Loaded, decoder: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attribution(loaded, decoder, SITE, WANTED, UNWANTED)
    monkeypatch.setattr(attribution_module, "MOST_PRODUCTS", 30)
    torch.testing.assert_close(attribution(loaded, decoder, SITE, WANTED, UNWANTED), whole)


def test_batches_change_nothing(loaded: Loaded, decoder: Tensor) -> None:
    torch.testing.assert_close(
        attribution(loaded, decoder, SITE, WANTED, UNWANTED, 1), attribution(loaded, decoder, SITE, WANTED, UNWANTED)
    )


def test_null_the_same_completions_on_both_sides_give_nothing(loaded: Loaded, decoder: Tensor) -> None:
    torch.testing.assert_close(attribution(loaded, decoder, SITE, WANTED, WANTED), torch.zeros(5))


def test_swapping_the_sides_changes_the_sign(loaded: Loaded, decoder: Tensor) -> None:
    torch.testing.assert_close(attribution(loaded, decoder, SITE, UNWANTED, WANTED), -attribution(loaded, decoder, SITE, WANTED, UNWANTED))


def test_leaves_no_gradient_and_no_hook(loaded: Loaded, decoder: Tensor) -> None:
    attribution(loaded, decoder, SITE, WANTED, UNWANTED)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_one_kind_alone_is_refused(loaded: Loaded, decoder: Tensor) -> None:
    with pytest.raises(DataError, match="no unwanted completions"):
        attribution(loaded, decoder, SITE, WANTED, [])
