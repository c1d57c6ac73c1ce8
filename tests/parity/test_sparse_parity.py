"""The sparse TopK step against the paper's formulas written out densely (2406.04093, sections 2.3, 2.4, appendix A)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from personascope.methods.sparse import AUX_SHARE, TopK, start, train_step

D, M, K = 24, 256, 6
LEARNING_RATE = 2e-3
DEAD_AFTER = 600


def stream(i: int) -> Tensor:
    """Low-rank data with a mean, so that some latents fall silent."""
    pick = torch.Generator().manual_seed(i)
    mixing = torch.randn(8, D, generator=torch.Generator().manual_seed(1234))
    return torch.randn(200, 8, generator=pick).relu() @ mixing + 3


class Dense:
    """The published step, every product dense, weights as in the paper: encoder (m, d), decoder rows (m, d)."""

    def __init__(self, sae: TopK) -> None:
        self.scale = sae.scale.clone()
        self.weights = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=LEARNING_RATE, eps=6.25e-10)
        self.silent = torch.zeros(M)
        self.aux_steps = 0

    def step(self, x: Tensor) -> float:
        w = self.weights
        x = x * self.scale
        pre = (x - w["b_pre"]) @ w["W_enc"].T + w["b_enc"]
        z = torch.where(pre >= pre.topk(K).values[:, -1:], pre.relu(), 0)
        error = x - (z @ w["W_dec"] + w["b_pre"])
        loss = (error**2).sum() / ((x - x.mean(0)) ** 2).sum()
        dead = self.silent > DEAD_AFTER
        total = loss
        if dead.any():
            self.aux_steps += 1
            only = pre.masked_fill(~dead, -torch.inf)
            kept = only >= only.topk(min(int(dead.sum()), D // 2)).values[:, -1:]
            guess = torch.where(kept & dead, pre.relu(), 0) @ w["W_dec"]
            total = loss + AUX_SHARE * ((error.detach() - guess) ** 2).sum() / (error.detach() ** 2).sum()
        self.optimizer.zero_grad()
        total.backward()
        with torch.no_grad():
            grad, rows = w["W_dec"].grad, w["W_dec"]
            grad -= (grad * rows).sum(1, keepdim=True) * rows
            self.optimizer.step()
            rows.copy_(F.normalize(rows, dim=1))
            self.silent += len(x)
            self.silent[(z > 0).any(0)] = 0
        return float(loss.detach())


def test_sixty_steps_agree_with_the_dense_formulas() -> None:
    sae = TopK(M, D, K, seed=3)
    trainer = start(sae, stream(0), LEARNING_RATE, DEAD_AFTER)
    dense = Dense(sae)
    ours = [float(train_step(trainer, stream(i))) for i in range(60)]
    theirs = [dense.step(stream(i)) for i in range(60)]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=2e-3, rtol=2e-2)
    assert dense.aux_steps > 10
    assert ours[-1] < ours[0] / 3


def test_one_step_agrees_closely_and_a_wrong_k_does_not() -> None:
    def weights_after(k: int) -> Tensor:
        sae = TopK(M, D, k, seed=3)
        train_step(start(sae, stream(0), LEARNING_RATE, DEAD_AFTER), stream(1))
        return sae.W_dec.detach()

    sae = TopK(M, D, K, seed=3)
    start(sae, stream(0), LEARNING_RATE, DEAD_AFTER)
    dense = Dense(sae)
    dense.step(stream(1))
    reference = dense.weights["W_dec"].detach()
    # Adam's first step is the sign of the gradient: entries whose gradient is all rounding may differ.
    close = ((weights_after(K) - reference).abs() < 1e-5).double().mean()
    assert close > 0.999
    assert ((weights_after(K - 1) - reference).abs() < 1e-5).double().mean() < 0.98
