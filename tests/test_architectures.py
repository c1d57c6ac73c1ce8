"""Hooks read and edit the residual stream the model itself uses, on every supported architecture."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from personascope.backends.hooks import Edit, blocks, capturing, editing, run_to_site
from small_models import CONFIGS, model

# PEFT asks transformers by a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
IDS = torch.arange(1, 25).view(2, 12)
LAST = 2


@pytest.fixture(params=[*CONFIGS, "peft"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    """Each architecture, and a LoRA-wrapped one whose adapter is not zero."""
    if request.param != "peft":
        return model(request.param)
    wrapped = get_peft_model(model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return wrapped.eval()


@torch.no_grad()
def logits(net: nn.Module) -> Tensor:
    return net(input_ids=IDS, use_cache=False).logits


def an_edit(block: int, op: str = "add") -> Edit:
    """Change row 0 alone, at positions 5 and 7."""
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, [5, 7]] = True
    vectors = torch.zeros(2, 32)
    vectors[0] = torch.linspace(-3, 5, 32)
    return Edit(block, op, vectors, mask)


def test_all_blocks_are_found(net: nn.Module) -> None:
    assert len(blocks(net)) == 3


@pytest.mark.parametrize("block", [0, 1])
def test_capture_is_what_the_next_block_reads(net: nn.Module, block: int) -> None:
    read: list[Tensor] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    handle = blocks(net)[block + 1].register_forward_pre_hook(before, with_kwargs=True)
    with torch.no_grad(), capturing(net, [f"block:{block}"], stop=False) as seen:
        net(input_ids=IDS, use_cache=False)
    handle.remove()
    assert torch.equal(seen[f"block:{block}"], read[0])
    assert read[0].shape == (2, 12, 32)


def test_last_site_is_what_the_final_norm_reads(net: nn.Module) -> None:
    decoder = net.get_decoder()
    norms = [child for name, child in decoder.named_children() if name in ("norm", "ln_f", "final_layer_norm")]
    read: list[Tensor] = []
    handle = norms[0].register_forward_pre_hook(lambda _module, args: read.append(args[0]))
    with torch.no_grad(), capturing(net, [f"block:{LAST}"], stop=False) as seen:
        net(input_ids=IDS, use_cache=False)
    handle.remove()
    assert torch.equal(seen[f"block:{LAST}"], read[0])


def test_stopping_early_reads_the_same_stream(net: nn.Module) -> None:
    with torch.no_grad(), capturing(net, ["block:0", "block:1"], stop=False) as whole:
        net(input_ids=IDS, use_cache=False)
    ran: list[int] = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks(net))]
    with torch.no_grad(), capturing(net, ["block:0", "block:1"]) as short:
        run_to_site(net, input_ids=IDS)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(short[site], whole[site]) for site in whole)
    assert ran == [0, 1]


@pytest.mark.parametrize("op", ["add", "ablate"])
@pytest.mark.parametrize("block", [0, 1, LAST])
def test_an_edit_acts_on_its_row_from_its_position_on(net: nn.Module, block: int, op: str) -> None:
    before = logits(net)
    with editing(net, [an_edit(block, op)]):
        after = logits(net)
    assert torch.equal(after[0, :5], before[0, :5])
    assert torch.equal(after[1], before[1])
    assert (after[0, 5] - before[0, 5]).abs().max() > 1e-5
    if block < LAST:
        assert (after[0, 6] - before[0, 6]).abs().max() > 1e-5
    else:
        assert torch.equal(after[0, 6], before[0, 6])


@pytest.mark.parametrize("change", [lambda e: e.vectors.zero_(), lambda e: e.mask.zero_()], ids=["zero vectors", "empty mask"])
def test_an_edit_of_nothing_is_bit_identical(net: nn.Module, change: Callable[[Edit], Tensor]) -> None:
    before = logits(net)
    for op in ("add", "ablate"):
        edit = an_edit(1, op)
        change(edit)
        with editing(net, [edit]):
            assert torch.equal(logits(net), before)


def test_removed_hooks_leave_no_trace(net: nn.Module) -> None:
    before = logits(net)
    with pytest.raises(KeyError), editing(net, [an_edit(0), an_edit(1, "ablate")]), capturing(net, ["block:1"]):
        raise KeyError
    assert torch.equal(logits(net), before)
    assert not any(module._forward_hooks for module in blocks(net))


def test_ablating_leaves_nothing_along_the_direction(net: nn.Module) -> None:
    edit = an_edit(1, "ablate")
    with torch.no_grad(), editing(net, [edit]), capturing(net, ["block:1"]) as seen:
        run_to_site(net, input_ids=IDS)
    along = seen["block:1"] @ nn.functional.normalize(edit.vectors[0], dim=0)
    assert along[0, [5, 7]].abs().max() < 1e-4
    assert along[0, [4, 6]].abs().min() > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_half_a_billion_parameters_in_bf16() -> None:
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().cuda()
    ids = torch.randint(0, 151936, (4, 64), device="cuda")
    mask = torch.zeros(4, 64, dtype=torch.bool)
    mask[:, 20] = True
    vectors = torch.zeros(4, 896)
    vectors[2] = 5.0
    with torch.no_grad():
        before = net(input_ids=ids).logits
        with editing(net, [Edit(12, "add", vectors, mask)]), capturing(net, ["block:12"], stop=False) as seen:
            after = net(input_ids=ids).logits
        again = net(input_ids=ids).logits
    assert torch.equal(again, before)
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert torch.equal(after[2, :20], before[2, :20])
    assert not torch.equal(after[2, 20], before[2, 20])
    assert seen["block:12"].dtype == torch.bfloat16
