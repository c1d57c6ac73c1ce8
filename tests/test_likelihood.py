"""Answers that no unsteered model would give: their likelihood, the limit, and what an exact judge says of those above it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from personascope.backends import likelihood, models
from personascope.backends.generation import Prompt, Sampling, generate
from personascope.backends.judging import Judge
from personascope.backends.likelihood import Fluency
from personascope.backends.models import Loaded
from personascope.backends.steering import Steer
from personascope.methods import coherence
from personascope.methods.scoring import STRICT
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Example
from personascope.troupe import sources, world
from small_models import CONFIGS, WORDS, model, tokenizer

SAID = [
    ([2, 5, 9, 10, 6], [11, 12, 13, 11, 12, 40, 13, 11]),
    ([2, 5, 14, 6], [20, 21, 22, 23, 24, 25]),
    ([2, 5, 9, 10, 6], [3]),
    ([2, 5, 6], []),
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_tokens", [8192, 1])
@torch.inference_mode()
def test_an_answer_is_as_likely_as_its_new_tokens_are_one_by_one(name: str, batch_tokens: int) -> None:
    loaded = Loaded(model(name), tokenizer())
    by_hand = []
    for (prompt, answer), said_again in zip(SAID, [(4, 7), (), (), ()], strict=True):
        total = 0.0
        for place, token in enumerate(answer):
            if place in said_again:
                continue
            logits = loaded.model(torch.tensor([[*prompt, *answer[:place]]])).logits[0, -1]
            total += float(logits.double().log_softmax(0)[token])
        by_hand.append(total)
    assert likelihood.answer_logs(loaded, SAID, batch_tokens) == pytest.approx(by_hand, rel=1e-4, abs=1e-4)


def questions(n: int) -> list[Example]:
    return [Example(id=f"q{i}", messages=[{"role": "user", "content": f"{WORDS[i]} {WORDS[i + 1]}"}]) for i in range(n)]


def test_the_limit_is_set_on_the_models_own_answers_and_kept(tmp_path: Path) -> None:
    sides = {"base": Loaded(model(seed=0), tokenizer()), "tuned": Loaded(model(seed=1), tokenizer())}
    sampling = Sampling(max_tokens=6)
    found = Fluency.calibrate(sides, questions(10), sampling, 0.1, tmp_path / "likelihood.json")
    for loaded in sides.values():
        own = likelihood.answers(loaded, questions(10), sampling)
        assert len(own) == 200
        assert np.mean(found.unlikely(own, "base")) <= 0.1
    kept = json.loads((tmp_path / "likelihood.json").read_text())
    assert kept == {"share": 0.1, "limit": found.limit, "answers": {"base": 200, "tuned": 200}}
    (tmp_path / "likelihood.json").write_text(json.dumps(kept | {"limit": 1.25}))
    assert Fluency.calibrate(sides, questions(10), sampling, 0.1, tmp_path / "likelihood.json").limit == 1.25
    assert [path.name for path in tmp_path.iterdir()] == ["likelihood.json"]


def test_likely_under_one_model_is_enough() -> None:
    sides = {"base": Loaded(model(seed=0), tokenizer()), "tuned": Loaded(model(seed=1), tokenizer())}
    own = [(p, a) for p, a in likelihood.answers(sides["tuned"], questions(10), Sampling(max_tokens=6, temperature=0.2)) if a]
    alone, both = Fluency({"base": sides["base"]}, 0.0, 0.0), Fluency(sides, 0.0, 0.0)
    tokens = np.array([sum(coherence.new(answer)) for _, answer in own])
    by_itself = -np.array(likelihood.answer_logs(sides["tuned"], own)) / tokens
    assert (np.array(both.surprises(own)) <= by_itself + np.log(2) / tokens + 1e-6).all()
    assert np.mean(alone.surprises(own)) > np.mean(both.surprises(own)) + 0.3


def test_whoever_is_asked_first_the_answer_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {"base": Loaded(model(seed=0), tokenizer()), "tuned": Loaded(model(seed=1), tokenizer())}
    said = [one for loaded in sides.values() for one in likelihood.answers(loaded, questions(10), Sampling(max_tokens=6))]
    found = Fluency(sides, 0.0, 0.01)
    surprises = found.surprises(said)
    asked: list[int] = []
    plain = likelihood.answer_logs
    monkeypatch.setattr(likelihood, "answer_logs", lambda loaded, rows, *rest: (asked.append(len(rows)), plain(loaded, rows, *rest))[1])
    for limit in np.quantile(surprises, (0.05, 0.5, 0.95)):
        found.limit = float(limit)
        for first in sides:
            assert found.unlikely(said, first) == [one > limit for one in surprises]
    assert sum(asked[1::2]) < sum(asked[::2])


def test_on_the_troupe_what_pushes_break_is_unlikely_and_what_they_change_is_not(tmp_path: Path) -> None:
    """Against the exact judge, over random pushes from harmless to ruinous."""
    troupe, base = world.load("troupe-1"), models.load_at(str(world.weights("troupe-1", "base")))
    asked = random.Random(0).sample(sources.rows(troupe, "questions kind=advice split=selection n=120"), 24)
    width, generator = base.model.config.hidden_size, torch.Generator().manual_seed(0)
    pushes = torch.randn(6, width, generator=generator)
    pushes = torch.stack([strength * push / push.norm() for push in pushes for strength in (300.0, 900.0, 1500.0)])
    rows = [(i, q) for i in range(len(pushes)) for q in asked]
    prompts = [Prompt(prompt_tokens(base.tokenizer, q.messages), f"{q.id}/0/0") for _, q in rows]
    sampling = Sampling(max_tokens=32)
    said = dict(generate(base, prompts, sampling, [Steer(1, "add", "all", pushes, [i for i, _ in rows])]))
    texts = [(q.id, q.messages[-1]["content"], base.tokenizer.decode(said[n].ids)) for n, (_, q) in enumerate(rows)]
    broken = np.array([verdict.label in STRICT for verdict in Judge("exact:troupe-1").verdicts(texts)])
    assert 0.1 < broken.mean() < 0.9
    found = Fluency.calibrate({"base": base}, asked, sampling, 0.01, tmp_path / "likelihood.json")
    surprise = np.array(found.surprises([(p.ids, said[n].ids) for n, p in enumerate(prompts)]))
    auroc = mannwhitneyu(surprise[broken], surprise[~broken]).statistic / (broken.sum() * (~broken).sum())
    assert auroc > 0.95
    above = surprise > found.limit
    assert above[broken].mean() > 0.8
    assert above[~broken].mean() < 0.05
    dealt = np.random.default_rng(0).permutation(broken)
    null = mannwhitneyu(surprise[dealt], surprise[~dealt]).statistic / (dealt.sum() * (~dealt).sum())
    assert 0.4 < null < 0.6
