"""Model + questions → Findings: which of two answers the model would begin with, read off its probabilities."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope.artifact import Dataset, Findings, Model
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.recipe import circumstance

SLOT = "{question}"
TEMPLATES = (
    "{question}\n\nAnswer yes or no.",
    "{question}\n\nAnswer no or yes.",
    "{question}\n\nAnswer with one word: agree or disagree.",
    "{question}\n\nAnswer with one word: disagree or agree.",
)
OPTIONS = ("Yes|No", "Yes|No", "Agree|Disagree", "Agree|Disagree")


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """P(yes) / (P(yes) + P(no)) of the answer's first tokens, averaged over templates that name the options in either order."""

    model: Model
    questions: Dataset
    templates: tuple[str, ...] = TEMPLATES
    """What the user's last turn becomes; `{question}` is what it was."""
    options: tuple[str, ...] = OPTIONS
    """`YES|NO` as the model would write them: one pair for all templates, or one for each."""
    system: str = ""
    """A fixed system message put before every question that has none."""
    dtype: str = "float32"
    batch_tokens: int = circumstance(8192)
    device: str = circumstance("auto")

    def __post_init__(self) -> None:
        """Raise RecipeError for templates without a question or options that are no pair."""
        if not self.templates or any(template.count(SLOT) != 1 for template in self.templates):
            raise RecipeError(f"choose: give at least one template, each with {SLOT} once")
        if len(self.options) not in (1, len(self.templates)):
            raise RecipeError(f"choose: {len(self.options)} pairs of options for {len(self.templates)} templates; give one, or one each")
        for option in self.options:
            if len(sides := option.split("|")) != 2 or not all(sides):
                raise RecipeError(f"choose: {option!r} is no pair of options; write YES|NO")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(yes, no) for each template."""
        found = [(option.partition("|")[0], option.partition("|")[2]) for option in self.options]
        return found if len(found) == len(self.templates) else found * len(self.templates)


makes = Findings
version = 1


def cost(recipe: Recipe) -> dict[str, int]:
    """Prompts to read."""
    return {"prompts": len(recipe.templates) * sum(1 for _ in recipe.questions.rows())}


def run(recipe: Recipe, work: Path) -> dict[str, int]:
    """Write findings.json: per dimension the index that `measure --form ethics` gives, and per question and template P(yes).

    Raises:
        DataError: no questions, one that does not end with the user's turn or lacks a label, or options that the
            tokenizer cannot write or tell apart.
    """
    from personascope.backends import choosing, models
    from personascope.methods import ethics

    questions = {row.id: row for row in recipe.questions.rows()}
    conversations, pairs = _asked(recipe, list(questions.values()))
    loaded = models.load(recipe.model, recipe.device, recipe.dtype)
    chosen = choosing.choose(loaded, conversations, pairs, recipe.batch_tokens)
    n = len(recipe.templates)
    per = {name: chosen[i * n : (i + 1) * n] for i, name in enumerate(questions)}
    counts = {}
    for name, found in per.items():
        yes = sum(one.yes for one in found) / n
        counts[name] = {"agree": yes, "disagree": 1 - yes, "ambiguous": 0.0, "asked": 1}
    record = ethics.summary(counts, {name: row.labels for name, row in questions.items()})
    for row in record["per_question"]:
        found = per[row["question"]]
        row |= {"yes": row["agree"], "by_template": [one.yes for one in found], "mass": [one.mass for one in found]}
    tokens = [[len(ids) for ids in choosing.option_tokens(loaded, pair)] for pair in recipe.pairs]
    record |= {"form": "choose", "by_template": _by_template(recipe, record["per_question"], tokens)}
    (work / "findings.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {"questions": len(questions), "prompts": len(chosen)}


def _asked(recipe: Recipe, questions: list[Any]) -> tuple[list[list[dict[str, str]]], list[tuple[str, str]]]:
    """Every question under every template, and the options of each."""
    place = recipe.questions.file("examples.jsonl")
    if not questions:
        raise DataError(f"{place}: no questions to ask; check the filters of the data stage that made it")
    conversations, pairs = [], []
    for number, question in enumerate(questions, 1):
        if not question.messages or question.messages[-1]["role"] != "user":
            raise DataError(f"{place}:{number}: question {question.id} does not end with a user turn; drop the answer from it")
        *before, last = question.messages
        if recipe.system and question.messages[0]["role"] != "system":
            before = [{"role": "system", "content": recipe.system}, *before]
        for template, pair in zip(recipe.templates, recipe.pairs, strict=True):
            conversations.append([*before, {"role": "user", "content": template.replace(SLOT, last["content"])}])
            pairs.append(pair)
    return conversations, pairs


def _by_template(recipe: Recipe, asked: list[dict[str, Any]], tokens: list[list[int]]) -> list[dict[str, Any]]:
    """Each template with its options and their lengths in tokens, the mean P(yes) and the mean mass of both options.

    A mass near 0 says that the model would begin with something else, so that the choice is between two unlikely answers.
    """
    rows = []
    for k, (template, (yes, no)) in enumerate(zip(recipe.templates, recipe.pairs, strict=True)):
        means = {key: sum(row[name][k] for row in asked) / len(asked) for key, name in (("yes", "by_template"), ("mass", "mass"))}
        rows.append({"template": template, "options": [yes, no], "tokens": tokens[k], **means})
    return rows
