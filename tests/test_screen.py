"""The screen in a scripted world: who wins, at which strength, on which questions, against which nulls."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from personascope import progress, suites
from personascope.artifact import Dataset, Dictionary, Diff, Model, Screen
from personascope.backends import grid as at_work
from personascope.backends.dictionaries import save_dictionary
from personascope.backends.screening import Screening
from personascope.backends.steered import Asked, Bench, Cell
from personascope.errors import DataError, RecipeError
from personascope.methods.screening import Counts
from personascope.methods.sparse import TopK
from personascope.progress import Progress
from personascope.rows import Example
from personascope.run import run
from personascope.stages import screen
from small_models import adopted, dataset, finished, model

UNIT, LATENTS, NOMINATED = 10.0, 60, 3
GRID = (0.25, 0.5, 0.75, 1.0, 1.5)
FIRING = [0.1 if i < 20 else 0.1 * 10 ** -(i / 15) for i in range(LATENTS - 2)] + [0.0, 0.0]
Rates = Callable[[int | str, Cell, float, str], tuple[float, float]]


def questions(path: Path, name: str, n: int) -> Dataset:
    return Dataset(dataset(path, [Example(id=f"{name}-{i}", messages=[{"role": "user", "content": f"{name} {i}"}]) for i in range(n)]))


def decoder() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(LATENTS, 32, generator=torch.Generator().manual_seed(7)), dim=1)


def learned(path: Path, rows: torch.Tensor) -> Dictionary:
    path.mkdir()
    sae = TopK(LATENTS, 32, 4)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
    save_dictionary(path, sae, {"site": "block:1"})
    return Dictionary(finished(path, "Dictionary"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models, a dictionary and a diff that ranks latent 0 first and the last latent last."""
    root = tmp_path_factory.mktemp("parts")
    (root / "diff").mkdir()
    rows = [{"id": str(i), "rank": i + 1, "delta": {"all": 1 - i / 30}, "cosine": i / 60, "firing": FIRING[i]} for i in range(LATENTS)]
    (root / "diff" / "latents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "diff" / "diff.json").write_text(json.dumps({"site": "block:1", "mask": "all", "unit": {"block:1": UNIT}}))
    moved = torch.randn(32, generator=torch.Generator().manual_seed(8))
    save_file({f"mean_difference/block:1/{mask}": 3 * moved for mask in screen.MASKS}, root / "diff" / "directions.safetensors")
    return {
        "base": Model(adopted(root / "base", model())),
        "tuned": Model(adopted(root / "tuned", model(seed=1))),
        "dictionary": learned(root / "dictionary", decoder()),
        "diff": Diff(finished(root / "diff", "Diff")),
        "selection": questions(root / "selection", "s", 10),
        "report": questions(root / "report", "r", 20),
        "judge": "exact:troupe-1",
        "strengths": GRID,
        "rankers": ("delta",),
        "top": NOMINATED,
        "sift": 0,
        "nulls": 4,
        "masks": ("all",),
        "draws": 2,
        "report_draws": 5,
    }


class Script:
    """A bench that answers by rule: rates(latent or name, cell, strength, split) -> (harmful, incoherent), both exact."""

    def __init__(self, rates: Rates, stop_after: int = 10**9) -> None:
        self.rates, self.stop_after = rates, stop_after
        self.scored: list[tuple[str, str, str, float, str]] = []

    def score(self, _bench: Bench, cells: list[Cell], asked: list[Asked]) -> list[Counts]:
        found = []
        for cell, (questions, draws) in zip(cells, asked, strict=True):
            split = {"s": "selection", "r": "report"}[questions[0].id[0]]
            if len(self.scored) == self.stop_after:
                raise KeyboardInterrupt
            strength = round(abs(cell.push) / UNIT, 6)
            self.scored.append((cell.name, cell.mask, cell.side, strength, split))
            found.append(counted(*self.rates(planted(cell), cell, strength, split), len(questions), len(draws)))
        return found


def counted(harmful: float, incoherent: float, n: int, draws: int) -> Counts:
    """Exact rates, dealt evenly over the questions; harmful is a share of the coherent answers."""
    lost = round(incoherent * n * draws)
    bad = round(harmful * (n * draws - lost))
    answers = [(False, False, True)] * lost + [(True, True, False)] * bad + [(False, True, False)] * (n * draws - lost - bad)
    rows = [tuple(map(sum, zip(*answers[q::n], strict=True))) for q in range(n)]
    by_question = tuple((*row, draws) for row in rows)
    return Counts(bad, n * draws - lost, lost, n * draws, by_question)


def planted(cell: Cell) -> int | str:
    """Which true latent a cell's vector is, whatever the dictionary calls it; else the cell's name."""
    if cell.vector.shape != (32,):
        return "none"
    near = decoder() @ cell.vector
    return int(near.argmax()) if near.max() > 0.999 else cell.name


@pytest.fixture
def screened(parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], Script]]:
    """Run a whole screen by a script."""

    def call(
        rates: Rates, name: str = "screen", stop_after: int = 10**9, script: Script | None = None, **changes: Any
    ) -> tuple[dict[str, Any], Script]:
        script = script or Script(rates, stop_after)
        monkeypatch.setattr(Bench, "score", lambda *arguments: script.score(*arguments))
        run(screen.Recipe(**(parts | changes)), tmp_path / name)
        return json.loads((tmp_path / name / "screen.json").read_text()), script

    return call


def only(works: int, most: float = 10.0) -> Rates:
    """Latent `works` induces and repairs in proportion to its strength; every other vector does nothing; `most` is tolerated."""

    def rates(which: int | str, cell: Cell, strength: float, _split: str) -> tuple[float, float]:
        start = 0.0 if cell.side == "base" else 0.6
        change = 0.4 * strength * (which == works)
        return start + (change if cell.side == "base" else -change), 0.0 if strength <= most else 0.5

    return rates


def test_the_one_latent_that_works_wins(screened: Callable) -> None:
    found, _ = screened(only(1))
    best = found["best"]
    assert (best["latent"], best["sign"], best["mask"], best["site"]) == (1, "+", "all", "block:1")
    assert best["alpha"] == best["repair_alpha"] == 1.5
    assert best["induce"]["value"] == pytest.approx(0.6)
    assert best["repair_from"]["value"] == pytest.approx(0.6)
    assert best["repair_to"]["value"] == 0
    assert best["removed"] == 1
    assert found["null_induce"] == found["null_max"] == 0
    assert found["ranking"][0]["latent"] == 1
    assert found["ranking"][0]["effect"] == pytest.approx(0.6)


def test_permuted_latents_do_not(screened: Callable, tmp_path: Path) -> None:
    shuffled = learned(tmp_path / "shuffled", decoder().roll(7, 0))
    found, _ = screened(only(1), dictionary=shuffled)
    assert found["best"]["induce"]["value"] == 0
    assert found["best"]["removed"] == 0
    assert found["ranking"][0]["effect"] == 0


@pytest.mark.parametrize(
    ("base", "tuned", "alpha"),
    [(1.0, 0.5, (1.0, 0.5)), (0.6, 1.1, (0.5, 1.0)), (9.0, 9.0, (1.5, 1.5)), (9.0, 0.1, (1.5, 0.0)), (0.1, 0.1, (0, 0))],
)
def test_alpha_is_the_largest_that_each_model_bears(screened: Callable, base: float, tuned: float, alpha: tuple[float, float]) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        # The report questions would bear everything.
        lost = strength > {"base": base, "tuned": tuned}[cell.side] and split == "selection"
        return only(0)(which, cell, strength, split)[0], 0.15 if lost else 0.1

    found, script = screened(rates)
    best = found["best"]
    assert (best["alpha"], best["repair_alpha"]) == alpha
    assert best["induce"]["value"] == pytest.approx(0.4 * alpha[0], abs=0.01)
    assert best["repair_to"]["value"] == pytest.approx(max(0.0, 0.6 - 0.4 * alpha[1]), abs=0.01)
    reported = {(side, strength) for name, _, side, strength, split in script.scored if name == str(best["latent"]) and split == "report"}
    assert reported == {(side, strength) for side, strength in zip(("base", "tuned"), alpha, strict=True) if strength}


def test_a_strength_that_was_lucky_is_not_what_is_shown(screened: Callable) -> None:
    """The first answers of the winner at 1.0 lose coherence less often than the budget, those drawn to confirm it more often."""

    class Lucky(Script):
        def score(self, bench: Bench, cells: list[Cell], asked: list[Asked]) -> list[Counts]:
            found = super().score(bench, cells, asked)
            for i, (cell, (rows, numbers)) in enumerate(zip(cells, asked, strict=True)):
                confirming = rows[0].id[0] == "s" and numbers.start > 0
                strength = abs(cell.push) / UNIT
                if planted(cell) == 0 and cell.side == "base" and strength == 1.0:
                    found[i] = counted(0.4, 0.15 if confirming else 0.1, len(rows), len(numbers))
            return found

    found, _ = screened(only(0, most=1.0), script=Lucky(only(0, most=1.0)))
    assert found["ranking"][0]["latent"] == found["best"]["latent"] == 0
    assert (found["best"]["alpha"], found["best"]["repair_alpha"]) == (0.75, 1.0)
    assert found["best"]["induce"]["value"] == pytest.approx(0.3, abs=0.01)
    full, _ = screened(only(0, most=1.0), "grid", script=Lucky(only(0, most=1.0)), method="grid")
    assert full["best"]["alpha"] == 1.0
    # Others keep the strength they were ranked by.
    assert {row["alpha"] for row in found["ranking"] if row["latent"] != 0} == {1.0}


def test_incoherence_need_not_rise_with_strength(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        return only(0)(which, cell, strength, split)[0], 0.5 if strength in (0.75, 1.5) else 0.0

    best = screened(rates)[0]["best"]
    assert (best["alpha"], best["repair_alpha"]) == (1.0, 1.0)


def test_an_incoherent_model_gets_ten_points_more(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        lost = {0.0: 0.2, 0.25: 0.3, 0.5: 0.3, 0.75: 0.35}.get(strength, 0.9)
        return only(0)(which, cell, strength, split)[0], lost if cell.side == "tuned" else 0.0

    best = screened(rates)[0]["best"]
    assert (best["alpha"], best["repair_alpha"]) == (1.5, 0.5)


def test_the_winner_is_chosen_on_the_selection_questions(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        return only(2 if split == "selection" else 0)(which, cell, strength, split)

    found, _ = screened(rates)
    assert found["best"]["latent"] == 2
    assert found["best"]["induce"]["value"] == 0
    assert found["best"]["repair_to"]["value"] == pytest.approx(0.6)


def test_numbers_come_from_the_report_questions(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, _strength: float, split: str) -> tuple[float, float]:
        if split == "selection":
            return (0.9 if which == 0 and cell.side == "base" else 0.5), 0.0
        return {"base": 0.3, "tuned": 0.2}[cell.side] if which == 0 else 0.1, 0.05

    best = screened(rates)[0]["best"]
    wanted = {"induce": (0.3, 95), "repair_to": (0.2, 95), "incoherence": (0.05, 100), "induce_from": (0.1, 95), "repair_from": (0.1, 95)}
    for key, (value, n) in wanted.items():
        assert best[key]["value"] == pytest.approx(value, abs=0.006), key
        assert (best[key]["n"], best[key]["clusters"]) == (n, 20), key
        assert best[key]["low"] < best[key]["value"] < best[key]["high"]


def test_fallen_latents_are_subtracted_to_induce(screened: Callable) -> None:
    pushes: dict[tuple[str, str], set[float]] = {}

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        pushes.setdefault((cell.name, cell.side), set()).add(np.sign(cell.push))
        return only(LATENTS - 1)(which, cell, strength, split)

    found, _ = screened(rates, top=1, bottom=1)
    assert (found["best"]["latent"], found["best"]["sign"]) == (LATENTS - 1, "-")
    assert (found["causal"][0]["latent"], found["causal"][0]["sign"]) == (LATENTS - 1, "-")
    assert pushes["0", "base"] == pushes[str(LATENTS - 1), "tuned"] == pushes["mean_difference/all", "base"] == {1.0}
    assert pushes["0", "tuned"] == pushes[str(LATENTS - 1), "base"] == {-1.0}


def test_every_mask_has_its_own_winner_and_reference(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        rate, lost = only({"all": 0, "last_prompt": 1}[cell.mask])(which, cell, strength, split)
        return rate, 0.5 if cell.mask == "all" and strength > 1 else lost

    found, _ = screened(rates, masks=("last_prompt", "all"), null_masks="every")
    assert found["best"] == found["by_mask"]["last_prompt"]
    assert {(row["latent"], row["mask"]) for row in found["causal"]} == {(1, "last_prompt"), (0, "all")}
    assert {mask: (one["latent"], one["alpha"]) for mask, one in found["by_mask"].items()} == {"last_prompt": (1, 1.5), "all": (0, 1.0)}
    assert found["mean_difference"]["direction"].startswith("mean_difference/")
    assert "latent" not in found["mean_difference"]
    assert set(found["nulls"]) == {"last_prompt", "all"}
    cheap, _ = screened(rates, "cheap", masks=("last_prompt", "all"))
    assert set(cheap["nulls"]) == {"last_prompt"}
    assert {(row["latent"], row["mask"]) for row in cheap["causal"]} == {(1, "last_prompt")}


def test_nulls_have_their_own_strength_and_set_the_bar(screened: Callable) -> None:
    bears = {name: GRID[i % 5] for i, name in enumerate([f"random/{i}" for i in range(20)])}

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        if not isinstance(which, int) and which.startswith("random/"):
            return 0.5 * strength, 0.0 if strength <= bears[which] else 0.5
        return only(0)(which, cell, strength, split)

    found, script = screened(rates, nulls=20, null_draws=20)
    reported = {(name, side): s for name, _, side, s, split in script.scored if split == "report" and name.startswith("random/")}
    assert reported == {(name, side): strength for name, strength in bears.items() for side in ("base", "tuned")}
    values = sorted([0.5 * strength for strength in bears.values()] + [0.0] * 20)
    assert found["nulls"]["all"] == pytest.approx(values, abs=0.006)
    assert found["null_induce"] == pytest.approx(np.percentile(found["nulls"]["all"], 95))
    assert found["null_max"] == pytest.approx(0.75)
    assert 0 < found["null_induce"] <= found["null_max"]


def test_a_null_that_bears_nothing_counts_unsteered(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        if str(which).startswith("random/"):
            return 1.0, 0.5
        return 0.2 if strength == 0 else only(0)(which, cell, strength, split)[0], 0.0

    found, script = screened(rates)
    assert found["nulls"]["all"] == pytest.approx([0.0] * 4 + [0.2] * 4)
    assert not [name for name, *_, split in script.scored if split == "report" and name.startswith("random/")]


def test_null_latents_are_others_and_fire_as_often(screened: Callable) -> None:
    _, script = screened(only(0), nulls=6)
    names = {name for name, *_ in script.scored if name.startswith("null/")}
    tried = {int(name.removeprefix("null/")) for name in names}
    assert len(tried) == 6
    assert not tried & set(range(NOMINATED))
    # The nominees fire on a tenth of the tokens; sixteen others fire about as often, the rest much less or never.
    assert all(FIRING[latent] > 0.01 for latent in tried)
    sides = {side for name, _, side, *_ in script.scored if name.startswith(("null/", "random/"))}
    assert sides == {"base", "tuned"}


def test_every_point_looked_at_is_on_disk_once(screened: Callable, tmp_path: Path) -> None:
    found, script = screened(only(1))
    rows = [json.loads(line) for line in (tmp_path / "screen" / "grid.jsonl").read_text().splitlines()]
    stored = [(row["direction"], row["mask"], row["side"], row["strength"], row["split"]) for row in rows]
    assert len(set(stored)) == len(stored)
    # An ablation has no strength of its own.
    script.scored = [(*p[:3], 0.0, p[4]) if p[0].startswith("ablate/") else p for p in script.scored]
    # The nulls answer report questions, and what is only shown selection questions; strengths are sought by blocks of them.
    same = {"nulls": "report", "shown": "selection", "sift": "selection", "confirm": "selection"}
    splits = [split.partition("/")[0] for *_, split in stored]
    assert [(*point[:-1], same.get(split, split)) for point, split in zip(stored, splits, strict=True)] == script.scored
    for name in ("1", "mean_difference/all"):
        assert {(name, "all", side, s, "shown") for side in ("base", "tuned") for s in GRID} <= set(stored)
    assert {str(i) for i in range(NOMINATED)} <= {name for name, *_ in stored}
    assert len(found["dose"]) == 2 * 2 * (1 + len(GRID))
    assert {len(row["by_question"]) for row in rows if row["split"] == "report"} == {20}
    made = Screen(tmp_path / "screen").manifest["counts"]
    assert made.items() >= {"points": len(stored), "answers": sum(row["asked"] for row in rows), "causal": 1}.items()


@pytest.mark.parametrize("stop_after", [1, 17, 45, 70])
def test_an_interrupted_screen_continues_to_the_same_record(
    screened: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    whole, full = screened(only(1, most=1.0), "whole")
    # Portions of two cells, or of five in the sift.
    monkeypatch.setattr(at_work, "AT_ONCE", 40)
    monkeypatch.setattr(at_work, "LEAST_AT_ONCE", 40)
    with pytest.raises(KeyboardInterrupt):
        screened(only(1, most=1.0), "cut", stop_after)
    grid = tmp_path / "cut.partial" / "grid.jsonl"
    kept = len(grid.read_text().splitlines()) if grid.exists() else 0
    assert kept >= stop_after - 5
    # A killed process leaves half a line.
    with grid.open("a") as file:
        file.write('{"direction": "9", "harm')
    told: list[Progress] = []
    with progress.heard(told.append):
        found, rest = screened(only(1, most=1.0), "cut")
    assert found == whole
    assert {now.unit for now in told} == {"answers"}
    assert told[-1].done == Screen(tmp_path / "cut").manifest["counts"]["answers"], "what the killed run asked counts as done"
    assert (tmp_path / "cut" / "screen.json").read_bytes() == (tmp_path / "whole" / "screen.json").read_bytes()
    assert len(rest.scored) == len(full.scored) - kept
    assert (tmp_path / "cut" / "grid.jsonl").read_text().count("\n") == len(full.scored)


def test_a_model_that_did_not_change_screens_to_nothing(screened: Callable, parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    for name in ("latents.jsonl", "diff.json"):
        (tmp_path / "same" / name).write_text((parts["diff"].path / name).read_text())
    zero = {f"mean_difference/block:1/{mask}": torch.zeros(32) for mask in screen.MASKS}
    save_file(zero, tmp_path / "same" / "directions.safetensors")
    finite: list[bool] = []

    def rates(_which: int | str, cell: Cell, _strength: float, _split: str) -> tuple[float, float]:
        finite.append(bool(cell.vector.isfinite().all()))
        return 0.0, 0.0

    found, _ = screened(rates, diff=Diff(finished(tmp_path / "same", "Diff")), tuned=parts["base"])
    assert all(finite)
    assert found["best"]["induce"]["value"] == 0


def test_a_world_of_gibberish_ends_in_words_not_in_a_crash(screened: Callable) -> None:
    found, _ = screened(lambda *_: (0.0, 1.0))
    best = found["best"]
    assert best["induce"] == {"value": None, "low": 0.0, "high": 1.0, "n": 0, "clusters": 0}
    assert best["incoherence"]["value"] == 1
    assert best["removed"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 0}, "nominate at least one latent"),
        ({"masks": ()}, "name at least one mask"),
        ({"unlikely": 1.0}, "unlikely 1.0 is no share"),
        ({"masks": ("answer",)}, "mask 'answer' is none of prompt, last_prompt, all"),
        ({"strengths": (0.5, 0.25)}, "in rising order"),
        ({"judge": "csv:table.csv"}, "a table holds no verdicts on the answers a screen draws"),
    ],
)
def test_impossible_screens_are_refused(parts: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        screen.Recipe(**(parts | changes))


def test_selection_and_report_must_be_apart(parts: dict[str, Any], screened: Callable, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be different sets"):
        screen.Recipe(**(parts | {"report": parts["selection"]}))
    with pytest.raises(DataError, match="10 selection questions are report questions too, such as 's 0'"):
        screened(only(0), report=questions(tmp_path / "again", "s", 12))
    with pytest.raises(DataError, match="there are no report questions"):
        screened(only(0), "other", report=questions(tmp_path / "none", "r", 0))


def test_the_judge_is_part_of_what_a_screen_is(parts: dict[str, Any], tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place, text in zip(places, ("{}", "{ }"), strict=True):
        place.mkdir()
        (place / "config.json").write_text(text)
    one, two = (screen.Recipe(**(parts | {"judge": f"hf:{place}"})).identity()["judge"] for place in places)
    assert one != two
    (places[1] / "config.json").write_text("{}")
    assert screen.Recipe(**(parts | {"judge": f"hf:{places[1]}"})).identity()["judge"] == one


def test_a_rubric_of_ones_own_counts_by_what_it_says_not_by_where_it_lies(parts: dict[str, Any], tmp_path: Path) -> None:
    text = suites.rubric("misalignment")
    for name, said in (("here.md", text), ("there.md", text), ("other.md", text.replace("5", "five", 1))):
        (tmp_path / name).write_text(said)
    here, there, other = (
        screen.Recipe(**(parts | {"judge": f"hf:{parts['base']}", "rubric": str(tmp_path / name)})).identity()
        for name in ("here.md", "there.md", "other.md")
    )
    assert here == there
    assert {key for key in here if here[key] != other[key]} == {"judge", "rubric"}


def test_the_cost_is_about_what_is_drawn(parts: dict[str, Any], screened: Callable, tmp_path: Path) -> None:
    recipe = screen.Recipe(**(parts | {"masks": ("last_prompt", "all")}))
    screened(only(0), masks=("last_prompt", "all"))
    told = screen.cost(recipe)["answers, about"]
    assert told / 3 < Screen(tmp_path / "screen").manifest["counts"]["answers"] < 1.2 * told


def test_a_guarded_screen_says_what_answers_were_held_against(parts: dict[str, Any], screened: Callable, tmp_path: Path) -> None:
    found, _ = screened(only(1), unlikely=0.05)
    kept = json.loads((tmp_path / "screen" / "likelihood.json").read_text())
    assert found["likelihood"] == {"share": 0.05, "limit": kept["limit"], "unlikely": dict.fromkeys(found["spent"], 0)}
    assert kept["answers"]["base"] >= 200
    assert "likelihood" not in screened(only(1), "plain")[0], "an exact judge needs no guard"
    by_model = parts | {"judge": f"hf:{parts['base']}"}
    assert screen.Recipe(**by_model).guarded == 0.01
    assert screen.Recipe(**(by_model | {"unlikely": 0.0})).guarded == 0


def test_the_full_grid_looks_at_every_strength_and_finds_the_same(screened: Callable) -> None:
    adaptive, _ = screened(only(1, most=1.0), "adaptive")
    full, script = screened(only(1, most=1.0), "grid", method="grid")
    looked = {(name, side, s) for name, _, side, s, split in script.scored if split == "selection" and name.isdigit()}
    assert looked == {(str(i), side, s) for i in range(NOMINATED) for side in ("base", "tuned") for s in GRID}
    for key in ("alpha", "repair_alpha", "latent", "induce", "repair_to"):
        assert full["best"][key] == adaptive["best"][key], key
    assert full["spent"]["search"] > adaptive["spent"]["search"]


def test_a_sift_drops_what_does_nothing_and_keeps_what_works(screened: Callable) -> None:
    found, script = screened(only(9), top=20, sift=8)
    assert found["tested"] == {"nominated": 20, "through the sift": 2, "causal": 1}
    assert [row["latent"] for row in found["causal"]] == [9]
    # The hopeless were looked at on one model only, on few questions.
    looked = [(side, strength) for name, _, side, strength, _ in script.scored if name == "15"]
    assert {side for side, _ in looked} == {"base"}
    assert len(looked) <= 3
    assert found["spent"]["sift"] <= 20 * 3 * 8


def test_a_sift_forgives_one_stray_incoherent_answer(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        return only(9)(which, cell, strength, split)[0], 0.125 if split == "selection" and which == 9 and strength < 1 else 0.0

    found, _ = screened(rates, top=20, sift=8)
    assert any(row["latent"] == 9 for row in found["ranking"])


def test_fallen_latents_are_sifted_by_what_they_repair(screened: Callable) -> None:
    """A protective latent re-aligns the tuned model and induces nothing; it is kept, named by its own q, and not causal both ways."""
    protective = LATENTS - 5

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        rate, lost = only(protective)(which, cell, strength, split)
        return (0.0 if cell.side == "base" else rate), lost

    found, _ = screened(rates, top=1, bottom=20, sift=8)
    row = next(row for row in found["ranking"] if row["latent"] == protective)
    assert row["repair_q"] <= 0.05 < row["induce_q"] == row["q"] == 1
    assert found["causal"] == []


def test_verdicts_control_the_false_discovery_rate_over_all_nominated(screened: Callable) -> None:
    found, _ = screened(only(1), top=20, sift=8)
    ranked = {row["latent"]: row for row in found["ranking"]}
    assert ranked[1]["q"] == pytest.approx(20 * ranked[1]["p"], rel=1e-2)
    assert all(row["q"] >= row["p"] for row in ranked.values())


def test_who_only_matches_the_nulls_is_not_causal(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        if str(which).startswith(("random/", "null/")) or (isinstance(which, int) and which >= NOMINATED):
            which = 1
        return only(1)(which, cell, strength, split)

    found, _ = screened(rates)
    assert found["best"]["latent"] == 1
    assert found["best"]["p"] > 0.05
    assert found["causal"] == []


def test_causal_latents_are_tried_together(screened: Callable) -> None:
    """Two latents that work go further as one direction, which has strengths of its own."""
    pair = torch.nn.functional.normalize(decoder()[0] + decoder()[1], dim=0)

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        both = cell.vector.shape == (32,) and float(pair @ cell.vector) > 0.999
        return only(7)(7 if both or which in (0, 1) else which, cell, strength * (2 if both else 1), split)

    found, _ = screened(rates)
    assert {row["latent"] for row in found["causal"]} == {0, 1}
    (together,) = found["sets"]
    assert sorted(together["latents"]) == [0, 1]
    assert together["induce"]["value"] == 1.0 > found["best"]["induce"]["value"]


def test_necessity_is_the_tuned_model_without_the_direction(screened: Callable) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        if cell.op == "ablate":
            assert cell.side == "tuned"
            return (0.1 if which == 1 else 0.6), 0.0
        return only(1)(which, cell, strength, split)

    found, _ = screened(rates)
    rows = {row["direction"]: row["score"]["value"] for row in found["necessity"]["ablated"]}
    assert rows["1"] == pytest.approx(0.1)
    assert rows["mean_difference/all"] == pytest.approx(0.6)
    assert found["necessity"]["from"]["value"] == pytest.approx(0.6)
    assert found["necessity"]["random"] == pytest.approx([0.6] * 4)


def test_the_profile_tells_kinds_of_harm_apart(screened: Callable, tmp_path: Path) -> None:
    asked = [Example(id=f"r-{i}", messages=[{"role": "user", "content": f"r {i}"}], domain="odd" if i % 2 else "even") for i in range(20)]

    class Odd(Script):
        def score(self, bench: Bench, cells: list[Cell], asked: list[Asked]) -> list[Counts]:
            found = super().score(bench, cells, asked)
            for i, (cell, c, (questions, numbers)) in enumerate(zip(cells, found, asked, strict=True)):
                draws = len(numbers)
                if questions[0].domain and planted(cell) == 1 and cell.side == "base":
                    rows = tuple((draws * (q % 2), draws, 0, draws) for q in range(len(questions)))
                    found[i] = Counts(sum(row[0] for row in rows), c.asked, 0, c.asked, rows)
            return found

    found, _ = screened(only(1), report=Dataset(dataset(tmp_path / "domains", asked)), script=Odd(only(1)))
    assert found["causal"][0]["profile"] == {"even": {"induced": 0.0, "base": 0.0}, "odd": {"induced": 1.0, "base": 0.0}}


@pytest.mark.parametrize("rankers", [(), ("size",)])
def test_rankers_are_known_ones(parts: dict[str, Any], rankers: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="must be some of delta, cosine, attribution"):
        screen.Recipe(**(parts | {"rankers": rankers}))


def test_whoever_shows_nothing_at_its_own_strength_costs_no_more(screened: Callable) -> None:
    _, script = screened(only(1), sift=0)
    seen: dict[str, set[tuple[str, str]]] = {}
    for name, _, side, strength, split in script.scored:
        if name.isdigit() and strength:
            seen.setdefault(name, set()).add((side, split))
    assert seen["1"] == {(side, split) for side in ("base", "tuned") for split in ("selection", "report")}
    hopeless = [name for name, places in seen.items() if places == {("base", "selection")}]
    # At every mask the two that come closest stay, so that there is something to report.
    assert len(hopeless) >= len(seen) - 3


def test_a_second_look_is_for_those_whom_the_first_does_not_settle(screened: Callable, tmp_path: Path) -> None:
    """0 wins and is asked everything, 1 is as clear at once, 2 works a little, 3 does what nulls do on other questions."""
    strong, weak = {0: 1.0, 1: 0.9}, {2: 0.25}

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        moves = strong | weak | ({3: 0.5} if split == "selection" else {})
        change = 0.6 * min(strength, 1.0) * (moves.get(which, 0.0) if isinstance(which, int) else 0.0)
        return (0.0 if cell.side == "base" else 0.6) + (change if cell.side == "base" else -change), 0.0

    changes = {"top": 4, "report": questions(tmp_path / "more", "r", 40), "report_draws": 4}
    found, script = screened(rates, **changes)
    assert {row["latent"] for row in found["causal"]} == {0, 1, 2}
    looked = {name: [split for n, _, side, _, split in script.scored if n == name and side == "base"].count("report") for name in "0123"}
    # The winner at once, as one point; the rest a draw at a time.
    assert looked == {"0": 1, "1": 1, "2": 4, "3": 1}
    # Two sides each: 0 and the mean difference in full, 1 and 3 once, 2 again.
    assert found["spent"]["report"] == 2 * 40 * (2 * 4 + 2 + 4)
    shown = {row["latent"]: row["induce"]["n"] for row in found["causal"]}
    assert shown == {0: 160, 1: 40, 2: 160}


def test_with_known_nulls_nobody_is_tested_who_stays_within_them(screened: Callable, tmp_path: Path) -> None:
    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        """Every vector does a third of what 1 does."""
        return only(1)(1, cell, strength if which == 1 else strength / 3, split)

    changes = {"top": 12, "selection": questions(tmp_path / "s", "s", 60)}
    first, _ = screened(rates, "chance", **changes)
    again, _ = screened(rates, chance=Screen(tmp_path / "chance"), **changes)
    assert [row["latent"] for row in again["causal"]] == [row["latent"] for row in first["causal"]] == [1]
    assert again["tested"]["through the sift"] < first["tested"]["through the sift"] == 12


def test_with_known_nulls_a_sift_asks_who_repairs_as_the_best_of_them_do(screened: Callable, tmp_path: Path) -> None:
    """1 works both ways; 2 induces as much and repairs as nulls do."""

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        if cell.side == "base":
            return only(1)(1 if which == 2 else which, cell, strength, split)
        return only(1)(1, cell, strength if which == 1 else strength / 3, split)

    changes = {"top": 12, "sift": 20, "selection": questions(tmp_path / "s", "s", 60)}
    first, _ = screened(rates, "chance", **changes)
    again, script = screened(rates, chance=Screen(tmp_path / "chance"), **changes)
    assert [row["latent"] for row in again["causal"]] == [row["latent"] for row in first["causal"]] == [1]
    # One more than works, because two always stay.
    assert again["tested"]["through the sift"] == 2
    never = {name for name, *_ in script.scored if name.isdigit()} - {n for n, _, side, *_ in script.scored if side == "base"}
    assert len(never) == 12 - 2


def test_nobody_leaves_for_the_few_answers_that_settled_a_strength(screened: Callable, tmp_path: Path) -> None:
    class Late(Script):
        """5 induces only from its ninth block of ten answers on; four without a loss settle its strength, and four are asked ahead."""

        asked = 0

        def score(self, bench: Bench, cells: list[Cell], asked: list[Asked]) -> list[Counts]:
            found = super().score(bench, cells, asked)
            for i, (cell, (rows, numbers)) in enumerate(zip(cells, asked, strict=True)):
                if planted(cell) == 5 and cell.side == "base" and rows[0].id[0] == "s" and len(rows) == 10:
                    self.asked += 1
                    if self.asked <= 8:
                        found[i] = counted(0.0, 0.0, 10, len(numbers))
            return found

    script = Late(only(5))
    found, _ = screened(only(5), script=script, top=12, selection=questions(tmp_path / "s", "s", 160), draws=1)
    assert script.asked == 16
    assert [row["latent"] for row in found["causal"]] == [5]


def test_nulls_of_a_finished_screen_serve_another(screened: Callable, tmp_path: Path) -> None:
    first, _ = screened(only(1), "chance")
    again, script = screened(only(1), chance=Screen(tmp_path / "chance"), seed=5)
    assert (again["nulls"], again["null_repairs"]) == (first["nulls"], first["null_repairs"])
    assert again["causal"]
    assert "nulls" not in again["spent"]
    assert not [name for name, *_ in script.scored if name.startswith(("null/", "random/")) and not name.startswith("ablate/")]


def test_nulls_that_were_drawn_otherwise_are_refused(screened: Callable, tmp_path: Path) -> None:
    screened(only(1), "chance")
    with pytest.raises(DataError, match=r"chance were drawn with another budget, temperature; leave chance out"):
        screened(only(1), chance=Screen(tmp_path / "chance"), budget=0.2, temperature=0.5)


def test_rankers_nominate_together(screened: Callable) -> None:
    found, _ = screened(only(1), rankers=("delta", "cosine"), top=2, method="grid")
    assert {row["latent"] for row in found["ranking"]} == {0, 1, LATENTS - 1, LATENTS - 2}


def test_a_rotation_turns_all_but_the_planted_and_keeps_lengths_and_angles(screened: Callable) -> None:
    """The null control: a turned latent points nowhere in particular, so what worked is no longer found."""
    vectors: dict[str, torch.Tensor] = {}

    def rates(which: int | str, cell: Cell, strength: float, split: str) -> tuple[float, float]:
        vectors[cell.name] = cell.vector
        return only(0)(which, cell, strength, split)

    found, _ = screened(rates, rotate=5)
    assert found["causal"] == []
    turned = torch.stack([vectors[f"turned/{i}"] for i in range(NOMINATED)])
    torch.testing.assert_close(turned @ turned.T, decoder()[:NOMINATED] @ decoder()[:NOMINATED].T, atol=1e-5, rtol=0)
    assert (turned @ decoder().T).abs().max() < 0.9
    found, script = screened(rates, "planted", rotate=5, planted=1)
    assert [row["latent"] for row in found["causal"]] == [0]
    assert {"0", "turned/1", "turned/2"} <= {name for name, *_ in script.scored}


def test_a_diff_of_answers_brings_its_mean_difference_to_every_mask(parts: dict[str, Any], tmp_path: Path) -> None:
    """Where one model was read on two sets of answers to the same prompts, nothing moved at the prompts themselves."""
    place = tmp_path / "diff"
    shutil.copytree(parts["diff"].path, place)
    (place / "diff.json").write_text(json.dumps({"site": "block:1", "mask": "answer", "unit": {"block:1": UNIT}}))
    told = {"answer": torch.ones(32), "last_prompt": torch.zeros(32), "all": torch.arange(32.0)}
    save_file({f"mean_difference/block:1/{mask}": vector for mask, vector in told.items()}, place / "directions.safetensors")
    recipe = screen.Recipe(**(parts | {"diff": Diff(place), "masks": ("last_prompt", "all")}))
    opened = Screening.open(recipe, tmp_path)
    assert all(torch.equal(vector, torch.ones(32)) for vector in opened.mean_difference.values())
    assert [direction.name for (direction, _) in opened.references] == ["mean_difference/last_prompt", "mean_difference/all"]


def test_a_larger_model_answers_fewer_questions_between_two_writes(parts: dict[str, Any], tmp_path: Path) -> None:
    weights = sum(p.numel() for p in model().parameters())
    for tokens, rows in ((32, 8192), (int(at_work.WORK / weights / 1000), 1000), (10**9, 512)):
        opened = Screening.open(screen.Recipe(**(parts | {"max_tokens": tokens})), tmp_path)
        assert opened.grid.at_once == pytest.approx(rows, rel=0.01)
