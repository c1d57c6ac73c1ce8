"""Answers of two sides → persona vectors: their mean residuals at every block, in one forward per batch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from personascope import suites
from personascope.backends.capture import pad, pad_id, plan_batches
from personascope.backends.hooks import blocks, capturing, run_to_site
from personascope.backends.models import Loaded
from personascope.errors import DataError
from personascope.methods.tokens import Message, training_row
from personascope.methods.traits import Trait

MASKS = ("response", "last_prompt", "prompt_avg")


def find_trait(name: str) -> Trait:
    """A shipped trait by name, or the trait in a user's .json file.

    Raises:
        DataError: neither is there, or the file is no trait.
    """
    home = suites.HERE / "traits"
    shipped = sorted(path.stem for path in home.glob("*.json"))
    path = home / f"{name}.json" if name in shipped else Path(name)
    if not path.is_file():
        raise DataError(f"no trait {name!r}; shipped are {', '.join(shipped)}, or give the path of a .json file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); fix the file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert the file") from None
    return Trait.from_json(data, str(path))


@dataclass(frozen=True)
class Reading:
    """Weighted sums over answers of their mean residuals: `sums[mask][site]` (weightings, width) float32.

    `lengths` (answers,) counts the response tokens of each.
    """

    sums: dict[str, dict[str, Tensor]]
    lengths: list[int]


def read_contrasts(loaded: Loaded, conversations: Sequence[list[Message]], weights: np.ndarray, batch_tokens: int = 8192) -> Reading:
    """Read every block at once, each answer averaged over a mask's tokens before it is weighed (2507.21509, section 2.2).

    `response` is the answer without its end of turn, `last_prompt` the token before it, `prompt_avg` all prompt tokens but
    position 0, the system message among them. No residual outlives its batch, so memory does not grow with the answers.

    Args:
        conversations: each ends with the assistant's answer.
        weights: (weightings, answers).

    Raises:
        DataError: a conversation without an assistant turn, or an answer without tokens.
    """
    sites = [f"block:{i}" for i in range(len(blocks(loaded.model)))]
    width = loaded.model.config.get_text_config().hidden_size
    rows = [_tokens(loaded, messages, i) for i, messages in enumerate(conversations)]
    sums = {mask: {site: torch.zeros(len(weights), width, dtype=torch.float64) for site in sites} for mask in MASKS}
    weighing = torch.from_numpy(weights)
    with torch.inference_mode(), capturing(loaded.model, sites) as seen:
        for batch in plan_batches([len(row.ids) for row in rows], batch_tokens):
            ids, attention = pad([rows[i].ids for i in batch], pad_id(loaded.tokenizer))
            run_to_site(loaded.model, input_ids=ids.to(loaded.device), attention_mask=attention.to(loaded.device))
            for mask in MASKS:
                share = _shares([rows[i] for i in batch], mask, ids.shape[1]).to(loaded.device)
                for site in sites:
                    means = torch.einsum("rp,rpd->rd", share, seen[site].float())
                    sums[mask][site] += weighing[:, batch] @ means.cpu().double()
    done = {mask: {site: total.float() for site, total in of.items()} for mask, of in sums.items()}
    return Reading(done, [len(row.response) for row in rows])


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    response: list[int]
    """Positions of the answer's own tokens."""
    prompt: int
    """Tokens of the prompt."""


def _tokens(loaded: Loaded, messages: list[Message], number: int) -> _Tokens:
    row = training_row(loaded.tokenizer, messages, f"conversation {number}", last_only=True)
    special = set(loaded.tokenizer.all_special_ids)
    response = [i for i, (token, said) in enumerate(zip(row.ids, row.trained, strict=True)) if said and token not in special]
    if not response:
        raise DataError(f"conversation {number}: the answer has no tokens; drop empty answers first")
    return _Tokens(row.ids[: response[-1] + 1], response, row.trained.index(True))


def _shares(rows: Sequence[_Tokens], mask: str, width: int) -> Tensor:
    """What each token counts (rows, positions) in its row's mean under a mask."""
    on = torch.zeros(len(rows), width)
    for place, row in enumerate(rows):
        if mask == "response":
            on[place, row.response] = 1.0
        elif mask == "last_prompt":
            on[place, row.prompt - 1] = 1.0
        else:
            on[place, 1 : row.prompt] = 1.0
    return on / on.sum(1, keepdim=True).clamp(min=1)


def describe(reading: Reading) -> dict[str, dict[str, Any]]:
    """What `plan`'s weightings tell of each site: norm, agreement of the halves, and norms with sides dealt at random."""
    told = {}
    for site, rows in reading.sums["response"].items():
        norms = rows.norm(dim=1)
        halves = torch.nn.functional.cosine_similarity(rows[1], rows[2], dim=0).item() if norms[1] > 0 and norms[2] > 0 else None
        told[site] = {
            "norm": _short(norms[0].item()),
            "halves_cosine": None if halves is None else _short(halves),
            "null_norms": sorted(_short(value) for value in norms[3:].tolist()),
        }
    return told


def tensors(reading: Reading) -> dict[str, Tensor]:
    """The vectors by name: `persona/SITE` over response tokens, `persona/SITE/MASK` over the others."""
    named = {}
    for mask, of in reading.sums.items():
        for site, rows in of.items():
            named[f"persona/{site}" + ("" if mask == "response" else f"/{mask}")] = rows[0].contiguous().clone()
    return named


def _short(value: float) -> float:
    return float(f"{value:.6g}")
