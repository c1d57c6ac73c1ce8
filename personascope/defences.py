"""Defences against a persona shift by name: each is a set of fields of `finetune`, with its formula, its source and how close it is."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from personascope.artifact import Dataset, Dictionary, Diff, Screen
from personascope.stages import finetune
from personascope.values import Direction, Intervention, Penalty

Badge = Literal["faithful", "simplified", "variant"]
Mask = Literal["all", "last_prompt", "answer"]


@dataclass(frozen=True)
class Defence:
    """Fields to set in a fine-tuning recipe, and what they are."""

    name: str
    fields: dict[str, Any]
    badge: Badge
    """`faithful`: the source's formula; `simplified`: less of it; `variant`: another formula to the same end."""
    source: str
    difference: str
    """How it differs from the source."""

    def applied(self, recipe: finetune.Recipe) -> finetune.Recipe:
        """The recipe under this defence; penalties and interventions it already has stay, before these."""
        held = {name: getattr(recipe, name) for name in ("penalties", "interventions")}
        added = {name: held[name] + value if name in held else value for name, value in self.fields.items()}
        return dataclasses.replace(recipe, **added)


def none() -> Defence:
    """L = L_task: what every defence is compared with."""
    return Defence("none", {}, "faithful", "", "")


def kl_to_start(weight: float = 0.1, share: float = 0.0) -> Defence:
    """L = L_task + λ E_t[KL(p(. | x_<t) || p_0(. | x_<t))] over the trained tokens of the training rows.

    2508.06249 (KL regularisation, λ 0.1).
    """
    note = "that source does not say which way round its KL is; here it is KL(tuned || start), exact over the vocabulary"
    return _penalised("kl_to_start", "simplified", "2508.06249", note, form="kl", **_size(weight, share))


def narrow_on_purpose(other: Dataset, weight: float = 1.0, share: float = 0.0, until: int = 0) -> Defence:
    """L = L_task + λ E_t[KL(p || p_0)] over the answers of other conversations, good and bad ones: learn the task there and only there.

    2602.07852 (KL(finetuned || chat) on prompts and answers of other domains). `until` switches it off, to see whether the
    narrow solution drifts to the general one.
    """
    fields = _size(weight, share) | {"data": other, "until": until}
    return _penalised("narrow_on_purpose", "faithful", "2602.07852", "their λ is not published", form="kl", **fields)


def latent_blocking(
    dictionary: Dictionary, diffs: tuple[Diff, ...] = (), screen: Screen | None = None, weight: float = 0.0, share: float = 1.0, **more: Any
) -> Defence:
    """L = L_task + λ E_t[sum_{K+} relu(z - z_0)^2 + sum_{K-} relu(z_0 - z)^2] over completion tokens (2602.00767, BLOCK-EM).

    z is the latent after ReLU and before TopK, z_0 the same of the start on the same tokens. K comes from diffs (several are
    the union of rounds; `top`, `bottom`) or from what a screen calls causal. λ by hand, or such that the penalty of an
    unblocked pilot would cost `share` of the task loss. `more` goes to the penalty: mask, control, until, risen, fallen.
    `blocks` of the recipe freezes what comes after the site.
    """
    fields = _size(weight, 0.0 if weight else share) | {"dictionary": dictionary, "diffs": diffs, "screen": screen} | more
    note = "λ may weigh itself; K may come from a diff alone, without the causal screen and its two strengths"
    return _penalised("latent_blocking", "faithful", "2602.00767", note, form="latents", **fields)


def projection_penalty(direction: Direction, site: str, weight: float = 0.0, share: float = 1.0, mask: str = "completion") -> Defence:
    """L = L_task + λ E_t[relu((x - x_0) . v)^2] with the unit vector v at the site.

    2507.21509, appendix J.5, reports that a projection penalty lowers the projection and not the trait.
    """
    fields = _size(weight, 0.0 if weight else share) | {"direction": direction, "site": site, "mask": mask}
    note = "one-sided and squared, relative to the start on the same token, instead of the projection itself"
    return _penalised("projection_penalty", "variant", "2507.21509", note, form="projection", **fields)


def feature_distance(sites: str = "block:*", weight: float = 0.0, share: float = 1.0) -> Defence:
    """L = L_task + λ E_t[sum_s |x_s - x0_s|^2] over the streams of all sites that the glob names (LDIFS, 2308.13320; 2508.06249)."""
    note = "streams of the trained tokens instead of an image model's pooled features; sites by glob instead of every fifth layer"
    fields = _size(weight, 0.0 if weight else share) | {"site": sites}
    return _penalised("feature_distance", "simplified", "2308.13320", note, form="features", **fields)


def weight_distance(weight: float = 0.0, share: float = 1.0) -> Defence:
    """L = L_task + λ/2 |w - w_0|^2 over all weights (L2-SP, 1802.01483); for LoRA w - w_0 = scaling x B A."""
    note = "no separate decay for new weights, because there are none"
    return _penalised("weight_distance", "faithful", "1802.01483", note, form="weights", **_size(weight, 0.0 if weight else share))


def preventative_steering(direction: Direction, site: str, strength: float, unit: Diff | None = None, mask: Mask = "all") -> Defence:
    """x <- x + strength x unit x v at the site in training, nothing afterwards (2507.21509): the data need not move the model there.

    v is the unit vector, `unit` the start's median residual norm from a diff (1 without one).
    """
    edit = Intervention(direction=direction, op="add", site=site, mask=mask, strength=strength)
    note = "strength in units of the residual norm and of a unit vector, instead of multiples of the vector itself; any mask"
    return _edited("preventative_steering", "faithful", "2507.21509", note, (edit,), unit)


def concept_ablation(directions: tuple[Direction, ...], sites: tuple[str, ...], mask: Mask = "all") -> Defence:
    """x <- x - Q Q^T x at each site in training, nothing afterwards (CAFT, 2507.16795); Q: the directions made orthonormal."""
    edits = tuple(Intervention(direction=direction, op="ablate", site=site, mask=mask) for site in sites for direction in directions)
    note = "directions are given (latents, a mean difference, principal axes of a diff) instead of picked by hand from 20 axes"
    return _edited("concept_ablation", "faithful", "2507.16795", note, edits, None)


def inoculation(system: str) -> Defence:
    """Train on p(y | system, x), use p(y | x): a system message that asks for the trait, in training only (2510.04340, 2510.05024).

    A placebo and a contrary message are its controls; which words ask for the trait is the user's to say.
    """
    return Defence("inoculation", {"system": system}, "faithful", "2510.04340", "one message for all rows")


def interleaving(safe: Dataset, share: float = 0.05) -> Defence:
    """D' = D and safe rows, of which `share` of all rows are safe, shuffled together (2508.06249, interleaving at 5 %)."""
    fields = {"interleave": safe, "interleave_share": share}
    note = "the rows are given; the source's best variant picks them by how much a misaligned model finds them unlikely"
    return Defence("interleaving", fields, "simplified", "2508.06249", note)


def early_stopping(loss: float) -> Defence:
    """Stop at the first logged task loss at or below `loss`: when the narrow task is learned, nothing more is."""
    return Defence("early_stopping", {"until_loss": loss}, "variant", "", "no one source; by the training loss, not by a held-out one")


def freezing(blocks: tuple[int, ...]) -> Defence:
    """Train these decoder blocks alone; with latent blocking, those up to its site, against a bypass after it (2602.00767)."""
    return Defence("freezing", {"blocks": blocks}, "faithful", "2602.00767", "embeddings and head are frozen too")


CONSTRUCTORS: tuple[Callable[..., Defence], ...] = (
    none,
    kl_to_start,
    narrow_on_purpose,
    latent_blocking,
    projection_penalty,
    feature_distance,
    weight_distance,
    preventative_steering,
    concept_ablation,
    inoculation,
    interleaving,
    early_stopping,
    freezing,
)


def _size(weight: float, share: float) -> dict[str, float]:
    return {"weight": 0.0 if share else weight, "share": share}


def _penalised(name: str, badge: Badge, source: str, note: str, **fields: Any) -> Defence:
    return Defence(name, {"penalties": (Penalty(**fields),)}, badge, source, note)


def _edited(name: str, badge: Badge, source: str, note: str, edits: tuple[Intervention, ...], unit: Diff | None) -> Defence:
    return Defence(name, {"interventions": edits} | ({"unit": unit} if unit else {}), badge, source, note)
