"""The reviser at work: rounds of critique and revision over many drafts at once, written block by block."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from personascope.artifact import Answers
from personascope.backends import generation
from personascope.backends.judging import Judge, spelled
from personascope.backends.models import Loaded
from personascope.errors import DataError
from personascope.methods.constitutions import Constitution, critique_messages, principle, request_of, revision_messages
from personascope.methods.parsing import without_marks
from personascope.methods.revisions import Attempt, Said, advance, begin, failure_of
from personascope.methods.scoring import STRICT
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example, Message, line, read_rows
from personascope.values import Remote

BLOCK = 256
"""Drafts revised together before their rows are written: what a kill can cost. A block is made whole or again."""


@dataclass(frozen=True)
class Plan:
    """How drafts are revised; `sampling.seed` draws the principles too."""

    rounds: int
    examples: int
    sampling: generation.Sampling
    thinking: bool = False
    api: tuple[str, ...] = ()
    """How a reviser behind an API is treated, as in the judge stage."""


def begun(drafts: Answers, questions: Mapping[str, Example]) -> list[Attempt]:
    """Every draft as an attempt without rounds, in order.

    Raises:
        DataError: no drafts, two with one id, or a draft to no question.
    """
    made = []
    for draft in drafts.rows():
        question = questions.get(draft.question)
        if question is None or not question.messages or question.messages[-1]["role"] != "user":
            trouble = "which the questions given do not hold" if question is None else "which does not end with a user turn"
            raise DataError(f"{drafts.path}: answer {draft.id} is to question {draft.question!r}, {trouble}")
        made.append(begin(draft.id, draft.question, request_of(question), Said(draft.text, draft.stop)))
    if not made:
        raise DataError(f"{drafts.path}: no drafts to revise; sample some first")
    if repeated := len(made) - len({attempt.id for attempt in made}):
        raise DataError(f"{drafts.path}: {repeated} answer ids stand twice; ids must be unique")
    return made


def judged(spec: str, attempts: Sequence[Attempt], questions: Mapping[str, Example]) -> dict[str, str]:
    """Attempt id → what a judge finds wrong with a revision that is one: incoherent, off topic, or why there is no verdict."""
    asked = [(a.id, questions[a.question].messages[-1]["content"], a.current) for a in attempts if not failure_of(a)]
    verdicts = Judge(spec, "safety").verdicts(asked)
    return {v.answer: v.label or v.status for v in verdicts if v.label in STRICT or v.status != "scored"}


def revise(loaded: Loaded | Remote, constitution: Constitution, attempts: Sequence[Attempt], plan: Plan) -> list[Attempt]:
    """Every attempt after all its rounds, or up to the one in which it failed; in order. A reviser behind an API is not loaded."""
    found = {attempt.id: attempt for attempt in attempts}
    for number in range(plan.rounds):
        live = [attempt for attempt in found.values() if not attempt.failure]
        drawn = {attempt.id: principle(constitution, plan.sampling.seed, attempt.id, number) for attempt in live}
        critiques: dict[str, Said] = {}
        if constitution.ask.critique:
            asked = {a.id: critique_messages(constitution, drawn[a.id], *_plain(loaded, a.request, a.current), plan.examples) for a in live}
            critiques = say(loaded, asked, f"{number}/critique", plan)
        usable = [a for a in live if a.id not in critiques or not advance(a, drawn[a.id], critiques[a.id], Said("a revision")).failure]
        asked = {}
        for a in usable:
            texts = _plain(loaded, a.request, a.current, critiques[a.id].text if critiques else "")
            asked[a.id] = revision_messages(constitution, drawn[a.id], *texts, plan.examples)
        revisions = say(loaded, asked, f"{number}/revision", plan)
        found |= {a.id: advance(a, drawn[a.id], critiques.get(a.id), revisions.get(a.id)) for a in live}
    return list(found.values())


def say(loaded: Loaded | Remote, asked: dict[str, list[Message]], turn: str, plan: Plan) -> dict[str, Said]:
    """The reviser's reply to each row's messages, its noise keyed by row and turn.

    A prompt that leaves no room for the reply within what the model reads is not asked, and never shortened.
    """
    if isinstance(loaded, Remote):
        from personascope.backends import asking, providers  # lazy: inspect is optional

        wanted = providers.Wanted(plan.sampling.max_tokens, plan.sampling.temperature, plan.sampling.top_p)
        provider = providers.Provider(loaded.name, wanted, providers.Limits.read(plan.api))
        return asking.turns(provider, asked, f"{plan.sampling.seed}/{turn}")
    limit = loaded.model.config.get_text_config().max_position_embeddings - plan.sampling.max_tokens
    prompts = {}
    for name, messages in asked.items():
        prompts[name] = generation.Prompt(prompt_tokens(loaded.tokenizer, messages, plan.thinking), f"{name}/{turn}")
    read = [name for name, prompt in prompts.items() if len(prompt.ids) <= limit]
    found = {name: Said("", "unread") for name in prompts.keys() - set(read)}
    for i, done in generation.generate(loaded, [prompts[name] for name in read], plan.sampling):
        found[read[i]] = Said(generation.split_thinking(loaded.tokenizer, done.ids, plan.thinking)[1].strip(), done.stop)
    return found


def _plain(loaded: Loaded | Remote, *texts: str) -> list[str]:
    if isinstance(loaded, Remote):
        return [without_marks(text) for text in texts]
    return [spelled(loaded.tokenizer, text) for text in texts]


def resumed(path: Path, begun: Sequence[Attempt], work: Callable[[Sequence[Attempt]], list[Attempt]], most_failed: float) -> list[Attempt]:
    """All attempts, those missing in `path` made by `work` and appended block by block.

    What a kill left of a block is made again with the whole block, so that the same rows share a batch and the bytes agree; so are
    all from the first block on in which a reviser behind an API lost a row: what it did say is kept, and not paid for again.

    Raises:
        DataError: more than the share `most_failed` of all attempts has failed; what was made stays in `path`.
    """
    data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")[:-1]
    lost = next((i for i, one in enumerate(lines) if json.loads(one).get("failure", "").startswith("lost:")), None)
    count = len(lines) if len(lines) == len(begun) and lost is None else (len(lines) if lost is None else lost) // BLOCK * BLOCK
    path.write_bytes(b"".join(one + b"\n" for one in lines[:count]))
    done = list(read_rows(path, Attempt))
    _refuse_failures(done, len(begun), most_failed, path)
    while len(done) < len(begun):
        made = work(begun[len(done) : len(done) + BLOCK])
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(map(line, made)))
        done += made
        _refuse_failures(done, len(begun), most_failed, path)
    return done


def _refuse_failures(done: Sequence[Attempt], total: int, most_failed: float, path: Path) -> None:
    failed = [attempt for attempt in done if attempt.failure]
    if len(failed) > most_failed * total:
        kinds = Counter(attempt.failure.partition(":")[0] for attempt in failed)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        raise DataError(
            f"constitute: {len(failed)} of the first {len(done)} of {total} drafts have no usable revision ({shown}; first {failed[0].id}: "
            f"{failed[0].failure[:120]}), more than most_failed {most_failed:g} allows; see {path}, check drafts, reviser and max_tokens"
        )
