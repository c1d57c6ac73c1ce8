"""What fine-tuning may cost beside its task: how far a model in training has moved from where it started, token by token.

Letters: r rows, p positions, n tokens that count, v words of the vocabulary, d width of the stream, c chosen latents, s sites.
The start's readings carry no gradient. Every function is smooth enough for gradient descent and works in any float type.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from personascope.errors import DataError, RecipeError

Mask = Literal["completion", "opened", "last_prompt", "all"]
Tokens = Float[Tensor, " n"]
Logits = Float[Tensor, "n v"]
Stream = Float[Tensor, "n d"]
Latents = Float[Tensor, "n c"]
Streams = Float[Tensor, "s n d"]
Vector = Float[Tensor, " d"]
Directions = Float[Tensor, "c d"]
Signs = Float[Tensor, " c"]
Picked = Bool[Tensor, "r p"]
Scalar = Float[Tensor, ""]


def kl(now: Logits, start: Logits) -> Tokens:
    """KL(now || start) = sum_v p_now (log p_now - log p_start) in nats, as in 2602.07852 (KL(finetuned || chat))."""
    ours, theirs = F.log_softmax(now, dim=1), F.log_softmax(start, dim=1)
    return (ours.exp() * (ours - theirs)).sum(dim=1)


def latents(now: Latents, start: Latents, signs: Signs) -> Tokens:
    """sum_{K+} relu(z - z0)^2 + sum_{K-} relu(z0 - z)^2 (2602.00767): only the way the signs name costs anything.

    Args:
        now, start: activations after ReLU and before TopK, so that a silent latent has a gradient as soon as it stirs.
        signs: +1 for K+, -1 for K-.
    """
    return (signs * (now - start)).relu().square().sum(dim=1)


def projection(now: Stream, start: Stream, unit: Vector) -> Tokens:
    """relu((x - x0) . u)^2: the rise along a unit vector, one-sided as for latents."""
    return ((now - start) @ unit).relu().square()


def features(now: Streams, start: Streams) -> Tokens:
    """sum_s |x_s - x0_s|^2: squared distance of the streams of several sites, put end to end (LDIFS, 2308.13320)."""
    return (now - start).square().sum(dim=(0, 2))


def weights(now: Iterable[Tensor], start: Iterable[Tensor]) -> Scalar:
    """1/2 |w - w0|^2 over all weights in training (L2-SP, 1802.01483)."""
    return 0.5 * torch.stack([(a - b).square().sum() for a, b in zip(now, start, strict=True)]).sum()


def low_rank_weights(factors: Iterable[tuple[Tensor, Tensor, float]]) -> Scalar:
    """The same for low-rank changes scaling x B A, given (A (rank, in), B (out, rank), scaling); B A is never formed."""
    return 0.5 * torch.stack([s**2 * ((b.T @ b) * (a @ a.T)).sum() for a, b, s in factors]).sum()


def counted(mask: Mask, trained: Picked, there: Picked) -> Picked:
    """The tokens of a penalty's mask, from those that the loss counts and those that are no padding."""
    before = torch.zeros_like(trained)
    before[:, :-1] = trained[:, 1:] & ~trained[:, :-1]
    every = there.clone()
    every[:, 0] = False
    return {"completion": trained, "last_prompt": before, "opened": trained | before, "all": every}[mask]


def predicting(tokens: Picked) -> Picked:
    """The positions whose logits predict these tokens: one to the left."""
    return torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)


def turn(rows: int, size: int, step: int, seed: int) -> list[int]:
    """Which of `rows` a step reads: `size` of them, in an order shuffled anew each time round; the same whenever it is asked."""
    places = range(step * size, (step + 1) * size)
    laps = {lap: random.Random(f"{seed}/{lap}").sample(range(rows), rows) for lap in {place // rows for place in places}}
    return [laps[place // rows][place % rows] for place in places]


def weight_for(share: float, task: float, penalty: float) -> float:
    """λ at which a penalty of this size costs `share` of the task loss.

    Raises:
        DataError: the penalty is 0, so that no λ makes it cost anything.
    """
    if not penalty > 0:
        raise DataError("penalty: without it nothing that it counts has moved after its pilot; give more pilot steps, or a weight")
    return share * task / penalty


def ranked(rows: Sequence[Mapping[str, Any]], mask: str, top: int, bottom: int) -> dict[int, int]:
    """Latent -> sign: the `top` most risen (+1) and `bottom` most fallen (-1) rows of a diff; those that did not move never."""
    order = sorted(rows, key=lambda row: -row["delta"][mask])
    risen = {int(row["id"]): 1 for row in order[:top] if row["delta"][mask] > 0}
    return risen | {int(row["id"]): -1 for row in order[len(order) - bottom :] if row["delta"][mask] < 0}


def controlled(signs: Mapping[int, int], control: str, total: int, seed: int) -> dict[int, int]:
    """The null controls of chosen latents: others drawn at random (`random`), or these with signs by a fair coin (`signs`).

    Raises:
        RecipeError: the dictionary has too few other latents.
    """
    draw = random.Random(seed)
    if control == "random":
        others = [latent for latent in range(total) if latent not in signs]
        if len(others) < len(signs):
            raise RecipeError(f"penalty: {len(signs)} other latents are wanted, the dictionary of {total} has {len(others)}")
        return dict(zip(sorted(draw.sample(others, len(signs))), signs.values(), strict=True))
    return {latent: draw.choice((-1, 1)) for latent in sorted(signs)} if control == "signs" else dict(signs)


def orthonormal(directions: Directions) -> Directions:
    """Rows that span the same space at right angles (QR), so that projecting them out one by one projects out all of it.

    Raises:
        RecipeError: a direction lies in the span of those before it.
    """
    q, r = torch.linalg.qr(directions.double().T)
    if (r.diagonal().abs() < 1e-6).any():
        raise RecipeError("interventions: a direction to ablate lies in the span of the others at its site; leave it out")
    return q.T.to(directions.dtype)
