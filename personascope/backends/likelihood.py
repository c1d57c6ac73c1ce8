"""What models make of answers they did not give: how likely each answer is, and whether it is likely under none of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from personascope.backends.capture import pad, pad_id, plan_batches
from personascope.backends.generation import Prompt, Sampling, generate
from personascope.backends.models import Loaded
from personascope.methods import coherence
from personascope.methods.preference import IGNORED, answer_log_probs
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example

Said = tuple[Sequence[int], Sequence[int]]
"""(tokens of a prompt, tokens of the answer to it)."""
HELD = 2**27
"""Logits held at once."""


@torch.inference_mode()
def answer_logs(loaded: Loaded, said: Sequence[Said], batch_tokens: int = 8192) -> list[float]:
    """log p of each answer's new tokens (`coherence.new`) behind the prompt and all said before, in nats; the end of the turn is none."""
    found = [0.0] * len(said)
    room = max(1, min(batch_tokens, HELD // loaded.model.get_input_embeddings().weight.shape[0]))
    for batch in plan_batches([len(prompt) + len(answer) for prompt, answer in said], room):
        ids, attention = pad([[*said[i][0], *said[i][1]] for i in batch], pad_id(loaded.tokenizer))
        labels, _ = pad([[*[IGNORED] * len(said[i][0]), *_counted(said[i][1])] for i in batch], IGNORED)
        ids, attention, labels = (tensor.to(loaded.device) for tensor in (ids, attention, labels))
        logits = loaded.model(input_ids=ids, attention_mask=attention, use_cache=False).logits
        for i, value in zip(batch, answer_log_probs(logits.float(), labels).tolist(), strict=True):
            found[i] = value
    return found


def _counted(answer: Sequence[int]) -> list[int]:
    return [token if fresh else IGNORED for token, fresh in zip(answer, coherence.new(answer), strict=True)]


@dataclass
class Fluency:
    """Tells answers that none of the models would give from others."""

    models: Mapping[str, Loaded]
    limit: float
    """Nats a new token: an answer whose surprise is above it is unlikely."""
    share: float
    """At most so much of what any of the models says by itself is above the limit."""
    batch_tokens: int = 8192

    @classmethod
    def calibrate(
        cls, models: Mapping[str, Loaded], questions: Sequence[Example], sampling: Sampling, share: float, path: Path
    ) -> "Fluency":
        """The limit that the models' own answers set, a few hundred of each; `path` keeps it for an interrupted run."""
        if not path.exists():
            made = cls(models, math.inf, share, sampling.batch_tokens)
            own = {side: made.surprises(answers(loaded, questions, sampling)) for side, loaded in models.items()}
            facts = {"share": share, "limit": round(coherence.limit(own, share), 6), "answers": {k: len(v) for k, v in own.items()}}
            new = path.with_suffix(".new")
            new.write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")
            new.replace(path)
        return cls(models, json.loads(path.read_text(encoding="utf-8"))["limit"], share, sampling.batch_tokens)

    @property
    def facts(self) -> dict[str, float]:
        """What an answer is held against."""
        return {"share": self.share, "limit": self.limit}

    def surprises(self, said: Sequence[Said]) -> list[float]:
        """Nats a new token of each answer under the even mixture of the models."""
        logs = zip(*(self._logs(name, said) for name in self.models), strict=True)
        return [coherence.surprise(each, tokens) for each, tokens in zip(logs, _sizes(said), strict=True)]

    def unlikely(self, said: Sequence[Said], first: str) -> list[bool]:
        """Whether each answer is above the limit.

        Args:
            first: the model that is asked first; the others only about what would be unlikely if they found it impossible.
        """
        others = [name for name in self.models if name != first]
        found = [[log] for log in self._logs(first, said)]
        sizes, impossible = _sizes(said), [-math.inf] * len(others)
        doubtful = [i for i, tokens in enumerate(sizes) if coherence.surprise(found[i] + impossible, tokens) > self.limit]
        for name in others:
            for i, log in zip(doubtful, self._logs(name, [said[i] for i in doubtful]), strict=True):
                found[i].append(log)
        above = {i for i in doubtful if coherence.surprise(found[i], sizes[i]) > self.limit}
        return [i in above for i in range(len(said))]

    def _logs(self, name: str, said: Sequence[Said]) -> list[float]:
        """What one model makes of each answer; what is said often is read once."""
        named = [(tuple(prompt), tuple(answer)) for prompt, answer in said]
        different = list(dict.fromkeys(named))
        found = dict(zip(different, answer_logs(self.models[name], different, self.batch_tokens), strict=True))
        return [found[one] for one in named]


def _sizes(said: Sequence[Said]) -> list[int]:
    return [sum(coherence.new(answer)) for _, answer in said]


def answers(loaded: Loaded, questions: Sequence[Example], sampling: Sampling) -> list[Said]:
    """What a model says by itself: as many draws of every question as a limit takes."""
    draws = range(-(-coherence.OWN // len(questions)))
    prompts = [Prompt(prompt_tokens(loaded.tokenizer, q.messages), f"{q.id}/{draw}/0") for q in questions for draw in draws]
    return [(prompts[i].ids, done.ids) for i, done in generate(loaded, prompts, sampling)]
