"""Dictionary + texts → Labels: what chosen latents respond to, in contexts, words, labels and a judge's description."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Dataset, Dictionary, Diff, Labels, Model, Screen
from personascope.errors import RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.values import REMOTE, Remote


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Which latents, on which texts, and who puts them into words; a screen's results are quoted, nothing is sampled anew."""

    model: Model
    """The model whose stream the dictionary reads, normally the base."""
    dictionary: Dictionary
    texts: Dataset
    """Conversations, or prose in `meta["prose"]`; their `labels` are the truth that latents are scored against."""
    diff: Diff | None = None
    """Its most risen and most fallen latents are interpreted."""
    screen: Screen | None = None
    """Its causal and best-ranked latents are interpreted, and what it found when steering is put on the cards."""
    latents: tuple[int, ...] = ()
    """Latents by number."""
    top: int = 20
    """Risen latents of the diff."""
    bottom: int = 20
    """Fallen latents of the diff."""
    screened: int = 20
    """Latents of the screen, causal ones first."""
    names: tuple[str, ...] = ()
    """`LATENT=WORDS`: labels given by hand."""
    label: tuple[str, ...] = ()
    """`KEY` or `KEY=VALUE`: the labels of the texts to try; none means all."""
    judge: str = "none"
    """`hf:FOLDER`, a local chat model that describes latents and is tested on held-out contexts, `inspect:PROVIDER/MODEL`, one behind
    an API, or `none`."""
    most_texts: int = 20_000
    """Texts read at most, drawn by hash."""
    window: int = 32
    """Tokens of a context."""
    strongest: int = 10
    """Contexts of largest activation."""
    bands: int = 4
    """Quantile bands of activation, over the distinct active windows."""
    each: int = 3
    """Contexts shown of each band, and silent ones."""
    heldout: int = 20
    """Active contexts on which a description is tested, and as many silent ones; none of them was shown."""
    similar: float = 0.3
    """Mean cosine of decoder rows down to which clusters merge."""
    draws: int = 200
    """Sets of random latents that the clusters are compared with."""
    max_tokens: int = 200
    """How long the judge may think."""
    api: tuple[str, ...] = circumstance(())
    """Of an `inspect:` judge: connections=N, timeout=SECONDS, retries=N and price=IN/OUT, dollars for a million tokens."""
    seed: int = 0
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for what cannot be interpreted."""
        if not self.latents and not (self.screen and self.screened) and not (self.diff and self.top + self.bottom):
            raise RecipeError("interpret: no latent is chosen; give latents, a diff with top or bottom, or a screen")
        if self.judge.startswith(REMOTE):
            Remote(self.judge)
        elif self.judge != "none" and not (self.judge.startswith("hf:") and self.judge != "hf:"):
            raise RecipeError(f"interpret: judge {self.judge!r} cannot describe anything; write hf:FOLDER, inspect:PROVIDER/MODEL or none")
        if odd := [name for name in self.names if not name.partition("=")[0].isdigit() or not name.partition("=")[2]]:
            raise RecipeError(f"interpret: {odd[0]!r} names no latent; write LATENT=WORDS")
        for name in ("most_texts", "window", "strongest", "bands", "each"):
            if (value := getattr(self, name)) < 1:
                raise RecipeError(f"interpret: {name} {value} is not possible; give 1 or more")

    def identity(self) -> dict[str, Any]:
        """The judge enters by the content of its folder and of the prompts it is asked with."""
        if self.judge == "none":
            return super().identity()
        from personascope.backends.describing import judge_name

        return super().identity() | {"judge": judge_name(self.judge)}


makes = Labels
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Texts read, and judge calls at most."""
    from personascope.backends.interpreting import choose

    chosen = len(choose(recipe))
    asked = chosen * (1 + 4 * recipe.heldout) if recipe.judge != "none" else 0
    return {"texts": min(recipe.most_texts, sum(1 for _ in recipe.texts.rows()))} | ({"judge calls": asked} if asked else {})


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write latents.jsonl (a card each), contexts.jsonl, similarity.json, interpret.json and, with a judge, its replies.

    Raises:
        RecipeError: a latent that the dictionary does not have.
        DataError: texts without a usable token.
        BackendError: dictionary and model do not belong together.
    """
    from personascope.backends.interpreting import interpret

    return interpret(recipe, work)
