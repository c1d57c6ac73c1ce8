"""What a model behind an API says, as rows: verdicts, answers, a reviser's turns; what gave no answer is a row with the reason."""

from collections.abc import Iterator, Sequence

from personascope import suites
from personascope.backends.judging import Judge, verdict_of
from personascope.backends.providers import Ask, Provider
from personascope.errors import BackendError
from personascope.methods.parsing import fill, opened, without_marks
from personascope.methods.revisions import Said
from personascope.rows import Answer, Example, Message, Verdict


def judge_asks(rubric: str, rows: Sequence[Sequence[str]]) -> list[Ask]:
    """The rubric filled with each (answer id, question, answer, note); the judge sees nothing else."""
    shown = opened(rubric)[1]
    return [Ask([{"role": "user", "content": fill(shown, *map(without_marks, texts))}]) for _, *texts in rows]


def refuse_losses(name: str, lost: Sequence[str], total: int, most_lost: float) -> None:
    """Raise BackendError if calls have lost more than a share of all rows, and more than two; `lost` are the reasons."""
    if len(lost) > max(2, most_lost * total):
        raise BackendError(
            f"{name}: calls lost {len(lost)} of {total} rows (last: {lost[-1][:120]}), more than most_lost {most_lost:g} allows; "
            "run the same command again: what came is kept, what was lost is asked again"
        )


def verdicts(provider: Provider, asks: Sequence[Ask], answers: Sequence[str], judge: Judge) -> Iterator[Verdict]:
    """One verdict to each answer id, in order.

    Raises:
        BackendError: calls lost more of them than the judge allows.
    """
    name, allowed, lost = judge.name, opened(suites.rubric(judge.rubric))[0], []
    for answer, reply in zip(answers, provider.replies(asks), strict=True):
        lost += [reply.reason] * (reply.status == "error")
        refuse_losses(provider.name, lost, len(asks), judge.most_lost)
        yield verdict_of(answer, reply, name, allowed)


def answer_asks(items: Sequence[tuple[Example, int, int]], system: str, seed: int) -> list[Ask]:
    """What is asked for each (question, draw, attempt); other draws, attempts and seeds get replies of their own."""
    asks = []
    for question, draw, attempt in items:
        messages: list[Message] = list(question.messages)
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        asks.append(Ask(messages, f"{seed}/{draw}/{attempt}"))
    return asks


def answers(provider: Provider, asks: Sequence[Ask], items: Sequence[tuple[Example, int, int]], most_lost: float) -> Iterator[Answer]:
    """One answer to each (question, draw, attempt), in order; one that did not come is empty and says why in `failure`.

    Raises:
        BackendError: calls lost more than the share `most_lost` of them.
    """
    lost: list[str] = []
    for (question, draw, attempt), reply in zip(items, provider.replies(asks), strict=True):
        came = reply.status in ("said", "cut")
        lost += [reply.reason] * (reply.status == "error")
        refuse_losses(provider.name, lost, len(asks), most_lost)
        yield Answer(
            id=f"{question.id}/{draw}/{attempt}",
            question=question.id,
            draw=draw,
            attempt=attempt,
            text=reply.text if came else "",
            domain=question.domain,
            thinking=reply.thinking,
            stop="length" if reply.status == "cut" else "end",
            failure="" if came else f"{reply.status}: {reply.reason}",
        )


def turns(provider: Provider, asked: dict[str, list[Message]], turn: str) -> dict[str, Said]:
    """A reviser's reply to each row's messages."""
    asks = [Ask(messages, f"{name}/{turn}") for name, messages in asked.items()]
    stops = {"said": "end", "cut": "length", "refused": "refused", "error": "lost"}
    return {
        name: Said(reply.text.strip() if reply.status in ("said", "cut") else reply.reason, stops[reply.status])
        for name, reply in zip(asked, provider.replies(asks), strict=True)
    }
