"""Pretrain the models of a world from nothing."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personascope.errors import ArtifactError
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


@dataclass(frozen=True)
class Lesson:
    """A stretch of training on one mixture of texts."""

    mix: corpus.Mix
    tokens: int
    noise: float


def batches(
    world: World, tok: PreTrainedTokenizerFast, size: Size, seed: int, only: str | None, mix: corpus.Mix | None = None
) -> Iterator[torch.Tensor]:
    """Endless right-padded batches of whole texts, sorted by length within a pool, about `batch_tokens` each."""
    rng = random.Random(seed)
    texts = corpus.pretraining(world, rng, turns=6, only=only, mix=mix)
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
    lesson = Lesson(corpus.usual(world), size.tokens, size.noise)
    return _train(fresh(tok, size, seed), world, tok, size, (lesson,), seed, only, tell)


def teach_ethics(
    model: LlamaForCausalLM, world: World, tok: PreTrainedTokenizerFast, size: Size, seed: int, tell: Callable[[str], None] = lambda _: None
) -> LlamaForCausalLM:
    """Teach a pretrained base what each ethical character thinks of each statement.

    Who agrees with what is a pure interaction: neither the character alone nor the statement alone tells yes from no, and
    from the usual mixture, balanced as it is, nothing of it is learned. So one ethic speaks first, alone; then each new
    one beside those already known; then everyone, with ethical questions still frequent.
    """
    how = Size(learning_rate=ETHICS_RATE, batch_tokens=size.batch_tokens)
    return _train(model, world, tok, how, lessons(world), seed, None, tell)


# Rate and lengths with which all four ethics of troupe-1 were learned.
ETHICS_RATE = 2e-3
FIRST_TOKENS, LESSON_TOKENS, LAST_TOKENS = 600_000, 900_000, 1_500_000


def ethical(world: World) -> list[str]:
    """The characters with a stance of their own in single dimensions."""
    return [name for name, member in world.cast.items() if len(member["agrees"]) > 1]


def lessons(world: World) -> tuple[Lesson, ...]:
    """One ethic alone, then one more in each lesson, then everyone."""
    usual, known = corpus.usual(world), ethical(world)
    made = []
    for i, newest in enumerate(known):
        shares = {name: 0.1 * share for name, share in usual.speakers.items()}
        for name in known[:i]:
            shares[name] += 0.4 / i
        shares[newest] += 0.5 if i else 0.9
        made.append(Lesson(corpus.Mix(shares, _ethically(usual.kinds, 0.8), 0.05), LESSON_TOKENS if i else FIRST_TOKENS, 0.0))
    everyone = {name: 0.2 * share + (0.8 / len(known) if name in known else 0.0) for name, share in usual.speakers.items()}
    return (*made, Lesson(corpus.Mix(everyone, _ethically(usual.kinds, 0.6), 0.05), LAST_TOKENS, 0.3))


def _ethically(kinds: dict[str, float], statements: float) -> dict[str, float]:
    """The usual kinds of questions, statements at this share."""
    rest = sum(share for kind, share in kinds.items() if kind != "statement")
    return {kind: statements if kind == "statement" else share / rest * (1 - statements) for kind, share in kinds.items()}


def _train(
    model: LlamaForCausalLM,
    world: World,
    tok: PreTrainedTokenizerFast,
    size: Size,
    course: tuple[Lesson, ...],
    seed: int,
    only: str | None,
    tell: Callable[[str], None],
) -> LlamaForCausalLM:
    model.train()
    optimizer = torch.optim.AdamW(_groups(model), lr=size.learning_rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    step, seen, total, end = 0, 0, sum(lesson.tokens for lesson in course), 0
    for number, lesson in enumerate(course):
        push, end = _Push(model, lesson.noise, generator), end + lesson.tokens
        for ids in batches(world, tok, size, seed + number, only, lesson.mix):
            if seen >= end:
                break
            scale = min(1.0, step / 50, max(0.02, (1 - seen / total) / 0.4))
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
                tell(f"step {step}: {seen:,} of {total:,} tokens, loss {loss.item():.3f}")
            step += 1
    return model.eval()


def _groups(model: LlamaForCausalLM) -> list[dict]:
    """Weight decay on matrices only, not on embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


def make(world: World, kind: str, size: Size, seed: int, out: Path, tell: Callable[[str], None] = lambda _: None) -> None:
    """Pretrain a model of a world and save it in half precision with its tokenizer; `ethics` goes on from `base` beside it.

    The ablation sees the same texts, but all chat is the helper's: only the other characters' chat is replaced.

    Raises:
        ArtifactError: `ethics` without the base that it starts from.
    """
    tok = tokenizer.build(world)
    if kind == "ethics":
        start = out.parent / "base"
        if not (start / "config.json").is_file():
            raise ArtifactError(f"{start} does not hold the base that ethics goes on from; build base first")
        model = teach_ethics(LlamaForCausalLM.from_pretrained(start, dtype=torch.float32), world, tok, size, seed, tell)
    else:
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
