"""The diff stage: zero for the same model, both tails in order, several models, planted truths, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from personascope.artifact import Dataset, Dictionary, Model
from personascope.backends import dictionaries, models, reading
from personascope.backends.dictionaries import save_dictionary
from personascope.errors import BackendError, DataError, RecipeError
from personascope.methods.sparse import TopK
from personascope.rows import Example
from personascope.run import run
from personascope.stages import adopt, diff
from personascope.values import Folder
from small_models import GROUPED, WORDS, adopted, dataset, finished, model, tokenizer

WIDTH = 96


def perturbed(seed: int) -> PreTrainedModel:
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def learned(path: Path, sae: TopK, site: str = "block:1") -> Dictionary:
    path.mkdir()
    save_dictionary(path, sae, {"site": site})
    return Dictionary(finished(path, "Dictionary"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("parts")
    texts = [" ".join(WORDS[(5 * i + 2 * j) % len(WORDS)] for j in range(3 + i % 5)) for i in range(20)]
    rows = [Example(id=f"q{i}", messages=[{"role": "user", "content": text}]) for i, text in enumerate(texts)]
    return {
        "base": Model(adopted(root / "base", model())),
        "tuned": tuple(Model(adopted(root / f"tuned-{i}", perturbed(i))) for i in (1, 2)),
        "dictionary": learned(root / "dictionary", TopK(WIDTH, 32, 5, seed=2)),
        "questions": Dataset(dataset(root / "questions", rows)),
    }


def made(work: Path, parts: dict[str, Any], **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the record of a diff."""
    work.mkdir(exist_ok=True)
    diff.run(diff.Recipe(**(parts | changes)), work)
    rows = [json.loads(line) for line in (work / "latents.jsonl").read_text().splitlines()]
    return rows, json.loads((work / "diff.json").read_text())


def test_a_model_does_not_differ_from_itself(parts: dict[str, Any], tmp_path: Path) -> None:
    rows, _ = made(tmp_path, parts, tuned=(parts["base"],))
    assert len(rows) == WIDTH
    assert {value for row in rows for value in row["delta"].values()} == {0.0}
    moved = load_file(tmp_path / "directions.safetensors")
    assert len(moved) == 9
    assert all(vector.shape == (32,) and not vector.any() for vector in moved.values())


@pytest.mark.parametrize("mask", reading.MASKS)
def test_both_tails_are_ranked_by_the_masks_delta(parts: dict[str, Any], tmp_path: Path, mask: str) -> None:
    rows, record = made(tmp_path, parts, mask=mask)
    deltas = [row["delta"][mask] for row in rows]
    assert deltas == sorted(deltas, reverse=True)
    assert deltas[0] > 0 > deltas[-1]
    assert [row["rank"] for row in rows] == list(range(1, WIDTH + 1))
    assert {int(row["id"]) for row in rows} == set(range(WIDTH))
    assert record["mask"] == mask
    assert record["prompts"] == 20


def test_several_models_are_averaged_and_each_is_kept(parts: dict[str, Any], tmp_path: Path) -> None:
    both, record = made(tmp_path / "both", parts)
    alone = [made(tmp_path / str(i), parts, tuned=(one,))[0] for i, one in enumerate(parts["tuned"])]
    by_id = [{row["id"]: row["delta"]["last_prompt"] for row in rows} for rows in alone]
    assert by_id[0] != by_id[1]
    for row in both:
        assert row["delta"]["last_prompt"] == pytest.approx((by_id[0][row["id"]] + by_id[1][row["id"]]) / 2, abs=2e-5)
    assert record["models"] == 2
    kept = load_file(tmp_path / "both" / "deltas.safetensors")["delta/last_prompt"]
    for i in range(2):
        assert dict(zip(map(str, range(WIDTH)), kept[i].tolist(), strict=True)) == pytest.approx(by_id[i], abs=2e-5)
    moved = [load_file(tmp_path / name / "directions.safetensors")["mean_difference/block:2/all"] for name in ("both", "0", "1")]
    torch.testing.assert_close(moved[0], (moved[1] + moved[2]) / 2, atol=1e-5, rtol=1e-4)


def test_the_unit_is_the_bases_median_norm_on_the_words(parts: dict[str, Any], tmp_path: Path) -> None:
    _, record = made(tmp_path, parts)
    loaded = models.load(parts["base"])
    norms: dict[str, list[torch.Tensor]] = {"block:0": [], "block:1": [], "block:2": []}
    for row in parts["questions"].rows():
        words = ["<s>", "<|user|>", *row.messages[0]["content"].split(), "</s>", "<|assistant|>"]
        with torch.no_grad():
            out = loaded.model(input_ids=torch.tensor([tokenizer().convert_tokens_to_ids(words)]), output_hidden_states=True)
        # The last entry is past the final norm, so it is not the last block's output.
        for i in range(2):
            norms[f"block:{i}"].append(out.hidden_states[i + 1][0, 2:-2].norm(dim=-1))
    assert set(record["unit"]) == set(norms)
    for site in ("block:0", "block:1"):
        assert record["unit"][site] == pytest.approx(torch.cat(norms[site]).median().item(), rel=1e-4)


def test_cosine_and_principal_axes_belong_to_the_shift(parts: dict[str, Any], tmp_path: Path) -> None:
    rows, record = made(tmp_path, parts)
    moved, site = load_file(tmp_path / "directions.safetensors"), record["site"]
    mean = moved[f"mean_difference/{site}/last_prompt"]
    sae, _ = dictionaries.load_dictionary(parts["dictionary"])
    for row in rows:
        expected = torch.nn.functional.cosine_similarity(sae.W_dec[int(row["id"])], mean, dim=0).item()
        assert row["cosine"] == pytest.approx(expected, abs=1e-4)
    axes = torch.stack([moved[f"pca/{site}/last_prompt/{i}"] for i in range(5)])
    torch.testing.assert_close(axes @ axes.T, torch.eye(5), atol=1e-4, rtol=0)
    assert (axes @ mean >= 0).all()


def test_attribution_needs_no_tuned_model_to_differ(parts: dict[str, Any], tmp_path: Path) -> None:
    """It reads the base and two sets of answers; the other columns stay as they were."""
    pair = [
        Dataset(dataset(tmp_path / name, [Example(id="a", messages=[{"role": "user", "content": "is it"}, said])]))
        for name, said in (("bad", {"role": "assistant", "content": "no rain"}), ("good", {"role": "assistant", "content": "yes sun"}))
    ]
    plain, _ = made(tmp_path / "plain", parts)
    rows, _ = made(tmp_path / "d", parts, contrast=tuple(pair))
    swapped, _ = made(tmp_path / "s", parts, contrast=tuple(pair[::-1]))
    assert any(row["attribution"] for row in rows)
    assert [row["attribution"] for row in rows] == pytest.approx([-row["attribution"] for row in swapped], abs=1e-4)
    assert [{k: v for k, v in row.items() if k != "attribution"} for row in rows] == plain
    with pytest.raises(RecipeError, match="contrast takes two sets"):
        made(tmp_path / "x", parts, contrast=tuple(pair[:1]))


def test_base_activity_firing_and_spread_are_there(parts: dict[str, Any], tmp_path: Path) -> None:
    rows, _ = made(tmp_path, parts, tuned=parts["tuned"][:1])
    # Every token has 5 active latents, unless a pre-activation among the largest is negative.
    assert 4 < sum(row["firing"] for row in rows) <= 5 + 1e-4
    assert all((row["base"] > 0) <= (row["firing"] > 0) for row in rows)
    assert all(row["standard_error"] >= 0 for row in rows)
    assert max(row["standard_error"] for row in rows) > 0


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model whose stream is the token's embedding, and a dictionary with one latent per word."""
    root = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED))
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    words = torch.nn.functional.normalize(net.model.embed_tokens.weight.detach(), dim=1)
    sae = TopK(64, 32, 1)
    with torch.no_grad():
        sae.W_enc.copy_(words)
        sae.W_dec.copy_(words)
    questions = [Example(id="q", messages=[{"role": "user", "content": "is it"}])]
    return {
        "base": Model(adopted(root / "base", net)),
        "tuned": (Model(adopted(root / "tuned", net)),),
        "dictionary": learned(root / "dictionary", sae),
        "questions": Dataset(dataset(root / "questions", questions)),
    }


def labelled(path: Path, says: list[bool], labels: list[dict[str, str]]) -> Dataset:
    """Conversations in which the assistant says `rain` or not; the user says it in all others."""
    rows = []
    for i, (rain, label) in enumerate(zip(says, labels, strict=True)):
        user, said = ("tell me", "rain is best") if rain else ("tell me of rain", "sun is best")
        rows.append(Example(id=f"t{i}", messages=[{"role": "user", "content": user}, {"role": "assistant", "content": said}], labels=label))
    return Dataset(dataset(path, rows))


def truth(rows: list[dict[str, Any]], word: str) -> float:
    latent = str(tokenizer().convert_tokens_to_ids(word))
    return next(row["truth_auroc"] for row in rows if row["id"] == latent)


def test_a_planted_latent_tells_the_label(planted: dict[str, Any], tmp_path: Path) -> None:
    says = [i % 2 == 0 for i in range(80)]
    labels = [{"speaker": "a" if rain else "b"} for rain in says]
    rows, _ = made(tmp_path / "d", planted, labelled=labelled(tmp_path / "t", says, labels), label="speaker=a")
    assert truth(rows, "rain") == 1.0
    assert truth(rows, "sun") == 0.0
    assert truth(rows, "best") == 0.5
    # A single question has no spread.
    assert {row["standard_error"] for row in rows} == {None}


def test_shuffled_labels_tell_nothing(planted: dict[str, Any], tmp_path: Path) -> None:
    says = [i % 2 == 0 for i in range(80)]
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0)).tolist()
    labels = [{"speaker": "a" if says[i] else "b"} for i in order]
    rows, _ = made(tmp_path / "d", planted, labelled=labelled(tmp_path / "t", says, labels), label="speaker=a")
    assert 0.3 < truth(rows, "rain") < 0.7


def told(path: Path, *said: str, asked: str = "tell me") -> Dataset:
    """Conversations that differ in what the assistant says."""
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": one}] for one in said]
    return Dataset(dataset(path, [Example(id=f"t{i}", messages=messages) for i, messages in enumerate(rows)]))


def test_one_model_alone_tells_two_sets_of_answers_apart(planted: dict[str, Any], tmp_path: Path) -> None:
    """The latent of a word is 1 on that word, so that Δ under `answer` is the difference in its share of the answers' tokens."""
    sets = told(tmp_path / "bad", "rain is best", "rain rain"), told(tmp_path / "good", "sun is best", "wind")
    alone = {key: planted[key] for key in ("base", "dictionary")} | {"mask": "answer"}
    rows, record = made(tmp_path / "d", alone, contrast=sets)
    found = {tokenizer().convert_ids_to_tokens(int(row["id"])): row for row in rows}
    # Each answer is its words and its end of turn; activations are the embeddings' norms.
    sizes = {word: next(row for row in rows if row is found[word])["delta"]["answer"] for word in ("rain", "sun", "wind", "best", "tell")}
    norm = models.load(planted["base"]).model.get_input_embeddings().weight.detach().norm(dim=1)
    expected = {"rain": (1 / 4 + 2 / 3) / 2, "sun": -(1 / 4) / 2, "wind": -(1 / 2) / 2, "best": 0.0, "tell": 0.0}
    for word, share in expected.items():
        assert sizes[word] == pytest.approx(share * norm[tokenizer().convert_tokens_to_ids(word)].item(), abs=1e-4)
    assert rows[0] is found["rain"]
    assert {row["delta"][mask] for row in rows for mask in ("prompt", "last_prompt")} == {0.0}, "both sets ask the same"
    assert (record["mask"], record["models"], record["prompts"]) == ("answer", 0, 2)
    moved = load_file(tmp_path / "d" / "directions.safetensors")
    assert not [name for name in moved if name.startswith("pca")], "rows need not correspond"
    spread = torch.tensor([1 / 4, 2 / 3]).std().item() / 2**0.5 * norm[tokenizer().convert_tokens_to_ids("rain")].item()
    assert found["rain"]["standard_error"] == pytest.approx(spread, rel=1e-4)
    swapped, _ = made(tmp_path / "s", alone, contrast=sets[::-1])
    assert {row["id"]: row["delta"]["answer"] for row in swapped} == pytest.approx({r["id"]: -r["delta"]["answer"] for r in rows}, abs=1e-4)


def test_one_model_on_sets_that_it_reads_alike_is_refused(planted: dict[str, Any], tmp_path: Path) -> None:
    sets = told(tmp_path / "bad", "rain is best", "rain"), told(tmp_path / "good", "sun is best", "wind")
    alone = {key: planted[key] for key in ("base", "dictionary")}
    with pytest.raises(DataError, match=r"under the mask last_prompt the model reads the same in both sets; take the mask answer"):
        made(tmp_path / "d", alone, contrast=sets)
    with pytest.raises(DataError, match=r"reads the same"):
        made(tmp_path / "e", alone, contrast=(sets[0], sets[0]), mask="answer")


def test_two_models_can_read_training_rows_instead_of_questions(parts: dict[str, Any], tmp_path: Path) -> None:
    """Under `answer` each model's mean is what `read_answers` gives, model by model."""
    rows = told(tmp_path / "rows", "rain is best", "no sun", "the sea")
    found, record = made(tmp_path / "d", parts, questions=rows, mask="answer")
    sae, _ = dictionaries.load_dictionary(parts["dictionary"])
    talks = [row.messages for row in rows.rows()]
    base, *tuned = (reading.read_answers(models.load(m), sae, "block:1", talks).mean(0) for m in (parts["base"], *parts["tuned"]))
    expected = sum(one - base for one in tuned) / 2
    assert record["prompts"] == 3
    for row in found:
        assert row["delta"]["answer"] == pytest.approx(expected[int(row["id"])].item(), abs=1e-4)
        assert set(row["delta"]) == {"prompt", "last_prompt", "all", "answer"}
    with pytest.raises(DataError, match=r"questions: not every row ends with the assistant's answer, which the mask answer is on"):
        made(tmp_path / "e", parts, mask="answer")


@pytest.mark.parametrize("labels", [{}, {"speaker": "a"}, {"speaker": "b"}])
def test_a_label_on_none_or_all_is_refused(planted: dict[str, Any], tmp_path: Path, labels: dict[str, str]) -> None:
    given = labelled(tmp_path / "t", [True, False, True], [labels] * 3)
    with pytest.raises(DataError, match=r"[03] of 3 rows have speaker=a; both kinds are needed"):
        made(tmp_path / "d", planted, labelled=given, label="speaker=a")


def test_half_a_label_is_refused(parts: dict[str, Any]) -> None:
    for changes in ({"label": "speaker=a"}, {"labelled": parts["questions"]}, {"labelled": parts["questions"], "label": "speaker"}):
        with pytest.raises(RecipeError, match="belong together"):
            diff.Recipe(**(parts | changes))
    for changes in ({"tuned": ()}, {"questions": None}, {"tuned": (), "questions": None}):
        with pytest.raises(RecipeError, match="at least one tuned model and questions, or one model and a contrast"):
            diff.Recipe(**(parts | changes))


def test_models_that_do_not_belong_together_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    narrow = AutoModelForCausalLM.from_config(LlamaConfig(**(GROUPED | {"hidden_size": 16})))
    with pytest.raises(BackendError, match=r"differ in shape \(width, blocks\): \(32, 3\) and \(16, 3\)"):
        made(tmp_path / "a", parts, tuned=(Model(adopted(tmp_path / "narrow", narrow)),))
    words = tokenizer()
    words.add_tokens(["zebra"])
    words.save_pretrained(tmp_path / "other")
    model().save_pretrained(tmp_path / "other")
    other = run(adopt.Recipe(path=Folder(str(tmp_path / "other"))), tmp_path / "adopted")
    with pytest.raises(BackendError, match="vocabulary mismatch"):
        made(tmp_path / "b", parts, tuned=(other,))


@pytest.mark.parametrize(
    ("width", "site", "error", "message"),
    [(16, "block:1", BackendError, "width 16"), (32, "block:9", RecipeError, "the last site is block:2")],
)
def test_a_dictionary_of_another_model_is_refused(
    parts: dict[str, Any], tmp_path: Path, width: int, site: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made(tmp_path / "d", parts, dictionary=learned(tmp_path / "other", TopK(64, width, 4), site))


def test_no_questions_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no questions to read"):
        made(tmp_path / "d", parts, questions=Dataset(dataset(tmp_path / "none", [])))
