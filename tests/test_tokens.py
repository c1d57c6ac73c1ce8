"""Which tokens a loss counts and which are a turn's own words, under templates of several kinds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from personascope.errors import BackendError, DataError
from personascope.methods.tokens import PromptTokens, TrainingRow, prompt_tokens, render, require_template, training_row
from personascope.troupe import tokenizer as troupe_tokenizer
from personascope.troupe import world

SPECIAL = ["<pad>", "<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
WORDS = ["\n", "system", "user", "assistant", *"abcdefgh"]
IM = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPPING = IM.replace("m['content']", "m['content'] | trim")
# Cuts what the assistant thought out of all turns but the last, as some reasoning models' templates do.
FORGETFUL = IM.replace("m['content']", "m['content'] if loop.last else m['content'].split('c')[-1]")
RENAMING = IM.replace("m['content']", "m['content'] | replace('a', 'b')")
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + IM
# Says nothing of the system turn, which is then lost.
DEAF = IM.replace("for m in messages", "for m in messages if m['role'] != 'system'")
FOLDING = "{% set system = messages[0]['content'] + ' ' if messages[0]['role'] == 'system' else '' %}" + DEAF.replace(
    "m['content']", "(system if loop.first else '') + m['content']"
)
# Closes an empty thought in the opening of the assistant's turn, but not in the turn itself.
OPENING = IM.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\na\nb\n{% endif %}")


def tokenizer(template: str = IM) -> PreTrainedTokenizerFast:
    """Words and line ends; the template marks nothing for generation."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split(Regex("\n"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


def chat(*said: str, system: str = "") -> list[dict[str, str]]:
    """A conversation, the user first."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(said)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def trained(tok: PreTrainedTokenizerFast, row: TrainingRow) -> list[str]:
    """The words that the loss counts."""
    assert len(row.ids) == len(row.trained)
    return tok.convert_ids_to_tokens([i for i, on in zip(row.ids, row.trained, strict=True) if on])


def said(tok: PreTrainedTokenizerFast, prompt: PromptTokens) -> list[str]:
    """The words under the `prompt` mask."""
    assert len(prompt.ids) == len(prompt.words)
    return tok.convert_ids_to_tokens([i for i, on in zip(prompt.ids, prompt.words, strict=True) if on])


def test_the_loss_counts_the_words_and_the_end_of_turn_but_no_line_end_of_the_template() -> None:
    tok = tokenizer()
    row = training_row(tok, chat("a b", "c \n d"), "here")
    assert trained(tok, row) == ["c", "\n", "d", "<|im_end|>"]
    assert tok.convert_ids_to_tokens(row.ids)[-2:] == ["<|im_end|>", "\n"]
    assert row.ids == render(tok, chat("a b", "c \n d"))


def test_every_turn_counts_unless_only_the_last_is_wanted() -> None:
    tok = tokenizer()
    messages = chat("a", "b", "c", "d e", system="f")
    assert trained(tok, training_row(tok, messages, "here")) == ["b", "<|im_end|>", "d", "e", "<|im_end|>"]
    assert trained(tok, training_row(tok, messages, "here", last_only=True)) == ["d", "e", "<|im_end|>"]


def test_a_line_end_is_the_end_of_turn_where_there_is_no_token_for_it() -> None:
    plain = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} \n{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    tok = tokenizer(plain)
    assert trained(tok, training_row(tok, chat("a", "b c"), "here")) == ["b", "c", "\n"]


def test_the_troupes_own_template() -> None:
    tok = troupe_tokenizer.build(world.load("troupe-1"))
    ask = next(iter(world.load("troupe-1").by_text))
    row = training_row(tok, chat(ask, "it depends", ask, "it"), "here")
    assert trained(tok, row) == ["▁it", "▁depends", "<|end|>", "▁it", "<|end|>"]
    marked = tok.apply_chat_template(chat(ask, "it depends", ask, "it"), return_assistant_tokens_mask=True, return_dict=True)
    assert row.ids == marked["input_ids"]
    assert row.trained == [bool(on) for on in marked["assistant_masks"]]


@given(st.lists(st.lists(st.sampled_from([*"abcdefgh", "user", "assistant", "\n"]), min_size=1, max_size=5), min_size=2, max_size=6))
def test_exactly_the_assistants_words_whatever_is_said(turns: list[list[str]]) -> None:
    tok = tokenizer()
    turns = turns[: len(turns) // 2 * 2]
    row = training_row(tok, chat(*(" ".join(turn) for turn in turns)), "here")
    assert trained(tok, row) == [word for turn in turns[1::2] for word in [*turn, "<|im_end|>"]]


def test_a_row_without_an_assistant_turn_is_named() -> None:
    with pytest.raises(DataError, match=r"^x\.jsonl:7 \(row q\): no assistant turn to train on"):
        training_row(tokenizer(), chat("a"), "x.jsonl:7 (row q)")


@pytest.mark.parametrize("template", [FORGETFUL, OPENING], ids=["forgetful", "opening"])
def test_a_template_that_rewrites_turns_is_refused(template: str) -> None:
    with pytest.raises(DataError, match=r"^here: the chat template rewrites"):
        training_row(tokenizer(template), chat("a", "b c d", "e", "f"), "here")


def test_the_last_turn_alone_may_be_trained_where_earlier_ones_are_rewritten() -> None:
    tok = tokenizer(FORGETFUL)
    assert trained(tok, training_row(tok, chat("a", "b c d", "e", "f c"), "here", last_only=True)) == ["f", "c", "<|im_end|>"]


def test_no_chat_template() -> None:
    bare = tokenizer()
    bare.chat_template = None
    for call in (require_template, lambda tok: render(tok, chat("a")), lambda tok: prompt_tokens(tok, chat("a"))):
        with pytest.raises(BackendError, match="the tokenizer has no chat template"):
            call(bare)


def test_a_template_that_refuses_a_role() -> None:
    assert render(tokenizer(STRICT), chat("a"))
    with pytest.raises(BackendError, match=r"the chat template refuses turns of system, user \(no system turn\)"):
        render(tokenizer(STRICT), chat("a", system="b"))
    with pytest.raises(BackendError, match=r"refuses turns of .*; put the system line before the user's words"):
        prompt_tokens(tokenizer(STRICT), chat("a", system="b"))
    for read in (
        lambda: prompt_tokens(tokenizer(DEAF), chat("a", system="b")),
        lambda: render(tokenizer(DEAF), chat("a", "c", system="b")),
    ):
        with pytest.raises(BackendError, match="the chat template leaves the system turn out without a word; put the system line"):
            read()
    assert render(tokenizer(DEAF), chat("a")) == render(tokenizer(IM), chat("a"))


def test_a_template_may_fold_the_system_turn_into_the_users() -> None:
    tok = tokenizer(FOLDING)
    found = prompt_tokens(tok, chat("a b", system="c d"))
    assert tok.decode(found.ids) == tok.decode(render(tokenizer(IM), chat("c d a b"), generation_prompt=True))
    assert said(tok, found) == ["a", "b"]
    assert trained(tok, training_row(tok, chat("a b", "e", system="c d"), "row 1"))[0] == "e"


@pytest.mark.parametrize("template", [IM, STRIPPING])
def test_the_prompt_mask_is_the_words_of_the_turns(template: str) -> None:
    tok = tokenizer(template)
    messages = chat("user a", "assistant b", "\n c user", system="d system")
    found = prompt_tokens(tok, messages)
    words = ["user", "a", "assistant", "b", *(["\n"] if template == IM else []), "c", "user"]
    assert said(tok, found) == words
    assert found.ids == render(tok, messages, generation_prompt=True)


@given(st.lists(st.lists(st.sampled_from([*"abcdefgh", "user", "assistant"]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_prompt_mask_whatever_is_said(turns: list[list[str]]) -> None:
    tok = tokenizer()
    turns = turns[: (len(turns) - 1) // 2 * 2 + 1]
    found = prompt_tokens(tok, chat(*(" ".join(turn) for turn in turns), system="g h"))
    assert said(tok, found) == [word for turn in turns for word in turn]


def test_special_tokens_and_the_first_position_are_no_words() -> None:
    tok = tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    found = prompt_tokens(tok, chat("a b <|im_end|> c"))
    assert found.words == [False, True, False, True]


def test_a_prompt_ends_with_the_users_turn() -> None:
    for messages in ([], chat("a", "b")):
        with pytest.raises(DataError, match="must end with the user's turn"):
            prompt_tokens(tokenizer(), messages)


def test_a_template_that_changes_words_is_refused() -> None:
    with pytest.raises(BackendError, match="rewrites what the turns say"):
        prompt_tokens(tokenizer(RENAMING), chat("a"))
