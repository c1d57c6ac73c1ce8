"""The detect stage: every monitor's rates from diffs, findings and logs; refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from personascope.artifact import Diff, Findings, Model, Monitor
from personascope.errors import DataError, RecipeError
from personascope.run import run
from personascope.stages import detect
from small_models import finished

LATENTS = 12
PICK = np.random.default_rng(0)


def a_diff(path: Path, delta: float, site: str = "block:1", latents: int = LATENTS) -> Diff:
    """Latent 5 has this Δ on the last token, and its opposite on all; the rest is noise; rows stand in no order."""
    path.mkdir(parents=True)
    values = 0.1 * PICK.normal(size=latents)
    values[min(5, latents - 1)] = delta
    rows = [{"id": str(i), "delta": {"last_prompt": values[i], "all": -values[i]}} for i in PICK.permutation(latents)]
    (path / "latents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "diff.json").write_text(json.dumps({"site": site}))
    moved = torch.tensor(0.1 * PICK.normal(size=8), dtype=torch.float32)
    moved[2] += delta
    save_file(
        {f"mean_difference/{site}/{mask}": sign * moved for mask, sign in (("last_prompt", 1), ("all", -1))},
        path / "directions.safetensors",
    )
    return Diff(finished(path, "Diff"))


def a_finding(path: Path, score: float | None) -> Findings:
    path.mkdir()
    (path / "findings.json").write_text(json.dumps({"score": {"value": score}}))
    return Findings(finished(path, "Findings"))


def a_model(path: Path, loss: float) -> Model:
    path.mkdir()
    (path / "log.jsonl").write_text("".join(json.dumps({"loss": value}) + "\n" for value in (9.0, loss)))
    return Model(finished(path, "Model"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two domains x two seeds of positives and negatives; scores and final losses tell as well."""
    root = tmp_path_factory.mktemp("runs")
    known = [(sign, d, s) for sign in ("positive", "negative") for d in ("d1", "d2") for s in ("0", "1")]
    diffs = [a_diff(root / f"diff-{i}", 3.0 if sign == "positive" else 0.0) for i, (sign, _, _) in enumerate(known)]
    scores = [0.5 if sign == "positive" else None for sign, _, _ in known]
    return {
        "diffs": tuple(diffs),
        "runs": tuple(f"run-{i}:{sign}:{d}:{s}:{'twin' if sign == 'negative' else 'harmful'}" for i, (sign, d, s) in enumerate(known)),
        "findings": tuple(a_finding(root / f"findings-{i}", score) for i, score in enumerate(scores)),
        "models": tuple(a_model(root / f"model-{i}", loss) for i, loss in enumerate((2, 2, 2, 2, 1, 1, 1, 1))),
    }


def test_every_monitor_is_tested_on_what_it_never_saw(parts: dict[str, Any], tmp_path: Path) -> None:
    made = run(detect.Recipe(**parts), tmp_path / "monitor")
    assert isinstance(made, Monitor)
    record = made.json("monitor.json")
    perfect = {"auroc": 1.0, "tpr": 1.0, "fpr": 0.0}
    assert record["monitors"] == dict.fromkeys(("latent", "score", "loss", "mean_difference"), perfect)
    assert (record["runs"], record["mask"], record["fpr_allowed"]) == (8, "last_prompt", 0.0)
    rows = [json.loads(line) for line in made.file("scores.jsonl").read_text().splitlines()]
    assert {row["monitor"] for row in rows} == {"latent", "score", "mean_difference", "loss"}
    assert len(rows) == 4 * 8
    latent = [row for row in rows if row["monitor"] == "latent"]
    assert [row["run"] for row in latent] == [f"run-{i}" for i in range(8)]
    assert {(row["feature"], row["alarm"], row["group"]) for row in latent} == {(5, True, "harmful"), (5, False, "twin")}


def test_the_mask_is_the_recipes(parts: dict[str, Any], tmp_path: Path) -> None:
    """On the mask `all` every Δ has the other sign, so that the positives lie below."""
    made = run(detect.Recipe(**(parts | {"mask": "all", "findings": (), "models": ()})), tmp_path / "monitor")
    assert set(made.json("monitor.json")["monitors"]) == {"latent", "mean_difference"}
    assert made.json("monitor.json")["monitors"]["latent"]["tpr"] < 1


def test_shuffled_labels_separate_nothing(parts: dict[str, Any], tmp_path: Path) -> None:
    """In the second domain the labels are swapped, so what is learnt in one is wrong in the other."""
    signs = ("positive", "positive", "negative", "negative", "negative", "negative", "positive", "positive")
    runs = tuple(f"run-{i}:{sign}:{text.split(':', 2)[2]}" for i, (sign, text) in enumerate(zip(signs, parts["runs"], strict=True)))
    record = run(detect.Recipe(**(parts | {"runs": runs})), tmp_path / "monitor").json("monitor.json")
    assert record["monitors"]["latent"]["auroc"] < 0.8
    assert record["monitors"]["score"]["auroc"] <= 0.5


def test_a_group_is_the_sign_unless_named(parts: dict[str, Any], tmp_path: Path) -> None:
    runs = tuple(text.rpartition(":")[0] for text in parts["runs"])
    made = run(detect.Recipe(diffs=parts["diffs"], runs=runs), tmp_path / "monitor")
    groups = {json.loads(line)["group"] for line in made.file("scores.jsonl").read_text().splitlines()}
    assert groups == {"positive", "negative"}


@pytest.mark.parametrize("text", ["name", "a:positive:d1", "a:maybe:d1:0", "a:positive:d1:0:g:more", ""])
def test_a_run_that_cannot_be_read_is_named(parts: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=rf"run '{text}' is not NAME:positive\|negative:DOMAIN:SEED\[:GROUP\]"):
        detect.Recipe(diffs=parts["diffs"][:1], runs=(text,))


@pytest.mark.parametrize("changes", [{"runs": ("a:positive:d:0",)}, {"findings": 3}, {"models": 3}, {"diffs": 3}])
def test_tuples_must_speak_of_the_same_runs(parts: dict[str, Any], changes: dict[str, Any]) -> None:
    cut = {name: parts[name][:value] if isinstance(value, int) else value for name, value in changes.items()}
    with pytest.raises(RecipeError, match="as many runs"):
        detect.Recipe(**(parts | cut))


def test_too_few_runs_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no positive or no negative is left; add runs"):
        run(detect.Recipe(diffs=parts["diffs"][:4], runs=parts["runs"][:4]), tmp_path / "monitor")


@pytest.mark.parametrize(
    ("site", "latents", "says"), [("block:2", LATENTS, "12 latents at block:2"), ("block:1", 7, "7 latents at block:1")]
)
def test_diffs_through_other_dictionaries_are_refused(parts: dict[str, Any], tmp_path: Path, site: str, latents: int, says: str) -> None:
    other = a_diff(tmp_path / "other", 0.0, site, latents)
    with pytest.raises(DataError, match=f"{says}, .* has 12 at block:1; make all diffs with one dictionary"):
        run(detect.Recipe(diffs=(*parts["diffs"][:7], other), runs=parts["runs"]), tmp_path / "monitor")
