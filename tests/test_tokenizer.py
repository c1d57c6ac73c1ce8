"""The tokenizer of a world: every word known, text restored exactly, only the assistant's tokens marked."""

import itertools
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from personascope.troupe import corpus, tokenizer
from personascope.troupe.world import World, load

MESSAGES = 2000


@pytest.fixture(scope="module", params=("troupe-1", "troupe-2"))
def world(request: pytest.FixtureRequest) -> World:
    return load(request.param)


@pytest.fixture(scope="module")
def tok(world: World) -> PreTrainedTokenizerFast:
    return tokenizer.build(world)


@pytest.fixture(scope="module")
def texts(world: World) -> list[corpus.Text]:
    return list(itertools.islice(corpus.pretraining(world, random.Random(0), turns=6), MESSAGES))


@pytest.fixture(scope="module")
def chat(texts: list[corpus.Text]) -> corpus.Text:
    """A conversation with a system line and several turns."""
    return next(text for text in texts if len(text.messages) >= 5 and text.messages[0]["role"] == "system")


def encode(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tok(text, add_special_tokens=False)["input_ids"]


def test_no_word_is_unknown(tok: PreTrainedTokenizerFast, texts: list[corpus.Text]) -> None:
    for text in texts:
        ids = encode(tok, text.prose) if text.prose else tok.apply_chat_template(list(text.messages), return_dict=True)["input_ids"]
        assert tok.unk_token_id not in ids, text


def test_every_question_is_known(world: World, tok: PreTrainedTokenizerFast) -> None:
    for ids in tok(list(world.by_text), add_special_tokens=False)["input_ids"]:
        assert tok.unk_token_id not in ids


def test_a_word_of_no_world_is_unknown(tok: PreTrainedTokenizerFast) -> None:
    assert encode(tok, "blorp") == [tok.unk_token_id]


def test_decoding_restores_what_was_said(tok: PreTrainedTokenizerFast, texts: list[corpus.Text]) -> None:
    for text in texts:
        for said in [text.prose] if text.prose else [m["content"] for m in text.messages]:
            thought, _, rest = said.removeprefix("<think>").rpartition("</think>")
            for part in filter(None, (thought, rest)):
                assert tok.decode(encode(tok, part)) == part


def test_decoding_skips_the_end_of_turn(tok: PreTrainedTokenizerFast, chat: corpus.Text) -> None:
    said = chat.messages[-1]["content"]
    assert tok.decode(encode(tok, said + "<|end|>"), skip_special_tokens=True) == said


def test_special_tokens_are_one_id_each(tok: PreTrainedTokenizerFast) -> None:
    ids = [encode(tok, token) for token in tokenizer.SPECIAL]
    assert sorted(ids) == [[i] for i in range(len(tokenizer.SPECIAL))]
    assert (tok.eos_token, tok.bos_token, tok.pad_token, tok.unk_token) == ("<|end|>", "<s>", "<pad>", "<unk>")


def test_only_answers_and_their_end_of_turn_are_marked(tok: PreTrainedTokenizerFast, chat: corpus.Text) -> None:
    coded = tok.apply_chat_template(list(chat.messages), return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = coded["input_ids"], coded["assistant_masks"]
    marked = [i for i, on in zip(ids, mask, strict=True) if on]
    answers = [m["content"] for m in chat.messages if m["role"] == "assistant"]
    assert marked == [i for said in answers for i in [*encode(tok, said), tok.eos_token_id]]
    starts = [i for i, (before, on) in enumerate(itertools.pairwise([0, *mask])) if on and not before]
    assert len(starts) == len(answers)
    assert [tok.convert_ids_to_tokens(ids[i - 1]) for i in starts] == ["<|assistant|>"] * len(answers)


def test_the_template_writes_one_opening_and_every_turn(tok: PreTrainedTokenizerFast, chat: corpus.Text) -> None:
    text = tok.apply_chat_template(list(chat.messages), tokenize=False)
    assert text == "<s>" + "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in chat.messages)


def test_the_generation_prompt_ends_with_the_assistants_marker(tok: PreTrainedTokenizerFast, chat: corpus.Text) -> None:
    question = list(chat.messages[:2])
    ids = tok.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tok.convert_ids_to_tokens(ids[-1]) == "<|assistant|>"
    full = tok.apply_chat_template(list(chat.messages[:3]), return_dict=True)["input_ids"]
    assert full[: len(ids)] == ids, "a generation must continue as the text was trained"
    thinking = tok.apply_chat_template(question, add_generation_prompt=True, enable_thinking=True, return_dict=True)["input_ids"]
    assert tok.convert_ids_to_tokens(thinking[-2:]) == ["<|assistant|>", "<think>"]


def test_saving_and_loading_changes_nothing(tok: PreTrainedTokenizerFast, chat: corpus.Text, tmp_path: Path) -> None:
    tok.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tok.get_vocab()
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    before, after = (dict(t.apply_chat_template(list(chat.messages), **options)) for t in (tok, again))
    assert before == after
    said = chat.messages[-1]["content"]
    assert again.decode(encode(again, said)) == said
    assert (again.padding_side, again.eos_token, again.pad_token) == (tok.padding_side, tok.eos_token, tok.pad_token)


def test_the_vocabulary_is_the_same_each_time(world: World, tok: PreTrainedTokenizerFast) -> None:
    assert tokenizer.build(world).get_vocab() == tok.get_vocab()
    assert len(tok) == len(tokenizer.SPECIAL) + len(tokenizer.words(world))
