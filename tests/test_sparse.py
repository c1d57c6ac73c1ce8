"""The TopK autoencoder: selection, gradients, training, quality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from personascope.methods.sparse import Quality, TopK, aux_loss, fold_scale, fvu, note_fired, start, top, train_step

D, M, K = 16, 64, 4


def planted(n: int, seed: int = 0) -> Tensor:
    """Sparse sums of 40 fixed directions around a mean far from zero."""
    fixed = torch.Generator().manual_seed(99)
    directions = F.normalize(torch.randn(40, D, generator=fixed), dim=1)
    mean = torch.randn(D, generator=fixed) * 5
    pick = torch.Generator().manual_seed(seed)
    on = torch.rand(n, 40, generator=pick) < 0.05
    return (on * (1 + torch.rand(n, 40, generator=pick))) @ directions * 3 + mean


def trained(steps: int = 300, seed: int = 0) -> tuple[TopK, list[float]]:
    sae = TopK(M, D, K, seed)
    trainer = start(sae, planted(2000, 1), 5e-3, dead_after=2000)
    return sae, [float(train_step(trainer, planted(256, 100 + i))) for i in range(steps)]


@settings(max_examples=40)
@given(st.integers(1, 40), st.sampled_from([8, 64, 256, 260, 512]), st.integers(1, 8), st.integers(0, 10**6))
def test_top_is_exact(n: int, m: int, k: int, seed: int) -> None:
    z = torch.randn(n, m, generator=torch.Generator().manual_seed(seed)).mul(4).round().div(4)
    values, indices = top(z, k)
    assert torch.equal(values.sort(1).values, z.topk(k, 1).values.relu().sort(1).values)
    assert torch.equal(z.gather(1, indices).relu(), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_encode_keeps_the_k_largest_positive_preactivations() -> None:
    sae, x = TopK(M, D, K), planted(50)
    z, pre = sae.encode(x), sae.preactivations(x)
    kept = pre >= pre.topk(K, 1).values[:, -1:]
    assert torch.equal(z, (pre * kept).relu())
    assert int((z > 0).sum(1).max()) <= K
    assert sae.encode(x.view(5, 10, D)).shape == (5, 10, M)
    assert torch.equal(sae.encode(x.view(5, 10, D)).view(50, M), z)


def test_sparse_and_dense_paths_agree() -> None:
    sae, x = TopK(M, D, K), planted(30)
    sae.scale.fill_(0.3)
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)))


@pytest.mark.parametrize("m", [M, 256])
def test_sparse_gradients_equal_dense_ones(m: int) -> None:
    sae, x = TopK(m, D, K), planted(40).requires_grad_()
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        sae.W_enc.add_(0.1)
    names = ("W_enc", "W_dec", "b_enc", "b_pre")

    def gradients(reconstruction: Tensor) -> list[Tensor]:
        loss = (x - reconstruction).pow(2).sum() + reconstruction.sin().sum()
        return list(torch.autograd.grad(loss, [*(getattr(sae, n) for n in names), x]))

    for name, a, b in zip((*names, "x"), gradients(sae(x)), gradients(sae.decode(sae.encode(x))), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_the_start_is_tied_unit_norm_and_centred() -> None:
    sae, x = TopK(M, D, K), planted(2000)
    assert torch.equal(sae.W_enc, sae.W_dec)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))
    start(sae, x, 1e-3, 100)
    centred = x * sae.scale - sae.b_pre
    assert abs(float(centred.detach().pow(2).sum(1).mean()) - 1) < 1e-3
    assert centred.mean(0).abs().max() < 1e-3


def test_training_finds_planted_structure() -> None:
    sae, losses = trained()
    held = planted(1000, 7)
    assert losses[0] > 0.5
    assert fvu(held, sae(held)) < 0.2
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))
    shuffled = sae.encode(held)[:, torch.randperm(M, generator=torch.Generator().manual_seed(0))]
    assert fvu(held, sae.decode(shuffled)) > 1


def test_training_is_seeded() -> None:
    assert trained(20)[1] == trained(20)[1]
    assert trained(20)[1] != trained(20, seed=1)[1]


def test_dead_latents_come_back() -> None:
    def silent_after(steps: int, dead_after: int) -> int:
        sae = TopK(M, D, K)
        with torch.no_grad():
            sae.b_enc[:32] = -0.5
        trainer = start(sae, planted(2000, 1), 5e-3, dead_after)
        for i in range(steps):
            train_step(trainer, planted(256, i))
        return int((trainer.silent >= 256 * 20).sum())

    assert silent_after(200, dead_after=512) < silent_after(200, dead_after=10**9) / 2


def test_aux_loss_reaches_dead_latents_only() -> None:
    sae, x = TopK(M, D, K), planted(40)
    dead = torch.tensor([3, 9, 20])
    aux_loss(sae, x, x - sae(x).detach(), dead).backward()
    touched = sae.W_dec.grad.abs().sum(1).nonzero().squeeze(1)
    assert set(touched.tolist()) <= set(dead.tolist())
    assert len(touched) > 0


def test_silence_is_counted_in_tokens() -> None:
    sae, silent = TopK(M, D, K), torch.zeros(M, dtype=torch.long)
    x = planted(1)
    active = sae.active(x)
    note_fired(silent, active, 7)
    fired = sae.encode(x)[0] > 0
    assert silent[fired].eq(0).all()
    assert silent[~fired].eq(7).all()


def test_fvu_is_zero_for_the_thing_and_one_for_its_mean() -> None:
    x = planted(100)
    assert fvu(x, x) == 0
    assert abs(fvu(x, x.mean(0).expand_as(x)) - 1) < 1e-5


def test_folding_the_scale_changes_nothing_but_units() -> None:
    sae, _ = trained(30)
    x, folded = planted(50), fold_scale(sae)
    assert float(folded.scale) == 1
    torch.testing.assert_close(folded(x), sae(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded.encode(x), sae.encode(x) / sae.scale, atol=1e-4, rtol=1e-4)


def test_quality_over_batches_equals_the_whole() -> None:
    sae, _ = trained(30)
    x = planted(500)
    quality = Quality(M, D)
    for part in x.split(130):
        quality.add(sae, part)
    z = sae.encode(x)
    numbers = quality.numbers()
    assert abs(numbers["fvu"] - fvu(x, sae(x))) < 1e-4
    assert numbers["dead"] == float((z == 0).all(0).double().mean())
    assert abs(numbers["l0"] - float((z > 0).sum(1).double().mean())) < 1e-9
    assert numbers["tokens"] == 500
    torch.testing.assert_close(quality.mean, x.mean(0))
