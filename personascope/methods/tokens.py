"""Conversation → token ids and masks: one renderer for training, sampling and capture."""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from personascope.errors import BackendError, DataError

Message = dict[str, str]


@dataclass(frozen=True)
class TrainingRow:
    """Token ids (T,) and, per token, whether the loss counts it: the assistant's words and end of turn."""

    ids: list[int]
    trained: list[bool]


def require_template(tokenizer: Any) -> None:
    """Raise BackendError if the tokenizer cannot render a conversation."""
    if not tokenizer.chat_template:
        raise BackendError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; save one with it (chat_template.jinja), "
            "or use the instruct version of the model"
        )


def render(tokenizer: Any, messages: list[Message], generation_prompt: bool = False, thinking: bool = False) -> list[int]:
    """Token ids of a conversation through the chat template.

    Args:
        generation_prompt: end with the opening of the assistant's turn.
        thinking: passed to templates that know `enable_thinking`.

    Raises:
        BackendError: the tokenizer has no chat template, or the template refuses these messages.
    """
    return list(tokenizer(_text(tokenizer, messages, generation_prompt, thinking), add_special_tokens=False)["input_ids"])


def training_row(tokenizer: Any, messages: list[Message], where: str, last_only: bool = False) -> TrainingRow:
    """Ids and loss mask of one conversation; the mask covers every assistant turn including its end.

    Works for any template whose rendering of a conversation begins with the rendering of its prefixes.

    Raises:
        DataError: no assistant turn, or a template that rewrites earlier turns; `where` names the row.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(f"{where}: no assistant turn to train on; every row needs at least one")
    ids = render(tokenizer, messages)
    trained = [False] * len(ids)
    for i in turns[-1:] if last_only else turns:
        opening, turn = render(tokenizer, messages[:i], generation_prompt=True), render(tokenizer, messages[: i + 1])
        # The opening's last token may merge with the turn's first.
        if ids[: len(turn)] != turn or ids[: len(opening) - 1] != opening[:-1]:
            raise DataError(f"{where}: the chat template rewrites earlier turns, so their tokens cannot be found; split the row by turns")
        end = _end_of_turn(tokenizer, turn, len(opening))
        trained[len(opening) : end] = [True] * (end - len(opening))
    return TrainingRow(ids, trained)


def _end_of_turn(tokenizer: Any, turn: list[int], start: int) -> int:
    """Where the turn that begins at `start` ends: behind its last special token if only space follows it, else at its end."""
    special = set(tokenizer.all_special_ids)
    closing = max((i for i in range(start, len(turn)) if turn[i] in special), default=len(turn) - 1)
    return len(turn) if tokenizer.decode(turn[closing + 1 :]).strip() else closing + 1


@dataclass(frozen=True)
class PromptTokens:
    """Token ids (T,) of a prompt ending in the assistant's opening, and which of them are words of its turns."""

    ids: list[int]
    words: list[bool]
    """The `prompt` mask: neither the system block nor the template's own text, special tokens or position 0."""


def prompt_tokens(tokenizer: Any, messages: list[Message], thinking: bool = False) -> PromptTokens:
    """Render a prompt and find the turns' words in it, for any template.

    Raises:
        DataError: the conversation does not end with the user's turn.
        BackendError: no chat template, no fast tokenizer, or a template that rewrites what the turns say.
    """
    if not messages or messages[-1]["role"] != "user":
        raise DataError("a prompt must end with the user's turn; drop what follows it")
    if not tokenizer.is_fast:
        raise BackendError(f"{tokenizer.name_or_path}: masks need a fast tokenizer (tokenizer.json); this one gives no offsets")
    text = _text(tokenizer, messages, generation_prompt=True, thinking=thinking)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = _said(tokenizer, messages, text, thinking)
    special = set(tokenizer.all_special_ids)
    words = [
        i > 0 and token not in special and any(max(start, a) < min(stop, b) for a, b in spans)
        for i, (token, (start, stop)) in enumerate(zip(coded["input_ids"], coded["offset_mapping"], strict=True))
    ]
    return PromptTokens(list(coded["input_ids"]), words)


def _text(tokenizer: Any, messages: list[Message], generation_prompt: bool, thinking: bool = False) -> str:
    require_template(tokenizer)
    system = [message["content"].strip() for message in messages if message["role"] == "system"]
    instead = "put the system line before the user's words" if system else "change the conversation"
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt, enable_thinking=thinking)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise BackendError(f"{tokenizer.name_or_path}: the chat template refuses turns of {roles} ({error}); {instead}") from None
    if any(line not in text for line in system):
        raise BackendError(f"{tokenizer.name_or_path}: the chat template leaves the system turn out without a word; {instead}")
    return text


def _said(tokenizer: Any, messages: list[Message], text: str, thinking: bool) -> list[tuple[int, int]]:
    """Where in the rendered text the turns' own words stand, system messages apart.

    Found by rendering marks in place of the words, so that words the template itself uses are never taken for a turn's.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    marked = [message | {"content": mark} for message, mark in zip(messages, marks, strict=True)]
    frame = _text(tokenizer, marked, generation_prompt=True, thinking=thinking)
    for said in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):
        spans, built, rest = [], "", frame
        for message, mark, words in zip(messages, marks, said, strict=True):
            before, _, rest = rest.partition(mark)
            built += before
            if message["role"] != "system":
                spans.append((len(built), len(built) + len(words)))
            built += words
        if built + rest == text:
            return spans
    raise BackendError(f"{tokenizer.name_or_path}: the chat template rewrites what the turns say, so their tokens cannot be told apart")
