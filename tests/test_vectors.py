"""Reading contrasts: every site and mask against a slow loop, one row at a time; padding and batches change nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import small_models
from personascope.backends import vectors
from personascope.backends.models import Loaded
from personascope.errors import DataError

Chats = list[list[dict[str, str]]]


def chats(n: int = 9) -> Chats:
    """Conversations of uneven length, every other one with a system message."""
    pick = np.random.default_rng(0)
    rows = []
    for i in range(n):
        said = [" ".join(pick.choice(small_models.WORDS, size=pick.integers(1, 9))) for _ in range(3)]
        roles = ("system", "user", "assistant")
        rows.append([{"role": role, "content": text} for role, text in zip(roles, said, strict=True)][i % 2 :])
    return rows


def slow(loaded: Loaded, rows: Chats, weights: np.ndarray, mask: str) -> dict[str, torch.Tensor]:
    """The same by one forward per row over ids built by hand, read off plain hooks."""
    ids_of: Callable[[str], list[int]] = lambda text: loaded.tokenizer.convert_tokens_to_ids(text.split())  # noqa: E731
    sums: dict[str, torch.Tensor] = {}
    for row, weight in zip(rows, weights.T, strict=True):
        prompt = "<s> " + " ".join(f"<|{m['role']}|> {m['content']} </s>" for m in row[:-1]) + " <|assistant|>"
        before, answer = ids_of(prompt), ids_of(row[-1]["content"])
        places = {
            "response": range(len(before), len(before) + len(answer)),
            "last_prompt": [len(before) - 1],
            "prompt_avg": range(1, len(before)),
        }
        seen: dict[int, torch.Tensor] = {}

        def hook(block: int, seen: dict[int, torch.Tensor] = seen) -> Callable[..., None]:
            return lambda _m, _i, out: seen.update({block: (out[0] if isinstance(out, tuple) else out)[0]})

        layers = loaded.model.get_decoder().layers
        handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
        with torch.no_grad():
            loaded.model(torch.tensor([before + answer]))
        for handle in handles:
            handle.remove()
        for block, x in seen.items():
            mean = torch.stack([x[i] for i in places[mask]]).mean(0)
            sums[f"block:{block}"] = sums.get(f"block:{block}", 0) + torch.from_numpy(weight).float()[:, None] * mean
    return sums


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return Loaded(small_models.model(request.param), small_models.tokenizer())


@pytest.mark.parametrize("mask", vectors.MASKS)
def test_every_site_is_as_in_a_slow_loop(loaded: Loaded, mask: str) -> None:
    rows = chats()
    weights = np.random.default_rng(1).normal(size=(2, len(rows)))
    found = vectors.read_contrasts(loaded, rows, weights, batch_tokens=64).sums[mask]
    expected = slow(loaded, rows, weights, mask)
    assert set(found) == set(expected) == {"block:0", "block:1", "block:2"}
    for site, one in expected.items():
        assert found[site].dtype == torch.float32
        torch.testing.assert_close(found[site], one, atol=2e-4 * one.abs().max().item(), rtol=1e-4)


def test_batches_and_company_change_nothing(loaded: Loaded) -> None:
    rows = chats(12)
    weights = np.random.default_rng(2).normal(size=(3, len(rows)))
    alone, together = (vectors.read_contrasts(loaded, rows, weights, batch_tokens=tokens) for tokens in (1, 100_000))
    order = np.random.default_rng(3).permutation(len(rows))
    turned = vectors.read_contrasts(loaded, [rows[i] for i in order], weights[:, order], batch_tokens=60)
    assert together.lengths == alone.lengths == [len(row[-1]["content"].split()) for row in rows]
    for mask, of in together.sums.items():
        for site, one in of.items():
            for other in (alone, turned):
                torch.testing.assert_close(one, other.sums[mask][site], atol=2e-4 * one.abs().max().item(), rtol=1e-4)


def test_masks_differ_and_the_end_of_turn_is_not_read(loaded: Loaded) -> None:
    rows = chats(4)
    read = vectors.read_contrasts(loaded, rows, np.full((1, 4), 0.25))
    assert not torch.allclose(read.sums["response"]["block:1"], read.sums["last_prompt"]["block:1"])
    assert not torch.allclose(read.sums["prompt_avg"]["block:1"], read.sums["last_prompt"]["block:1"])
    longer = [[*row[:-1], {"role": "assistant", "content": row[-1]["content"] + " rain"}] for row in rows]
    other = vectors.read_contrasts(loaded, longer, np.full((1, 4), 0.25))
    torch.testing.assert_close(other.sums["last_prompt"]["block:2"], read.sums["last_prompt"]["block:2"], atol=1e-3, rtol=1e-4)
    assert not torch.allclose(other.sums["response"]["block:2"], read.sums["response"]["block:2"])


def test_equal_sides_cancel(loaded: Loaded) -> None:
    """The null: the same conversations on both sides."""
    rows = chats(6)
    read = vectors.read_contrasts(loaded, rows * 2, np.array([[1 / 6] * 6 + [-1 / 6] * 6]), batch_tokens=50)
    scale = vectors.read_contrasts(loaded, rows, np.full((1, 6), 1 / 6))
    for mask, of in read.sums.items():
        for site, vector in of.items():
            assert vector.norm() < 1e-4 * scale.sums[mask][site].norm()


def test_an_answer_without_tokens_is_refused(loaded: Loaded) -> None:
    with pytest.raises(DataError, match="conversation 1: the answer has no tokens"):
        vectors.read_contrasts(
            loaded, [*chats(1), [{"role": "user", "content": "is it"}, {"role": "assistant", "content": ""}]], np.ones((1, 2))
        )
