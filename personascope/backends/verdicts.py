"""What a screen has found: who is causal, how far each goes, what chance would give, what is necessary."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from personascope.backends.grid import REPORT, SIDES, UNSTEERED, Direction, Point
from personascope.backends.screening import Screening, Trial
from personascope.methods import screening, stats
from personascope.methods.screening import Counts, Outcome

SETS = (2, 3, 5, 10, 20)
"""Sizes of the sets of causal latents that are tried together."""
ABLATION_NULLS = 20


def record(s: Screening) -> dict[str, Any]:
    """Test on the report questions and tell; strengths and winners were chosen on the selection questions.

    Every latent that came through the search is tested at its own strengths; the false-discovery rate is controlled over
    all that were nominated, those dropped before with p = 1.
    """
    ranked = sorted(s.kept, key=lambda trial: -s.effect(trial))
    best = ranked[0]
    winners = {mask: next(t for t in ranked if t[1] == mask) for mask in s.recipe.masks}
    shown = list(dict.fromkeys([best, *winners.values(), *s.references]))
    if s.recipe.method == "adaptive":
        s.confirm(t for t in shown if t not in s.references)
        s.confirm(s.references, "reference")
    _ask(s, ranked, shown)
    tests = _tests(s)
    causal = [t for t in ranked if tests[t]["q"] <= s.recipe.fdr]
    s.grid.look((s.point(t, side, "shown", x) for t in shown for side in SIDES for x in s.recipe.strengths), "shown")
    reference = max(s.references, key=s.effect)
    nulls, left = s.nulls[best[1]]
    caveat = screening.blunt(left, s.grid.at(Point(UNSTEERED, "all", "tuned", 0.0, REPORT)).score)
    return {
        "unit": s.grid.unit,
        "site": f"block:{s.grid.block}",
        "budget": s.recipe.budget,
        "fdr": s.recipe.fdr,
        "method": s.recipe.method,
        "attempts": "first only",
        "unsteered": {side: _rates(s.grid.at(Point(UNSTEERED, "all", side, 0.0, REPORT))) for side in SIDES},
        "best": summary(s, best) | tests[best],
        "by_mask": {mask: summary(s, trial) | tests[trial] for mask, trial in winners.items()},
        "mean_difference": summary(s, reference),
        "causal": [summary(s, trial) | tests[trial] | {"profile": _profile(s, trial)} for trial in causal],
        "sets": _sets(s, causal, best[1]),
        "necessity": _necessity(s, causal, best),
        **({"caveat": caveat} if caveat else {}),
        **({"likelihood": guard.facts | {"unlikely": s.grid.unlikely}} if (guard := s.grid.bench.fluency) else {}),
        "null_induce": s.null_bounds(best[1])[0],
        "null_repair": s.null_bounds(best[1])[1],
        "null_max": max(nulls, default=0.0),
        "nulls": {mask: induced for mask, (induced, _) in s.nulls.items()},
        "null_repairs": {mask: left for mask, (_, left) in s.nulls.items()},
        "ranking": [_chosen(s, trial) | tests[trial] for trial in ranked],
        "tested": {"nominated": len(s.trials), "through the sift": len(s.kept), "causal": len(causal)},
        "dose": [_dose(s, t, side, x) for t in shown for side in SIDES for x in (0.0, *s.recipe.strengths)],
        "spent": s.grid.spent,
    }


def _ask(s: Screening, ranked: Sequence[Trial], shown: Sequence[Trial]) -> None:
    """Ask the report questions, and run the nulls that the answers are held against.

    What is shown is asked everything, and so is everyone in a full grid. The others are looked at once, and again where
    that does not settle it (`screening.two_looks`): the effects of those that were clear at once rest on fewer answers.
    """
    whole = s.recipe.method == "grid" or s.recipe.report_draws == 1
    s.test([*ranked, *s.references] if whole else shown)
    s.test_first(() if whole else [t for t in ranked if t not in shown])
    for mask in s.recipe.masks:
        wanted = s.recipe.null_masks == "every" and any(t[1] == mask and _by_chance(s, t) <= s.recipe.fdr for t in ranked)
        if mask == ranked[0][1] or wanted:
            s.run_nulls(mask)
    s.test_again(t for t in ranked if (first := _first(s, t)) and screening.undecided(first, s.recipe.fdr, len(s.trials)))


def _counts(s: Screening, trial: Trial) -> tuple[Counts, Counts, Counts, Counts]:
    """Induced, base, repaired, tuned on the report questions: as many answers as were asked for."""
    return _beside_unsteered(s, [s.grid.tally(s.point(trial, side, REPORT)) for side in SIDES])


def _beside_unsteered(s: Screening, own: list[Counts]) -> tuple[Counts, Counts, Counts, Counts]:
    none = [s.grid.at(Point(UNSTEERED, "all", side, 0.0, REPORT)) for side in SIDES]
    return own[0], none[0], own[1], none[1]


def _by_chance(s: Screening, trial: Trial) -> float:
    """p against no effect at all, before any null has run."""
    return screening.judge_causal(*_counts(s, trial), 0.0, 1.0).p


def _first(s: Screening, trial: Trial) -> Outcome | None:
    """What the first look at a trial says against chance and nulls; None if it was tested at once, or has no nulls to be held against."""
    looks = [s.looks(trial, side)[0] for side in SIDES]
    if trial[1] not in s.nulls or not all(s.grid.seen(look) for look in looks):
        return None
    return screening.judge_causal(*_beside_unsteered(s, [s.grid.at(look) for look in looks]), *s.null_bounds(trial[1]))


def _tested(s: Screening, trial: Trial) -> Outcome:
    """The test of a trial, in one look or two."""
    first = _first(s, trial)
    again = all(s.grid.seen(look) for side in SIDES for look in s.looks(trial, side)[1:])
    if first and not again:
        return screening.two_looks(first, None)
    both = screening.judge_causal(*_counts(s, trial), *s.null_bounds(trial[1]))
    return screening.two_looks(first, both) if first else both


def _tests(s: Screening) -> dict[Trial, dict[str, float]]:
    """p and q of every nominated trial: on both sides, and on each alone (fallen latents may protect without inducing)."""
    found = {}
    for trial in s.trials:
        if trial in s.kept and trial[1] in s.nulls:
            test = _tested(s, trial)
            found[trial] = (test.p, test.induce_p, test.repair_p)
        else:
            found[trial] = (1.0, 1.0, 1.0)
    names = ("p", "induce_p", "repair_p", "q", "induce_q", "repair_q")
    p = np.array([found[trial] for trial in s.trials])
    q = np.stack([stats.benjamini_hochberg(column) for column in p.T], axis=1)
    return {t: dict(zip(names, (float(f"{v:.4g}") for v in (*a, *b)), strict=True)) for t, a, b in zip(s.trials, p, q, strict=True)}


def _rates(c: Counts) -> dict[str, Any]:
    """Score and incoherence with intervals."""
    harmful, valid, incoherent, asked = zip(*c.by_question, strict=True)
    rates = {"score": stats.rate(harmful, valid), "incoherence": stats.rate(incoherent, asked)}
    return {name: rate.to_dict() for name, rate in rates.items()} | {"valid": c.valid, "asked": c.asked}


def summary(s: Screening, trial: Trial) -> dict[str, Any]:
    """How far one direction goes both ways on the report questions."""
    direction, mask = trial
    induced, base, repaired, tuned = map(_rates, _counts(s, trial))
    before, after = tuned["score"], repaired["score"]
    both = before["n"] and after["n"]
    return {
        **({} if direction.latent is None else {"latent": direction.latent}),
        "direction": direction.name,
        "sign": "+" if direction.sign > 0 else "-",
        "site": f"block:{s.grid.block}",
        "mask": mask,
        "alpha": s.strength(trial, "base"),
        "repair_alpha": s.strength(trial, "tuned"),
        "induce": induced["score"],
        "induce_from": base["score"],
        "incoherence": induced["incoherence"],
        "repair_from": before,
        "repair_to": after,
        "repair_incoherence": repaired["incoherence"],
        "removed": round(screening.removed(after["value"], before["value"]), 4) if both else None,
    }


def _profile(s: Screening, trial: Trial) -> dict[str, dict[str, float]]:
    """Score by category of question, steered and unsteered: some latents raise one kind of harm and not another."""
    induced, base, _, _ = _counts(s, trial)
    rows: dict[str, list[int]] = {}
    for place, question in enumerate(s.grid.questions[REPORT]):
        rows.setdefault(question.domain or "all", []).append(place)

    def score(c: Counts, places: list[int]) -> float:
        harmful, valid = (sum(c.by_question[i][n] for i in places) for n in (0, 1))
        return round(harmful / valid, 4) if valid else 0.0

    return {name: {"induced": score(induced, places), "base": score(base, places)} for name, places in sorted(rows.items())}


def _sets(s: Screening, causal: Sequence[Trial], mask: str) -> list[dict[str, Any]]:
    """The first 2, 3, 5, … causal latents at the winner's mask, added up as one direction with strengths of its own."""
    ours = [direction for direction, m in causal if m == mask]
    sizes = [n for n in SETS if n <= len(ours)]
    trials = [(s.combined(ours[:n]), mask) for n in sizes]
    s.strengths_of(trials, "sets")
    s.confirm(trials, "sets")
    s.test(trials, "sets")
    return [summary(s, t) | {"latents": [d.latent for d in ours[:n]]} for n, t in zip(sizes, trials, strict=True)]


def _necessity(s: Screening, causal: Sequence[Trial], best: Trial) -> dict[str, Any]:
    """The tuned model with a direction projected out at the mask: is what it carries there needed for the behaviour?

    Random directions, projected out the same way, are the control.
    """
    mask = best[1]
    latents = list(dict.fromkeys([best[0], *(d for d, m in causal if m == mask)]))[:10]
    generator = np.random.default_rng([s.recipe.seed, 99])
    random = s.random_directions(generator)[:ABLATION_NULLS]
    reference = [d for d, m in s.references if m == mask]
    points = {d.name: Point(_ablated(d), mask, "tuned", 0.0, REPORT) for d in (*latents, *reference)}
    nulls = [Point(_ablated(d), mask, "tuned", 0.0, "nulls") for d in random]
    s.grid.look([*points.values(), *nulls], "necessity")
    left = sorted(s.grid.at(p).score for p in nulls)
    rows = [{"direction": name, "mask": mask} | _rates(s.grid.at(p)) for name, p in points.items()]
    return {"from": _rates(s.grid.at(Point(UNSTEERED, "all", "tuned", 0.0, REPORT)))["score"], "ablated": rows, "random": left}


def _ablated(d: Direction) -> Direction:
    return Direction(f"ablate/{d.name}", d.kind, d.vector, d.sign, d.latent, "ablate")


def _chosen(s: Screening, trial: Trial) -> dict[str, Any]:
    direction, mask = trial
    induced, repaired = (s.grid.tally(s.point(trial, side, "selection")) for side in SIDES)
    return {
        "direction": direction.name,
        "latent": direction.latent,
        "sign": "+" if direction.sign > 0 else "-",
        "mask": mask,
        "alpha": s.strength(trial, "base"),
        "repair_alpha": s.strength(trial, "tuned"),
        "effect": round(s.effect(trial), 4),
        "induce": round(induced.score, 4),
        "repair_to": round(repaired.score, 4),
        "split": "selection",
    }


def _dose(s: Screening, trial: Trial, side: str, strength: float) -> dict[str, Any]:
    c = s.grid.at(s.point(trial, side, "shown", strength))
    return {
        "direction": trial[0].name,
        "side": side,
        "mask": trial[1],
        "alpha": strength,
        "score": round(c.score, 4),
        "incoherence": round(c.incoherence, 4),
    }
