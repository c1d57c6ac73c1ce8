"""Direct preference optimisation (2305.18290): what a model thinks of two answers, against what it thought at the start.

Letters: r rows, p positions, v words of the vocabulary, b pairs of answers.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, "r p v"]
Labels = Int[Tensor, "r p"]
Rows = Float[Tensor, " r"]
Pairs = Float[Tensor, " b"]

IGNORED = -100
"""The label of tokens that do not count."""


def answer_log_probs(logits: Logits, labels: Labels) -> Rows:
    """log pi(y | x) of each row in nats: the sum over its labelled tokens, each predicted at the position before."""
    found = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
    return -found.sum(dim=1)


def margins(chosen: Pairs, rejected: Pairs, start_chosen: Pairs, start_rejected: Pairs, beta: float) -> Pairs:
    """beta (log pi(y_w)/pi_0(y_w) - log pi(y_l)/pi_0(y_l)): by how much the implicit reward prefers the chosen answer."""
    return beta * ((chosen - start_chosen) - (rejected - start_rejected))


def dpo(margin: Pairs) -> Pairs:
    """-log sigmoid(margin), equation 7 of 2305.18290, pair by pair."""
    return -F.logsigmoid(margin)
