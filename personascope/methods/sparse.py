"""Sparse autoencoders: TopK (Gao et al. 2406.04093) with its sparse training step, JumpReLU as others publish it, their quality.

Letters: n tokens, d width of the residual stream, m latents (width of the dictionary), k active latents a token, c some of the latents.
A TopK encoder's forward is the only dense product; decoding and every gradient touch k of m latents.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

X = Float[Tensor, "*n d"]
Z = Float[Tensor, "*n m"]
X2 = Float[Tensor, "n d"]
Z2 = Float[Tensor, "n m"]
Vector = Float[Tensor, " d"]
Counts = Int[Tensor, " m"]
Some = Int[Tensor, " c"]
Scalar = Float[Tensor, ""]

AUX_SHARE = 1 / 32
"""Weight of the auxiliary loss (2406.04093, appendix A.2)."""


class Active(NamedTuple):
    """The k largest pre-activations of each token, after ReLU, and their latents; in no particular order."""

    values: Tensor
    indices: Tensor


class Explained(NamedTuple):
    """What a batch (n, d) is to a dictionary."""

    reconstruction: Tensor
    fired: Tensor
    """(m,) which latents were above zero anywhere."""
    active: int
    """Latents above zero, summed over tokens."""


class SparseAutoencoder(nn.Module, ABC):
    """x_hat = W_dec f(W_enc (x - b_pre) + b_enc) + b_pre; a subclass says f, which leaves few latents above zero.

    Both weights are (m, d). Training happens in units of `scale`, kept apart so that `fold_scale` can take it out.
    """

    def __init__(self, decoder: Z2) -> None:
        """Encoder tied to the decoder (m, d) at the start, biases zero."""
        super().__init__()
        width, d_model = decoder.shape
        self.W_dec = nn.Parameter(decoder)
        self.W_enc = nn.Parameter(decoder.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_pre = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("scale", torch.ones(()))

    def preactivations(self, x: X) -> Z:
        """What f chooses from; a silent latent has a gradient here."""
        return F.linear(x * self.scale - self.b_pre, self.W_enc, self.b_enc)

    @abstractmethod
    def encode(self, x: X) -> Z:
        """Dense z (*n, m), zero where a latent is not active."""

    def decode(self, z: Z) -> X:
        """Reconstruction of x from dense z."""
        return (z @ self.W_dec + self.b_pre) / self.scale

    def forward(self, x: X2) -> X2:
        """x to its reconstruction."""
        return self.explain(x).reconstruction

    def explain(self, x: X2) -> Explained:
        """The reconstruction of x, and what fired."""
        z = self.encode(x)
        on = z > 0
        return Explained(self.decode(z), on.any(dim=0), int(on.sum()))


class JumpReLU(SparseAutoencoder):
    """f(z) = z where z exceeds its latent's threshold, else 0 (Rajamanoharan et al. 2407.14435); a ReLU where thresholds are 0.

    What BatchTopK dictionaries (2412.06410) become once trained: there one threshold serves all latents.
    """

    def __init__(self, width: int, d_model: int) -> None:
        """All weights and thresholds zero, to be filled by who reads them."""
        super().__init__(torch.zeros(width, d_model))
        self.register_buffer("threshold", torch.zeros(width))

    def encode(self, x: X) -> Z:
        """Dense z (*n, m); an activation is positive, also where a threshold is not."""
        z = self.preactivations(x)
        return torch.where(z > self.threshold.clamp(min=0), z, 0)


class TopK(SparseAutoencoder):
    """f keeps the k largest pre-activations of each token, after ReLU; decoder rows of unit norm."""

    def __init__(self, width: int, d_model: int, k: int, seed: int = 0) -> None:
        """Random unit decoder rows."""
        rows = torch.randn(width, d_model, generator=torch.Generator().manual_seed(seed))
        super().__init__(F.normalize(rows, dim=1))
        self.k = k

    def encode(self, x: X) -> Z:
        """Dense z (*n, m) with at most k latents of each token above zero."""
        z = self.preactivations(x)
        active = top(z.reshape(-1, z.shape[-1]), self.k)
        return torch.zeros_like(z).reshape(-1, z.shape[-1]).scatter(1, active.indices, active.values).reshape(z.shape)

    def active(self, x: X2) -> Active:
        """The active latents alone, with sparse gradients for encoder and biases."""
        centred = x * self.scale - self.b_pre
        return Active(*_Encode.apply(centred, self.W_enc, self.b_enc, self.k))

    def reconstruct(self, active: Active) -> X2:
        """Reconstruction from the active latents alone, with sparse gradients."""
        return (_Decode.apply(active.values, active.indices, self.W_dec) + self.b_pre) / self.scale

    def explain(self, x: X2) -> Explained:
        """The reconstruction of x by the sparse path, and what fired."""
        active = self.active(x)
        on = active.values > 0
        fired = torch.zeros(len(self.W_dec), dtype=torch.bool, device=x.device)
        fired[active.indices[on]] = True
        return Explained(self.reconstruct(active), fired, int(on.sum()))


def top(z: Z2, k: int) -> Active:
    """The k largest entries of each row after ReLU, exactly.

    On a CPU selection costs as much as the encoder, so it goes by groups: at most k groups of eight can hold the k
    largest, namely those with the largest maxima; only they are searched. About 1.7 times as fast at m = 1280.
    """
    n, m = z.shape
    inner, groups = 8, m // 8
    if z.is_cuda or m % inner or groups < 4 * k:
        values, indices = z.topk(k, dim=1, sorted=False)
        return Active(values.relu(), indices)
    grouped = z.view(n, inner, groups)
    best = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    nearby = grouped.gather(2, best.unsqueeze(1).expand(n, inner, k)).reshape(n, inner * k)
    values, place = nearby.topk(k, dim=1, sorted=False)
    return Active(values.relu(), torch.div(place, k, rounding_mode="floor") * groups + best.gather(1, place % k))


class _Encode(torch.autograd.Function):
    """Dense forward, sparse backward of the active pre-activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = top(F.linear(x, weight, bias), k)
        ctx.save_for_backward(x, weight, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, values, indices = ctx.saved_tensors
        grad = grads[0] * (values > 0)
        grad_bias = torch.zeros(len(weight), dtype=grad.dtype, device=grad.device).index_add_(0, indices.reshape(-1), grad.reshape(-1))
        grad_x = _gather_rows(grad, indices, weight) if ctx.needs_input_grad[0] else None
        return grad_x, _outer_by_latent(grad, indices, x, len(weight)), grad_bias, None


class _Decode(torch.autograd.Function):
    """Sum of k decoder rows a token; gradients for those rows and values only."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, weight)
        return _gather_rows(values, indices, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, Tensor]:
        values, indices, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        with torch.enable_grad():
            leaf = values.detach().requires_grad_()
            (grad_values,) = torch.autograd.grad(_gather_rows(leaf, indices, weight.detach()), leaf, grad)
        return grad_values, None, _outer_by_latent(values, indices, grad, len(weight))


def _gather_rows(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """Sum over k of values[:, k] * weight[indices[:, k]]: (n, d)."""
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def _outer_by_latent(values: Tensor, indices: Tensor, x: Tensor, m: int) -> Tensor:
    """Transpose of the sparse z times x, (m, d): for each latent its tokens' x, weighted.

    Sorting by latent turns scattered additions into one weighted sum a latent.
    """
    latents = indices.reshape(-1)
    order = latents.argsort(stable=True)
    starts = torch.bincount(latents, minlength=m).cumsum(0).roll(1)
    starts[0] = 0
    tokens = torch.div(order, indices.shape[1], rounding_mode="floor")
    return F.embedding_bag(tokens, x, starts, per_sample_weights=values.reshape(-1)[order], mode="sum")


@dataclass
class Trainer:
    """What training carries from step to step."""

    sae: TopK
    optimizer: torch.optim.Optimizer
    silent: Tensor
    """(m,) tokens since each latent last fired."""
    dead_after: int
    """A latent silent for this many tokens counts as dead and is given the auxiliary loss."""


def start(sae: TopK, first: X2, learning_rate: float, dead_after: int) -> Trainer:
    """Set scale and bias from a first chunk of the stream and begin: mean squared norm around the mean becomes 1."""
    with torch.no_grad():
        mean = first.mean(dim=0)
        sae.scale.copy_((first - mean).pow(2).sum(dim=1).mean().rsqrt())
        sae.b_pre.copy_(mean * sae.scale)
    optimizer = torch.optim.Adam(sae.parameters(), lr=learning_rate, betas=(0.9, 0.999), eps=6.25e-10, fused=True)
    return Trainer(sae, optimizer, torch.zeros(len(sae.W_dec), dtype=torch.long, device=first.device), dead_after)


def train_step(trainer: Trainer, x: X2) -> Scalar:
    """One Adam step on a batch (n, d); returns its FVU. The decoder rows stay of unit norm."""
    sae = trainer.sae
    active = sae.active(x)
    error = (x - sae.reconstruct(active)) * sae.scale
    spread = (x - x.mean(dim=0)).mul(sae.scale).pow(2).sum()
    loss = error.pow(2).sum() / spread
    dead = (trainer.silent > trainer.dead_after).nonzero().squeeze(1)
    total = loss + AUX_SHARE * aux_loss(sae, x, error.detach(), dead) if len(dead) else loss
    trainer.optimizer.zero_grad(set_to_none=True)
    total.backward()
    with torch.no_grad():
        # Along the row itself the gradient would only fight the normalisation (2406.04093, appendix A).
        grad = sae.W_dec.grad
        grad -= (grad * sae.W_dec).sum(dim=1, keepdim=True) * sae.W_dec
        trainer.optimizer.step()
        sae.W_dec.copy_(F.normalize(sae.W_dec, dim=1))
        note_fired(trainer.silent, active, len(x))
    return loss.detach()


def aux_loss(sae: TopK, x: X2, error: X2, dead: Some) -> Scalar:
    """AuxK: how well the k_aux best dead latents explain the remaining error (n, d), as a share of it.

    k_aux is d / 2 as in 2406.04093, appendix A.2; only the dead latents are computed.
    """
    z = F.linear(x * sae.scale - sae.b_pre, sae.W_enc[dead], sae.b_enc[dead])
    values, indices = z.topk(min(len(dead), error.shape[1] // 2), dim=1, sorted=False)
    guess = torch.zeros_like(z).scatter(1, indices, values.relu()) @ sae.W_dec[dead]
    return (error - guess).pow(2).sum() / error.pow(2).sum().clamp_min(1e-12)


def note_fired(silent: Counts, active: Active, tokens: int) -> None:
    """Count `tokens` more silent tokens for every latent but those that fired, which start again at 0."""
    silent += tokens
    silent[active.indices[active.values > 0]] = 0


@torch.no_grad()
def fvu(x: X2, x_hat: X2) -> float:
    """Fraction of variance unexplained: squared error over squared distance from the mean, summed over d."""
    return float((x - x_hat).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum())


@torch.no_grad()
def fold_scale(sae: TopK) -> TopK:
    """The same autoencoder with scale 1, reading and writing raw residuals; z is then in their units.

    The decoder's unit norm is kept: scaling x by s scales only the biases by 1/s.
    """
    m, d = sae.W_dec.shape
    folded = TopK(m, d, sae.k).to(sae.W_dec.device)
    folded.W_enc.copy_(sae.W_enc)
    folded.W_dec.copy_(sae.W_dec)
    folded.b_enc.copy_(sae.b_enc / sae.scale)
    folded.b_pre.copy_(sae.b_pre / sae.scale)
    return folded


class Quality:
    """Running quality of a dictionary over batches of the stream: FVU, silent latents, active latents a token."""

    def __init__(self, m: int, d: int, device: torch.device | str = "cpu") -> None:
        self.fired = torch.zeros(m, dtype=torch.bool, device=device)
        self.sum = torch.zeros(d, dtype=torch.float64, device=device)
        self.squares = self.error = 0.0
        self.tokens = self.active = 0

    @torch.no_grad()
    def add(self, sae: SparseAutoencoder, x: X2) -> None:
        """Take in a batch (n, d)."""
        found = sae.explain(x)
        self.fired |= found.fired
        self.active += found.active
        self.tokens += len(x)
        self.error += float((x - found.reconstruction).double().pow(2).sum())
        self.squares += float(x.double().pow(2).sum())
        self.sum += x.double().sum(dim=0)

    @property
    def mean(self) -> Vector:
        """Mean of the stream (d,)."""
        return (self.sum / self.tokens).float()

    def numbers(self) -> dict[str, float | int]:
        """`fvu`, `dead` (share of latents never active), `l0` (mean active latents a token), `tokens`."""
        variance = self.squares - float(self.sum.pow(2).sum()) / self.tokens
        return {
            "fvu": self.error / variance,
            "dead": float((~self.fired).double().mean()),
            "l0": self.active / self.tokens,
            "tokens": self.tokens,
        }
