"""GGUF files: a tiny model packed by the format's own writer and unpacked again is the same model."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from personascope.artifact import Model
from personascope.backends import models
from personascope.backends.gguf import unpack
from personascope.errors import BackendError, DataError
from personascope.methods.tokens import prompt_tokens
from personascope.run import run
from personascope.stages import unpack as stage
from personascope.values import File

LAYERS, HEADS, SHARED, WIDTH = 2, 4, 2, 32
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant {% endif %}"
)
LETTERS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def plain() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "max_position_embeddings": 64}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": SHARED}
    return LlamaForCausalLM(LlamaConfig(vocab_size=3 + len(LETTERS), **sizes, **heads, tie_word_embeddings=False)).eval()


@pytest.fixture(scope="module")
def packed(plain: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file of 32-bit numbers."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(plain.config.rms_norm_eps)
    writer.add_vocab_size(plain.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", "<s>", "</s>", *LETTERS])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * len(LETTERS))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in tensors(plain).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Weights under the format's names; it orders the halves of each rotated head otherwise."""
    held = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    found = {"token_embd.weight": held["model.embed_tokens.weight"], "output.weight": held["lm_head.weight"]}
    found["output_norm.weight"] = held["model.norm.weight"]
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            weight = held[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = HEADS if theirs == "attn_q" else SHARED
                weight = weight.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(weight.shape)
            found[f"blk.{layer}.{theirs}.weight"] = np.ascontiguousarray(weight)
    return found


def test_what_is_unpacked_is_the_model_that_was_packed(plain: LlamaForCausalLM, packed: Path, tmp_path: Path) -> None:
    made = run(stage.Recipe(path=File(str(packed)), dtype="float32"), tmp_path / "model")
    assert made.manifest["counts"]["parameters"] == plain.num_parameters()
    loaded = models.load(Model(str(tmp_path / "model")))
    for name, weight in plain.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name
    ids = torch.tensor([prompt_tokens(loaded.tokenizer, [{"role": "user", "content": "cabbage"}]).ids])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, plain(ids).logits)
    assert loaded.tokenizer.decode(ids[0]).startswith("<s>user cabbage</s>")


def test_half_the_bits_are_the_default(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "weights", stage.Recipe(path=File(str(packed))).dtype)
    assert models.load_folder(tmp_path / "weights", dtype="bfloat16").model.dtype is torch.bfloat16
    assert (tmp_path / "weights" / "model.safetensors").stat().st_size < 0.6 * packed.stat().st_size


def test_what_is_no_such_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.gguf: no such file"):
        unpack(tmp_path / "none.gguf", tmp_path / "weights", "bfloat16")
    (tmp_path / "text.gguf").write_text("not weights")
    with pytest.raises(BackendError, match=r"text\.gguf: not a GGUF file that Transformers can read"):
        unpack(tmp_path / "text.gguf", tmp_path / "weights", "bfloat16")
    assert not (tmp_path / "weights").exists()


def test_without_the_package_that_reads_it(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_: False)
    with pytest.raises(BackendError, match=r'pip install "personascope\[gguf\]'):
        unpack(packed, tmp_path / "weights", "bfloat16")
