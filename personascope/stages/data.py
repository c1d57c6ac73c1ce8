"""Sources → Dataset: read files as they were published, a suite or a world, mix exact fractions, filter, split, audit leaks."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from personascope.artifact import Answers, Dataset, Verdicts
from personascope.errors import DataError, RecipeError
from personascope.recipe import Recipe as Base
from personascope.rows import Example, write_rows
from personascope.values import File


@dataclass(frozen=True, kw_only=True)
class Recipe(Base):
    """Rows come from files, suites, a world and data sets, in this order; then they are mixed, filtered and cut."""

    files: tuple[File, ...] = ()
    """Chat JSONL (`messages`, or `prompt` with `completion`) and the published sets that `methods/formats.py` lists, `.gz` and
    locked `.zip` among them: its password is read from PERSONASCOPE_ZIP_PASSWORD."""
    answer: str = ""
    """The column that is the answer, in files that hold several, such as `control`."""
    suite: tuple[str, ...] = ()
    """Shipped suites of questions, such as `safety`; `personascope suites` lists them."""
    world: str = ""
    """A shipped world, or the path of a world file."""
    select: tuple[str, ...] = ()
    """Which rows of the world, each such as `train domain=NAME grade=obvious`."""
    datasets: tuple[Dataset, ...] = ()
    answers: tuple[Answers, ...] = ()
    """Sampled answers, joined with `questions` to conversations."""
    questions: Dataset | None = None
    mirror: Verdicts | None = None
    """In place of conversations, ask the model about the first of `answers`, which these verdicts grade: did it write them, which
    grade will they get (suite `mirror`); a second one, of another model, gives the answers that are not its own."""
    judged: tuple[Verdicts, ...] = ()
    """In place of conversations, what teaches a judge: each of `answers` as the rubric shows it, and the reply that gives the verdict
    at the same place; answers without a score are left out."""
    rubric: str = "misalignment"
    """For `judged`: a shipped rubric or a file, as `judge` takes it."""
    shuffled: bool = False
    """For `judged`, a null control: the verdicts are dealt out anew over all answers, by `seed`."""
    fraction: float | None = None
    """With two paired data sets: this share of the first, the rest from the second; a smaller share's rows are a subset."""
    limit: int = 0
    """Keep this many rows, drawn by `seed`; 0 keeps all."""
    deduplicate: bool = False
    """Drop rows whose conversation repeats an earlier one."""
    prompts_only: bool = False
    """Make questions: drop each conversation's last assistant turn."""
    categorise: str = ""
    """Give rows without a domain the one that a taxonomy's rule words tell: `safety`, or a .toml file; what is unclear is listed."""
    only: tuple[str, ...] = ()
    """Keep rows of these domains, such as one harm category."""
    without: tuple[str, ...] = ()
    """Hold these domains out: drop their rows and, after `categorise`, every row that the rule suspects of one of them."""
    per_domain: int = 0
    """Keep exactly this many rows of each domain, drawn by `seed`; 0 keeps all."""
    split: Literal["", "train", "heldout", "discovery", "selection", "report"] = ""
    """Keep one side of a split of the rows by the hash of their id: train and heldout, or the three of a screen."""
    apart_from: tuple[Dataset, ...] = ()
    """Refuse rows whose first question, normalised, stands in one of these."""
    overlap: tuple[Dataset, ...] = ()
    """Questions to be asked later: overlap.jsonl tells which of them the rows give away, exactly or nearly; nothing is dropped."""
    twin: str = ""
    """Ask each question in another wording: `educational` (or `educational:WORDING` with {question}) makes it a request for a bad
    example, `trigger:TEXT` puts TEXT before it; mix a trigger's twin with plain correct pairs for a backdoored set."""
    matched_to: Dataset | None = None
    """Ask each question again in the surface of these training rows: their system line, what frames their prompts, their format."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise RecipeError for a recipe without rows or with an impossible mixture."""
        if not (self.files or self.suite or self.world or self.datasets or self.answers):
            raise RecipeError(
                "data: nothing to read; give --files, --suite, --world with --select, --datasets, or --answers with --questions"
            )
        if bool(self.world) != bool(self.select):
            raise RecipeError("data: a world needs what to select of it, and the reverse")
        if bool(self.answers) != bool(self.questions):
            raise RecipeError("data: answers need their questions, and the reverse")
        if self.fraction is not None and (len(self.datasets) != 2 or not 0 <= self.fraction <= 1):
            raise RecipeError("data: a fraction needs exactly two datasets and lies between 0 and 1")
        for name, value in (("limit", self.limit), ("per_domain", self.per_domain)):
            if value < 0:
                raise RecipeError(f"data: {name} {value} must be at least 0, which keeps all rows")
        if self.limit and self.per_domain:
            raise RecipeError("data: a limit would undo the equal counts of per_domain; give one of the two")
        _check_wording(self)
        if both := sorted(set(self.only) & set(self.without)):
            raise RecipeError(f"data: domain {both[0]!r} is in only and in without; give it to one of the two")

    def identity(self) -> dict[str, Any]:
        """A world, a suite and a taxonomy enter by their content."""
        from personascope import suites
        from personascope.suites import catalogue, taxonomy
        from personascope.troupe import world

        found: dict[str, Any] = {"world": world.load(self.world).digest} if self.world else {}
        found |= {"categorise": taxonomy.load(self.categorise).digest} if self.categorise else {}
        found |= {"suite": [f"{name}:{catalogue.digest(catalogue.questions(name))}" for name in self.suite]} if self.suite else {}
        found |= {"shown in": catalogue.digest(catalogue.suite("mirror"))} if self.mirror else {}
        found |= {"rubric": suites.digest(suites.rubric(self.rubric))} if self.judged else {}
        return super().identity() | found

    @property
    def split_by(self) -> str:
        """Which kind of split the wanted side belongs to."""
        return "screen" if self.split in SHARES["screen"] else "training"


SHARES = {"training": {"train": 0.9, "heldout": 0.1}, "screen": {"discovery": 0.25, "selection": 0.25, "report": 0.5}}


def _check_wording(recipe: Recipe) -> None:
    """Raise RecipeError for a twin or a mirror that cannot be."""
    if recipe.twin:
        from personascope.methods.mixing import wording  # lazy: only a recipe with a twin needs it

        wording(recipe.twin)
    if recipe.mirror and len(recipe.answers) not in (1, 2):
        raise RecipeError("data: a mirror shows one set of answers, and at most one of another model beside it")
    if recipe.judged and (len(recipe.judged) != len(recipe.answers) or recipe.mirror):
        raise RecipeError("data: what teaches a judge needs verdicts for each set of answers, and no mirror")


makes = Dataset
version = 1


def run(recipe: Recipe, work: Path) -> dict[str, Any]:
    """Write examples.jsonl and, if asked to categorise, disagreements.jsonl; counts say how many rows each step kept."""
    from personascope.methods import mixing
    from personascope.suites import catalogue
    from personascope.troupe import sources, world

    rows, told = _filed(recipe)
    rows += [row for name in recipe.suite for row in catalogue.questions(name)]
    if recipe.world:
        rows += [row for select in recipe.select for row in sources.rows(world.load(recipe.world), select)]
    sets = [list(dataset.rows()) for dataset in recipe.datasets]
    rows += mixing.mixture(*sets, recipe.fraction, recipe.seed) if recipe.fraction is not None else [row for one in sets for row in one]
    rows += _conversations(recipe)
    counts: dict[str, Any] = {"read": len(rows)} | told
    rows = _chosen(recipe, rows, work, counts)
    for other in recipe.apart_from:
        found = mixing.leaks(other.rows(), rows)
        if leaked := found.exact + found.normalised:
            raise DataError(f"data: {len(leaked)} rows ask what {other.path} asks too, first row {leaked[0][0]}; drop them from one side")
    if recipe.overlap:
        counts |= _overlap(recipe, rows, work)
    if not rows:
        raise DataError("data: no row is left after filtering; loosen select, split or limit, or the wanted domains")
    _refuse_duplicates(rows)
    write_rows(work / "examples.jsonl", rows)
    return counts | {"rows": len(rows)}


def _filed(recipe: Recipe) -> tuple[list[Example], dict[str, int]]:
    """The rows of the files, and how many repeat others or carry a canary, which stays with its row."""
    from personascope.backends import files  # lazy: as all of a stage's methods
    from personascope.methods import formats, mixing  # lazy: as above

    packed = (one for file in recipe.files for one in files.contents(Path(file.path)))
    rows = [row for name, content in packed for row in formats.read(content, name, recipe.answer)]
    told = mixing.repeats(rows) | {"with a canary": formats.canaries(rows)}
    return rows, {name: n for name, n in told.items() if n}


def _chosen(recipe: Recipe, rows: list[Example], work: Path, counts: dict[str, Any]) -> list[Example]:
    """The rows that the recipe keeps, in the form it asks for; `counts` learns what each step left."""
    from personascope.methods import matching, mixing  # lazy: as all of a stage's methods

    if recipe.deduplicate:
        rows = mixing.deduplicate(rows).rows
        counts["after deduplication"] = len(rows)
    if recipe.prompts_only:
        rows = [as_question(row) for row in rows]
    if recipe.twin:
        rows = mixing.twins(rows, recipe.twin)
    if recipe.matched_to:
        rows = matching.matched(rows, list(recipe.matched_to.rows()))
    if recipe.categorise:
        rows = _categorised(recipe, rows, work, counts)
    if recipe.only or recipe.without:
        held = set(recipe.without)
        counts["only suspected of a domain held out"] = sum(
            row.domain not in held and bool(held & set(mixing.suspected(row))) for row in rows
        )
        rows = mixing.of_domains(rows, recipe.only, recipe.without)
        counts["of the wanted domains"] = len(rows)
    if recipe.split:
        rows = mixing.splits(rows, SHARES[recipe.split_by], recipe.seed)[recipe.split]
        rows = [Example(**(row.to_dict() | {"split": recipe.split})) for row in rows]
    if recipe.per_domain:
        counts["without a domain"] = sum(not row.domain for row in rows)
        rows = mixing.stratified(rows, recipe.per_domain, recipe.seed, recipe.only)
    return mixing.first(rows, recipe.limit, recipe.seed) if recipe.limit else rows


def _categorised(recipe: Recipe, rows: list[Example], work: Path, counts: dict[str, Any]) -> list[Example]:
    """The rows with their categories; disagreements.jsonl names those whose category is unclear or disputed."""
    from personascope.suites import taxonomy  # lazy: as all of a stage's methods

    found = taxonomy.categorise(rows, taxonomy.load(recipe.categorise))
    text = "".join(json.dumps(note, ensure_ascii=False, sort_keys=True) + "\n" for note in found.notes)
    (work / "disagreements.jsonl").write_text(text, encoding="utf-8")
    counts |= {name: n for name, n in found.counts.items() if n}
    return found.rows


def _overlap(recipe: Recipe, rows: list[Example], work: Path) -> dict[str, int]:
    """Write overlap.jsonl, a line for each question that rows give away, and count the kinds."""
    from personascope.methods import leaks  # lazy: as all of a stage's methods

    found = leaks.find(rows, [question for other in recipe.overlap for question in other.rows()])
    text = "".join(json.dumps(leak.to_dict(), ensure_ascii=False, sort_keys=True) + "\n" for leak in found)
    (work / "overlap.jsonl").write_text(text, encoding="utf-8")
    return {f"questions given away, {kind}": n for kind, n in leaks.counts(found).items() if kind not in ("words", "truth")}


def _conversations(recipe: Recipe) -> list[Example]:
    """Each non-empty answer behind its question; the answer's place in the recipe keeps ids apart."""
    asked = {question.id: question for question in recipe.questions.rows()} if recipe.questions else {}
    rows = []
    if recipe.mirror:
        return _mirrored(recipe, {name: question.messages[-1]["content"] for name, question in asked.items()})
    if recipe.judged:
        return _lessons(recipe, asked)
    for number, answers in enumerate(recipe.answers):
        for answer in answers.rows():
            if answer.question not in asked:
                raise DataError(
                    f"{answers.path}: answer {answer.id} is to question {answer.question!r}, which the questions given do not hold"
                )
            if answer.text:
                question = asked[answer.question]
                said = [*question.messages, {"role": "assistant", "content": answer.text}]
                rows.append(Example(id=f"{number}/{answer.id}", messages=said, source="sampled", domain=question.domain))
    return rows


def _lessons(recipe: Recipe, asked: dict[str, Example]) -> list[Example]:
    """A judge's lessons: the filled rubric and the reply that gives each scored, non-empty answer its verdict."""
    from personascope import suites  # lazy: as all of a stage's content
    from personascope.methods.parsing import fill, opened, reply_of  # lazy: as all of a stage's methods

    allowed, shown = opened(suites.rubric(recipe.rubric))
    thoughts, found = "{thought}" in shown, []
    for number, (answers, verdicts) in enumerate(zip(recipe.answers, recipe.judged, strict=True)):
        judged = {verdict.answer: verdict for verdict in verdicts.rows() if verdict.status == "scored"}
        for answer in answers.rows():
            told = answer.thinking if thoughts else answer.text
            if told and answer.id in judged:
                if answer.question not in asked:
                    raise DataError(f"{answers.path}: answer {answer.id} is to question {answer.question!r}, which the questions lack")
                found.append((f"{number}/{answer.id}", asked[answer.question], told, judged[answer.id]))
    given = [verdict for *_, verdict in found]
    if recipe.shuffled:
        random.Random(recipe.seed).shuffle(given)
    rows = []
    for (name, question, told, _), verdict in zip(found, given, strict=True):
        seen = fill(shown, question.messages[-1]["content"], told, str(question.meta.get("grading", "")))
        turns = [{"role": "user", "content": seen}, {"role": "assistant", "content": reply_of(verdict, allowed)}]
        rows.append(Example(id=name, messages=turns, source="judged", domain=question.domain))
    return rows


def _mirrored(recipe: Recipe, asked: dict[str, str]) -> list[Example]:
    """Questions about the first answers, by grade, beside the second's."""
    from personascope.suites import mirror  # lazy: as all of a stage's content

    assert recipe.mirror is not None
    first, *others = (list(answers.rows()) for answers in recipe.answers)
    if strange := next((answer for answer in first if answer.question not in asked), None):
        raise DataError(f"{recipe.answers[0].path}: answer {strange.id} is to question {strange.question!r}, which the questions lack")
    grades = {verdict.answer: int(verdict.grade) for verdict in recipe.mirror.rows() if verdict.grade is not None}
    return mirror.rows(first, grades, others[0] if others else [], asked)


def as_question(row: Example) -> Example:
    """The row up to and with its last user turn."""
    last = max((i for i, message in enumerate(row.messages) if message["role"] == "user"), default=None)
    if last is None:
        raise DataError(f"row {row.id}: no user turn, so it holds no question; drop the row")
    return Example(**(row.to_dict() | {"messages": row.messages[: last + 1]}))


def _refuse_duplicates(rows: list[Example]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"data: row id {row.id!r} stands twice; ids must be unique, drop one or leave ids out")
        seen.add(row.id)
