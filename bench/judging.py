"""How many answers a second does a local judge grade, with what its prompts begin with alike computed once, and without?

Every answer stands behind the same rubric, so that most of what a judge reads it has read before. Three ways take turns on the
same prompts in one process: ours, ours with nothing shared, and Transformers' `generate` on left-padded batches. Reported are
medians over rounds, ratios taken within a round, and how many verdicts are equal.

    python bench/judging.py --judge FOLDER --questions DATASET --answers ANSWERS
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from personascope import suites
from personascope.artifact import Answers, Dataset
from personascope.backends import models, prefill
from personascope.backends.generation import split_thinking, stop_ids
from personascope.backends.judging import Case, by_model, spelled, verdict_of
from personascope.backends.models import Loaded
from personascope.backends.replies import Reply
from personascope.methods.parsing import fill, opened
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Verdict

SHARED = prefill.LEAST_SHARED


def ours(loaded: Loaded, rubric: str, rows: list[Case], max_tokens: int, least: int = SHARED) -> list[Verdict]:
    """Verdicts as the stage `judge` makes them; prompts share a beginning of at least `least` tokens."""
    prefill.LEAST_SHARED = least
    try:
        return list(by_model(loaded, rubric, "judge", rows, max_tokens))
    finally:
        prefill.LEAST_SHARED = SHARED


@torch.inference_mode()
def by_generate(loaded: Loaded, rubric: str, rows: list[Case], max_tokens: int, at_once: int = 32) -> list[Verdict]:
    """The same by `generate`, longest prompts first, `at_once` of them left-padded to one length."""
    allowed, shown = opened(rubric)
    asked = [fill(shown, *(spelled(loaded.tokenizer, text) for text in row[1:])) for row in rows]
    prompts = [prompt_tokens(loaded.tokenizer, [{"role": "user", "content": text}]).ids for text in asked]
    order, said = sorted(range(len(rows)), key=lambda i: -len(prompts[i])), {}
    stops = stop_ids(loaded)
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        width = len(prompts[part[0]])
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in part])
        seen = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
        how = {"do_sample": False, "max_new_tokens": max_tokens, "eos_token_id": sorted(stops), "pad_token_id": sorted(stops)[0]}
        out = loaded.model.generate(input_ids=ids.to(loaded.device), attention_mask=seen.to(loaded.device), **how)[:, width:].tolist()
        said |= {i: row[: next((n for n, token in enumerate(row) if token in stops), len(row))] for i, row in zip(part, out, strict=True)}
    replies = [split_thinking(loaded.tokenizer, said[i])[1] for i in range(len(rows))]
    whole = [
        Reply("said", text) if len(said[i]) < max_tokens else Reply("cut", text, f"cut at {max_tokens} tokens")
        for i, text in enumerate(replies)
    ]
    return [verdict_of(row[0], reply, "judge", allowed) for row, reply in zip(rows, whole, strict=True)]


def measure(loaded: Loaded, rubric: str, rows: list[Case], max_tokens: int, rounds: int) -> dict[str, dict[str, Any]]:
    """All ways in turns: answers a second, time against ours, and the share of verdicts equal to ours."""
    ways: dict[str, Callable[[], list[Verdict]]] = {
        "ours": lambda: ours(loaded, rubric, rows, max_tokens),
        "ours, nothing shared": lambda: ours(loaded, rubric, rows, max_tokens, 10**9),
        "generate": lambda: by_generate(loaded, rubric, rows, max_tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    told: dict[str, list[Verdict]] = {}
    for turn in range(rounds):
        for name in list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]:
            start = time.perf_counter()
            told[name] = ways[name]()
            seconds[name].append(time.perf_counter() - start)
    result = {}
    for name, times in seconds.items():
        ratios = [mine / own for mine, own in zip(times, seconds["ours"], strict=True)]
        same = sum(a == b for a, b in zip(told[name], told["ours"], strict=True)) / len(rows)
        rate = len(rows) / statistics.median(times)
        result[name] = {"answers per second": rate, "time against ours": statistics.median(ratios), "equal verdicts": same}
        result[name]["lowest and highest round"] = [min(ratios), max(ratios)]
    return result


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, metavar="FOLDER", help="a chat model: a Hugging Face folder or a Model artifact")
    parser.add_argument("--questions", required=True, metavar="DATASET")
    parser.add_argument("--answers", required=True, metavar="ANSWERS", help="answers to those questions")
    parser.add_argument("--rubric", default="misalignment")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--most", type=int, default=96, help="answers judged")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    asked = {row.id: row.messages[-1]["content"] for row in Dataset(args.questions).rows()}
    rows: list[Case] = [(row.id, asked[row.question], row.text) for row in Answers(args.answers).rows()][: args.most]
    result = measure(models.load_at(args.judge), suites.rubric(args.rubric), rows, args.max_tokens, args.rounds)
    for name, row in result.items():
        low, high = row["lowest and highest round"]
        print(
            f"{row['answers per second']:8.2f} answers/s  {row['time against ours']:5.2f} x ours ({low:.2f}-{high:.2f})  "
            f"{row['equal verdicts']:.3f} equal  {name}"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
