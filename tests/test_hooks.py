"""Sites, edits and captures: what they refuse and how they compose."""

import pytest
import torch
from torch import nn

from personascope.backends.hooks import Edit, blocks, capturing, changing, editing, run_to_site, site_index
from personascope.errors import BackendError, RecipeError
from small_models import model

IDS = torch.arange(1, 13).view(2, 6)
EVERYWHERE = torch.ones(2, 6, dtype=torch.bool)


def test_a_site_is_a_block_number() -> None:
    assert site_index("block:2") == 2
    assert site_index("block:2", model()) == 2


@pytest.mark.parametrize("site", ["block", "block:", "block:-1", "block:x", "layer:1", "2", "block:²", ""])
def test_a_bad_site_is_named(site: str) -> None:
    with pytest.raises(RecipeError, match=r"site .*: write block:N"):
        site_index(site)


def test_a_site_beyond_the_model_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'block:3': the model has 3 blocks; the last site is block:2"):
        site_index("block:3", model())


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_what_has_no_blocks_is_named(thing: nn.Module) -> None:
    with pytest.raises(BackendError, match=type(thing).__name__):
        blocks(thing)


def test_a_decoder_with_other_layers_than_it_says_is_refused() -> None:
    net = model()
    net.config.num_hidden_layers = 4
    with pytest.raises(BackendError, match="LlamaForCausalLM: 0 lists of 4 decoder blocks"):
        blocks(net)


def test_edits_of_one_block_compose_in_order() -> None:
    vector = torch.linspace(-2, 3, 32).repeat(2, 1)
    add, ablate = Edit(1, "add", vector, EVERYWHERE), Edit(1, "ablate", vector, EVERYWHERE)
    unit = nn.functional.normalize(vector[0], dim=0)
    for edits, left in (([add, ablate], 0.0), ([ablate, add], float(vector[0] @ unit))):
        with torch.no_grad(), editing(model(), edits[:0]):
            pass
        net = model()
        with torch.no_grad(), editing(net, edits), capturing(net, ["block:1"]) as seen:
            run_to_site(net, input_ids=IDS)
        torch.testing.assert_close(seen["block:1"] @ unit, torch.full((2, 6), left), atol=1e-3, rtol=1e-4)


def test_adding_adds_the_vector_of_each_row() -> None:
    net = model()
    vectors = torch.randn(2, 32)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 4] = True
    with torch.no_grad(), capturing(net, ["block:0"]) as plain:
        run_to_site(net, input_ids=IDS)
    with torch.no_grad(), editing(net, [Edit(0, "add", vectors, mask)]), capturing(net, ["block:0"]) as seen:
        run_to_site(net, input_ids=IDS)
    moved = seen["block:0"] - plain["block:0"]
    torch.testing.assert_close(moved[0, 2], vectors[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[1, 4], vectors[1], atol=1e-5, rtol=1e-5)
    assert moved[~mask].abs().max() == 0


def test_captures_see_only_edits_entered_before() -> None:
    net = model()
    edit = Edit(0, "add", torch.ones(2, 32), EVERYWHERE)
    with (
        torch.no_grad(),
        capturing(net, ["block:0"], stop=False) as before,
        editing(net, [edit]),
        capturing(net, ["block:0"], stop=False) as after,
    ):
        net(input_ids=IDS)
    torch.testing.assert_close(after["block:0"] - before["block:0"], torch.ones(2, 6, 32))


def test_the_mask_may_change_between_forwards() -> None:
    net = model()
    edit = Edit(1, "add", torch.ones(2, 32))
    with torch.no_grad(), editing(net, [edit]):
        with pytest.raises(BackendError, match="edit at block:1: no mask set"):
            net(input_ids=IDS)
        edit.mask = torch.zeros(2, 6, dtype=torch.bool)
        untouched = net(input_ids=IDS).logits
        edit.mask = EVERYWHERE
        assert not torch.equal(net(input_ids=IDS).logits, untouched)


@pytest.mark.parametrize(("rows", "positions", "width"), [(1, 6, 32), (2, 5, 32), (2, 6, 31)])
def test_shapes_that_do_not_belong_together_are_refused(rows: int, positions: int, width: int) -> None:
    edit = Edit(1, "add", torch.ones(rows, width), torch.ones(rows, positions, dtype=torch.bool))
    net = model()
    with editing(net, [edit]), pytest.raises(BackendError, match=r"edit at block:1: stream \(2, 6, 32\)"):
        net(input_ids=IDS)


def test_impossible_edits_are_refused() -> None:
    with pytest.raises(RecipeError, match="block:7"), editing(model(), [Edit(7, "add", torch.ones(2, 32))]):
        pass
    with pytest.raises(RecipeError, match="'clamp' is none of add, ablate"), editing(model(), [Edit(0, "clamp", torch.ones(2, 32))]):
        pass
    with pytest.raises(RecipeError, match="no site given"), capturing(model(), []):
        pass


def test_bf16_is_edited_in_float32_and_stays_bf16() -> None:
    x = torch.full((1, 1, 4), 1.0, dtype=torch.bfloat16)
    edit = Edit(0, "add", torch.full((1, 4), 0.0078125), torch.ones(1, 1, dtype=torch.bool))
    assert edit(x).dtype == torch.bfloat16
    assert torch.equal(edit(x), (x.float() + 0.0078125).bfloat16())


def test_blocks_that_return_tuples_are_changed_too() -> None:
    net = model()
    plain = net(input_ids=IDS, use_cache=False).logits
    handle = blocks(net)[1].register_forward_hook(lambda _m, _i, out: (out, "cache"))
    unwrap = None
    try:
        with changing(net, [(1, lambda x: x + 1)]):
            unwrap = blocks(net)[1].register_forward_hook(lambda _m, _i, out: out[0])
            changed = net(input_ids=IDS, use_cache=False).logits
    finally:
        handle.remove()
        if unwrap:
            unwrap.remove()
    with changing(net, [(1, lambda x: x + 1)]):
        assert torch.equal(net(input_ids=IDS, use_cache=False).logits, changed)
    assert not torch.equal(changed, plain)
