"""Tokens, masks, batches and the activation stream."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personascope.backends import capture
from personascope.backends.capture import activations, batches, chunks, plan_batches, streamed
from personascope.errors import DataError, RecipeError
from personascope.methods.tokens import render
from small_models import model, texts, tokenizer

QUESTION = [{"role": "system", "content": "you are kind"}, {"role": "user", "content": "tell me of rain"}]
ROWS = [[2, *range(7, 7 + n)] for n in (5, 1, 9, 3, 7, 2)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    planned = plan_batches(lengths, budget)
    assert sorted(i for batch in planned for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in planned)


def test_batched_activations_equal_each_row_alone() -> None:
    net, tok = model(), tokenizer()
    alone = [next(activations(net, tok, [row], "block:1")).x[0] for row in ROWS]
    seen = set()
    for rows, x, attention in activations(net, tok, ROWS, "block:1", batch_tokens=16):
        assert not x.requires_grad
        for i, row in enumerate(rows):
            torch.testing.assert_close(x[i, attention[i]], alone[row], atol=1e-4, rtol=1e-4)
            seen.add(row)
    assert seen == set(range(len(ROWS)))


def test_conversations_are_rendered_on_the_way() -> None:
    net, tok = model(), tokenizer()
    spoken = next(activations(net, tok, [QUESTION], "block:0")).x
    assert torch.equal(spoken, next(activations(net, tok, [render(tok, QUESTION, generation_prompt=True)], "block:0")).x)


def test_activations_refuse_empty_rows_and_unknown_sites() -> None:
    with pytest.raises(DataError, match="row 1: no tokens"):
        next(activations(model(), tokenizer(), [[2, 7], []], "block:0"))
    with pytest.raises(RecipeError, match="block:9"):
        next(activations(model(), tokenizer(), ROWS, "block:9"))


def test_the_stream_gives_exactly_the_tokens_asked_for() -> None:
    parts = list(streamed(model(), tokenizer(), ROWS, "block:0", tokens=100, batch=8))
    assert sum(map(len, parts)) == 100
    assert all(part.shape[1] == 32 for part in parts)
    assert max(map(len, parts)) <= 16


def test_a_lap_of_the_stream_is_every_position_but_the_first() -> None:
    net, tok = model(), tokenizer()
    usable = sum(len(row) - 1 for row in ROWS)
    expected = torch.cat([next(activations(net, tok, [row], "block:0")).x[0, 1:] for row in ROWS])
    got = next(chunks(net, tok, ROWS, "block:0", size=usable))
    assert len(got) == usable
    torch.testing.assert_close(got.sort(dim=0).values, expected.sort(dim=0).values, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, expected, atol=1e-3)


def test_skipped_chunks_do_not_change_later_ones() -> None:
    net, tok = model(), tokenizer()
    whole = list(itertools.islice(chunks(net, tok, ROWS, "block:0", size=10, seed=3), 6))
    late = list(itertools.islice(chunks(net, tok, ROWS, "block:0", size=10, seed=3, start=4), 2))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], late, strict=True))
    other = next(chunks(net, tok, ROWS, "block:0", size=10, seed=4))
    assert other.shape != whole[0].shape or not torch.equal(other, whole[0])


def test_a_stream_of_single_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="more than one token"):
        next(chunks(model(), tokenizer(), [[2], [2]], "block:0", size=4))


def test_batches_of_a_chunk_are_of_like_size() -> None:
    assert [len(part) for part in batches(torch.zeros(25, 3), 10)] == [13, 12]
    assert [len(part) for part in batches(torch.zeros(3, 3), 10)] == [3]


def test_the_buffer_is_bounded_by_memory_and_by_the_run() -> None:
    assert capture.buffer_size(model(), 10**9) == capture.BUFFER_FLOATS // 32
    assert capture.buffer_size(model(), 101) == 11


def test_texts_hold_both_kinds() -> None:
    assert {"prose" in e.meta for e in texts(3)} == {True, False}
