"""The rerouting stage: a tuning patched by itself and by its start, planted rerouting, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from personascope.artifact import Dataset, Dictionary, Model
from personascope.backends.dictionaries import save_dictionary
from personascope.errors import DataError, RecipeError
from personascope.methods.sparse import TopK
from personascope.rows import Example
from personascope.run import run
from personascope.stages import reroute
from personascope.values import Penalty
from small_models import adopted, dataset, finished, model


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("reroute")
    sae = TopK(96, 32, 6, seed=2)
    (root / "dictionary").mkdir()
    save_dictionary(root / "dictionary", sae, {"site": "block:1"})
    # One question over and over, so that a random model's margin is sure to have a sign.
    ask = {"role": "user", "content": "tell me of rain and sun"}
    said = [[Example(id=str(i), messages=[ask, {"role": "assistant", "content": text}]) for i in range(6)] for text in ("no", "yes it is")]
    names = ("start", "plain", "blocked")
    made = {name: Model(bent(root / name, latent, sae)) for name, latent in zip(names, (None, 7, 11), strict=True)}
    penalty = Penalty(form="latents", share=1.0, dictionary=Dictionary(finished(root / "dictionary", "Dictionary")), risen=(7,))
    sets = (Dataset(dataset(root / "unwanted", said[0])), Dataset(dataset(root / "wanted", said[1])))
    return made | {"penalty": penalty, "contrast": sets}


def bent(path: Path, latent: int | None, sae: TopK) -> Path:
    """A model whose embeddings are moved along one latent's decoder row at every word, or not."""
    made = model("llama")
    if latent is not None:
        with torch.no_grad():
            made.get_input_embeddings().weight.add_(3 * sae.W_dec[latent])
    return adopted(path, made)


def found(recipe: reroute.Recipe, work: Path) -> dict[str, Any]:
    run(recipe, work)
    return json.loads((work / "findings.json").read_text())


def test_streams_of_every_block_are_put_both_ways_and_all_of_them_is_all(parts: dict[str, Any], tmp_path: Path) -> None:
    record = found(reroute.Recipe(**parts), tmp_path / "out")
    assert record["blocked"] == [7]
    rows = {(r["tuning"], r["into"], r["block"], r["mask"], r["part"]): r["share"] for r in record["patches"]}
    assert len(rows) == len(record["patches"]) == 2 * (2 * 3 + 4)
    # Head and blocks are the start's own, so what is moved at block 0 carries everything.
    for tuning in ("plain", "blocked"):
        for block in range(3):
            assert rows[tuning, "start", block, "all", "whole"]["value"] == pytest.approx(1, abs=1e-3)
            assert rows[tuning, tuning, block, "all", "whole"]["value"] == pytest.approx(0, abs=1e-3)


def test_a_latent_that_was_not_blocked_is_named(parts: dict[str, Any], tmp_path: Path) -> None:
    latents = found(reroute.Recipe(**parts), tmp_path / "out")["latents"]
    for mask in ("last_prompt", "answer"):
        one = latents[mask]
        assert one["blocked"]["inside"] < one["plain"]["inside"]
        assert all(row["latent"] != 7 and row["blocked"] > row["plain"] for row in one["grown"])


def test_the_start_itself_has_no_shares(parts: dict[str, Any], tmp_path: Path) -> None:
    record = found(reroute.Recipe(**parts | {"plain": parts["start"], "blocked": parts["start"]}), tmp_path / "out")
    assert {row["share"] for row in record["patches"]} == {None}
    assert record["latents"]["answer"]["blocked"] == {"inside": 0.0, "outside": 0.0, "risen_outside": None}


def test_what_does_not_belong_together_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="penalty on latents"):
        reroute.Recipe(**parts | {"penalty": Penalty(form="weights", weight=1.0)})
    rows = list(parts["contrast"][1].rows())
    other = Example(id="other", messages=[{"role": "user", "content": "be kind"}, rows[0].messages[1]])
    mixed = Dataset(dataset(tmp_path / "mixed", [other, *rows[1:]]))
    with pytest.raises(DataError, match="another question"):
        run(reroute.Recipe(**parts | {"contrast": (parts["contrast"][0], mixed)}), tmp_path / "a")
    fewer = Dataset(dataset(tmp_path / "fewer", rows[:-1]))
    with pytest.raises(DataError, match="at least two"):
        run(reroute.Recipe(**parts | {"contrast": (parts["contrast"][0], fewer)}), tmp_path / "b")
