"""The interpret stage end to end on a tiny model: cards, truth in the texts' labels, a scripted judge, resume, refusals."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from personascope.artifact import Dataset, Dictionary, Diff, Labels, Model, Screen
from personascope.backends import interpreting
from personascope.backends.dictionaries import save_dictionary
from personascope.errors import DataError, RecipeError
from personascope.methods.sparse import TopK
from personascope.rows import Example
from personascope.run import run
from personascope.stages import interpret
from small_models import WORDS, adopted, dataset, finished, model

SMALL = {"window": 6, "strongest": 3, "bands": 2, "each": 2, "heldout": 6, "draws": 20}
TOPICS = ("rain", "wind", "sea", "sun")


def sentences(n: int) -> list[Example]:
    """Prose that names one topic, which is its label too."""
    pick = torch.Generator().manual_seed(0)
    others = [word for word in WORDS if word not in TOPICS]
    rows = []
    for i in range(n):
        said = [others[j] for j in torch.randint(0, len(others), (9,), generator=pick).tolist()]
        said[int(torch.randint(0, 9, (), generator=pick))] = TOPICS[i % 4]
        rows.append(Example(id=f"s{i}", messages=[], meta={"prose": " ".join(said)}, labels={"topic": TOPICS[i % 4]}))
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose first blocks pass the embeddings on, and a dictionary whose latents 0 to 3 read one topic each."""
    root = tmp_path_factory.mktemp("world")
    made = model()
    with torch.no_grad():
        for layer in made.model.layers[:2]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    sae = TopK(16, 32, 1)
    known = {
        word: i
        for i, word in enumerate(dict.fromkeys(["<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", *WORDS]))
    }
    table = torch.nn.functional.normalize(made.get_input_embeddings().weight.detach(), dim=1)
    with torch.no_grad():
        for i in range(16):
            sae.W_enc[i] = sae.W_dec[i] = table[known[TOPICS[i]]] if i < 4 else table[40 + i % 16]
        sae.b_enc[:4] = -0.7 * made.get_input_embeddings().weight.detach().norm(dim=1)[[known[word] for word in TOPICS]]
    folder = root / "dictionary"
    folder.mkdir()
    save_dictionary(folder, sae, {"site": "block:1"})
    texts = dataset(root / "texts", sentences(400))
    return {
        "root": root,
        "model": Model(adopted(root / "base", made)),
        "dictionary": Dictionary(finished(folder, "Dictionary")),
        "texts": Dataset(texts),
    }


def pair(root: Path) -> tuple[Diff, Screen]:
    """A diff of the sixteen latents by number, and a screen that ranked the third alone."""
    for name in ("diff", "screen"):
        (root / name).mkdir(exist_ok=True)
    rows = [{"id": str(i), "rank": i + 1, "delta": {"all": 8.0 - i}} for i in range(16)]
    (root / "diff" / "latents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"ranking": [{"latent": 2, "induce": 0.4, "repair_to": 0.1}], "best": {"latent": 2, "induce": {"value": 0.5}}}
    (root / "screen" / "screen.json").write_text(json.dumps(record))
    return Diff(finished(root / "diff", "Diff")), Screen(finished(root / "screen", "Screen"))


def recipe(world: dict[str, Any], **change: Any) -> interpret.Recipe:
    given = {name: world[name] for name in ("model", "dictionary", "texts")}
    return interpret.Recipe(**given, **(SMALL | {"latents": (0, 1, 2, 3)} | change))


def cards(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "latents.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Labels:
    found = run(recipe(world, names=("1=all about wind",)), tmp_path_factory.mktemp("made") / "labels")
    assert isinstance(found, Labels)
    return found


def test_it_writes_what_it_should_and_counts_it(made: Labels) -> None:
    names = {path.name for path in made.path.iterdir()}
    assert names == {"latents.jsonl", "contexts.jsonl", "similarity.json", "interpret.json", "manifest.json"}
    counts = made.manifest["counts"]
    assert counts["latents"] == 4
    assert counts["texts"] == 400
    assert counts["contexts"] == len((made.path / "contexts.jsonl").read_text().splitlines())
    assert made.json("interpret.json")["judge"] == "none"


def test_each_latent_tells_its_topic_on_texts_that_did_not_choose_it(made: Labels) -> None:
    for card, topic in zip(cards(made.path), TOPICS, strict=True):
        assert (card["label"]["key"], card["label"]["value"]) == ("topic", topic)
        assert card["label"]["auroc"]["value"] > 0.95
        assert card["raised"]
        assert len({entry["token"] for entry in (*card["raised"], *card["lowered"])}) == 20
    record = made.json("interpret.json")
    assert record["label_held_out"]["reach_0.9"] == 4
    assert abs(record["label_chance"]["median"] - 0.5) < 0.12
    assert record["label_chance"]["max"] < 0.7
    assert [card["name"] for card in cards(made.path)] == ["", "all about wind", "", ""]


def test_contexts_hold_their_peak_and_no_window_twice(made: Labels) -> None:
    rows = [json.loads(line) for line in (made.path / "contexts.jsonl").read_text().splitlines()]
    for latent, topic in enumerate(TOPICS):
        own = [row for row in rows if row["latent"] == latent]
        active = [row for row in own if row["activation"] > 0]
        assert {row["tokens"][row["peak"]].strip() for row in active} == {topic}
        assert all(topic not in "".join(row["tokens"]).split() for row in own if not row["activation"])
        windows = ["".join(row["tokens"]) for row in own]
        assert len(set(windows)) == len(windows)
        assert sum(not row["shown"] and row["kind"] == "active" for row in own) == 6
        assert sum(not row["shown"] and row["kind"] == "silent" for row in own) == 6


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_other_contexts(world: dict[str, Any], tmp_path: Path) -> None:
    first, second, other = (run(recipe(world, seed=seed), tmp_path / name) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.digest == second.digest
    assert (first.path / "contexts.jsonl").read_bytes() != (other.path / "contexts.jsonl").read_bytes()


def test_diff_and_screen_choose_latents_and_are_quoted(world: dict[str, Any], tmp_path: Path) -> None:
    moved, screened = pair(tmp_path)
    found = cards(run(recipe(world, latents=(5,), diff=moved, screen=screened, top=2, bottom=1), tmp_path / "labels").path)
    assert [card["latent"] for card in found] == [5, 2, 0, 1, 15]
    assert found[1]["moved"]["delta"] == {"all": 6.0}
    assert [row["where"] for row in found[1]["steered"]] == ["ranking", "best"]
    assert found[0]["steered"] == []
    record = {"causal": [{"latent": 9}, {"latent": 9}], "ranking": [{"latent": 2}, {"latent": None}, {"latent": 9}, {"latent": 4}]}
    (tmp_path / "screen" / "screen.json").write_text(json.dumps(record))
    assert interpreting.choose(recipe(world, latents=(), screen=screened, screened=2)) == [9, 2]


def scripted(stops: int | None = None) -> Any:
    """In place of the model: names the marked word, says YES where it stands, and dies after `stops` replies."""
    left = [stops]

    def ask(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for name, text in rows:
            if left[0] is not None:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            if "DESCRIPTION:" in text:
                yield name, "So.\nDESCRIPTION: " + re.findall("<<(.+?)>>", text)[1]
            else:
                said, seen = text.splitlines()[1], text.partition("Excerpt:")[2]
                yield name, "So.\n" + ("YES" if f" {said}" in f" {seen.split('Think')[0].strip()}" else "NO")

    return lambda *_: ask


def test_a_judge_puts_them_into_words_and_a_killed_run_goes_on(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(world, judge=f"hf:{world['root'] / 'base-weights'}")
    monkeypatch.setattr(interpreting, "asker", scripted(stops=30))
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "labels")
    reader = interpreting.read
    monkeypatch.setattr(interpreting, "read", None)
    monkeypatch.setattr(interpreting, "asker", scripted())
    found = run(asked, tmp_path / "labels")
    monkeypatch.setattr(interpreting, "read", reader)
    assert found.digest == run(asked, tmp_path / "whole").digest
    assert found.manifest["counts"]["described"] == 4
    for card, topic in zip(cards(found.path), TOPICS, strict=True):
        assert card["automatic"]["description"] == topic
        assert card["automatic"]["detection"]["balanced"]["value"] == 1
        assert card["automatic"]["control"]["balanced"]["value"] < 0.7
    assert found.json("interpret.json")["control"]["mean"] < 0.65
    assert str(tmp_path) not in json.dumps(found.json("interpret.json"))


def test_a_latent_that_never_fires_is_a_card_with_a_reason(world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = TopK(8, 32, 1)
    with torch.no_grad():
        sae.b_enc[7] = -1e9
    (tmp_path / "quiet").mkdir()
    save_dictionary(tmp_path / "quiet", sae, {"site": "block:1"})
    quiet = Dictionary(finished(tmp_path / "quiet", "Dictionary"))
    monkeypatch.setattr(interpreting, "asker", scripted())
    asked = recipe(world | {"dictionary": quiet}, latents=(7,), judge=f"hf:{world['root'] / 'base-weights'}")
    (card,) = cards(run(asked, tmp_path / "labels").path)
    assert card["firing"] == card["max"] == 0
    assert card["automatic"] == {"status": "error", "description": "", "reason": "never active on the texts"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": ()}, "no latent is chosen; give latents, a diff"),
        ({"latents": (), "screen": Screen("s"), "screened": 0}, "no latent is chosen"),
        ({"judge": "exact:w"}, "'exact:w' cannot describe anything; write hf:FOLDER, inspect:PROVIDER/MODEL or none"),
        ({"judge": "hf:"}, "cannot describe anything"),
        ({"names": ("one=x",)}, "'one=x' names no latent; write LATENT=WORDS"),
        ({"window": 0}, "window 0 is not possible"),
        ({"latents": (16,)}, "latent 16 does not exist; .* has 0 to 15"),
    ],
)
def test_what_cannot_be_is_refused(world: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(recipe(world, **change), tmp_path / "labels")


def test_texts_without_tokens_are_refused(world: dict[str, Any], tmp_path: Path) -> None:
    empty = Dataset(dataset(tmp_path / "empty", []))
    with pytest.raises(DataError, match="no text with more than one token"):
        run(recipe(world | {"texts": empty}), tmp_path / "labels")


def test_a_plan_says_what_it_costs(world: dict[str, Any]) -> None:
    assert interpret.cost(recipe(world)) == {"texts": 400}
    assert interpret.cost(recipe(world, judge="hf:x")) == {"texts": 400, "judge calls": 4 * (1 + 4 * 6)}
