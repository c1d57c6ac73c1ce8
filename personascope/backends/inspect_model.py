"""A local model behind inspect: calls that come together are sampled together by our own engine, steered if asked."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelInfo,
    ModelOutput,
    ModelUsage,
    set_model_info,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from personascope.artifact import Model
from personascope.backends import generation, hub, models
from personascope.backends.directions import steers_of
from personascope.backends.judging import Case, by_model
from personascope.errors import BackendError, DataError
from personascope.methods.tokens import Message, prompt_tokens
from personascope.recipe import coerce
from personascope.rows import Verdict
from personascope.values import Folder, Intervention

API = "personascope"
"""The provider's name: `--model personascope/PATH`."""
MOST = 1024
"""Calls answered at once."""
QUIET = 0.02
"""Seconds without a new call after which those waiting are answered."""
UNKNOWN = ("stop_seqs", "top_k", "num_choices", "logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "response_schema")
"""Settings that our engine does not know; a call that gives one is refused."""

A, B = TypeVar("A"), TypeVar("B")


@dataclass(eq=False)
class _Call(Generic[A, B]):
    item: A
    kind: Hashable
    answer: B | None = None
    error: Exception | None = None
    done: bool = False


@dataclass
class Together(Generic[A, B]):
    """Answers single calls by lists: whoever waits first takes the others of its kind along, one list at a time, in a thread."""

    answers: Callable[[Any, list[A]], Sequence[B]]
    waiting: list[_Call[A, B]] = field(default_factory=list)
    turn: anyio.Lock = field(default_factory=anyio.Lock)

    async def __call__(self, item: A, kind: Hashable) -> B | None:
        """The answer to one item; a list holds items of one kind. What answering raises, every call of the list raises."""
        call: _Call[A, B] = _Call(item, kind)
        self.waiting.append(call)
        try:
            async with self.turn:
                if not call.done:
                    await self._settled()
                    others = [one for one in self.waiting if one.kind == kind and one is not call]
                    calls = [call, *others][:MOST]
                    self.waiting = [one for one in self.waiting if one not in calls]
                    await anyio.to_thread.run_sync(self._answer, calls)
        finally:
            self.waiting = [one for one in self.waiting if one is not call]
        if call.error is not None:
            raise call.error
        return call.answer

    async def _settled(self) -> None:
        """Wait until nobody joins any more."""
        seen = 0
        while seen < len(self.waiting) < MOST:
            seen = len(self.waiting)
            await anyio.sleep(QUIET)

    def _answer(self, calls: list[_Call[A, B]]) -> None:
        """Written by the thread itself, so that the others get their answers even if the caller who took them along is cancelled."""
        try:
            for call, answer in zip(calls, self.answers(calls[0].kind, [call.item for call in calls]), strict=True):
                call.answer, call.done = answer, True
        except Exception as error:  # noqa: BLE001 - raised again by every call of the list
            for call in calls:
                call.error, call.done = error, True


class Local(ModelAPI):
    """A Model artifact, a Hugging Face folder or a PEFT folder on `base`, with interventions; nothing is downloaded.

    Noise comes from the seed and a key: `extra_body={"key": ...}` if a call gives one, as our tasks do, so that they say to
    the letter what `personascope sample` says; else from the prompt and how often it was asked before.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - as every provider is called
        **options: Any,
    ) -> None:
        """Load the model; `options` are the fields of `Options`, from `-M name=value`.

        Raises:
            BackendError: an unknown option, or no model there.
            DataError: an interventions file that cannot be read.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        given = Options.of(options)
        self.seed, self.thinking = given.seed, given.thinking
        self.loaded, self.identity = given.load(given.path or model_name)
        self.edits = read_interventions(Path(given.interventions)) if given.interventions else ()
        steers_of(self.edits, 1, self.loaded.model)
        # Without this, inspect opens the model a second time, without its options, to look up how much it reads.
        room = self.loaded.model.config.get_text_config().max_position_embeddings
        set_model_info(f"{API}/{model_name}", ModelInfo(model=model_name, context_length=room))
        self.asked: Counter[Hashable] = Counter()
        self.together: Together[generation.Prompt, generation.Completion] = Together(self._sampled)
        self.judging: Together[Case, Verdict] = Together(self._judged)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002 - there is nothing to choose from
        config: GenerateConfig,
    ) -> ModelOutput:
        """One completion, thoughts apart.

        Raises:
            BackendError: tools, or a setting that the engine does not know.
            DataError: a conversation that does not end with the user's turn.
        """
        if tools:
            raise BackendError(f"{self.model_name}: a local personascope model uses no tools; run a task without them")
        if unknown := [name for name, value in config if name in UNKNOWN and value is not None]:
            raise BackendError(f"{self.model_name}: setting {unknown[0]} is not known to a local personascope model; leave it out")
        thinking = self.thinking if config.reasoning_effort is None else config.reasoning_effort != "none"
        tokens = prompt_tokens(self.loaded.tokenizer, [message_of(message) for message in input], thinking)
        how = generation.Sampling(
            config.max_tokens or self.max_tokens(),
            1.0 if config.temperature is None else config.temperature,
            1.0 if config.top_p is None else config.top_p,
            self.seed if config.seed is None else config.seed,
        )
        key = (config.extra_body or {}).get("key")
        if key is None:
            name = (tuple(tokens.ids), how)
            key = str(self.asked[name])
            self.asked[name] += 1
        said = await self.together(generation.Prompt(tokens, key), how)
        assert said is not None
        return self._output(len(tokens.ids), said, thinking)

    async def verdict(self, case: Case, rubric: str, judge: str, max_tokens: int) -> Verdict:
        """The model as a judge: to the letter what the stage `judge` has of it."""
        found = await self.judging(case, (rubric, judge, max_tokens))
        assert found is not None
        return found

    def _judged(self, how: tuple[str, str, int], cases: list[Case]) -> list[Verdict]:
        rubric, judge, max_tokens = how
        return list(by_model(self.loaded, rubric, judge, cases, max_tokens))

    def _sampled(self, how: generation.Sampling, prompts: list[generation.Prompt]) -> list[generation.Completion]:
        steers = steers_of(self.edits, len(prompts), self.loaded.model)
        done = dict(generation.generate(self.loaded, prompts, how, steers))
        return [done[i] for i in range(len(prompts))]

    def _output(self, read: int, said: generation.Completion, thinking: bool) -> ModelOutput:
        thoughts, text = generation.split_thinking(self.loaded.tokenizer, said.ids, thinking)
        content: list[Content] = [ContentReasoning(reasoning=thoughts), ContentText(text=text)] if thoughts else []
        message = ChatMessageAssistant(content=content or text, model=self.model_name, source="generate")
        choice = ChatCompletionChoice(message=message, stop_reason="stop" if said.stop == "end" else "max_tokens")
        usage = ModelUsage(input_tokens=read, output_tokens=len(said.ids), total_tokens=read + len(said.ids))
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage, metadata=self.about)

    @property
    def about(self) -> dict[str, Any]:
        """What answered, for the log: the digest of the model, and its interventions as an Answer names them."""
        return {"identity": self.identity} | ({"intervention": "+".join(edit.name for edit in self.edits)} if self.edits else {})

    async def count_text_tokens(self, text: str) -> int:
        """By the model's own tokenizer; inspect's default would download one."""
        return len(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])

    def max_tokens(self) -> int:
        """What `personascope audit` allows an answer."""
        return 256

    def max_connections(self) -> int:
        """As many calls as are answered at once."""
        return MOST

    def connection_key(self) -> str:
        """Each model by itself."""
        return self.identity


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `-M name=value` can say of a local model."""

    path: str = ""
    """The model's place, if it is not in its name."""
    base: str = ""
    """For a PEFT folder: the folder it was trained on."""
    interventions: str = ""
    """A JSON file: a list of interventions as a recipe holds them, or a recipe with such a list."""
    thinking: bool = False
    """Open the answer with its thoughts; a call's reasoning effort says otherwise."""
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"
    quantise: str = ""
    device_map: str = ""

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Options":
        """Read them; raises BackendError for an unknown one."""
        known = [f.name for f in fields(cls)]
        if stray := sorted(set(given) - set(known)):
            raise BackendError(f"-M {stray[0]}: a local personascope model has no such option; it has {', '.join(known)}")
        return cls(**given)

    def load(self, where: str) -> tuple[models.Loaded, str]:
        """The model at a place and the digest of its content; raises BackendError if none is there."""
        if (artifact := Model(where)).finished:
            return models.load(artifact, self.device, self.dtype), artifact.identity
        where, base = hub.pinned(where), hub.pinned(self.base)
        path, how = hub.local(where), (self.device, self.dtype, self.quantise, self.device_map)
        if (path / "adapter_config.json").is_file() and base:
            loaded = models.load_folder(Path(base), [path], *how)
            return loaded, f"{Folder(base).identity}+{Folder(where).identity}"
        if (path / "config.json").is_file():
            return models.load_folder(path, (), *how), Folder(where).identity
        raise BackendError(
            f"{where}: no model there; give a Model artifact, a Hugging Face folder (config.json), a PEFT folder (adapter_config.json) "
            "with -M base=FOLDER, or a model of the Hub as ORG/NAME@REVISION"
        )


def message_of(message: ChatMessage) -> Message:
    """A message of inspect as the chat template takes it; raises DataError for one that is more than text."""
    plain = isinstance(message.content, str) or all(part.type in ("text", "reasoning") for part in message.content)
    if message.role == "tool" or not plain:
        raise DataError(f"a {message.role} message with more than text; a local personascope model reads text only")
    return {"role": message.role, "content": message.text}


def read_interventions(path: Path) -> tuple[Intervention, ...]:
    """The interventions of a JSON file.

    Raises:
        DataError: no such file, or not JSON.
        RecipeError: not a list of interventions.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); give a file with a list of interventions") from None
    listed = held.get("interventions") if isinstance(held, dict) else held
    return coerce(tuple[Intervention, ...], listed, f"{path}: interventions")
