"""Slots: rows of their own length, written, dropped, moved and resized."""

import pytest
import torch

from personascope.backends.slots import Attention, Slots
from small_models import model


def filled() -> tuple[Slots, list[list[float]]]:
    """Three rows of 2 heads whose every position holds a number of its own; lengths 3, 0, 2."""
    slots = Slots(4, 6)
    stems = {0: (torch.arange(12.0).reshape(2, 2, 3, 1), 100 + torch.arange(12.0).reshape(2, 2, 3, 1))}
    slots.admit(stems, torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]))
    return slots, [[0, 1, 2], [], [6, 7]]


def keys(slots: Slots) -> list[list[float]]:
    """What head 0 of block 0 holds of each row."""
    return [slots.buffers[0][0][r, 0, :n, 0].tolist() for r, n in enumerate(slots.lengths.tolist())]


def test_a_row_takes_the_part_of_its_stem_that_counts() -> None:
    slots, held = filled()
    assert keys(slots) == held
    assert slots.buffers[0][1][2, 1, :2, 0].tolist() == [109, 110]


def test_a_new_position_is_written_behind_each_row() -> None:
    slots, held = filled()
    assert slots.begin() == 4
    new = torch.tensor([50.0, 60.0, 70.0])[:, None, None, None].expand(3, 2, 1, 1)
    got, values = slots.update(new, -new, 0)
    assert got.shape == (3, 2, 4, 1)
    slots.lengths = slots.lengths + 1
    assert keys(slots) == [[*row, x] for row, x in zip(held, (50, 60, 70), strict=True)]
    assert values[1, 1, 0, 0] == -60


def test_rows_leave_and_others_take_their_place() -> None:
    slots, held = filled()
    assert slots.keep(torch.tensor([False, True, True])).tolist() == [2, 1]
    assert keys(slots) == [held[2], held[1]]
    slots.resize(2, 3)
    assert keys(slots) == [held[2], held[1]]
    assert slots.buffers[0][0].shape == (2, 2, 3, 1)
    assert slots.keep(torch.zeros(2, dtype=torch.bool)).tolist() == []


@pytest.mark.parametrize(("name", "near"), [("llama", 20), ("mistral", 8), ("gpt2", 20)])
def test_a_position_looks_at_what_came_before_within_its_window(name: str, near: int) -> None:
    mask = Attention.of(model(name)).mask(torch.tensor([0, 5, 19]), 20)
    assert mask.shape == (3, 1, 1, 20)
    for row, at in zip(mask[:, 0, 0], (0, 5, 19), strict=True):
        assert row.nonzero()[:, 0].tolist() == list(range(max(0, at - near + 1), at + 1))


def test_models_with_kinds_of_block_get_a_mask_for_each_and_eager_ones_get_numbers() -> None:
    masks = Attention.of(model("gpt_oss")).mask(torch.tensor([12]), 16)
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert {kind: int((m == 0).sum()) for kind, m in masks.items()} == {"full_attention": 13, "sliding_attention": 8}
    assert all(m.max() == 0 and m.min() == torch.finfo(torch.float32).min for m in masks.values())
