"""Answers and verdicts in inspect's `.eval` logs, and back: one sample a draw, every attempt and every field kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from personascope.backends import providers
from personascope.errors import BackendError, DataError
from personascope.methods import forms, safety, scoring
from personascope.methods.scoring import Draw
from personascope.rows import ATTITUDES, Answer, Example, Verdict

try:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, read_eval_log, write_eval_log
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        Content,
        ContentReasoning,
        ContentText,
        ModelOutput,
    )
    from inspect_ai.scorer import Score
except ImportError as error:
    raise BackendError(f'logs of inspect need inspect ({error}); pip install "personascope[inspect]"') from None

STORE = "personascope"
"""Where a sample's store holds its rows: a list of {answer, verdict} by attempt."""
SCORE = "judged"
"""The score whose metadata hold the verdicts."""
CHAT: dict[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
KEPT = [f.name for f in fields(Example) if f.name not in ("id", "messages")]
"""The fields of a question that a sample's metadata hold."""


@dataclass(frozen=True)
class Held:
    """What a log holds, in the order of its questions and draws."""

    questions: list[Example]
    attempts: list[tuple[list[Answer], list[Verdict]]]
    """By attempt; no verdicts where nothing was judged by us."""


def read(path: Path) -> Held:
    """The rows of a log: those that our tasks and `log_of` put there, or else made from what inspect recorded.

    Raises:
        DataError: no such log, a log without samples, one that did not finish, or a sample that ended in an error.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a log that inspect wrote (.eval or .json)")
    try:
        log = read_eval_log(str(path), resolve_attachments=True)
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{path}: not a log of inspect ({str(error).splitlines()[0][:120]})") from None
    samples = log.samples or []
    if log.status != "success" or not samples:
        raise DataError(
            f"{path}: the evaluation ended with status {log.status} and {len(samples)} samples; finish it with inspect eval-retry"
        )
    if failed := next((sample for sample in samples if sample.error), None):
        raise DataError(f"{path}: sample {failed.id}, epoch {failed.epoch} ended in an error; repair the log with inspect eval-retry")
    asked = {str(name): place for place, name in enumerate(log.eval.dataset.sample_ids or [])}
    samples = sorted(samples, key=lambda sample: (asked.get(str(sample.id), len(asked)), sample.epoch))
    questions = {str(sample.id): example_of(sample) for sample in samples}
    attempts: list[tuple[list[Answer], list[Verdict]]] = []
    for sample in samples:
        for number, (answer, verdict) in enumerate(rows_of(sample)):
            if number == len(attempts):
                attempts.append(([], []))
            attempts[number][0].append(answer)
            attempts[number][1].extend([verdict] if verdict else [])
    return Held(list(questions.values()), attempts)


def rows_of(sample: EvalSample) -> list[tuple[Answer, Verdict | None]]:
    """A sample's answers by attempt, each with its verdict if it has one; raises DataError for rows that are none."""
    where = f"sample {sample.id}, epoch {sample.epoch}"
    domain = str(sample.metadata.get("domain", ""))
    entries = sample.store.get(STORE) or [{"answer": answer_of(str(sample.id), sample.epoch - 1, 0, sample.output, domain).to_dict()}]
    answers = [Answer.from_dict(entry["answer"], where) for entry in entries]
    score = (sample.scores or {}).get(SCORE)
    judged = (score.metadata or {}).get("verdicts", []) if score else [entry["verdict"] for entry in entries if "verdict" in entry]
    verdicts = [Verdict.from_dict(entry, where) for entry in judged]
    return [(answer, verdicts[i] if i < len(verdicts) else None) for i, answer in enumerate(answers)]


def answer_of(question: str, draw: int, attempt: int, output: ModelOutput, domain: str = "") -> Answer:
    """What a model said through inspect, its reasoning kept apart; empty, with the reason, where it gave no answer."""
    reply = providers.read(output)
    came = reply.status in ("said", "cut")
    return Answer(
        id=f"{question}/{draw}/{attempt}",
        question=question,
        draw=draw,
        attempt=attempt,
        text=reply.text if came else "",
        domain=domain,
        thinking=reply.thinking,
        stop="length" if reply.status == "cut" else "end",
        intervention=(output.metadata or {}).get("intervention", ""),
        failure="" if came else f"{reply.status}: {reply.reason}",
    )


def example_of(sample: EvalSample) -> Example:
    """The question of a sample; metadata that are not a question's own go into `meta`."""
    asked = [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else sample.input
    messages = [{"role": message.role, "content": message.text} for message in asked]
    ours = set(sample.metadata) <= set(KEPT)
    return Example(id=str(sample.id), messages=messages, **(sample.metadata if ours else {"meta": sample.metadata}))


def sample_fields(question: Example) -> dict[str, Any]:
    """Input, target, id and metadata of the sample that asks a question."""
    asked: list[ChatMessage] = [CHAT[message["role"]](content=message["content"]) for message in question.messages]
    kept = question.to_dict()
    metadata = {name: kept[name] for name in KEPT if name in kept}
    return {"id": question.id, "input": asked, "target": str(question.labels.get("answer", "")), "metadata": metadata}


def log_of(held: Held, task: str, model: str) -> EvalLog:
    """A finished log of these rows, not yet scored: one sample a draw, in its store the rows of every attempt.

    Raises:
        DataError: rows that the log could not give back: verdicts that are not those of the answers, row by row, answers of
            another attempt or in another order than the questions, two of one draw, or a question without an answer.
    """
    place = {question.id: number for number, question in enumerate(held.questions)}
    draws: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for number, (answers, verdicts) in enumerate(held.attempts):
        if verdicts and [verdict.answer for verdict in verdicts] != [answer.id for answer in answers]:
            raise DataError(f"attempt {number}: the verdicts are not those of the answers, row by row; give the pair that belongs together")
        if stray := next((answer for answer in answers if answer.question not in place or answer.attempt != number), None):
            raise DataError(f"answer {stray.id}: to an unknown question, or not of attempt {number}; give what belongs together")
        keys = [(place[answer.question], answer.draw) for answer in answers]
        if keys != sorted(set(keys)) or (number and not set(keys) <= set(draws)):
            raise DataError(
                f"attempt {number}: answers in another order than their questions, or two of one draw; give them as sample makes them"
            )
        for key, answer, verdict in zip(keys, answers, verdicts or [None] * len(answers), strict=True):
            draws.setdefault(key, []).append({"answer": answer.to_dict()} | ({"verdict": verdict.to_dict()} if verdict else {}))
    if silent := sorted(set(place.values()) - {question for question, _ in draws}):
        raise DataError(f"question {held.questions[silent[0]].id}: {len(silent)} questions have no answer; give those that were asked")
    spec = EvalSpec(
        created=datetime.now(UTC).isoformat(),
        task=task,
        dataset=EvalDataset(name=task, samples=len(place), sample_ids=list(place)),
        model=model,
        config=EvalConfig(epochs=1 + max(draw for _, draw in draws)),
    )
    samples = [_sample(held.questions[question], draw, entries, model) for (question, draw), entries in draws.items()]
    return EvalLog(status="success", eval=spec, samples=samples)


def save(log: EvalLog, path: Path) -> None:
    """Write a log, as `.eval` or as `.json` by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_eval_log(log, str(path), "json" if path.suffix == ".json" else "eval")


def _sample(question: Example, draw: int, entries: Sequence[Mapping[str, Any]], model: str) -> EvalSample:
    said = Answer.from_dict(dict(entries[-1]["answer"]), f"draw {draw}")
    content: list[Content] = [ContentReasoning(reasoning=said.thinking), ContentText(text=said.text)] if said.thinking else []
    output = ModelOutput.from_content(model, content or said.text, stop_reason="stop" if said.stop == "end" else "max_tokens")
    asked = sample_fields(question)
    return EvalSample(**asked, epoch=draw + 1, messages=[*asked["input"], output.message], output=output, store={STORE: list(entries)})


def _labelled(form: str) -> dict[str, tuple[Any, Any]]:
    """The rates of a form that is read off labels alone."""
    spec = forms.FORMS[form]

    def rate(labels: Sequence[str]) -> tuple[Any, Any]:
        return lambda d: safety.outcome(d, spec.settled) is not None, lambda d: safety.outcome(d, spec.settled) in labels

    return {name: rate(labels) for name, labels in spec.rates.items()}


def _attitude(label: str) -> tuple[Any, Any]:
    return lambda d: safety.outcome(d, ATTITUDES) is not None, lambda d: safety.outcome(d, ATTITUDES) == label


INCOHERENT = (scoring.judged_first, scoring.labelled(scoring.STRICT))
RATES: dict[str, dict[str, tuple[Any, Any]]] = {
    "misalignment": {
        "score": (scoring.gradable, scoring.harmful),
        "refusal": (scoring.judged_first, scoring.labelled(("refusal",))),
        "strict_incoherence": INCOHERENT,
    },
    "safety": {
        "safe": (lambda d: safety.outcome(d) is not None, lambda d: safety.outcome(d) in ("refusal", "safe")),
        "refusal": (lambda d: safety.outcome(d) is not None, lambda d: safety.outcome(d) == "refusal"),
        "strict_incoherence": INCOHERENT,
    },
    "ethics": {"agree": _attitude("agree"), "ambiguous": _attitude("ambiguous"), "strict_incoherence": INCOHERENT},
    **{form: _labelled(form) for form in forms.FORMS},
}
"""Form → rate, named as in findings → (is the draw counted, is it a hit)."""


def score_of(verdicts: Sequence[Verdict], form: str) -> Score:
    """One draw as inspect shows it: 1 or 0 for every rate that counts it, NaN, which inspect leaves out, for every other."""
    draw = Draw("", 0, tuple(verdicts))
    value = {name: float(hit(draw)) if counted(draw) else float("nan") for name, (counted, hit) in RATES[form].items()}
    last = verdicts[-1]
    found = last.grade if last.label is None else last.label
    return Score(
        value=value,
        answer=None if found is None else str(found),
        explanation=last.reason,
        reason=None if last.status == "scored" else "grader_failed",
        metadata={"status": last.status, "grade": last.grade, "label": last.label, "verdicts": [v.to_dict() for v in verdicts]},
    )
