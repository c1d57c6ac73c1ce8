"""Sites, edits and captures: what they refuse and how they compose."""

import pytest
import torch
from torch import nn

from personascope.backends.hooks import Edit, Reader, blocks, capturing, changing, editing, run_to_site, site_index, site_indices
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
    with (
        pytest.raises(RecipeError, match="'push' is none of add, ablate, clamp, cap"),
        editing(model(), [Edit(0, "push", torch.ones(2, 32))]),
    ):
        pass
    with pytest.raises(RecipeError, match="clamp needs a reader"), editing(model(), [Edit(0, "clamp", torch.ones(2, 32))]):
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


def test_a_glob_names_blocks_of_a_model() -> None:
    net = model()
    assert site_indices("block:*", net) == [0, 1, 2]
    assert site_indices("block:[12]", net) == [1, 2]
    assert site_indices("block:1") == site_indices("block:1", net) == [1]
    with pytest.raises(RecipeError, match="fits no block; the model has block:0 to block:2"):
        site_indices("block:1?", net)
    with pytest.raises(RecipeError, match="a glob names blocks of a model"):
        site_indices("block:*")


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, False, True, True, False]] * 3)


def by_hand(op: str, x: torch.Tensor, step: torch.Tensor, read: torch.Tensor, bias: float, floor: float, value: float) -> torch.Tensor:
    """One position (width,) after the edit."""
    reading = max(float(x.double() @ read.double()) + bias, floor)
    if op == "cap" and reading <= value:
        return x
    return x + (value - reading) * step


@pytest.mark.parametrize("op", ["clamp", "cap"])
@pytest.mark.parametrize("latent", [False, True])
def test_clamp_and_cap_set_the_reading_row_by_row(op: str, latent: bool) -> None:
    pick = torch.Generator().manual_seed(1)
    steps, read = torch.randn(3, 8, generator=pick), torch.randn(3, 8, generator=pick)
    steps[1] = 0
    values = torch.tensor([0.4, 9.0, -0.2])
    if latent:
        reader = Reader(read, torch.tensor([0.1, 0.2, -0.3]), torch.zeros(3), values)
    else:
        steps = nn.functional.normalize(steps, dim=1)
        reader = Reader.along(steps, values)
    out = Edit(0, op, steps, MASK, reader)(X)
    changed = 0
    for row in range(3):
        for position in range(5):
            x = X[row, position]
            if not MASK[row, position] or row == 1:
                assert torch.equal(out[row, position], x)
                continue
            args = (reader.weights[row], float(reader.biases[row]), float(reader.floors[row]), float(values[row]))
            wanted = by_hand(op, x, steps[row], *args)
            torch.testing.assert_close(out[row, position], wanted, atol=1e-5, rtol=1e-5)
            changed += not torch.equal(out[row, position], x)
            if not latent and op == "clamp":
                assert abs(float(out[row, position] @ steps[row]) - values[row]) < 1e-5
            if torch.equal(wanted, x):
                assert torch.equal(out[row, position], x), "a reading below its cap is left to the bit"
    assert 0 < changed < 7 if op == "cap" else changed == 6


def test_a_cap_leaves_low_readings_to_the_bit_and_brings_high_ones_down() -> None:
    unit = torch.zeros(1, 8)
    unit[0, 2] = 1
    x = torch.randn(1, 400, 8, generator=torch.Generator().manual_seed(2))
    out = Edit(0, "cap", unit, torch.ones(1, 400, dtype=torch.bool), Reader.along(unit, torch.tensor([0.5])))(x)
    low = x[0, :, 2] <= 0.5
    assert torch.equal(out[0, low], x[0, low])
    torch.testing.assert_close(out[0, ~low, 2], torch.full((int((~low).sum()),), 0.5))
    assert torch.equal(out[0][:, [0, 1, 3, 4, 5, 6, 7]], x[0][:, [0, 1, 3, 4, 5, 6, 7]])


def test_operations_of_one_block_compose_in_order() -> None:
    unit = torch.zeros(3, 8)
    unit[:, 0] = 1
    everywhere = torch.ones(3, 5, dtype=torch.bool)
    clamp = Edit(0, "clamp", unit, everywhere, Reader.along(unit, torch.full((3,), 2.0)))
    add = Edit(0, "add", 3 * unit, everywhere)
    torch.testing.assert_close(add(clamp(X))[..., 0], torch.full((3, 5), 5.0))
    torch.testing.assert_close(clamp(add(X))[..., 0], torch.full((3, 5), 2.0))
