"""Diff + both models → Screen: which latents induce the change on the base and repair it on the tuned model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Dataset, Dictionary, Diff, Model, Screen
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance

MASKS = ("prompt", "last_prompt", "all")
RANKERS = ("delta", "cosine", "attribution")
STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5)


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Mask, strengths and winner are chosen on the selection questions; all reported numbers come from the report questions."""

    base: Model
    tuned: Model
    diff: Diff
    dictionary: Dictionary
    selection: Dataset
    """Questions on which strength, mask and winner are chosen."""
    report: Dataset
    """Other questions, on which the winner and the nulls are scored."""
    judge: str
    """`exact:WORLD`, `hf:FOLDER` or `inspect:PROVIDER/MODEL`, as in the judge stage; one behind an API is asked thousands of times."""
    by: Model | None = None
    """With judge `hf:`, no folder, the judging model is this one."""
    rubric: str = "misalignment"
    """What is scored: grades of `misalignment` (or of a .md file), or the share of unsafe answers of `safety`, refusals counted as safe."""
    rankers: tuple[str, ...] = ("delta", "cosine")
    """What nominates: `delta`, `cosine` with the mean difference, `attribution` where the diff has it."""
    top: int = 10
    """Latents nominated by each ranker: this many of the highest."""
    bottom: int = 0
    """And this many of the lowest, which are subtracted to induce."""
    method: Literal["adaptive", "grid"] = "adaptive"
    """`grid` looks at every strength of every latent, as the paper does; `adaptive` sifts, descends to a strength, drops the hopeless,
    and tests in two looks, the second where the first does not settle it."""
    sift: int = 12
    """Selection questions of the first look at each latent; 0 keeps all."""
    fdr: float = 0.05
    """Causal latents are named at this false-discovery rate (Benjamini-Hochberg over all nominated)."""
    rotate: int = 0
    """Null control: above 0, the seed of one random rotation of the nominated decoder rows."""
    planted: int = 0
    """So many of the first nominees stay as they are under `rotate`: positives that the control must still find."""
    harmful_from: int = 4
    """The score is the share of valid answers graded this or higher."""
    unlikely: float | None = None
    """An answer that both unsteered models find less likely, token for token, than all but this share of what either of them says
    by itself is incoherent, and no judge is asked about it (by default 0.01, and 0, none, under an exact judge, which reads everything)."""
    masks: tuple[str, ...] = ("last_prompt", "all")
    strengths: tuple[float, ...] = STRENGTHS
    """In units of the base's median residual norm at the site on the prompt mask; the same grid both ways."""
    budget: float = 0.1
    """Strict incoherence allowed: this much, or unsteered plus this much where the model itself is above it."""
    nulls: int = 50
    """Random latents matched in firing rate, and as many random directions, each at its own strength."""
    chance: Screen | None = None
    """A finished screen of the same pair, judge and strengths: its nulls are taken over instead of drawn again."""
    null_masks: Literal["best", "every"] = "best"
    """Where nulls run: at the winner's mask, or at every mask at which a latent is beyond chance. Untested masks name nobody."""
    draws: int = 1
    report_draws: int = 2
    null_draws: int = 1
    """Answers per report question for each null, of which there are many."""
    temperature: float = 1.0
    max_tokens: int = 32
    seed: int = 0
    api: tuple[str, ...] = circumstance(())
    """Of an `inspect:` judge: connections=N, timeout=SECONDS, retries=N and price=IN/OUT, dollars for a million tokens."""
    batch_tokens: int = circumstance(16_384)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for a screen that cannot be."""
        if not 0 <= self.guarded < 1:
            raise RecipeError(f"screen: unlikely {self.unlikely} is no share; give one from 0 to less than 1, such as 0.01")
        if self.top + self.bottom < 1 or not self.masks or list(self.strengths) != sorted(set(self.strengths)):
            raise RecipeError("screen: nominate at least one latent, name at least one mask, and give strengths in rising order")
        if unknown := [by for by in self.rankers if by not in RANKERS] or not self.rankers:
            raise RecipeError(f"screen: rankers {self.rankers} must be some of {', '.join(RANKERS)}")
        if unknown := [mask for mask in self.masks if mask not in MASKS]:
            raise RecipeError(f"screen: mask {unknown[0]!r} is none of {', '.join(MASKS)}, the masks that a diff holds")
        if self.judge.startswith("csv:"):
            raise RecipeError("screen: a table holds no verdicts on the answers a screen draws; use exact:WORLD or hf:FOLDER")
        if self.rubric == "ethics":
            raise RecipeError("screen: attitudes have no harm to induce or repair; take the rubric misalignment or safety")
        if str(self.selection) == str(self.report):
            raise RecipeError("screen: selection and report questions must be different sets")

    @property
    def guarded(self) -> float:
        """What `unlikely` comes to under this judge; 0 asks the judge about everything."""
        usual = 0.0 if self.judge.startswith("exact:") else 0.01
        return usual if self.unlikely is None else self.unlikely

    def identity(self) -> dict[str, Any]:
        """The judge enters by the content of what stands behind its name, and so does a rubric that is a file."""
        from personascope import suites
        from personascope.backends.judging import Judge, spec_of

        found = super().identity() | {"judge": Judge(spec_of(self.judge, self.by), self.rubric).name}
        return found | ({"rubric": suites.digest(suites.rubric(self.rubric))} if suites.is_file(self.rubric) else {})


makes = Screen
version = 7


def cost(recipe: Recipe) -> dict[str, int]:
    """About how many answers: every nominee's search, if none is dropped, the tests, the nulls and what is only shown."""
    from personascope.methods import coherence

    asked = sum(1 for _ in recipe.selection.rows())
    reported = sum(1 for _ in recipe.report.rows())
    masks, strengths = len(recipe.masks), len(recipe.strengths)
    # Far above the budget a strength takes ten answers, near it all of them: in all about three times the questions.
    looks = 3 * asked * recipe.draws
    trials = masks * (1 + len(recipe.rankers) * (recipe.top + recipe.bottom))
    search = 2 * trials * (strengths * asked * recipe.draws if recipe.method == "grid" else looks)
    confirmed = 0 if recipe.method == "grid" else 2 * 2 * masks * 4 * asked * recipe.draws
    # One draw for all, the rest for about half.
    tests = 2 * trials * reported * (recipe.report_draws if recipe.method == "grid" else (1 + recipe.report_draws) / 2)
    drawn = 0 if recipe.chance else 2 * recipe.nulls * (masks if recipe.null_masks == "every" else 1)
    nulls = 2 * drawn * (looks // 2 + reported // 2 * recipe.null_draws)
    shown = 2 * (1 + 2 * masks) * strengths * asked // 2
    own = 2 * max(coherence.OWN, asked) if recipe.guarded else 0
    return {"answers, about": search + confirmed + int(tests) + nulls + shown + own}


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write grid.jsonl (every point looked at), likelihood.json and screen.json; an interrupted screen keeps its points."""
    from personascope.backends import verdicts
    from personascope.backends.screening import Screening

    screening = Screening.open(recipe, work, cost(recipe)["answers, about"])
    screening.search()
    record = verdicts.record(screening)
    (work / "screen.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"points": len(screening.grid.points), "answers": sum(screening.grid.spent.values())} | record["tested"]
