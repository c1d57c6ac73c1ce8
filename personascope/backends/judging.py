"""Judges by name: exact for a world, a local chat model behind a rubric, a model behind an API, a table, an answer key."""

import csv
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from personascope import suites
from personascope.artifact import Model, hash_file
from personascope.backends import choosing, generation, models
from personascope.backends.models import Loaded
from personascope.backends.replies import Reply
from personascope.errors import DataError, RecipeError
from personascope.methods import keys
from personascope.methods.parsing import (
    GRADED,
    LEAD,
    LEAST_MASS,
    NUMBER,
    PARSER,
    expected_number,
    fill,
    opened,
    parse,
    verdict,
    whole_number,
)
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Verdict
from personascope.troupe import exact, world
from personascope.values import REMOTE, Remote

AT_ONCE = 256
"""Rows a judging model gets before their verdicts are handed on."""
TOPS = 20
"""Likeliest tokens looked at where a judge gives a number from 0 to 100."""
Case = tuple[str, str, str] | tuple[str, str, str, str]
"""Answer id, question, answer, and what the question itself tells its judge: a grading note or the right answer."""


@dataclass(frozen=True)
class Judge:
    """A judge by its spec: `exact:WORLD`, `hf:FOLDER`, `csv:FILE`, `key:LABEL` or `inspect:PROVIDER/MODEL`. Opening it checks the kind.

    Raises:
        RecipeError: an unknown kind of judge.
    """

    spec: str
    rubric: str = "misalignment"
    """A shipped rubric or a `.md` file; it says which replies count."""
    max_tokens: int = 200
    api: tuple[str, ...] = ()
    """How a provider is treated, as in the judge stage."""
    most_lost: float = 0.05
    """Most of the rows that calls of an API may lose, as a share."""

    def __post_init__(self) -> None:
        """Check the kind."""
        check_judge(self.spec)

    @property
    def where(self) -> str:
        """What stands behind the kind: a world, a folder, a file."""
        return self.spec.partition(":")[2]

    @functools.cached_property
    def name(self) -> str:
        """The identity a verdict records: kind, content digest, rubric digest, parser version."""
        if self.spec.startswith("exact:"):
            return exact.identity(world.load(self.where), self.rubric)
        if self.spec.startswith("csv:"):
            if not Path(self.where).is_file():
                raise DataError(f"{self.where}: no such file; give a CSV with columns answer and verdict")
            return f"csv:{hash_file(Path(self.where))[:12]}/{PARSER}"
        if self.spec.startswith("key:"):
            return f"{self.spec}/{keys.VERSION}"
        who = self.spec if self.spec.startswith(REMOTE) else f"hf:{models.identity_at(self.where)[:12]}"
        return f"{who}/{suites.digest(suites.rubric(self.rubric))}/{PARSER}"

    @functools.cached_property
    def model(self) -> Loaded:
        """The local model behind `hf:`, loaded once however often this judge is asked."""
        return models.load_at(self.where)

    def record(self) -> dict[str, Any]:
        """All that the judgement rests on but for the answers: who judges, the whole rubric, what it allows, how a reply is read."""
        found: dict[str, Any] = {"judge": self.name, "kind": self.spec.partition(":")[0]}
        if self.spec.startswith(("exact:", "key:")):
            return found | {"rubric": {"name": self.rubric}}
        text = suites.rubric(self.rubric)
        rubric = {"name": Path(self.rubric).name, "digest": suites.digest(text), "replies": list(opened(text)[0]), "text": text}
        found |= {"rubric": rubric, "parser": {"reads": "the last line", "version": PARSER}}
        if self.spec.startswith("csv:"):
            return found
        how: dict[str, Any] = {"temperature": 0, "max_tokens": self.max_tokens, "least_mass": LEAST_MASS}
        return found | how | ({"model": self.where} if self.spec.startswith(REMOTE) else {})

    def behind(self, rows: Sequence[Case]) -> tuple[Any, list[Any]]:
        """The provider of a judge behind an API, and all that it is asked on these rows."""
        from personascope.backends import asking, providers  # lazy: inspect is optional

        rubric = suites.rubric(self.rubric)
        wanted = providers.Wanted(self.max_tokens, tops=TOPS if NUMBER in opened(rubric)[0] else 0)
        return providers.Provider(self.spec, wanted, providers.Limits.read(self.api)), asking.judge_asks(rubric, rows)

    def verdicts(self, rows: Sequence[Case]) -> Iterator[Verdict]:
        """One verdict per (answer id, question, answer, note), in order; the judge sees nothing else."""
        if self.spec.startswith("exact:"):
            yield from (exact.verdict(world.load(self.where), *row[:3], rubric=self.rubric) for row in rows)
        elif self.spec.startswith("key:"):
            yield from (keys.verdict(row[0], row[2], row[3] if len(row) > 3 else "", self.name) for row in rows)
        elif self.spec.startswith("csv:"):
            allowed = tuple(reply for reply in opened(suites.rubric(self.rubric))[0] if reply != LEAD)
            yield from by_table(Path(self.where), self.name, rows, allowed)
        elif self.spec.startswith(REMOTE):
            from personascope.backends import asking  # lazy: inspect is optional

            provider, asks = self.behind(rows)
            yield from asking.verdicts(provider, asks, [row[0] for row in rows], self)
        else:
            for start in range(0, len(rows), AT_ONCE):
                yield from by_model(self.model, suites.rubric(self.rubric), self.name, rows[start : start + AT_ONCE], self.max_tokens)


def check_judge(spec: str) -> None:
    """Raise RecipeError unless the spec names a kind of judge and a place."""
    kind, _, where = spec.partition(":")
    if spec.startswith(REMOTE):
        Remote(spec)
    elif kind not in ("exact", "hf", "csv", "key") or not where:
        raise RecipeError(f"judge: {spec!r} is no judge; write exact:WORLD, hf:FOLDER, inspect:PROVIDER/MODEL, csv:FILE or key:LABEL")


def spec_of(judge: str, by: Model | None) -> str:
    """The spec of a judge, that of a judging model by its place.

    Raises:
        RecipeError: a judging model with another judge than `hf:`, or none there.
        ArtifactError: it is not finished.
    """
    if (by is not None) != (judge == "hf:"):
        raise RecipeError(f"judge: {judge!r} with by {by}; give hf:FOLDER, or hf: and a model as --by")
    return f"hf:{by}" if by and by.manifest else judge


def by_model(loaded: Loaded, rubric: str, judge: str, rows: Sequence[Case], max_tokens: int) -> Iterator[Verdict]:
    """Verdicts of a local chat model at temperature 0 on (answer id, question, answer, note) rows."""
    allowed, shown = opened(rubric)
    prompts = []
    for answer_id, *texts in rows:
        asked = fill(shown, *(spelled(loaded.tokenizer, text) for text in texts))
        prompts.append(generation.Prompt(prompt_tokens(loaded.tokenizer, [{"role": "user", "content": asked}]), answer_id))
    done = dict(generation.generate(loaded, prompts, generation.Sampling(max_tokens=max_tokens, temperature=0)))
    numbers = (
        number_tokens(loaded, [prompt.ids for prompt in prompts], [done[i].ids for i in range(len(rows))]) if NUMBER in allowed else {}
    )
    for i, (answer_id, *_) in enumerate(rows):
        _, text = generation.split_thinking(loaded.tokenizer, done[i].ids)
        reply = Reply("said", text) if done[i].stop == "end" else Reply("cut", text, f"cut at {max_tokens} tokens")
        yield verdict_of(answer_id, dataclasses.replace(reply, tops=numbers.get(i, {})), judge, allowed)


def number_tokens(loaded: Loaded, prompts: Sequence[list[int]], said: Sequence[list[int]]) -> dict[int, dict[str, float]]:
    """Row → log-probabilities of the TOPS likeliest tokens where its last number stands; a number of several tokens is left out."""
    places = {}
    for row, ids in enumerate(said):
        place = whole_number([loaded.tokenizer.decode([token]) for token in ids])
        if place is not None:
            places[row] = tuple(prompts[row]) + tuple(ids[:place])
    likeliest = choosing.likeliest(loaded, list(places.values()), TOPS)
    spelt = [{loaded.tokenizer.decode([token]): value for token, value in likeliest[read].items()} for read in places.values()]
    return dict(zip(places, spelt, strict=True))


def verdict_of(answer_id: str, reply: Reply, judge: str, allowed: Sequence[str]) -> Verdict:
    """A reply as a verdict: only a whole one is parsed, and a number from 0 to 100 becomes its expected value where tokens allow.

    A reply that puts less than LEAST_MASS of its probability on numbers is unparsed, whatever it says.
    """
    facts = {"id": answer_id, "answer": answer_id, "judge": judge}
    if reply.status != "said":
        status = {"refused": "judge_refused", "cut": "unparsed", "error": "error"}[reply.status]
        return Verdict(status=status, reason=": ".join(filter(None, (reply.reason, reply.text.strip()[-100:]))), **facts)
    found = verdict(answer_id, reply.text, judge, allowed)
    if NUMBER not in allowed or found.grade is None or not reply.tops:
        return found
    value = expected_number(reply.tops, 0, 100)
    if value is None:
        return Verdict(status="unparsed", reason=f"less than {LEAST_MASS:.0%} of the probability on numbers: {found.reason}", **facts)
    return Verdict(status="scored", grade=round(value, 4), reason=found.reason, **facts)


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a space inside every special token it spells out, so that no answer opens a turn in the judge's chat."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def by_table(path: Path, judge: str, rows: Sequence[Case], allowed: Sequence[str] = GRADED) -> Iterator[Verdict]:
    """Verdicts from a CSV with columns `answer` (the answer's id) and `verdict` (an allowed reply); a missing row is an error row.

    With a column `text` a verdict counts for that text alone, so that one table can serve several models.

    Raises:
        DataError: no such file, a missing column, or a cell that is no verdict (file:line).
    """
    known, by_text = _read_table(path, allowed)
    for answer_id, _, text, *_ in rows:
        if (key := (answer_id, text if by_text else "")) in known:
            yield verdict(answer_id, known[key], judge, allowed)
        else:
            yield Verdict(id=answer_id, answer=answer_id, status="error", reason=f"no row for this answer in {path.name}", judge=judge)


def _read_table(path: Path, allowed: Sequence[str]) -> tuple[dict[tuple[str, str], str], bool]:
    """(answer id, text or nothing) → verdict, and whether the table has texts."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a CSV with columns answer and verdict")
    known: dict[tuple[str, str], str] = {}
    # Spreadsheets begin their UTF-8 files with a mark.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        try:
            columns = reader.fieldnames or ["none"]
            if not {"answer", "verdict"} <= set(columns):
                raise DataError(f"{path}:1: columns answer and verdict are needed, found {', '.join(columns)}")
            for entry in reader:
                where, cell, key = f"{path}:{reader.line_num}", entry["verdict"], (entry["answer"], entry.get("text", ""))
                if parse(cell, allowed)[0] != "scored":
                    raise DataError(f"{where}: {cell!r} is no verdict; write {_spelled_out(allowed)}")
                if known.setdefault(key, cell) != cell:
                    raise DataError(f"{where}: a second verdict on answer {key[0]}, {cell} after {known[key]}; keep one")
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8 text; convert the file") from None
    return known, "text" in columns


def _spelled_out(allowed: Sequence[str]) -> str:
    words = ", ".join(word for word in allowed if not word.isdigit())
    return f"1-5 or one of {words}" if "1" in allowed else f"one of {words}"
