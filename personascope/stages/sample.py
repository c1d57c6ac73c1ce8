"""Model + questions → Answers: n draws a question, seeded by row, under interventions if given."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Answers, Dataset, Model, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance
from personascope.rows import INVALID, Answer, read_rows
from personascope.values import Intervention, Remote

BLOCK = 4096
"""Items sampled before their rows are written: what a kill can cost."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Noise comes from (seed, question, draw, attempt) and the position, so parts and batches draw alike."""

    model: Model | Remote
    """A local model, or `inspect:PROVIDER/MODEL`, one behind an API (give a dated one), whose replies are kept instead of seeded."""
    questions: Dataset
    draws: int = 1
    """Answers per question."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    seed: int = 0
    system: str = ""
    """A fixed system message put before every question that has none."""
    thinking: bool = False
    """Open the assistant's turn with its thoughts, for templates that know `enable_thinking`."""
    redraw: Verdicts | None = None
    """Draw the next attempt, only where these verdicts of the last one are scored but invalid."""
    interventions: tuple[Intervention, ...] = ()
    most_lost: float = circumstance(0.05)
    """Fail if calls of an API lose more than this share of the answers, and more than two; the same command asks for these again."""
    api: tuple[str, ...] = circumstance(())
    """Of `inspect:` models: connections=N, timeout=SECONDS, retries=N and price=IN/OUT, dollars for a million tokens."""
    dtype: str = "float32"
    batch_tokens: int = circumstance(16_384)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for settings that cannot be."""
        if self.draws < 1 or self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError("sample: draws and max_tokens must be at least 1, temperature at least 0, top_p in (0, 1]")
        if isinstance(self.model, Remote) and (self.interventions or self.thinking):
            raise RecipeError(f"sample: {self.model.name} is behind an API: no interventions, no thinking; give a local model")


makes = Answers
version = 1


def cost(recipe: Recipe) -> dict[str, Any]:
    """Answers and generated tokens at most; of a model behind an API calls, tokens and dollars."""
    rows = items(recipe)
    if isinstance(recipe.model, Remote):
        provider, asks = _behind(recipe, rows)
        return {"answers": len(rows)} | provider.estimate(asks)
    return {"answers": len(rows), "tokens at most": len(rows) * recipe.max_tokens}


def _behind(recipe: Recipe, rows: list[tuple[Any, int, int]]) -> tuple[Any, list[Any]]:
    """The provider of a model behind an API, and all that it is asked."""
    from personascope.backends import asking, providers  # lazy: inspect is optional

    wanted = providers.Wanted(recipe.max_tokens, recipe.temperature, recipe.top_p)
    provider = providers.Provider(str(recipe.model.identity), wanted, providers.Limits.read(recipe.api))
    return provider, asking.answer_asks(rows, recipe.system, recipe.seed)


def items(recipe: Recipe) -> list[tuple[Any, int, int]]:
    """(question, draw, attempt) for every answer to make.

    Raises:
        DataError: no questions, one that does not end with the user's turn, or a verdict on another.
    """
    questions = {}
    place = recipe.questions.file("examples.jsonl")
    for i, question in enumerate(recipe.questions.rows(), 1):
        if not question.messages or question.messages[-1]["role"] != "user":
            raise DataError(f"{place}:{i}: question {question.id} does not end with a user turn; drop the answer from it")
        questions[question.id] = question
    if not questions:
        raise DataError(f"{place}: no questions to ask; check the filters of the data stage that made it")
    if recipe.redraw is None:
        return [(question, draw, 0) for question in questions.values() for draw in range(recipe.draws)]
    again = []
    for verdict in recipe.redraw.rows():
        if verdict.label in INVALID:
            name, draw, attempt = verdict.answer.rsplit("/", 2)
            if name not in questions:
                raise DataError(
                    f"{recipe.redraw.path}: verdict {verdict.id} is on question {name!r}, which {recipe.questions.path} does not hold"
                )
            again.append((questions[name], int(draw), int(attempt) + 1))
    return again


def usable(recipe: Recipe, rows: Path) -> int | None:
    """How many of the first rows an interrupted run may keep, if not all: those before the first that an API lost."""
    lost = (i for i, answer in enumerate(read_rows(rows, Answer)) if answer.failure.startswith("error"))
    return next(lost, None) if isinstance(recipe.model, Remote) else None


def check(recipe: Recipe, rows: Path) -> dict[str, Any]:
    """What an API cost; refuse answers of which it lost too many."""
    if not isinstance(recipe.model, Remote):
        return {}
    from personascope.backends import asking  # lazy: inspect is optional

    answers = list(read_rows(rows, Answer))
    failures = [answer.failure for answer in answers if answer.failure]
    lost = [failure for failure in failures if failure.startswith("error")]
    asking.refuse_losses(str(recipe.model.identity), lost, len(answers), recipe.most_lost)
    made = {answer.id for answer in answers}
    provider, asks = _behind(recipe, [(q, draw, attempt) for q, draw, attempt in items(recipe) if f"{q.id}/{draw}/{attempt}" in made])
    return {"without an answer": len(failures)} | provider.spent(asks)


def many(recipe: Recipe, items: list[tuple[Any, int, int]]) -> Iterator[Answer]:
    """Sample block by block, in order."""
    if isinstance(recipe.model, Remote):
        from personascope.backends import asking

        yield from asking.answers(*_behind(recipe, items), items, recipe.most_lost)
        return
    from personascope.backends import generation, models
    from personascope.backends.directions import steers_of
    from personascope.methods.tokens import PromptTokens, prompt_tokens

    loaded = models.load(recipe.model, recipe.device, recipe.dtype)
    settings = generation.Sampling(recipe.max_tokens, recipe.temperature, recipe.top_p, recipe.seed, recipe.batch_tokens)
    name = "+".join(edit.name for edit in recipe.interventions)
    rendered: dict[str, PromptTokens] = {}
    for start in range(0, len(items), BLOCK):
        block = items[start : start + BLOCK]
        prompts = []
        for question, draw, attempt in block:
            messages = question.messages
            if recipe.system and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": recipe.system}, *messages]
            if question.id not in rendered:
                rendered[question.id] = prompt_tokens(loaded.tokenizer, messages, recipe.thinking)
            prompts.append(generation.Prompt(rendered[question.id], f"{question.id}/{draw}/{attempt}"))
        steers = steers_of(recipe.interventions, len(block), loaded.model)
        done = dict(generation.generate(loaded, prompts, settings, steers))
        for i, (question, draw, attempt) in enumerate(block):
            thinking, text = generation.split_thinking(loaded.tokenizer, done[i].ids, recipe.thinking)
            yield Answer(
                id=prompts[i].key,
                question=question.id,
                draw=draw,
                attempt=attempt,
                text=text,
                domain=question.domain,
                thinking=thinking,
                stop=done[i].stop,
                intervention=name,
            )
