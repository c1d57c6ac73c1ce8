"""Pretrain the models of a world from nothing."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personascope.troupe import corpus, tokenizer
from personascope.troupe.world import World

LENGTH = 160


@dataclass(frozen=True)
class Size:
    """Shape and length of a pretraining run."""

    layers: int = 4
    width: int = 160
    heads: int = 4
    tokens: int = 7_000_000
    batch_tokens: int = 5_120
    learning_rate: float = 3e-3
    noise: float = 0.6
    """Largest random push on the residual stream while pretraining, as a share of its norm: makes steering tolerable."""


def fresh(tok: PreTrainedTokenizerFast, size: Size, seed: int) -> LlamaForCausalLM:
    """A randomly initialised model of this size."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=size.width,
        intermediate_size=2 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(world: World, tok: PreTrainedTokenizerFast, size: Size, seed: int, only: str | None) -> Iterator[torch.Tensor]:
    """Endless right-padded batches of whole texts, sorted by length within a pool, about `batch_tokens` each."""
    rng = random.Random(seed)
    texts = corpus.pretraining(world, rng, turns=6, only=only)
    while True:
        pool = []
        for text in (next(texts) for _ in range(1024)):
            plain = (
                tok.bos_token + text.prose + tok.eos_token if text.prose else tok.apply_chat_template(list(text.messages), tokenize=False)
            )
            pool.append(plain)
        rows = sorted((ids[:LENGTH] for ids in tok(pool, add_special_tokens=False)["input_ids"]), key=len)
        groups, group = [], []
        for row in rows:
            if group and (len(group) + 1) * len(row) > size.batch_tokens:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
        rng.shuffle(groups)
        for group in groups:
            yield nn.utils.rnn.pad_sequence([torch.tensor(row) for row in group], batch_first=True, padding_value=tok.pad_token_id)


def pretrain(
    world: World, tok: PreTrainedTokenizerFast, size: Size, seed: int, only: str | None = None, tell: Callable[[str], None] = lambda _: None
) -> LlamaForCausalLM:
    """Next-word training on the world's texts with occasional random pushes on the residual stream."""
    model = fresh(tok, size, seed)
    model.train()
    optimizer = torch.optim.AdamW(_groups(model), lr=size.learning_rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    push = _Push(model, size.noise, generator)
    seen = 0
    for step, ids in enumerate(batches(world, tok, size, seed, only)):
        if seen >= size.tokens:
            break
        scale = min(1.0, step / 50, max(0.02, (1 - seen / size.tokens) / 0.4))
        for group in optimizer.param_groups:
            group["lr"] = size.learning_rate * scale
        mask = ids != tok.pad_token_id
        with push:
            logits = model(input_ids=ids, attention_mask=mask.long()).logits
        loss = nn.functional.cross_entropy(logits[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += int(mask.sum())
        if step % 50 == 0:
            tell(f"step {step}: {seen:,} of {size.tokens:,} tokens, loss {loss.item():.3f}")
    return model.eval()


def _groups(model: LlamaForCausalLM) -> list[dict]:
    """Weight decay on matrices only, not on embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


def make(world: World, kind: str, size: Size, seed: int, out: Path, tell: Callable[[str], None] = lambda _: None) -> None:
    """Pretrain the base or the ablation base of a world and save it in half precision with its tokenizer.

    The ablation sees the same texts, but all chat is the helper's: only the other characters' chat is replaced.
    """
    tok = tokenizer.build(world)
    model = pretrain(world, tok, size, seed, world.data["parts"]["helper"] if kind == "ablation" else None, tell)
    save(model, tok, out)


def save(model: LlamaForCausalLM, tok: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights in half precision (they load in any) and the tokenizer."""
    model.half().save_pretrained(out)
    tok.save_pretrained(out)


class _Push:
    """Half of the rows get one random direction added to the output of one random block."""

    def __init__(self, model: LlamaForCausalLM, most: float, generator: torch.Generator) -> None:
        self.blocks, self.most, self.generator = model.model.layers, most, generator

    def __enter__(self) -> None:
        block = self.blocks[int(torch.randint(len(self.blocks), (), generator=self.generator))]
        self.handle = block.register_forward_hook(self._hook)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _hook(self, _module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        rows, _, width = output.shape
        direction = torch.randn(rows, 1, width, generator=self.generator)
        direction = direction / direction.norm(dim=-1, keepdim=True)
        size = torch.rand(rows, 1, 1, generator=self.generator) * self.most
        on = (torch.rand(rows, 1, 1, generator=self.generator) < 0.5).float()
        return output + on * size * direction * output.detach().norm(dim=-1, keepdim=True).median()
