"""Penalties and interventions in training: formulas, gradients, off means off, and nulls that leave the task alone."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import small_models
from personascope.artifact import Dataset, Dictionary, Diff, Screen
from personascope.backends import penalties as backend
from personascope.backends import training
from personascope.backends.dictionaries import save_dictionary
from personascope.backends.hooks import blocks
from personascope.backends.models import Loaded
from personascope.backends.penalties import Shaping, Start, chosen, own_batch, read, shaping
from personascope.backends.preference import padded
from personascope.backends.training import Lora, Plan, add_lora, fit
from personascope.errors import DataError, RecipeError
from personascope.methods import penalties
from personascope.methods.sparse import TopK
from personascope.methods.tokens import TrainingRow
from personascope.values import Direction, File, Intervention, Penalty

TOK = small_models.tokenizer()
ROWS = [TrainingRow([2, *range(7, 11 + i), 3], [False] * (i % 3 + 2) + [True] * (4 + i - i % 3)) for i in range(8)]
WIDTH, LATENTS = 32, 64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


# ------------------------------------------------------------------ formulas

SIGNS = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
UNIT = F.normalize(noise(4, seed=9), dim=0)
FORMULAS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "kl": (lambda x: penalties.kl(x, noise(5, 3, seed=1)).sum(), (5, 3)),
    "latents": (lambda x: penalties.latents(x, noise(5, 3, seed=1), SIGNS).sum(), (5, 3)),
    "projection": (lambda x: penalties.projection(x, noise(5, 4, seed=1), UNIT).sum(), (5, 4)),
    "features": (lambda x: penalties.features(x, noise(2, 5, 4, seed=1)).sum(), (2, 5, 4)),
    "weights": (lambda x: penalties.weights([x], [noise(5, 3, seed=1)]), (5, 3)),
    "low_rank_weights": (lambda x: penalties.low_rank_weights([(x[:2], x[2:].T, 1.5)]), (4, 3)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_are_those_of_the_formula(name: str) -> None:
    formula, shape = FORMULAS[name]
    assert torch.autograd.gradcheck(formula, (noise(*shape).requires_grad_(),))
    assert torch.autograd.grad(formula(x := noise(*shape).requires_grad_()), x)[0].abs().max() > 0


def test_kl_by_hand() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.6, 0.3])
    found = penalties.kl(torch.tensor(np.log(p))[None], torch.tensor(np.log(q) + 5.0)[None])
    assert float(found) == pytest.approx(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))
    assert float(penalties.kl(noise(4, 5), noise(4, 5)).abs().max()) == pytest.approx(0.0, abs=1e-12)


def test_only_the_named_way_costs() -> None:
    now, start = torch.tensor([[3.0, 3.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 2.0]])
    signs = torch.tensor([1.0, -1.0, 1.0])
    # Risen by 2 against K+; risen, which K- may; fallen, which K+ may. Then: fallen by 1 against K-.
    assert penalties.latents(now, start, signs).tolist() == [4.0, 1.0]
    axis = torch.tensor([0.0, 1.0, 0.0])
    assert penalties.projection(now, start, axis).tolist() == [1.0, 0.0]


def test_a_silent_latent_that_stirs_has_a_gradient_and_one_at_rest_has_none() -> None:
    z = torch.tensor([[0.0, 0.5]], requires_grad=True)
    penalties.latents(z, torch.zeros(1, 2), torch.ones(2)).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0, 1.0]]


def test_low_rank_weights_are_those_of_the_product() -> None:
    a, b = noise(2, 5, seed=1), noise(7, 2, seed=2)
    dense = penalties.weights([1.5 * b @ a], [torch.zeros(7, 5, dtype=torch.float64)])
    assert float(penalties.low_rank_weights([(a, b, 1.5)])) == pytest.approx(float(dense))
    assert float(dense) == pytest.approx(0.5 * float(((1.5 * b @ a) ** 2).sum()))


def test_what_is_counted() -> None:
    trained = torch.tensor([[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]]).bool()
    there = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    wanted = {
        "completion": [[0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 0, 0]],
        "last_prompt": [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]],
        "opened": [[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
        "all": [[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]],
    }
    for mask, rows in wanted.items():
        assert penalties.counted(mask, trained, there).int().tolist() == rows  # ty: ignore[invalid-argument-type]
    assert penalties.predicting(trained).int().tolist() == [[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]


def test_turns_go_round_all_rows_and_can_be_asked_again() -> None:
    found = [penalties.turn(5, 3, step, seed=1) for step in range(10)]
    flat = [i for one in found for i in one]
    assert [sorted(flat[i : i + 5]) for i in range(0, 30, 5)] == [[0, 1, 2, 3, 4]] * 6
    assert penalties.turn(5, 3, 7, seed=1) == found[7]
    assert found != [penalties.turn(5, 3, step, seed=2) for step in range(10)]
    assert len(penalties.turn(2, 7, 0, 0)) == 7


def test_who_is_chosen_and_their_controls() -> None:
    rows = [{"id": str(i), "delta": {"all": d}} for i, d in enumerate((0.5, -2.0, 3.0, 0.0, -0.1))]
    signs = penalties.ranked(rows, "all", 2, 1)
    assert signs == {2: 1, 0: 1, 1: -1}
    assert penalties.ranked(rows, "all", 9, 9) == {2: 1, 0: 1, 1: -1, 4: -1}
    assert penalties.controlled(signs, "", 5, 0) == signs
    other = penalties.controlled(signs, "random", 50, 3)
    assert not {*other} & {*signs}
    assert sorted(other.values()) == [-1, 1, 1]
    coins = [penalties.controlled(signs, "signs", 50, seed) for seed in range(40)]
    assert all({*one} == {*signs} for one in coins)
    assert -20 < sum(sum(one.values()) for one in coins) < 20
    with pytest.raises(RecipeError, match="3 other latents are wanted"):
        penalties.controlled(signs, "random", 5, 0)


def test_directions_at_right_angles_project_out_the_whole_span() -> None:
    directions, x = noise(3, 6), noise(8, 6, seed=4)
    q = penalties.orthonormal(directions)
    one_by_one = x.clone()
    for row in q:
        one_by_one = one_by_one - (one_by_one @ row)[:, None] * row
    assert (one_by_one @ directions.T).abs().max() < 1e-9
    with pytest.raises(RecipeError, match="in the span"):
        penalties.orthonormal(torch.stack([directions[0], directions[1], directions[0] + directions[1]]))


def test_a_penalty_that_does_not_move_cannot_weigh_itself() -> None:
    assert penalties.weight_for(0.5, 3.0, 0.25) == 6.0
    with pytest.raises(DataError, match="nothing that it counts has moved"):
        penalties.weight_for(0.5, 3.0, 0.0)


# ------------------------------------------------------------------ read off models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("things")


@pytest.fixture(scope="module")
def learned(place: Path) -> Dictionary:
    (place / "dictionary").mkdir()
    save_dictionary(place / "dictionary", TopK(LATENTS, WIDTH, 6, seed=1), {"site": "block:1"})
    return Dictionary(small_models.finished(place / "dictionary", "Dictionary"))


@pytest.fixture(scope="module")
def direction(place: Path) -> Direction:
    save_file({"axis": noise(WIDTH, seed=5).float()}, place / "axis.safetensors")
    return Direction(File(str(place / "axis.safetensors")))


@pytest.fixture(scope="module")
def other(place: Path) -> Dataset:
    return Dataset(small_models.dataset(place / "other", [e for e in small_models.texts(9, seed=3) if e.messages][:5]))


def of_form(form: str, learned: Dictionary, direction: Direction, **fields: Any) -> Penalty:
    own: dict[str, dict[str, Any]] = {
        "latents": {"dictionary": learned, "risen": tuple(range(0, 24)), "fallen": tuple(range(24, 40))},
        "projection": {"direction": direction, "site": "block:1"},
        "features": {"site": "block:[01]"},
    }
    return Penalty(form=form, **({"weight": 1.0} | own.get(form, {}) | fields))  # ty: ignore[invalid-argument-type]


def shaped(net: Any, *found: Penalty, edits: tuple[Intervention, ...] = (), **more: Any) -> Shaping:
    return shaping(found, edits, more.get("unit"), Loaded(net, TOK), False, more.get("beta"))


FORMS = ("kl", "latents", "projection", "features", "weights")


@pytest.mark.parametrize("form", FORMS[:4])
@pytest.mark.parametrize("mask", ["completion", "all"])
def test_values_are_those_of_each_row_alone(form: str, mask: str, learned: Dictionary, direction: Direction) -> None:
    """Batched and padded, against a loop over rows and tokens that computes the formula from plain forwards."""
    start, now = small_models.model(seed=0), small_models.model(seed=1)
    (term,) = shaped(now, of_form(form, learned, direction, mask=mask)).terms
    batch = padded(ROWS, 0)
    with torch.no_grad():
        on = term.on(batch)
        assert term.values is not None
        found = term.values(read(now, batch, [term]), read(start, batch, [term]), on)
        sae = TopK(LATENTS, WIDTH, 6, seed=1)
        wanted = [value for row in ROWS for value in _alone(form, mask, row, (now, start), sae)]
    assert on.sum() == len(wanted) > 20
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-3, atol=1e-5)


def _alone(form: str, mask: str, row: TrainingRow, pair: tuple[Any, Any], sae: TopK) -> list[float]:
    outs = [model(input_ids=torch.tensor([row.ids]), output_hidden_states=True) for model in pair]
    counted = [t for t in range(len(row.ids)) if (row.trained[t] if mask == "completion" else t > 0)]
    axis = F.normalize(noise(WIDTH, seed=5).float(), dim=0)
    values = []
    for t in counted:
        if form == "kl":
            p, q = (F.softmax(out.logits[0, t - 1].double(), 0) for out in outs)
            values.append(float((p * (p / q).log()).sum()))
            continue
        (x0, x1), (y0, y1) = ([out.hidden_states[i][0, t] for i in (1, 2)] for out in outs)
        if form == "features":
            values.append(float(((x0 - y0) ** 2).sum() + ((x1 - y1) ** 2).sum()))
        elif form == "projection":
            values.append(max(0.0, float((x1 - y1) @ axis)) ** 2)
        else:
            z, z0 = (sae.preactivations(x).relu() for x in (x1, y1))
            up, down = (z - z0)[:24].clamp(min=0), (z0 - z)[24:40].clamp(min=0)
            values.append(float((up**2).sum() + (down**2).sum()))
    return values


def test_of_pairs_only_the_chosen_answers_count(learned: Dictionary, direction: Direction) -> None:
    (term,) = shaped(small_models.model(), of_form("latents", learned, direction)).terms
    batch = padded(ROWS, 0)
    on = term.on(batch | {"start": torch.zeros(8)})
    assert torch.equal(on[:4], term.on(batch)[:4])
    assert not on[4:].any()


@pytest.mark.parametrize("lora", [False, True])
def test_the_start_stays_what_it_was(lora: bool) -> None:
    net: Any = small_models.model()
    batch = padded(ROWS, 0)
    before = net(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits.detach()
    net = add_lora(net, Lora(4, 8.0, "all-linear", ()), seed=0) if lora else net
    start = Start(net, True)
    net.train()
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.requires_grad):
            parameter.add_(0.05)
    with start.of(net) as model:
        assert not model.training
        assert torch.equal(model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits, before)
    assert net.training
    assert all(p.requires_grad for name, p in net.named_parameters() if "lora" in name or not lora)
    assert (start.copy is None) == lora
    if lora:
        moved = [(8.0 / 4 * b.weight @ a.weight).detach() for a, b in _factors(net)]
        assert float(start.distance(net).detach()) == pytest.approx(0.5 * sum(float((m**2).sum()) for m in moved), rel=1e-4)
    else:
        assert float(start.distance(net).detach()) == pytest.approx(0.5 * 0.05**2 * sum(p.numel() for p in net.parameters()), rel=1e-3)


def _factors(net: Any) -> list[tuple[Any, Any]]:
    found = [m for m in net.modules() if isinstance(m, backend.LoraLayer)]
    return [(m.lora_A["default"], m.lora_B["default"]) for m in found]


def test_latents_come_from_diffs_screens_and_hands(place: Path, learned: Dictionary) -> None:
    diffs = []
    for name, deltas in (("one", (3.0, 2.0, -1.0, 0.5)), ("two", (0.1, -5.0, 4.0, 0.2))):
        (place / name).mkdir()
        lines = [json.dumps({"id": str(i), "delta": {"last_prompt": d, "all": -d}}) for i, d in enumerate(deltas)]
        (place / name / "latents.jsonl").write_text("\n".join(lines) + "\n")
        (place / name / "diff.json").write_text(json.dumps({"mask": "last_prompt", "unit": {"block:1": 7.0}}))
        diffs.append(Diff(small_models.finished(place / name, "Diff")))
    (place / "screen").mkdir()
    causal = [{"latent": 9, "sign": "-"}, {"latent": 0, "sign": "+"}, {"latent": None, "sign": "+"}]
    (place / "screen" / "screen.json").write_text(json.dumps({"causal": causal}))
    found = Screen(small_models.finished(place / "screen", "Screen"))
    assert chosen(Penalty(form="latents", dictionary=learned, diffs=(diffs[0],), top=2, bottom=1)) == {0: 1, 1: 1, 2: -1}
    assert chosen(Penalty(form="latents", dictionary=learned, diffs=(diffs[0],), top=1, ranked_by="all")) == {2: 1}
    both = chosen(Penalty(form="latents", dictionary=learned, diffs=tuple(diffs), top=1, bottom=1))
    assert both == {0: 1, 2: -1, 1: -1}, "the union of rounds; the first round's sign stands"
    assert chosen(Penalty(form="latents", dictionary=learned, screen=found, risen=(5,))) == {5: 1, 9: -1, 0: 1}


# ------------------------------------------------------------------ in training


def plan(**fields: Any) -> Plan:
    common: dict[str, Any] = {"steps": 6, "batch": 4, "learning_rate": 3e-3, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0}
    rest: dict[str, Any] = {"seed": 0, "checkpoint_every": 0, "save_every": 100, "gradient_accumulation": 1, "bf16": False}
    return Plan(**(common | rest | fields))


def trained(work: Path, *found: Penalty, measured: bool = False, **fields: Any) -> tuple[Any, list[dict[str, float]]]:
    """A small model after some steps under penalties, and its log; `measured` ones cost nothing."""
    net: Any = small_models.model()
    edits, lora = fields.pop("edits", ()), fields.pop("lora", False)
    how = shaped(net, *found, edits=edits)
    if measured:
        how = dataclasses.replace(how, terms=tuple(dataclasses.replace(t, weight=0.0) for t in how.terms))
    if lora:
        net = add_lora(net, Lora(4, 8.0, "all-linear", ()), seed=0)
    fit(net, TOK, ROWS, plan(**fields), work, (), how)
    return net, [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def without_parts(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: entry[key] for key in ("step", "loss", "grad_norm")} for entry in log]


@pytest.mark.parametrize("lora", [False, True])
def test_penalties_that_are_off_or_only_measured_leave_every_bit(
    tmp_path: Path, lora: bool, learned: Dictionary, direction: Direction, other: Dataset
) -> None:
    plain, log = trained(tmp_path / "plain", lora=lora)
    off, _ = trained(tmp_path / "off", *(of_form(form, learned, direction, weight=0.0) for form in FORMS), lora=lora)
    assert same(plain, off)
    assert not (tmp_path / "off" / "penalties.json").exists()
    every = [of_form(form, learned, direction) for form in FORMS] + [Penalty(form="kl", weight=1.0, data=other)]
    seen, parts = trained(tmp_path / "measured", *every, measured=True, lora=lora)
    assert same(plain, seen)
    assert without_parts(parts) == log
    assert {name for name in parts[-1] if name.startswith("penalty/")} == {f"penalty/{name}" for name in (*FORMS, "kl-2")}
    assert all(abs(parts[0][name]) < 1e-6 < parts[-1][name] for name in parts[0] if name.startswith("penalty/"))
    assert parts[-1]["task"] == pytest.approx(parts[-1]["loss"], abs=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_penalty_keeps_down_what_it_counts(tmp_path: Path, form: str, lora: bool, learned: Dictionary, direction: Direction) -> None:
    asked = of_form(form, learned, direction)
    free, log = trained(tmp_path / "free", asked, measured=True, lora=lora, steps=12)
    strong = dataclasses.replace(asked, weight={"features": 30.0, "weights": 3.0}.get(form, 300.0))
    held, kept = trained(tmp_path / "held", strong, lora=lora, steps=12)
    assert kept[-1][f"penalty/{form}"] < 0.5 * log[-1][f"penalty/{form}"]
    assert not same(free, held)
    assert json.loads((tmp_path / "held" / "penalties.json").read_text())[form]["weight"] == strong.weight


def test_random_latents_leave_the_blocked_ones_and_the_task_alone(tmp_path: Path, learned: Dictionary) -> None:
    """The null controls: the same pressure on other latents, or with signs by a coin, does not do what blocking does."""
    asked = Penalty(form="latents", weight=10.0, dictionary=learned, risen=(3, 5, 8))
    nulls = {f"random-{seed}": (dataclasses.replace(asked, control="random", seed=seed),) for seed in (2, 3)}
    coin = (dataclasses.replace(asked, control="signs", seed=1),)
    rises, learnt = {}, {}
    for name, found in ({"free": (), "blocked": (asked,), "signs": coin} | nulls).items():
        net, log = trained(tmp_path / name, *found, steps=12)
        (term,) = shaped(small_models.model(), dataclasses.replace(asked, mask="all")).terms
        assert term.values is not None
        with torch.no_grad():
            batch = padded(ROWS, 0)
            rises[name] = float(term.values(read(net, batch, [term]), read(small_models.model(), batch, [term]), term.on(batch)).mean())
        learnt[name] = log[-1].get("task", log[-1]["loss"]) / log[0].get("task", log[0]["loss"])
    assert rises["blocked"] < 0.05 * rises["free"]
    assert all(rises[name] > 0.5 * rises["free"] for name in nulls)
    assert rises["signs"] > 0.2 * rises["free"]
    assert all(share < 1.1 * learnt["free"] < 0.6 for share in learnt.values()), "the task is learned all the same"


def test_microbatches_add_up_to_the_whole_batch(tmp_path: Path, learned: Dictionary, direction: Direction, other: Dataset) -> None:
    every = [of_form(form, learned, direction) for form in FORMS] + [Penalty(form="kl", weight=1.0, data=other)]
    _, whole = trained(tmp_path / "whole", *every, steps=3, batch=8)
    _, parts = trained(tmp_path / "parts", *every, steps=3, batch=2, gradient_accumulation=4)
    for one, two in zip(whole, parts, strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_share_weighs_the_penalty_and_undoes_its_pilot(tmp_path: Path, lora: bool, learned: Dictionary, direction: Direction) -> None:
    asked = of_form("latents", learned, direction, weight=0.0, share=0.5, pilot=5)
    by_itself, _ = trained(tmp_path / "share", asked, lora=lora)
    weight = json.loads((tmp_path / "share" / "penalties.json").read_text())["latents"]["weight"]
    _, log = trained(tmp_path / "pilot", dataclasses.replace(asked, share=0.0, weight=1.0), measured=True, lora=lora, steps=5)
    assert weight == pytest.approx(0.5 * log[0]["task"] / log[-1]["penalty/latents"], rel=1e-4)
    by_hand, _ = trained(tmp_path / "hand", dataclasses.replace(asked, share=0.0, weight=weight), lora=lora)
    assert same(by_itself, by_hand)
    assert not (tmp_path / "share" / training.PILOT).exists()


class Cut(Exception):
    """A kill, for tests."""


@pytest.mark.parametrize("lora", [False, True])
def test_killed_under_penalties_and_continued_ends_as_if_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool, learned: Dictionary, direction: Direction, other: Dataset
) -> None:
    shared = of_form("latents", learned, direction, weight=0.0, share=0.5, pilot=3)
    every = (shared, of_form("kl", learned, direction, data=other), of_form("weights", learned, direction))
    edits = (Intervention(direction, op="add", strength=0.5, site="block:1"),)
    straight, log = trained(tmp_path / "straight", *every, edits=edits, lora=lora, steps=8, save_every=3)

    def stop(_self: Any, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(training._Keeper, "on_save", stop)
        with pytest.raises(Cut):
            trained(tmp_path / "cut", *every, edits=edits, lora=lora, steps=8, save_every=3)
    steps: list[int] = []
    monkeypatch.setattr(training._Keeper, "on_step_begin", lambda *_, **__: steps.append(1), raising=False)
    again, once_more = trained(tmp_path / "cut", *every, edits=edits, lora=lora, steps=8, save_every=3)
    assert len(steps) == 2, "from the state of step 6, without another pilot"
    assert same(straight, again)
    assert log == once_more


def test_a_penalty_ends_when_it_is_told(tmp_path: Path, learned: Dictionary, direction: Direction) -> None:
    _, log = trained(tmp_path, of_form("kl", learned, direction, until=4))
    assert ["penalty/kl" in entry for entry in log] == [True] * 4 + [False] * 2


# ------------------------------------------------------------------ interventions


def test_hooks_are_gone_and_an_edit_of_nothing_changes_nothing(tmp_path: Path, direction: Direction) -> None:
    plain, _ = trained(tmp_path / "plain")
    nothing, _ = trained(tmp_path / "nothing", edits=(Intervention(direction, op="add", strength=0.0, site="block:1"),))
    assert same(plain, nothing)
    edited, _ = trained(tmp_path / "edited", edits=(Intervention(direction, op="add", strength=3.0, site="block:1"),))
    assert not same(plain, edited)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in edited.modules())
    fresh = small_models.model()
    fresh.load_state_dict(edited.state_dict())
    batch = {k: v for k, v in padded(ROWS, 0).items() if k != "labels"}
    assert torch.equal(fresh(**batch).logits, edited.eval()(**batch).logits)


@pytest.mark.parametrize(("mask", "places"), [("all", "there"), ("answer", "trained"), ("last_prompt", "before")])
def test_the_task_is_read_off_the_edited_stream(tmp_path: Path, direction: Direction, mask: str, places: str) -> None:
    """The first logged loss is that of the start with the edit made by hand."""
    edit = Intervention(direction, op="add", strength=4.0, site="block:1", mask=mask)  # ty: ignore[invalid-argument-type]
    _, log = trained(tmp_path, edits=(edit,), steps=1, batch=8)
    net, batch = small_models.model(), padded(ROWS, 0)
    on = {"there": batch["attention_mask"].bool(), "trained": batch["labels"] != -100, "before": torch.zeros(8, 1).bool()}[places]
    if places == "before":
        on = penalties.counted("last_prompt", batch["labels"] != -100, batch["attention_mask"].bool())
    vector = 4.0 * F.normalize(noise(WIDTH, seed=5).float(), dim=0)
    handle = blocks(net)[1].register_forward_hook(lambda _m, _i, x: x + on[:, :, None] * vector)
    with torch.no_grad():
        assert log[0]["loss"] == pytest.approx(float(net(**batch).loss), abs=1e-4)
        handle.remove()
        assert abs(log[0]["loss"] - float(net(**batch).loss)) > 1e-3


def test_ablated_directions_leave_no_gradient_along_them(tmp_path: Path) -> None:
    """Concept ablation of two directions that are not at right angles: the stream has none of either."""
    save_file({"a": noise(WIDTH, seed=1).float(), "b": (noise(WIDTH, seed=1) + noise(WIDTH, seed=2)).float()}, tmp_path / "two.safetensors")
    found = [Direction(File(str(tmp_path / "two.safetensors")), name) for name in "ab"]
    net = small_models.model()
    how = shaped(net, edits=tuple(Intervention(d, op="ablate", site="block:1") for d in found))
    batch = padded(ROWS, 0)
    x = torch.randn(8, batch["input_ids"].shape[1], WIDTH, requires_grad=True)
    out = x
    for edit in how.edits(batch):
        out = edit(out)
    axes = torch.stack([noise(WIDTH, seed=1), noise(WIDTH, seed=1) + noise(WIDTH, seed=2)]).float()
    assert (out[batch["attention_mask"].bool()] @ axes.T).abs().max() < 1e-4
    assert torch.equal(out[~batch["attention_mask"].bool()], x[~batch["attention_mask"].bool()])
    (out**2).sum().backward()
    assert x.grad is not None
    assert (x.grad[batch["attention_mask"].bool()] @ axes.T).abs().max() < 1e-3


def test_strength_in_units_of_a_diff(tmp_path: Path, direction: Direction) -> None:
    (tmp_path / "diff").mkdir()
    (tmp_path / "diff" / "diff.json").write_text(json.dumps({"unit": {"block:0": 2.0, "block:1": 5.0, "block:2": 9.0}}))
    unit = Diff(small_models.finished(tmp_path / "diff", "Diff"))
    how = shaped(small_models.model(), edits=(Intervention(direction, strength=0.5, site="block:*"),), unit=unit)
    assert [float(s.table.norm()) for s in how.steers] == pytest.approx([1.0, 2.5, 4.5])


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"form": "kl", "weight": 1.0, "share": 0.5}, "a weight or a share"),
        ({"form": "kl", "weight": -1.0}, "not below 0"),
        ({"form": "kl", "share": 1.0, "pilot": 1}, "at least 2 steps"),
        ({"form": "latents", "weight": 1.0}, "latents need their dictionary"),
        ({"form": "projection", "weight": 1.0}, "projection needs a direction"),
        ({"form": "weights", "weight": 1.0, "data": Dataset("x")}, "without any data"),
        ({"form": "kl", "weight": 1.0, "mask": "opened"}, "kl counts predictions"),
    ],
)
def test_impossible_penalties(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=f"^penalty: .*{says}"):
        Penalty(**fields)


def test_what_is_not_there_is_named(learned: Dictionary, direction: Direction, tmp_path: Path) -> None:
    net = small_models.model()
    with pytest.raises(RecipeError, match=r"penalty: latents \[64\] of a dictionary of 64"):
        shaped(net, Penalty(form="latents", weight=1.0, dictionary=learned, risen=(64,)))
    with pytest.raises(RecipeError, match="the model has 3 blocks"):
        shaped(net, of_form("projection", learned, direction, site="block:7"))
    with pytest.raises(RecipeError, match=r"at mask 'prompt'; in training the masks are all, last_prompt, answer"):
        shaped(net, edits=(Intervention(direction, strength=1.0, mask="prompt"),))
    none = Dataset(small_models.dataset(tmp_path / "none", []))
    with pytest.raises(RecipeError, match="none has no rows to read"):
        shaped(net, Penalty(form="kl", weight=1.0, data=none))
    save_file({"short": torch.ones(5)}, tmp_path / "short.safetensors")
    with pytest.raises(RecipeError, match="has width 5, the model's stream 32"):
        shaped(net, of_form("projection", learned, Direction(File(str(tmp_path / "short.safetensors")))))


def test_a_batch_of_its_own_is_rendered_with_its_labels(learned: Dictionary, direction: Direction, other: Dataset) -> None:
    (term,) = shaped(small_models.model(), of_form("kl", learned, direction, data=other)).terms
    batch = own_batch(term, 7, 3, 0, torch.device("cpu"))
    assert len(batch["input_ids"]) == 7
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])
    assert torch.equal(own_batch(copy.copy(term), 7, 3, 0, torch.device("cpu"))["input_ids"], batch["input_ids"])
