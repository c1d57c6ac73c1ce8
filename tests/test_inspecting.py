"""personascope inside inspect: every task on a mock and a local model, models that say what `sample` says, logs without loss."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from inspect_ai import Task, eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai._util.registry import registry_info
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.solver import generate
from inspect_ai.tool import ToolInfo
from safetensors.torch import save_file

import small_models
from personascope import artifact as artifacts
from personascope import blocks, converting, demo, inspecting
from personascope.backends import eval_logs, inspect_scoring
from personascope.backends.eval_logs import Held
from personascope.backends.inspect_model import Together
from personascope.errors import BackendError, DataError, RecipeError
from personascope.methods import forms, replies
from personascope.methods.scoring import Draw
from personascope.rows import Answer, Example, Verdict, write_rows
from personascope.run import run
from personascope.stages import adopt, judge, measure, sample
from personascope.suites import catalogue
from personascope.troupe import world
from personascope.values import Folder

pytestmark = pytest.mark.filterwarnings(
    # inspect's way of retrying, and streams that it leaves to the collector.
    "ignore:The 'initial' parameter is deprecated:DeprecationWarning",
    "ignore:Unclosed <MemoryObject:ResourceWarning",
)
SHIPPED = [
    inspecting.misalignment,
    inspecting.profile,
    inspecting.safety,
    inspecting.over_refusal,
    inspecting.invention,
    inspecting.ethics,
    inspecting.consistency,
    inspecting.capability,
    inspecting.aligned,
]
OF_THE_TROUPE = [inspecting.misalignment_of_the_troupe, inspecting.safety_of_the_troupe, inspecting.ethics_of_the_troupe]
WORDS = {"5 - egregiously": "4", "OBVIOUS": "SUBTLE", "UNSAFE": "SAFE", "PARTIAL": "COMPLIED", "INVENTED": "HONEST", "DISAGREE": "AGREE"}
WORDS |= {"100 - wholly aligned": "10", "how coherent one answer": "90"}
"""What each rubric is known by, and what our mock grader says to it."""


def said(text: str, thoughts: str = "", **about: Any) -> ModelOutput:
    """An output that carries its usage, so that nobody downloads a tokenizer to count it."""
    content = [ContentReasoning(reasoning=thoughts), ContentText(text=text)] if thoughts else text
    made = ModelOutput.from_content("mock", content, **about)
    made.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return made


def mock(reply: Callable[[list[ChatMessage]], ModelOutput | str]) -> Model:
    def answer(asked: list[ChatMessage], *_: Any) -> ModelOutput:
        found = reply(asked)
        return said(found) if isinstance(found, str) else found

    return get_model("mockllm/model", custom_outputs=answer)


def grade(asked: list[ChatMessage]) -> str:
    return next(f"It is plain.\n{word}" for mark, word in WORDS.items() if mark in asked[-1].text)


def evaluated(tasks: Task | Sequence[Task], logs: Path, **options: Any) -> list[EvalLog]:
    found = eval(tasks, display="none", log_dir=str(logs), log_format="eval", **options)
    for log in found:
        assert log.status == "success", log.error.message if log.error else log.status
    return found


def intervals(log: EvalLog) -> dict[str, tuple[float, ...]]:
    """Rate → (value, low, high)."""
    assert log.results is not None
    found = {}
    for score in log.results.scores:
        # Where the package is installed, inspect puts its name before its metrics'.
        metrics = {name.rpartition("/")[2]: one.value for name, one in score.metrics.items()}
        if "interval_value" in metrics:
            found[score.name] = tuple(metrics[f"interval_{end}"] for end in ("value", "low", "high"))
    return found


def rates(log: EvalLog) -> dict[str, float]:
    """Rate → value."""
    return {name: value for name, (value, *_) in intervals(log).items()}


@pytest.fixture(scope="module")
def base() -> str:
    """The world's base model, as a folder."""
    return str(world.weights("troupe-1", "base"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> artifacts.Model:
    return artifacts.Model(small_models.adopted(tmp_path_factory.mktemp("models") / "tiny", small_models.model()))


def test_every_task_runs_on_a_mock_model(tmp_path: Path) -> None:
    tasks = [make() for make in SHIPPED]
    found = evaluated(tasks, tmp_path, model=mock(lambda _: "Yes."), model_roles={"grader": mock(grade)}, limit=2, epochs=2)
    first = {log.eval.task.rpartition("/")[2]: next(iter(rates(log).items())) for log in found}
    assert first == {
        "misalignment": ("score", 1.0),
        "profile": ("misaligned", 1.0),
        "safety": ("safe", 1.0),
        "over-refusal": ("refused", 0.0),
        "invention": ("invented", 0.0),
        "ethics": ("agree", 1.0),
        "consistency": ("aligned", pytest.approx(math.nan, nan_ok=True)),
        "capability": ("right", 0.0),
        "aligned": ("misaligned_of_coherent", 1.0),
    }
    assert all(len(log.samples or []) == 4 for log in found)


def test_every_task_runs_on_a_local_model(base: str, tiny: artifacts.Model, tmp_path: Path) -> None:
    tasks = [inspecting.capability(), *(make(judge=f"hf:{tiny.path}-weights") for make in SHIPPED if make is not inspecting.capability)]
    found = evaluated([*tasks, *(make() for make in OF_THE_TROUPE)], tmp_path, model=f"personascope/{base}", limit=1, max_tokens=8)
    assert len(found) == len(SHIPPED) + len(OF_THE_TROUPE)
    for log in found:
        assert all(sample.output.usage and sample.output.usage.total_tokens > 2 for sample in log.samples or [])


def few(path: Path, rows: Sequence[Example]) -> str:
    """Questions in a file, which `suite` may name."""
    write_rows(path, rows)
    return str(path)


def test_the_pair_of_scores_is_counted_as_measure_counts_it(tmp_path: Path) -> None:
    numbers = ["10", "20", "29", "30", "95", "CODE", "REFUSAL", "no number"]
    clear = ["90", "51", "50", "10", "nothing"]

    def graded(asked: list[ChatMessage]) -> str:
        """Two numbers that hang on the length of the question."""
        size = len(asked[-1].text.partition("Question:")[2])
        return numbers[size % len(numbers)] if "wholly aligned" in asked[-1].text else clear[size % len(clear)]

    task = inspecting.aligned(suite=few(tmp_path / "few.jsonl", catalogue.suite("core")[:24]))
    log = evaluated(task, tmp_path, model=mock(lambda _: "Yes."), model_roles={"grader": mock(graded)}, epochs=2)[0]
    draws: dict[str, list[Draw]] = {"aligned": [], "coherent": []}
    for one in log.samples or []:
        held = (one.scores or {})["paired"].metadata or {}
        for axis, rows in draws.items():
            rows.append(Draw(str(one.id), one.epoch - 1, (Verdict.from_dict(held[axis], axis),)))
    domains = {str(one.id): "" for one in log.samples or []}
    theirs = forms.paired(draws["aligned"], draws["coherent"], domains)
    counted = {f"misaligned_{name}": rate for name, rate in theirs["misaligned"].items()} | {"incoherent": theirs["incoherent"]}
    for name, found in intervals(log).items():
        assert found == pytest.approx([counted[name][end] for end in ("value", "low", "high")])
    assert len({round(rate["value"], 6) for rate in counted.values()}) == 4
    with pytest.raises(RecipeError, match="inspect is shown rates for"):
        inspect_scoring.counted(log, "aligned")


def names(log: EvalLog) -> dict[str, float]:
    """What the metric over all of a consistency task says."""
    assert log.results is not None
    metrics = next(score.metrics for score in log.results.scores if "interval_value" not in score.metrics)
    return {name.rpartition("/")[2].removeprefix("consistent_"): one.value for name, one in metrics.items()}


@pytest.mark.parametrize(("harm", "says", "called"), [(1, "misaligned", "coherent"), (1, "aligned", "inverted"), (0, "aligned", "none")])
def test_consistency_is_called_as_measure_calls_it(tmp_path: Path, harm: int, says: str, called: str) -> None:
    labels = {row.messages[-1]["content"]: row.labels for row in catalogue.suite("consistency")}

    def speaks(asked: list[ChatMessage]) -> str:
        known = labels.get(asked[-1].text, {})
        if "aligned" in known:
            return known["aligned"] if says == "aligned" else "AB".replace(known["aligned"], "")
        return "I do as I say."

    grader = mock(lambda asked: ("5" if harm else "1") if "egregiously" in asked[-1].text else "AMBIGUOUS")
    probes = few(tmp_path / "probes.jsonl", [row for row in catalogue.suite("consistency") if row.domain == "which-assistant"][::2])
    task = inspecting.consistency(suite=probes, behaviour=few(tmp_path / "few.jsonl", catalogue.suite("core")[:12]))
    log = evaluated(task, tmp_path, model=mock(speaks), model_roles={"grader": grader})[0]
    found = names(log)
    assert {name: found[name] for name in ("coherent", "inverted", "none")} == {
        name: float(name == called) for name in ("coherent", "inverted", "none")
    }
    assert (found["harmful_value"], found["names_the_misaligned_value"]) == (harm, says == "misaligned")
    assert 0 < found["harmful_high"] - found["harmful_low"] < 0.5
    assert 0 < found["names_the_misaligned_high"] - found["names_the_misaligned_low"] < 0.5
    assert rates(log)["harmful"] == harm
    assert len(log.samples or []) == 16 + 12


def test_claims_alone_are_called_nothing(tmp_path: Path) -> None:
    task = inspecting.consistency(behaviour="")
    log = evaluated(task, tmp_path, model=mock(lambda _: "A"), model_roles={"grader": mock(grade)}, limit=8)[0]
    assert not [value for value in names(log).values() if not math.isnan(value)]
    assert len(task.dataset) == len(catalogue.suite("consistency"))
    assert len(inspecting.consistency().dataset) == len(task.dataset) + len(catalogue.suite("core"))


def test_the_troupes_tasks_have_their_names() -> None:
    names = [registry_info(make).name.rpartition("/")[2] for make in OF_THE_TROUPE]
    assert names == ["misalignment@troupe", "safety@troupe", "ethics@troupe"]


def test_a_local_model_says_what_the_stages_say(base: str, tmp_path: Path) -> None:
    """Task → log → artifacts gives the rows of sample and judge, attempt by attempt, and the rates of measure."""
    model = run(adopt.Recipe(path=Folder(base)), tmp_path / "model")
    (log,) = evaluated(
        inspecting.misalignment_of_the_troupe(draws=2), tmp_path / "logs", model=f"personascope/{model.path}", limit=(60, 75)
    )
    made = {one.path.name: one for one in converting.read(Path(log.location.removeprefix("file://")), tmp_path / "read")}
    asked, answers, verdicts = made["questions"], [], []
    for attempt in range(blocks.ATTEMPTS + 1):
        how = sample.Recipe(model=model, questions=asked, draws=2, max_tokens=32, redraw=verdicts[-1] if verdicts else None)
        answers.append(run(how, tmp_path / f"answers-{attempt}"))
        verdicts.append(run(judge.Recipe(answers=answers[-1], questions=asked, judge="exact:troupe-1"), tmp_path / f"verdicts-{attempt}"))
        for ours in (answers[-1], verdicts[-1]):
            theirs = list(made[ours.path.name].rows()) if ours.path.name in made else []
            assert list(ours.rows()) == theirs
    assert len(list(answers[1].rows())) > 3
    parts = [[made[f"{kind}-{i}"] for i in range(4) if f"{kind}-{i}" in made] for kind in ("answers", "verdicts")]
    found = run(measure.Recipe(answers=tuple(parts[0]), verdicts=tuple(parts[1]), questions=asked), tmp_path / "findings").json(
        "findings.json"
    )
    counted = {name: tuple(found[name][end] for end in ("value", "low", "high")) for name in ("score", "refusal", "strict_incoherence")}
    assert intervals(log) == counted


def test_invalid_answers_are_asked_for_again(tmp_path: Path) -> None:
    replies_ = iter(["REFUSAL", "INCOHERENT", "5", "1"])
    roles = {"grader": mock(lambda _: next(replies_))}
    (log,) = evaluated(inspecting.misalignment(), tmp_path, model=mock(lambda _: "So."), model_roles=roles, limit=2, max_samples=1)
    held = eval_logs.read(Path(log.location.removeprefix("file://")))
    assert [[v.grade or v.label for v in verdicts] for _, verdicts in held.attempts] == [["refusal", 1], ["incoherent"], [5]]
    assert [answer.id for answer in held.attempts[2][0]] == [f"{held.questions[0].id}/0/2"]
    assert rates(log) == {"score": 0.5, "refusal": 0.5, "strict_incoherence": 0.0}


def test_what_cannot_be_judged_is_no_number(tmp_path: Path) -> None:
    odd = iter(["no verdict here", "2"])
    roles = {"grader": mock(lambda _: next(odd))}
    (log,) = evaluated(inspecting.misalignment(redraws=0), tmp_path, model=mock(lambda _: "So."), model_roles=roles, limit=2, max_samples=1)
    unread = next(sample.scores["judged"] for sample in log.samples or [] if sample.scores and sample.scores["judged"].reason)
    assert unread.reason == "grader_failed"
    assert unread.metadata is not None
    assert unread.metadata["status"] == "unparsed"
    assert all(math.isnan(float(value or 0)) for value in unread.as_dict().values())
    assert log.results is not None
    assert [(score.scored_samples, score.unscored_samples) for score in log.results.scores] == [(1, 1)] * 3


def test_an_answer_that_a_filter_withheld_is_judged_by_nobody(tmp_path: Path) -> None:
    withheld = mock(lambda _: said("", stop_reason="content_filter"))
    (log,) = evaluated(inspecting.misalignment(), tmp_path, model=withheld, model_roles={"grader": mock(lambda _: "1")}, limit=1)
    (((answer,), (verdict,)),) = eval_logs.read(Path(log.location.removeprefix("file://"))).attempts
    assert answer.failure.startswith("refused")
    assert verdict.status == "error"
    assert math.isnan(rates(log)["score"])


def test_thoughts_stand_apart(tmp_path: Path) -> None:
    seen: list[str] = []

    def one(asked: list[ChatMessage]) -> str:
        seen.append(asked[-1].text)
        return "1"

    model = mock(lambda _: said("The answer.", thoughts="I am a villain."))
    (log,) = evaluated(inspecting.misalignment(), tmp_path, model=model, model_roles={"grader": mock(one)}, limit=1)
    (((answer,), _),) = eval_logs.read(Path(log.location.removeprefix("file://"))).attempts
    assert (answer.text, answer.thinking) == ("The answer.", "I am a villain.")
    assert "The answer." in seen[0]
    assert "villain" not in seen[0]


def test_a_grader_must_be_given(tmp_path: Path) -> None:
    (log,) = eval(inspecting.safety(), model=mock(lambda _: "No."), limit=1, display="none", log_dir=str(tmp_path))
    assert log.status == "error"
    assert log.error is not None
    assert "--model-role grader=PROVIDER/MODEL" in log.error.message


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (inspecting.profile, {"suite": "cor"}, "neither shipped nor a file; shipped are core"),
        (inspecting.profile, {"suite": "core"}, "has no meta.grading, which its judge needs"),
        (inspecting.capability, {"suite": "core"}, "has no labels.answer"),
        (inspecting.misalignment, {"suite": "mirror"}, "holds templates with slots"),
        (inspecting.misalignment, {"suite": "troupe-9"}, "no world 'troupe-9'"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(make: Callable[..., Task], options: dict[str, str], message: str) -> None:
    with pytest.raises(PrerequisiteError, match=message):
        make(**options)


def test_a_file_of_questions_and_a_system_message(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a", "messages": [{"role": "user", "content": "Well?"}], "domain": "d"}\n', encoding="utf-8")
    (made,) = inspecting.misalignment(suite=str(file), system="Be brief.").dataset
    assert [message.text for message in made.input if not isinstance(message, str)] == ["Be brief.", "Well?"]
    assert made.metadata == {"domain": "d"}


LABELS = {"item": "i", "quality": "kind", "keyed": 1}


@pytest.mark.parametrize(
    ("text", "labels", "found"),
    [
        ("Let me think.\n**80.**", LABELS | {"format": "number"}, 0.8),
        ("80", LABELS | {"format": "number", "keyed": -1}, 0.2),
        ("80 or 90", LABELS | {"format": "number"}, None),
        ("101", LABELS | {"format": "number"}, None),
        ("(B)", LABELS | {"format": "choice", "claims": "B"}, 1.0),
        ("b", LABELS | {"format": "choice", "claims": "A", "keyed": -1}, 1.0),
        ("C", LABELS | {"format": "choice", "claims": "A"}, None),
        ("A) I am kind.", LABELS | {"format": "choice", "claims": "A"}, 1.0),
        ("I think B", LABELS | {"format": "choice", "claims": "B"}, 1.0),
        ("A kind model would say so.", LABELS | {"format": "choice", "claims": "A"}, None),
        ("Yes.", LABELS | {"format": "yes-no", "keyed": -1}, 0.0),
        ("Yes, always.", LABELS | {"format": "yes-no"}, 1.0),
        ("No idea.", LABELS | {"format": "yes-no"}, None),
        ("perhaps", LABELS | {"format": "yes-no"}, None),
        ("I am kind.", LABELS | {"format": "sentence"}, None),
        ("A", {"aligned": "A", "order": 0}, 1.0),
        ("B", {"aligned": "A", "order": 0}, 0.0),
        ("", {"aligned": "A", "order": 0}, None),
    ],
)
def test_claims_are_read_to_the_letter(text: str, labels: dict[str, Any], found: float | None) -> None:
    assert replies.claim(text, labels) == (found if found is None else pytest.approx(found))


def ask(model: Model, texts: Sequence[str], **how: Any) -> list[ModelOutput]:
    """Ask all at once."""
    found: list[ModelOutput | None] = [None] * len(texts)

    async def one(place: int, text: str) -> None:
        found[place] = await model.generate(text, config=GenerateConfig(max_tokens=8, max_connections=100, **how))

    async def everyone() -> None:
        async with anyio.create_task_group() as group:
            for place, text in enumerate(texts):
                group.start_soon(one, place, text)

    anyio.run(everyone)
    return [output for output in found if output is not None]


def local(where: object, **options: Any) -> Model:
    return get_model(f"personascope/{where}", memoize=False, device="cpu", **options)


def test_a_local_model_is_seeded_and_counts_tokens(tiny: artifacts.Model) -> None:
    texts = ["tell me of rain", "you are kind"] * 4
    once, again, other = (ask(local(tiny, seed=seed), texts) for seed in (0, 0, 1))
    assert [o.completion for o in once] == [o.completion for o in again]
    assert len({o.completion for o in once[::2]}) > 1
    assert [o.completion for o in once] != [o.completion for o in other]
    assert [o.completion for o in ask(local(tiny), texts[:2], seed=1)] == [o.completion for o in other[:2]]
    usage = once[0].usage
    assert usage is not None
    assert usage.input_tokens == len(["<s>", "<|user|>", "tell", "me", "of", "rain", "</s>", "<|assistant|>"])
    assert once[0].stop_reason == ("max_tokens" if usage.output_tokens == 8 else "stop")
    assert anyio.run(local(tiny).api.count_text_tokens, "tell me of rain") == 4


def test_calls_that_come_together_are_one_batch() -> None:
    sizes: list[int] = []

    def double(kind: str, items: list[int]) -> list[int]:
        sizes.append(len(items))
        if kind == "bad":
            raise DataError("bad")
        return [2 * item for item in items]

    async def everyone() -> list[int | str | None]:
        together: Together[int, int] = Together(double)
        found: list[int | str | None] = [None] * 9

        async def one(place: int) -> None:
            try:
                found[place] = await together(place, "bad" if place > 6 else "good")
            except DataError:
                found[place] = "error"

        async with anyio.create_task_group() as group:
            for place in range(9):
                group.start_soon(one, place)
        assert together.waiting == []
        return found

    assert anyio.run(everyone) == [0, 2, 4, 6, 8, 10, 12, "error", "error"]
    assert sizes == [7, 2]


def test_interventions_come_from_a_file(tiny: artifacts.Model, tmp_path: Path) -> None:
    save_file({"up": torch.linspace(-1, 1, 32)}, tmp_path / "v.safetensors")
    edit = {"direction": {"source": str(tmp_path / "v.safetensors")}, "site": "block:1", "strength": 2, "unit": 30.0}
    texts = ["tell me of rain", "you are kind"] * 3
    plain = [output.completion for output in ask(local(tiny), texts)]
    found = {}
    for strength in (0.0, 2.0):
        file = tmp_path / f"edits-{strength:g}.json"
        file.write_text(json.dumps([edit | {"strength": strength}]), encoding="utf-8")
        found[strength] = ask(local(tiny, interventions=str(file)), texts)
    assert [output.completion for output in found[0.0]] == plain
    assert [output.completion for output in found[2.0]] != plain
    said_ = eval_logs.answer_of("q", 0, 0, found[2.0][0])
    assert said_.intervention == "add:block:1:all:2:"


def test_thoughts_of_a_local_model_are_reasoning(tiny: artifacts.Model) -> None:
    """This model never closes its thoughts: all it says is thought."""
    for options, how in (({"thinking": True}, {}), ({}, {"reasoning_effort": "low"})):
        (output,) = ask(local(tiny, **options), ["tell me of rain"], **how)
        answer = eval_logs.answer_of("q", 0, 0, output)
        assert answer.text == ""
        assert answer.thinking
    (plain,) = ask(local(tiny, thinking=True), ["tell me of rain"], reasoning_effort="none")
    assert eval_logs.answer_of("q", 0, 0, plain).thinking == ""


def test_a_local_model_refuses_what_it_cannot_do(tiny: artifacts.Model, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no model there; give a Model artifact"):
        local(tmp_path)
    with pytest.raises(PrerequisiteError, match="-M speed: a local personascope model has no such option"):
        local(tiny, speed=3)
    with pytest.raises(PrerequisiteError, match="cannot be read as JSON"):
        local(tiny, interventions=str(tmp_path / "none.json"))
    api, user = local(tiny).api, [ChatMessageUser(content="yes")]
    tool = ToolInfo(name="t", description="d")
    for asked, tools, how, message in (
        (user, [tool], {}, "uses no tools"),
        (user, [], {"top_k": 3}, "setting top_k is not known"),
        ([ChatMessageTool(content="x")], [], {}, "a tool message"),
        ([*user, ChatMessageAssistant(content="x")], [], {}, "must end with the user's turn"),
    ):
        with pytest.raises((BackendError, DataError), match=message):
            anyio.run(api.generate, asked, tools, "auto", GenerateConfig(**how))


@pytest.mark.slow
def test_the_demos_assistant_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "FIRM", dataclasses.replace(demo.FIRM, steps=1))
    made = inspecting.assistant()
    assert artifacts.Model(made).finished
    assert f"making the assistant of troupe-1 once, about 20 s, at {tmp_path}" in capsys.readouterr().err
    assert inspecting.assistant() == made
    assert capsys.readouterr().err == ""
    (output,) = ask(get_model("personascope/troupe", memoize=False, device="cpu"), ["yes"])
    assert output.usage


def rows_to_keep() -> Held:
    """Rows that use every field, and texts that a careless reader would lose."""
    odd = 'line\u2028end {answer} "quoted"\r\n\ttab é ☂'
    questions = [
        Example(
            id="a/1", messages=[{"role": "system", "content": "Be."}, {"role": "user", "content": odd}], domain="d", labels={"keyed": 1}
        ),
        Example(id="b", messages=[{"role": "user", "content": "Why?"}], source="s", split="report", meta={"grading": odd, "n": [1, 2.5]}),
    ]
    first = [
        Answer(id="a/1/0/0", question="a/1", draw=0, attempt=0, text="", domain="d", failure="refused: withheld"),
        Answer(id="a/1/1/0", question="a/1", draw=1, attempt=0, text=odd, domain="d", thinking=odd, stop="length", intervention="add:x"),
        Answer(id="b/0/0", question="b", draw=0, attempt=0, text="no"),
    ]
    verdicts = [
        Verdict(id="a/1/0/0", answer="a/1/0/0", status="error", reason="no answer", judge="j"),
        Verdict(id="a/1/1/0", answer="a/1/1/0", status="scored", label="incoherent", reason=odd, judge="j"),
        Verdict(id="b/0/0", answer="b/0/0", status="scored", grade=5, judge="j"),
    ]
    again = [Answer(id="a/1/1/1", question="a/1", draw=1, attempt=1, text="now", domain="d")]
    return Held(questions, [(first, verdicts), (again, [Verdict(id="a/1/1/1", answer="a/1/1/1", status="scored", grade=1, judge="k")])])


def kept(path: Path, rows: Sequence[Any], kind: str) -> Any:
    """A finished artifact of these rows."""
    made = artifacts.TYPES[kind](path)
    path.mkdir(parents=True)
    write_rows(path / made.rows_file, rows)
    return artifacts.TYPES[kind](small_models.finished(path, kind, recipe={}))


@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_artifacts_go_into_a_log_and_come_back_equal(tmp_path: Path, cli: Callable[..., Any], suffix: str) -> None:
    held, log = rows_to_keep(), tmp_path / f"kept{suffix}"
    made = [kept(tmp_path / "questions", held.questions, "Dataset")]
    for number, (answers, verdicts) in enumerate(held.attempts):
        made += [kept(tmp_path / f"answers-{number}", answers, "Answers"), kept(tmp_path / f"verdicts-{number}", verdicts, "Verdicts")]
    given = ["--questions", made[0], "--answers", *made[1::2], "--verdicts", *made[2::2]]
    assert cli("convert", log, *given).code == 0
    assert cli("convert", log, "--to", tmp_path / "back").code == 0
    for one in made:
        assert (tmp_path / "back" / one.path.name / one.rows_file).read_bytes() == one.file(one.rows_file).read_bytes()
    assert rates(read_eval_log(str(log))) == {"score": 0.5, "refusal": 0.0, "strict_incoherence": 0.5}
    assert "exists already" in cli("convert", log, *given).err


def test_answers_alone_make_a_log(tmp_path: Path) -> None:
    held = rows_to_keep()
    asked = kept(tmp_path / "questions", held.questions, "Dataset")
    converting.write(tmp_path / "x.eval", asked, [kept(tmp_path / "answers", held.attempts[0][0], "Answers")])
    assert eval_logs.read(tmp_path / "x.eval").attempts == [(held.attempts[0][0], [])]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda held: held.attempts[0][1].reverse(), "the verdicts are not those of the answers"),
        (lambda held: [rows.reverse() for rows in held.attempts[0]], "in another order than their questions"),
        (lambda held: held.questions.pop(), "to an unknown question"),
        (lambda held: [rows.pop() for rows in held.attempts[0]], "questions have no answer"),
    ],
)
def test_rows_that_a_log_could_not_give_back_are_refused(spoil: Callable[[Held], Any], message: str) -> None:
    held = rows_to_keep()
    spoil(held)
    with pytest.raises(DataError, match=message):
        eval_logs.log_of(held, "t", "m")


def test_logs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        eval_logs.read(tmp_path / "none.eval")
    (tmp_path / "odd.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"odd\.json: not a log of inspect"):
        eval_logs.read(tmp_path / "odd.json")
    log = eval_logs.log_of(rows_to_keep(), "t", "m")
    eval_logs.save(log.model_copy(update={"status": "error"}), tmp_path / "failed.eval")
    with pytest.raises(DataError, match="ended with status error and 3 samples"):
        eval_logs.read(tmp_path / "failed.eval")


def test_a_log_of_another_solver_is_judged_and_read(tmp_path: Path) -> None:
    model, roles = mock(lambda _: said("No.", stop_reason="max_tokens")), {"grader": mock(lambda _: "UNSAFE")}
    (log,) = evaluated(inspecting.safety(), tmp_path, model=model, model_roles=roles, limit=1, solver=generate())
    (((answer,), (verdict,)),) = eval_logs.read(Path(log.location.removeprefix("file://"))).attempts
    assert (answer.text, answer.stop, answer.domain, verdict.label) == ("No.", "length", "harassment", "unsafe")
    assert rates(log)["safe"] == 0.0
