"""What rows have in common is computed once, and gives the keys and values that each row would compute for itself."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn

from personascope.backends.hooks import Edit, blocks, editing
from personascope.backends.prefill import LEAST_SHARED, Prefill, starting_after
from personascope.backends.slots import Collector, Filled
from personascope.backends.steering import Steer
from personascope.methods.tokens import PromptTokens
from small_models import CONFIGS, model

PROMPTS = [PromptTokens(list(range(start, start + n)), [True] * n) for start, n in ((5, 9), (20, 9), (30, 6))]
DRAWS, VECTORS = 2, 5
ROWS = [(p, v) for p in range(3) for v in range(VECTORS) for _ in range(DRAWS)]
TABLE = torch.randn(VECTORS, 32, generator=torch.Generator().manual_seed(0)) * 3


def work(net: nn.Module) -> tuple[Counter[int], list]:
    """Prompt positions that each block's attention projects from now on."""
    done: Counter[int] = Counter()

    def count(block: int):
        return lambda _module, args: done.update({block: args[0].shape[0] * args[0].shape[1]})

    return done, [block.self_attn.q_proj.register_forward_pre_hook(count(i)) for i, block in enumerate(blocks(net))]


def prefill(net: nn.Module, mask: str, block: int = 1) -> Prefill:
    prompts = [PromptTokens(list(PROMPTS[p].ids), list(PROMPTS[p].words)) for p, _ in ROWS]
    return Prefill(net, prompts, [Steer(block, "add", mask, TABLE, [v if v < 4 else -1 for _, v in ROWS])])


@pytest.mark.parametrize("mask", ["all", "prompt", "last_prompt", "answer"])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_stems_are_what_each_row_would_compute(mask: str, block: int) -> None:
    net = model()
    made = prefill(net, mask, block)
    order = made.order()
    for start in range(0, len(order), 7):
        rows = order[start : start + 7]
        stems, index = made.stems(rows)
        for row, stem in zip(rows, index.tolist(), strict=True):
            prompt, vector = ROWS[row]
            ids = torch.tensor([PROMPTS[prompt].ids[:-1]])
            edit = Edit(block, "add", TABLE[vector][None] * (vector < 4), torch.full(ids.shape, mask in ("all", "prompt")))
            alone = Collector(2)
            with torch.no_grad(), editing(net, [edit]), pytest.raises(Filled):
                net(input_ids=ids, past_key_values=alone, use_cache=True)
            for layer, pair in alone.found.items():
                for ours, wanted in zip(stems[layer], pair, strict=True):
                    torch.testing.assert_close(ours[stem : stem + 1, :, : ids.shape[1]], wanted, atol=1e-4, rtol=1e-4)


def test_rows_share_all_that_no_edit_sets_apart() -> None:
    net = model()
    done, _ = work(net)
    made = prefill(net, "last_prompt")
    stems, index = made.stems(made.order())
    assert len(stems[0][0]) == len(set(index.tolist())) == 3
    assert done == {0: 3 * 8, 1: 3 * 8, 2: 3 * 8}


def test_blocks_up_to_the_site_run_once_per_prompt_and_those_above_once_per_edit() -> None:
    net = model()
    done, _ = work(net)
    made = prefill(net, "all")
    stems, _ = made.stems(made.order())
    assert len(stems[0][0]) == 3 * VECTORS, "draws of one cell share everything"
    assert done == {0: 3 * 8, 1: 3 * 8, 2: 3 * 8 + 3 * 4 * 8}


RUBRIC = list(range(7, 7 + LEAST_SHARED))
JUDGED = [PromptTokens([*RUBRIC, *own], [True] * (LEAST_SHARED + len(own))) for own in ([60, 61, 62, 63], [60, 5], [55, 6, 7, 8, 9, 10])]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_all_prompts_begin_with_is_computed_once(name: str) -> None:
    net = model(name)
    made = Prefill(net, JUDGED, [])
    ran: list[int] = []
    handle = blocks(net)[0].register_forward_pre_hook(lambda _module, args, kwargs: ran.append(_positions(args, kwargs)), with_kwargs=True)
    stems, index = made.stems(made.order())
    handle.remove()
    assert ran == [LEAST_SHARED, 3 * 5], "the rubric of one row, then what is left of three, padded to the longest"
    for row, stem in zip(made.order(), index.tolist(), strict=True):
        alone = Collector(2)
        with torch.no_grad(), pytest.raises(Filled):
            net(input_ids=torch.tensor([JUDGED[row].ids[:-1]]), past_key_values=alone, use_cache=True)
        for layer, pair in alone.found.items():
            for ours, wanted in zip(stems[layer], pair, strict=True):
                torch.testing.assert_close(ours[stem : stem + 1, :, : wanted.shape[2]], wanted, atol=1e-4, rtol=1e-4)


def _positions(args: tuple, kwargs: dict) -> int:
    x = args[0] if args else kwargs["hidden_states"]
    return x.shape[0] * x.shape[1]


def test_a_short_beginning_and_an_edited_one_are_nobodys_but_the_rows() -> None:
    net = model()
    assert Prefill(net, [PromptTokens(p.ids[1:], p.words[1:]) for p in JUDGED], []).shared == 0
    assert Prefill(net, [JUDGED[0], PromptTokens(RUBRIC, [True] * LEAST_SHARED)], []).shared == 0, "a prompt's last token is read later"
    done, _ = work(net)
    made = Prefill(net, JUDGED, [Steer(0, "add", "all", TABLE, [0, 1, 2])])
    made.stems([0, 1, 2])
    longest = LEAST_SHARED + 5
    assert done == {0: 3 * longest, 1: 3 * longest, 2: 3 * longest}


def test_what_was_computed_for_the_last_rows_is_used_again() -> None:
    net = model()
    done, _ = work(net)
    made = prefill(net, "all")
    rows = [row for row in made.order() if ROWS[row][0] == 0]
    for row in rows:
        made.stems([row])
    assert done[0] == done[1] <= 2 * 8


def test_an_edit_of_the_last_block_sets_no_prompt_apart() -> None:
    made = prefill(model(), "all", block=2)
    assert set(made.signatures) == {()}


def test_rows_come_longest_first_with_those_of_a_prompt_and_edit_together() -> None:
    made = prefill(model(), "all")
    order = made.order()
    assert sorted(order) == list(range(len(ROWS)))
    runs = [(made.groups[row], made.signatures[row]) for row in order]
    assert sum(a != b for a, b in pairwise(runs)) == 3 * VECTORS - 1
    lengths = [len(made.prompts[row].ids) for row in order]
    assert lengths == sorted(lengths, reverse=True)


def test_a_prompt_of_one_token_has_no_stem() -> None:
    made = Prefill(model(), [PromptTokens([5], [False])], [])
    stems, index = made.stems([0])
    assert (stems, index.tolist()) == ({}, [0])


def test_blocks_compute_again_afterwards_whatever_happens_inside() -> None:
    net = model()
    ids = torch.arange(1, 7)[None]
    before = net(input_ids=ids).logits
    with starting_after(net, 1, torch.zeros(1, 6, 32)):
        assert not torch.equal(net(input_ids=ids, use_cache=False).logits, before)
    with pytest.raises(KeyError), starting_after(net, 1, torch.zeros(1, 6, 32)):
        raise KeyError
    assert torch.equal(net(input_ids=ids).logits, before)
    assert not any("forward" in block.__dict__ for block in blocks(net))
