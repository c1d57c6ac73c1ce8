"""How fast is a causal screen: generated tokens per second of our engine beside the usual loops, answers compared.

One grid of (direction, strength) cells, each asked the same questions with the same noise, the vector added at every position
of one block's output. All contenders run in one process in turns, each round on its own random part of the grid and in another
order; slow ones take a random subset of that part. Reported are medians over rounds and ratios taken within a round.

    python bench/screen.py --model MODEL --dictionary DICTIONARY --questions DATASET --judge exact:WORLD --json out.json
    python bench/screen.py --shape 0.5b --latents 8 --strengths 2 --asked 8 --json out.json
"""

import argparse
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LogitsProcessor, LogitsProcessorList, Qwen2Config
from transformers.utils import logging

from personascope.artifact import Dataset, Dictionary, Model
from personascope.backends import models
from personascope.backends.dictionaries import load_dictionary
from personascope.backends.generation import Prompt, Sampling, draw, generate, stop_ids, uniforms
from personascope.backends.hooks import blocks, capturing, run_to_site
from personascope.backends.judging import Judge
from personascope.backends.models import Loaded
from personascope.backends.steering import Mask, Steer
from personascope.methods.tokens import PromptTokens, prompt_tokens

SHAPES: dict[str, Callable[[], Any]] = {
    "toy": lambda: LlamaConfig(
        vocab_size=933, hidden_size=160, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4
    ),
    "0.5b": lambda: Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "7b": lambda: Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
}
Row = tuple[int, int]
"""A cell and a question."""
Texts = dict[Row, list[int]]


@dataclass(frozen=True)
class Grid:
    """Everything the contenders are given."""

    loaded: Loaded
    prompts: list[PromptTokens]
    asked: list[str]
    vectors: Tensor
    """(cells, width), scaled."""
    block: int
    sampling: Sampling


@dataclass
class Timing:
    """One contender on one part of the grid."""

    contender: str
    round: int
    rows: int
    tokens: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Generated tokens per second, end tokens counted."""
        return self.tokens / self.seconds


def engine(grid: Grid, cells: list[int], mask: Mask | None = "all") -> Texts:
    """Ours: every (cell, question) is one row of one refilled batch; without a mask, the same rows unsteered."""
    rows = [(cell, q) for cell in cells for q in range(len(grid.prompts))]
    prompts = [Prompt(grid.prompts[q], str(q)) for _, q in rows]
    steers = [Steer(grid.block, "add", mask, grid.vectors, [cell for cell, _ in rows])] if mask else []
    return {rows[i]: done.ids for i, done in generate(grid.loaded, prompts, grid.sampling, steers)}


@contextmanager
def hooked(grid: Grid, vector: Tensor | None) -> Iterator[None]:
    """A forward hook that adds one vector to every position, as the loops of repeng and diffing-toolkit do."""

    def add(_module: nn.Module, _args: Any, out: Any) -> Any:
        return (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector

    handle = blocks(grid.loaded.model)[grid.block].register_forward_hook(add) if vector is not None else None
    yield
    if handle:
        handle.remove()


@contextmanager
def packaged(grid: Grid, vector: Tensor | None) -> Iterator[None]:
    """The package steering-vectors itself."""
    from steering_vectors import SteeringVector

    with SteeringVector({grid.block: vector}).apply(grid.loaded.model):
        yield


class SharedNoise(LogitsProcessor):
    """Makes `generate` draw the token that our engine draws from the same logits and noise."""

    def __init__(self, noise: Tensor, width: int, sampling: Sampling) -> None:
        """`noise` (rows, tokens) on the model's device, prompts padded to `width`."""
        self.noise, self.width, self.sampling = noise, width, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores under which the drawn token wins."""
        drawn = draw(scores.float(), self.noise[:, input_ids.shape[1] - self.width], self.sampling.temperature, 1.0)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn[:, None], 0.0)


def by_generate(grid: Grid, cells: list[int], each: int, steered: bool = True, around: Callable[..., Any] = hooked) -> Texts:
    """`model.generate` on `each` questions at a time, left-padded, one cell after another."""
    found: Texts = {}
    for cell in cells:
        with around(grid, grid.vectors[cell].to(grid.loaded.model.dtype) if steered else None):
            for start in range(0, len(grid.prompts), each):
                asked = range(start, min(start + each, len(grid.prompts)))
                found |= {(cell, q): ids for q, ids in zip(asked, answers(grid, list(asked)), strict=True)}
    return found


def unsteered_generate(grid: Grid, cells: list[int]) -> Texts:
    """The rows of these cells without any edit, in `model.generate` batches as large as the engine's."""
    rows = sorted(((cell, q) for cell in cells for q in range(len(grid.prompts))), key=lambda row: -len(grid.prompts[row[1]].ids))
    found: Texts = {}
    room = max(1, grid.sampling.batch_tokens // (max(len(p.ids) for p in grid.prompts) + grid.sampling.max_tokens))
    for start in range(0, len(rows), room):
        part = rows[start : start + room]
        found |= dict(zip(part, answers(grid, [q for _, q in part]), strict=True))
    return found


@torch.inference_mode()
def answers(grid: Grid, asked: list[int]) -> list[list[int]]:
    """Hugging Face's generate on some questions; ids up to the stop token."""
    prompts, device, sampling = [grid.prompts[q] for q in asked], grid.loaded.device, grid.sampling
    width, stops = max(len(p.ids) for p in prompts), stop_ids(grid.loaded)
    ids = torch.tensor([[0] * (width - len(p.ids)) + p.ids for p in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
    noise = torch.tensor(np.stack([uniforms(sampling.seed, str(q), sampling.max_tokens) for q in asked]), device=device)
    out = grid.loaded.model.generate(
        input_ids=ids,
        attention_mask=attention,
        do_sample=False,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=sorted(stops) or None,
        pad_token_id=0,
        use_cache=True,
        logits_processor=LogitsProcessorList([SharedNoise(noise, width, sampling)] if sampling.temperature else []),
    )[:, width:].tolist()
    return [row[: next((n for n, token in enumerate(row) if token in stops), len(row))] for row in out]


def contenders(grid: Grid) -> dict[str, tuple[Callable[[list[int]], Texts], bool]]:
    """Each by name, and whether it is slow: then it takes as few cells as fill its share of time."""
    found: dict[str, tuple[Callable[[list[int]], Texts], bool]] = {
        "engine, steered": (lambda cells: engine(grid, cells), False),
        "engine, unsteered": (lambda cells: engine(grid, cells, None), False),
        "engine, steered at the last prompt token": (lambda cells: engine(grid, cells, "last_prompt"), False),
        "generate, unsteered, large batches": (lambda cells: unsteered_generate(grid, cells), True),
        "hook + generate, one cell, all questions (our rewrite)": (lambda cells: by_generate(grid, cells, len(grid.prompts)), True),
        "hook + generate, one prompt at a time (our rewrite)": (lambda cells: by_generate(grid, cells, 1), True),
    }
    if importlib.util.find_spec("steering_vectors"):
        found["steering-vectors, one cell, all questions"] = (
            lambda cells: by_generate(grid, cells, len(grid.prompts), around=packaged),
            True,
        )
    return found


def measure(grid: Grid, rounds: int, seconds: float) -> tuple[list[Timing], dict[str, Texts]]:
    """Run all contenders in turns."""
    order = list(range(len(grid.vectors)))
    random.Random(0).shuffle(order)
    timings: list[Timing] = []
    texts: dict[str, Texts] = {}
    runs = contenders(grid)
    pace = {name: timed(name, run, order[:1], -1, grid)[0] for name, (run, _) in runs.items()}
    for turn in range(rounds):
        part = order[turn::rounds]
        names = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for name in names if turn % 2 == 0 else names[::-1]:
            run, slow = runs[name]
            cells = part[: max(1, int(seconds / pace[name].seconds))] if slow else part
            timing, found = timed(name, run, cells, turn, grid)
            timings.append(timing)
            texts.setdefault(name, {}).update(found)
    return timings, texts


def timed(name: str, run: Callable[[list[int]], Texts], cells: list[int], turn: int, grid: Grid) -> tuple[Timing, Texts]:
    """One run, the device waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(cells)
    if grid.loaded.device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(min(len(ids) + 1, grid.sampling.max_tokens) for ids in found.values())
    return Timing(name, turn, len(found), tokens, seconds, cpu_seconds), found


def agreement(grid: Grid, texts: dict[str, Texts], judge: str) -> dict[str, dict[str, float]]:
    """Per contender, over the rows it ran: how often its ids, and its verdicts, are those of the engine under the same edit."""
    found = {}
    for name, said in texts.items():
        reference = texts["engine, unsteered" if "unsteered" in name else "engine, steered"]
        rows = [row for row in said if row in reference]
        if name == "engine, steered at the last prompt token" or not rows:
            continue
        found[name] = {"rows": len(rows), "equal texts": sum(said[row] == reference[row] for row in rows) / len(rows)}
        if judge:
            a, b = (verdicts(grid, {row: one[row] for row in rows}, judge) for one in (said, reference))
            found[name]["equal verdicts"] = sum(x == y for x, y in zip(a, b, strict=True)) / len(rows)
    return found


def verdicts(grid: Grid, texts: Texts, judge: str) -> list[tuple[Any, ...]]:
    """(status, grade, label) per row."""
    rows = [(f"{cell}/{q}", grid.asked[q], grid.loaded.tokenizer.decode(ids, skip_special_tokens=True)) for (cell, q), ids in texts.items()]
    return [(v.status, v.grade, v.label) for v in Judge(judge).verdicts(rows)]


def summary(grid: Grid, timings: list[Timing]) -> dict[str, Any]:
    """Medians per contender, and ratios of seconds per row against the steered engine of the same round."""
    own = {t.round: t for t in timings if t.contender == "engine, steered"}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(t.contender for t in timings):
        mine = [t for t in timings if t.contender == name]
        times = [t.seconds / t.rows / (own[t.round].seconds / own[t.round].rows) for t in mine]
        cpu = [t.cpu_seconds / t.rows / (own[t.round].cpu_seconds / own[t.round].rows) for t in mine]
        rate = statistics.median(t.rate for t in mine)
        found[name] = {
            "tokens per second": rate,
            "rows timed": sum(t.rows for t in mine),
            "seconds for the whole grid": statistics.median(t.seconds / t.rows for t in mine) * len(grid.vectors) * len(grid.prompts),
            "time against the engine": statistics.median(times),
            "lowest and highest round": [min(times), max(times)],
            "processor time against the engine": statistics.median(cpu),
            "share of the matrix product limit": rate / limit(grid),
        }
    return found


_LIMIT: dict[int, float] = {}


@torch.inference_mode()
def limit(grid: Grid) -> float:
    """Tokens per second if the weights' products, two operations per weight, ran as fast as one large square product does."""
    model = grid.loaded.model
    if id(model) not in _LIMIT:
        a = torch.randn(2048, 2048, dtype=model.dtype, device=grid.loaded.device)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            a @ a
            if a.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        weights = sum(p.numel() for p in model.parameters()) - (
            0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
        )
        _LIMIT[id(model)] = 2 * 2048**3 / min(times) / (2 * weights)
    return _LIMIT[id(model)]


def open_grid(args: argparse.Namespace) -> Grid:
    """The model, questions and scaled directions that the flags name."""
    generator = torch.Generator().manual_seed(args.seed)
    if args.model:
        path = Path(args.model)
        loaded = (
            models.load(Model(path), args.device) if (path / "manifest.json").exists() else models.load_folder(path, device=args.device)
        )
        examples = list(Dataset(args.questions).rows())
        chosen = random.Random(args.seed).sample(examples, min(args.asked, len(examples)))
        prompts = [prompt_tokens(loaded.tokenizer, q.messages) for q in chosen]
        asked = [q.messages[-1]["content"] for q in chosen]
    else:
        loaded, asked = random_model(args), [""] * args.asked
        size = loaded.model.config.vocab_size
        lengths = torch.randint(10, 17, (args.asked,), generator=generator).tolist()
        prompts = [PromptTokens(torch.randint(8, size, (n,), generator=generator).tolist(), [True] * n) for n in lengths]
    block = args.block if args.block >= 0 else max(0, len(blocks(loaded.model)) // 2 - 1)
    rows = torch.randn(args.latents, loaded.model.config.get_text_config().hidden_size, generator=generator)
    if args.dictionary:
        decoder = load_dictionary(Dictionary(args.dictionary))[0].W_dec
        rows = decoder[torch.randperm(len(decoder), generator=generator)[: args.latents]].clone()
    units = nn.functional.normalize(rows, dim=1) * median_norm(loaded, prompts, block)
    strengths = torch.linspace(1 / args.strengths, 1, args.strengths) * args.most
    vectors = (units[:, None] * strengths[:, None]).flatten(0, 1)
    sampling = Sampling(max_tokens=args.max_tokens, temperature=args.temperature, batch_tokens=args.batch_tokens)
    return Grid(loaded, prompts, asked, vectors.to(loaded.device), block, sampling)


def random_model(args: argparse.Namespace) -> Loaded:
    """Random weights of a known shape; nothing in it ends an answer."""
    device = models.pick_device(args.device)
    torch.manual_seed(args.seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(SHAPES[args.shape](), dtype=getattr(torch, args.dtype)).eval()
    model.generation_config.eos_token_id = None
    return Loaded(model, SimpleNamespace(eos_token_id=None))  # type: ignore[arg-type]


@torch.inference_mode()
def median_norm(loaded: Loaded, prompts: list[PromptTokens], block: int) -> float:
    """Strength 1: the median residual norm at the site."""
    norms = []
    with capturing(loaded.model, [f"block:{block}"]) as seen:
        for prompt in prompts:
            run_to_site(loaded.model, input_ids=torch.tensor([prompt.ids], device=loaded.device))
            norms.append(seen[f"block:{block}"][0, 1:].float().norm(dim=1).cpu())
    return torch.cat(norms).median().item()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write everything measured here")
    parser.add_argument("--model", help="a Model artifact or a Hugging Face folder")
    parser.add_argument("--shape", choices=SHAPES, default="toy", help="random weights of this shape, if no model is given")
    parser.add_argument("--questions", help="a Dataset of questions, for --model")
    parser.add_argument("--judge", default="", help="a judge's spec: verdicts are compared too")
    parser.add_argument("--dictionary", help="directions are its decoder rows instead of random ones")
    parser.add_argument("--latents", type=int, default=200)
    parser.add_argument("--strengths", type=int, default=5)
    parser.add_argument("--asked", type=int, default=20, help="questions asked in every cell")
    parser.add_argument("--most", type=float, default=1.0, help="the largest strength, in median residual norms")
    parser.add_argument("--block", type=int, default=-1, help="whose output is edited; default the middle")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token; else all share one noise")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0, help="a slow contender's time per round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.model and not args.questions:
        parser.error("--model needs --questions")
    return args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write JSON."""
    args = parse(argv)
    logging.set_verbosity_error()
    grid = open_grid(args)
    timings, texts = measure(grid, args.rounds, args.seconds)
    result = {
        "model": args.model or f"random {args.shape}",
        "cells": len(grid.vectors),
        "questions": len(grid.prompts),
        "block": grid.block,
        "threads": torch.get_num_threads(),
        "device": str(grid.loaded.device),
        "contenders": summary(grid, timings),
        "agreement with the engine": agreement(grid, texts, args.judge),
        "timings": [asdict(t) for t in timings],
    }
    print(f"{result['model']}: {result['cells']} cells x {result['questions']} questions, block:{grid.block}, {result['device']}")
    print(f"{'tokens/s':>9} {'x engine':>9} {'range':>15} {'rows':>7} {'texts':>6} {'verdicts':>8}  contender")
    for name, row in result["contenders"].items():
        same = result["agreement with the engine"].get(name, {})
        low, high = row["lowest and highest round"]
        shares = [f"{same[key]:.4f}" if key in same else "-" for key in ("equal texts", "equal verdicts")]
        print(
            f"{row['tokens per second']:9.0f} {row['time against the engine']:9.2f} {f'{low:.2f}-{high:.2f}':>15} {row['rows timed']:7d} "
            f"{shares[0]:>6} {shares[1]:>8}  {name}"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
