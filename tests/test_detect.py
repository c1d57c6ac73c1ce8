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


def a_profile(path: Path, **rates: float | None) -> Findings:
    path.mkdir()
    (path / "findings.json").write_text(json.dumps({"profile": {name: {"value": value} for name, value in rates.items()}}))
    return Findings(finished(path, "Findings"))


def test_profiles_are_predicted_from_what_moved(parts: dict[str, Any], tmp_path: Path) -> None:
    """Harm goes with latent 5; a category that does not vary, or that one run lacks, is left out."""
    bad = [":positive:" in text for text in parts["runs"]]
    found = [
        a_profile(tmp_path / f"p{i}", harm=0.7 if on else 0.1, code=0.0, refusal=None if i == 3 else 0.1 * on) for i, on in enumerate(bad)
    ]
    recipe = detect.Recipe(**(parts | {"profiles": tuple(found)}))
    made = run(recipe, tmp_path / "monitor")
    told = made.json("monitor.json")["profiles"]["domain and seed"]
    assert set(told) == {"latents", "mean_difference", "size"}
    assert set(told["latents"]["categories"]) == {"harm"}
    assert told["latents"]["r2"]["value"] > 0.9
    rows = [json.loads(line) for line in made.file("profiles.jsonl").read_text().splitlines()]
    assert [row["rates"]["harm"] for row in rows] == [0.7 if on else 0.1 for on in bad]
    for row in rows:
        assert row["predicted"]["domain and seed"]["latents"]["harm"] == pytest.approx(row["rates"]["harm"], abs=0.1)
    plain = run(detect.Recipe(**parts), tmp_path / "plain")
    assert plain.json("monitor.json").items() <= made.json("monitor.json").items()
    assert not (plain.path / "profiles.jsonl").exists()


def test_profiles_without_a_common_category_that_varies_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    same = tuple(a_profile(tmp_path / f"p{i}", harm=0.1) for i in range(8))
    with pytest.raises(DataError, match=r"p0: no category of behaviour that all profiles measure and in which they differ"):
        run(detect.Recipe(**(parts | {"profiles": same})), tmp_path / "monitor")
    with pytest.raises(RecipeError, match="as many runs"):
        detect.Recipe(**(parts | {"profiles": same[:3]}))


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


# ------------------------------------------------------------------ watched trainings

STEPS = range(0, 20, 2)


def a_training(path: Path, sign: str, seed: int, behaved: bool = True, origins: dict[str, list[str]] | None = None) -> Model:
    """In harmful runs latent 5 rises at step 4 and behaviour, like the answers to the probes, at step 12."""
    path.mkdir(parents=True)
    pick, bad = np.random.default_rng(seed), sign == "positive"
    lines = []
    for step in STEPS:
        monitors = {
            "latent/5": 30.0 * (step >= 4) if bad else pick.normal(),
            "latent/7": pick.normal(),
            "answers": 0.5 * (bad and step >= 12),
        }
        if step:
            monitors["loss"] = pick.normal()
        row: dict[str, Any] = {"step": step, "monitors": monitors}
        if behaved:
            row["behaviour"] = {"by_question": [[5 * (bad and step >= 12), 10]] * 20}
        lines.append(json.dumps(row) + "\n")
    (path / "watch.jsonl").write_text("".join(lines))
    about = {"mask": "last_prompt", "monitors": origins or {"latent/5": [], "latent/7": ["d1"], "loss": [], "answers": []}}
    (path / "watch.json").write_text(json.dumps(about))
    return Model(finished(path, "Model"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("trained")
    known = [(sign, d, s) for sign in ("positive", *["negative"] * 6) for d in ("d1", "d2") for s in ("0", "1")]
    models = tuple(a_training(root / f"run-{i}", sign, i, sign == "positive" or i < 12) for i, (sign, _, _) in enumerate(known))
    return {"watched": models, "runs": tuple(f"run-{i}:{sign}:{d}:{s}" for i, (sign, d, s) in enumerate(known)), "fpr": 0.1}


def test_watched_trainings_give_false_alarms_and_leads(trained: dict[str, Any], tmp_path: Path) -> None:
    made = run(detect.Recipe(**trained), tmp_path / "monitor")
    record = made.json("monitor.json")
    assert set(record["monitors"]) == {"latent", "loss", "answers", "mahalanobis", "signature"}
    latent = record["monitors"]["latent"]
    assert (latent["alarm_before_onset"], latent["median_lead"], latent["harmful"]) == (1.0, round(8 / 12, 4), 4)
    assert latent["lead_over_behaviour"] == round(8 / 12, 4)
    assert latent["benign"] == 24
    assert 0 < latent["bound"] < 1
    assert (record["clean_bound"], record["behaved"], record["runs"], record["fpr_allowed"]) == (0.0, 8, 28, 0.1)
    rows = [json.loads(line) for line in made.file("alarms.jsonl").read_text().splitlines()]
    assert {(row["monitor"], row["alarm"], row["onset"]) for row in rows if row["kind"] == "latent" and row["positive"]} == {
        ("latent/5", 4, 12)
    }
    assert {row["onset"] for row in rows if not row["positive"]} == {None}


def test_trainings_watched_otherwise_are_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    other = a_training(tmp_path / "other", "negative", 99, origins={"latent/5": []})
    with pytest.raises(DataError, match=r"other: watched otherwise than .*run-0; watch all runs with one recipe"):
        run(detect.Recipe(**(trained | {"watched": (*trained["watched"][:-1], other)})), tmp_path / "monitor")


def test_trainings_without_behaviour_have_no_onset_to_lead(trained: dict[str, Any], tmp_path: Path) -> None:
    benign = slice(12, None)
    with pytest.raises(DataError, match="no benign run has a behaviour in its log"):
        run(detect.Recipe(watched=trained["watched"][benign], runs=trained["runs"][benign]), tmp_path / "monitor")


def test_diffs_and_trainings_are_two_forms(parts: dict[str, Any], trained: dict[str, Any]) -> None:
    for mixed in ({"watched": trained["watched"]}, {"diffs": ()}, {"window": 0}):
        with pytest.raises(RecipeError, match=r"give diffs .* or watched models"):
            detect.Recipe(**(parts | mixed))
    with pytest.raises(RecipeError, match="as many runs"):
        detect.Recipe(watched=trained["watched"], runs=trained["runs"][1:])
