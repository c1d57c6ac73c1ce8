"""Models behind an API, asked through inspect: many at once, every reply kept by content and paid for once."""

import asyncio
import contextvars
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from personascope.backends.replies import Reply, keep, kept
from personascope.errors import BackendError, RecipeError
from personascope.methods.parsing import whole_number
from personascope.rows import Message

try:
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentReasoning,
        GenerateConfig,
        Model,
        ModelOutput,
        get_model,
    )
    from tenacity import RetryError
except ImportError as error:
    raise BackendError(f'models behind an API need inspect ({error}); pip install "personascope[inspect]"') from None

KIND = "inspect:"
AHEAD = 1024
"""Calls under way or waiting before the first of them is handed on."""
PATIENCE = 10.0
"""Seconds that calls under way get to end when nobody waits for them any more."""
LETTERS = 4
"""Characters that an estimate takes for one token."""
LAST = 200
"""Characters kept of a failure."""
ROLES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@dataclass(frozen=True)
class Ask:
    """A conversation to be continued; `key` tells several replies to the same one apart."""

    messages: Sequence[Message]
    key: str = ""


@dataclass(frozen=True)
class Wanted:
    """How replies are drawn; with the conversation, all that they depend on."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    tops: int = 0
    """Log-probabilities of so many of the likeliest tokens, at most 20; not every provider gives them."""


@dataclass(frozen=True)
class Limits:
    """How a provider is treated; nothing here changes a reply."""

    connections: int = 10
    timeout: int = 120
    """Seconds for one call; one that takes longer is made again."""
    retries: int = 6
    """Times that a call is made again after a time-out, a rate limit or a failure of the server, each after a longer wait."""
    price: tuple[float, float] | None = None
    """Dollars for a million tokens in and out."""

    @classmethod
    def read(cls, words: Iterable[str]) -> "Limits":
        """Limits from words such as `connections=20`, `timeout=60`, `retries=3` and `price=2.5/10`.

        Raises:
            RecipeError: a word that is none of these.
        """
        found: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            prices = re.fullmatch(r"([0-9]*\.?[0-9]+)/([0-9]*\.?[0-9]+)", value)
            if name == "price" and prices:
                found[name] = (float(prices[1]), float(prices[2]))
            elif name in ("connections", "timeout", "retries") and value.isdecimal() and (int(value) or name == "retries"):
                found[name] = int(value)
            else:
                raise RecipeError(f"api: {word!r} is not understood; write connections=N, timeout=SECONDS, retries=N or price=IN/OUT")
        return cls(**found)


@dataclass(frozen=True)
class Provider:
    """A model behind an API, `inspect:PROVIDER/MODEL` as inspect names models, and how it is asked.

    Keys and addresses come from the environment, where inspect looks for them.
    """

    name: str
    wanted: Wanted
    limits: Limits = Limits()

    def key(self, ask: Ask) -> str:
        """The name that the reply is kept under: a hash of all it depends on."""
        return hashlib.sha256(json.dumps(self._asked(ask), sort_keys=True).encode()).hexdigest()

    def _asked(self, ask: Ask) -> dict[str, Any]:
        service, _, rest = self.name.removeprefix(KIND).partition("/")
        service = rest.partition("/")[0] if service == "openai-api" else service
        address = os.environ.get(f"{service.upper().replace('-', '_')}_BASE_URL", "")
        return {"model": self.name, "address": address, "key": ask.key, "wanted": dataclasses.asdict(self.wanted)} | {
            "messages": [{"role": one["role"], "content": one["content"]} for one in ask.messages]
        }

    def replies(self, asks: Sequence[Ask]) -> Iterator[Reply]:
        """One reply to each, in order, asked side by side; equal ones are asked once, and kept ones not at all.

        What fails for good is a reply with status `error`. It is not kept, so that another run asks again. What the calls will
        cost is told on standard error first. Not to be called from inside a running event loop.

        Raises:
            BackendError: inspect knows no such model, or misses its key or package.
        """
        cost = self.estimate(asks)
        if cost.pop("kept") == len(asks):
            yield from (kept(self.key(ask)) or Reply("error", reason="the kept reply is gone") for ask in asks)
            return
        print(f"{self.name}: {', '.join(f'{amount:,} {what}' for what, amount in cost.items())}", file=sys.stderr)
        model, loop = self._open(), asyncio.new_event_loop()
        gate, over, under_way = asyncio.Semaphore(self.limits.connections), asyncio.Event(), deque[asyncio.Task[Reply]]()
        same: dict[str, asyncio.Task[Reply]] = {}
        try:
            for ask in asks:
                if (key := self.key(ask)) not in same:
                    # An empty context keeps inspect's record of calls from growing, and apart from an evaluation around us.
                    same[key] = loop.create_task(self._reply(model, gate, over, ask), context=contextvars.Context())
                under_way.append(same[key])
                if len(under_way) == AHEAD:
                    yield loop.run_until_complete(under_way.popleft())
                    same = {name: task for name, task in same.items() if not task.done()}
            while under_way:
                yield loop.run_until_complete(under_way.popleft())
        finally:
            over.set()
            loop.run_until_complete(_end(model, under_way))
            loop.close()

    def _open(self) -> Model:
        try:
            return get_model(self.name.removeprefix(KIND), memoize=False)
        except Exception as error:  # noqa: BLE001 - each provider fails in its own way
            raise BackendError(f"{self.name}: inspect cannot open it ({_plain(error)}); check name, key and packages") from None

    async def _reply(self, model: Model, gate: asyncio.Semaphore, over: asyncio.Event, ask: Ask) -> Reply:
        key = self.key(ask)
        async with gate:
            if found := kept(key):
                return found
            if over.is_set():
                return Reply("error", reason="not asked")
            try:
                reply = read(await model.generate(_messages(ask.messages), config=self._config()))
            except Exception as error:  # noqa: BLE001 - whatever a provider raises is this row's reason
                return Reply("error", reason=_plain(error))
        return reply if reply.status == "error" else keep(key, self._asked(ask), reply)

    def _config(self) -> GenerateConfig:
        """What is every provider's default is left out, since some refuse to be told.

        Our own gate counts connections, as inspect's count would stay as it was first for the life of the process.
        """
        return GenerateConfig(
            max_tokens=self.wanted.max_tokens,
            temperature=None if self.wanted.temperature == 1 else self.wanted.temperature,
            top_p=None if self.wanted.top_p == 1 else self.wanted.top_p,
            logprobs=True if self.wanted.tops else None,
            top_logprobs=self.wanted.tops or None,
            max_retries=self.limits.retries,
            attempt_timeout=self.limits.timeout,
            max_connections=AHEAD,
        )

    def estimate(self, asks: Sequence[Ask]) -> dict[str, float]:
        """Replies that are kept, and what the others will cost: calls, tokens in (a token taken for four characters), tokens out
        at most and, if the price is known, dollars at most."""
        missing = {key: ask for ask in asks if kept(key := self.key(ask)) is None}
        letters = sum(len(message["content"]) for ask in missing.values() for message in ask.messages)
        tokens = (-(-letters // LETTERS), len(missing) * self.wanted.max_tokens)
        found: dict[str, float] = {"kept": sum(self.key(ask) not in missing for ask in asks), "calls": len(missing)}
        found["tokens in (about)"] = tokens[0]
        if self.limits.price is None:
            return found | {"tokens out at most, dollars unknown (no price given)": tokens[1]}
        return found | {"tokens out at most": tokens[1], "dollars at most": dollars(tokens, self.limits.price)}

    def spent(self, asks: Sequence[Ask]) -> dict[str, Any]:
        """What the kept replies to these cost by the provider's own count, whichever run paid for them, and who gave them."""
        found = [reply for key in {self.key(ask) for ask in asks} if (reply := kept(key))]
        tokens = (sum(reply.tokens[0] for reply in found), sum(reply.tokens[1] for reply in found))
        counts: dict[str, Any] = {"api calls": len(found), "tokens in": tokens[0], "tokens out": tokens[1]}
        cost = {"dollars": dollars(tokens, self.limits.price)} if self.limits.price else {}
        return counts | cost | {"answered by": dict(sorted(Counter(reply.model for reply in found).items()))}


async def _end(model: Model, under_way: Iterable[asyncio.Task[Reply]]) -> None:
    """Wait a little for calls under way, since they cost money by now, give up the others and close the connections."""
    if left := {task for task in under_way if not task.done()}:
        _, left = await asyncio.wait(left, timeout=PATIENCE)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    await model.api.aclose()
    await asyncio.sleep(0)


def dollars(tokens: tuple[int, int], price: tuple[float, float]) -> float:
    """The price of tokens in and out, to a tenth of a cent."""
    return round(sum(count * each for count, each in zip(tokens, price, strict=True)) / 1e6, 3)


def read(output: ModelOutput) -> Reply:
    """inspect's output as a reply: what a filter withheld is refused, what reached the limit of tokens is cut."""
    if output.empty:
        return Reply("error", reason="the provider sent no choice")
    choice, usage = output.choices[0], output.usage
    content = choice.message.content
    tokens = (
        (usage.input_tokens + (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0), usage.output_tokens)
        if usage
        else (0, 0)
    )
    facts: dict[str, Any] = {"model": output.model, "tokens": tokens}
    text = output.completion
    if choice.stop_reason == "model_length":
        return Reply("error", reason=f"longer than the model reads: {text.strip()[:LAST]}", **facts)
    if choice.stop_reason == "content_filter":
        return Reply("refused", reason=f"withheld by the provider's filter: {text.strip()[:LAST]}", **facts)
    thoughts = [part.reasoning for part in content if isinstance(part, ContentReasoning)] if isinstance(content, list) else []
    if choice.logprobs and (place := whole_number([one.token for one in choice.logprobs.content])) is not None:
        facts["tops"] = {one.token: one.logprob for one in choice.logprobs.content[place].top_logprobs or []}
    reason = "cut at the limit of tokens" if choice.stop_reason == "max_tokens" else ""
    return Reply("cut" if reason else "said", text, reason, "\n".join(thoughts).strip(), **facts)


def _messages(messages: Sequence[Message]) -> list[ChatMessage]:
    return [ROLES[message["role"]](content=message["content"]) for message in messages]


def _plain(error: BaseException) -> str:
    """What happened in one line, without the request and without any key of the environment."""
    if isinstance(error, RetryError) and (last := error.last_attempt.exception()):
        error = last
    said = f"{type(error).__name__}: {error.__cause__ or error}"
    for name, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name) and len(value) > 7:
            said = said.replace(value, "***")
    return " ".join(said.split())[:LAST]
