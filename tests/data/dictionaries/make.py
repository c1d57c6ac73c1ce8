# ruff: noqa: E402 - a stand-in for a package must be there before its importers
"""Small dictionaries as their makers' own code saves them, and what that code computes with them: what the tests compare with.

    pip install sae-lens==6.54.12 "transformer-lens<4" eai-sparsify==1.3.3 && pip install --no-deps dictionary-learning==0.1.0
    python tests/data/dictionaries/make.py

Each folder holds the files of one dictionary of 24 latents over 8 numbers and `expected.safetensors`: inputs `x`, activations
`z`, reconstructions `x_hat`. Gemma Scope publishes weights without code; SAELens' JumpReLU stands in for it.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.modules["nnsight"] = types.ModuleType("nnsight")  # dictionary_learning's buffers want it, its dictionaries do not
sys.modules["nnsight"].LanguageModel = object

import sae_lens
from dictionary_learning import dictionary
from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
from sae_lens.saes.sae import SAEMetadata
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

HERE = Path(__file__).parent
D, M, K = 8, 24, 4


def drawn(module: Any) -> Any:
    """The module with every weight drawn, so that no convention hides behind a zero or a unit norm."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else 1))
        if isinstance(threshold := getattr(module, "threshold", None), torch.Tensor):
            threshold.copy_(torch.rand_like(threshold) * 2 + 0.2)
    return module


@torch.no_grad()
def expected(folder: Path, encode: Any, decode: Any) -> None:
    """Write what the makers' code computes."""
    x = torch.randn(16, D) * 2 + 1
    z = encode(x)
    save_file({"x": x, "z": z.contiguous(), "x_hat": decode(z).contiguous()}, folder / "expected.safetensors")


def saelens() -> None:
    """TopK in units of decoder norms, JumpReLU, ReLU, and BatchTopK as it is saved after training."""
    about = {"d_in": D, "d_sae": M, "device": "cpu", "metadata": SAEMetadata(hook_name="blocks.3.hook_resid_post")}
    made = {
        "topk": sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**about, k=K, rescale_acts_by_decoder_norm=True)),
        "jumprelu": sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**about, apply_b_dec_to_input=False)),
        "standard": sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**about, apply_b_dec_to_input=True)),
    }
    for name, sae in made.items():
        folder = HERE / f"saelens-{name}"
        drawn(sae).save_model(folder)
        expected(folder, sae.encode, sae.decode)
    training = drawn(sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**about, k=K)))
    training.topk_threshold.fill_(1.5)
    folder = HERE / "saelens-batchtopk"
    training.save_inference_model(folder)
    sae = sae_lens.SAE.load_from_disk(str(folder), device="cpu")
    expected(folder, sae.encode, sae.decode)


def saelens_5() -> None:
    """The words of SAELens' configurations before version 6."""
    folder = HERE / "saelens-5"
    folder.mkdir(exist_ok=True)
    tensors = {"W_enc": torch.randn(D, M), "W_dec": torch.randn(M, D), "b_enc": torch.randn(M), "b_dec": torch.randn(D)}
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D, "d_sae": M, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    config |= {"hook_name": "blocks.4.hook_resid_pre", "hook_layer": 4, "apply_b_dec_to_input": True, "dtype": "float32", "device": "cpu"}
    (folder / "cfg.json").write_text(json.dumps(config | {"normalize_activations": "none", "sae_lens_version": "5.9.1"}))
    sae = sae_lens.SAE.load_from_disk(str(folder), device="cpu")
    expected(folder, sae.encode, sae.decode)


def sparsify() -> None:
    """A folder called by its hook point."""
    folder = HERE / "sparsify" / "layers.3"
    sae = drawn(SparseCoder(D, SparseCoderConfig(num_latents=M, k=K)))
    sae.save_to_disk(folder)

    def encode(x: torch.Tensor) -> torch.Tensor:
        found = sae.encode(x)
        return torch.zeros(len(x), M).scatter(1, found.top_indices, found.top_acts)

    expected(folder, encode, lambda z: sae.decode(*z.topk(K)))


def dictionary_learning() -> None:
    """Each class of the package that is read here, saved as its training script saves it."""
    kinds = {
        "AutoEncoder": dictionary.AutoEncoder(D, M),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D, M),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(D, M, K),
        "BatchTopKSAE": batch_top_k.BatchTopKSAE(D, M, K),
        "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(D, M, K, [8, 16]),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D, M),
    }
    for name, sae in kinds.items():
        folder = HERE / "dictionary_learning" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(drawn(sae).state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": name,
            "activation_dim": D,
            "dict_size": M,
            "layer": 3,
            "lm_name": "tiny",
            "submodule_name": "resid_post_layer_3",
        }
        (folder / "config.json").write_text(
            json.dumps({"trainer": trainer | ({"k": K} if "TopK" in name else {}), "buffer": {"ctx_len": 64}})
        )
        kind = type(sae)
        read = kind.from_pretrained(folder / "ae.pt")
        expected(folder, read.encode, read.decode)


def gemma_scope() -> None:
    """Arrays in a .npz, the layer in the path."""
    folder = HERE / "gemma-scope-res" / "layer_3" / "width_24" / "average_l0_4"
    folder.mkdir(parents=True, exist_ok=True)
    sae = drawn(sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=D, d_sae=M, device="cpu", apply_b_dec_to_input=False)))
    np.savez(folder / "params.npz", **{name: tensor.detach().numpy() for name, tensor in sae.state_dict().items()})
    expected(folder, sae.encode, sae.decode)


if __name__ == "__main__":
    torch.manual_seed(0)
    for make in (saelens, saelens_5, sparsify, dictionary_learning, gemma_scope):
        make()
