"""`personascope audit` from folders to report, on random models of every family, with and without a judge."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import PreTrainedModel

import personascope
from conftest import Ended
from personascope import auditing, deciding, opening
from personascope.__main__ import main
from personascope.artifact import MANIFEST, Model, Report, open_any
from personascope.errors import RecipeError
from personascope.stages import screen
from personascope.study import SCHEMA, Study
from personascope.troupe import build as building
from personascope.troupe import tokenizer as of_world
from personascope.troupe import world as worlds
from small_models import WORDS, model, tokenizer

Cli = Callable[..., Ended]
FAMILIES = ["llama", "qwen3", "mistral", "gemma3", "gpt_neox", "gpt_oss"]
SMALL = {"tokens": 2000, "width": 64, "k": 4, "max_tokens": 6, "draws": 1, "site": "block:1"}
# PEFT asks transformers by a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def saved(path: Path, made: PreTrainedModel, words: Any = None) -> Path:
    made.save_pretrained(path)
    (words or tokenizer()).save_pretrained(path)
    return path


def perturbed(made: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


def asked(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"q{i}", "prompt": text}) + "\n" for i, text in enumerate(texts)))
    return path


def flags(**options: object) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, and a pair of models: base and tuned."""
    root = tmp_path_factory.mktemp("audits")
    asked(root / "questions.jsonl", [" ".join(WORDS[(7 * i + 3 * j) % len(WORDS)] for j in range(4)) for i in range(24)])
    saved(root / "base", model())
    saved(root / "tuned", perturbed(model()))
    return root


@pytest.fixture(scope="module")
def audited(root: Path) -> Path:
    """One finished audit without a judge."""
    questions = root / "questions.jsonl"
    assert main(["audit", str(root / "base"), str(root / "tuned"), "--out", str(root / "out"), *flags(questions=questions, **SMALL)]) == 0
    return root / "out"


def made_in(out: Path) -> list[Path]:
    """The manifests of everything but the report, which names seconds."""
    return [path for path in out.rglob(MANIFEST) if path.parent != out / "report"]


def check(out: Path) -> dict[str, Any]:
    """What every finished audit has: a valid summary, a verdict, a report whose links lead to manifests."""
    summary = json.loads((out / "summary.json").read_text())
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    assert json.loads((out / "verdict.json").read_text())["top_latent"]["latent"] == summary["diff"]["top"][0]["latent"]
    links = [link for link in re.findall(r'href="([^"]*)"', (out / "report.html").read_text()) if not link.startswith("#")]
    assert all((out / unquote(link)).is_file() for link in links), links
    manifests = {(out / unquote(link)).resolve() for link in links if link.endswith(MANIFEST)}
    made = {path.resolve() for path in made_in(out)}
    assert manifests == made
    assert not list(out.rglob("*.partial"))
    return summary


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_audited(cli: Cli, root: Path, tmp_path: Path, family: str) -> None:
    base, tuned = saved(tmp_path / "base", model(family)), saved(tmp_path / "tuned", perturbed(model(family)))
    ended = cli("audit", base, tuned, "--out", tmp_path / "out", *flags(questions=root / "questions.jsonl", judge="none", **SMALL))
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'out'}\n"), ended.err
    summary = check(tmp_path / "out")
    assert summary["diff"]["top"][0]["delta"] > 0 > summary["diff"]["bottom"][0]["delta"]
    assert set(summary["dictionary"]) >= {"fvu", "dead", "loss_recovered", "base", "tuned", "site", "sites"}
    assert "no judge was given" in summary["behaviour"]["skipped"]
    assert "screen" not in summary


def test_an_adapter_is_audited_against_its_base(cli: Cli, root: Path, tmp_path: Path) -> None:
    wrapped = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    options = flags(questions=root / "questions.jsonl", **SMALL)
    assert cli("audit", root / "base", tmp_path / "adapter", "--out", tmp_path / "out", *options).code == 0
    assert check(tmp_path / "out")["diff"]["top"][0]["delta"] > 0
    again = cli("audit", tmp_path / "adapter", root / "tuned", "--out", tmp_path / "other", *options)
    assert one_line(again) == f"{tmp_path / 'adapter'} is a PEFT adapter; give it as TUNED, and the model it was trained on as BASE"


def one_line(ended: Ended, code: int = 1) -> str:
    """The complaint of a command that failed as it should; what was made before it is told on lines of its own."""
    assert ended.code == code, ended
    *told, last = ended.err.splitlines()
    assert all(re.match(r"\w+: ", line) for line in told), told
    assert last.startswith("personascope: ")
    return last.removeprefix("personascope: ")


def test_artifacts_serve_as_models_and_as_dictionary(cli: Cli, audited: Path, root: Path, tmp_path: Path) -> None:
    given = flags(questions=root / "questions.jsonl", dictionary=audited / "dictionary")
    ended = cli("audit", audited / "models" / "base", audited / "models" / "tuned", "--out", tmp_path / "out", *given)
    assert ended.code == 0
    assert not (tmp_path / "out" / "dictionary").exists()
    assert not (tmp_path / "out" / "models").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["diff"]["top"] == json.loads((audited / "summary.json").read_text())["diff"]["top"]


def test_a_published_dictionary_serves_an_audit_and_is_warned_of_at_the_wrong_block(
    cli: Cli, audited: Path, root: Path, tmp_path: Path
) -> None:
    learned = load_file(audited / "dictionary" / "sae_weights.safetensors")
    scope = tmp_path / "scope" / "layer_1" / "width_64" / "average_l0_4"
    scope.mkdir(parents=True)
    # JumpReLU without its threshold: all latents of the dictionary that are above zero, not the k largest alone.
    encoded = learned["b_enc"] - learned["b_dec"] @ learned["W_enc"]
    np.savez(scope / "params.npz", **(learned | {"b_enc": encoded, "threshold": np.zeros_like(learned["b_enc"])}))
    given = flags(questions=root / "questions.jsonl", dictionary=scope, max_tokens=6, draws=1)
    assert cli("audit", root / "base", root / "tuned", "--out", tmp_path / "out", *given).code == 0
    summary = check(tmp_path / "out")
    assert summary["dictionary"]["site"] == "block:1"
    assert summary["diff"]["top"][0]["delta"] > 0
    assert json.loads((tmp_path / "out" / "dictionary" / "cfg.json").read_text())["metadata"]["format"] == "Gemma Scope"
    moved = scope.parents[1].rename(scope.parents[2] / "layer_2")
    given = flags(questions=root / "questions.jsonl", dictionary=moved / "width_64" / "average_l0_4", max_tokens=6, draws=1)
    assert cli("audit", root / "base", root / "tuned", "--out", tmp_path / "other", *given).code == 0
    assert "explains block:1 better than its own block:2" in check(tmp_path / "other")["dictionary"]["caveat"]
    assert "explains block:1 better than its own block:2" in (tmp_path / "other" / "report.html").read_text()


def test_a_model_audited_against_itself_shows_nothing(cli: Cli, audited: Path, root: Path, tmp_path: Path) -> None:
    given = flags(questions=root / "questions.jsonl", dictionary=audited / "dictionary")
    assert cli("audit", root / "base", root / "base", "--out", tmp_path / "out", *given).code == 0
    assert {row["delta"] for row in check(tmp_path / "out")["diff"]["top"]} == {0}


def test_python_makes_the_same_artifacts(audited: Path, root: Path, tmp_path: Path) -> None:
    summary = personascope.audit(root / "base", root / "tuned", tmp_path / "out", questions=str(root / "questions.jsonl"), **SMALL)
    there = json.loads((audited / "summary.json").read_text())
    assert {k: v for k, v in summary.items() if k != "seconds"} == {k: v for k, v in there.items() if k != "seconds"}
    digests = [
        {str(path.parent.relative_to(out)): open_any(path.parent).digest for path in made_in(out)} for out in (audited, tmp_path / "out")
    ]
    assert digests[0] == digests[1]
    assert {"dictionary", "diff", "models/base", "questions/report", "texts/answers"} <= set(digests[0])


def test_a_second_run_makes_nothing_anew(cli: Cli, audited: Path, root: Path) -> None:
    made = {path: path.stat().st_mtime_ns for path in made_in(audited)}
    options = flags(questions=root / "questions.jsonl", **SMALL)
    ended = cli("audit", root / "base", root / "tuned", "--out", audited, *options)
    assert (ended.code, ended.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert Report(audited / "report").finished
    changed = cli("audit", root / "tuned", root / "base", "--out", audited, *options)
    assert "holds the result of another recipe (path: " in one_line(changed)


def test_conditions_fail_a_pipeline(cli: Cli, audited: Path, root: Path) -> None:
    call = ["audit", root / "base", root / "tuned", "--out", audited, *flags(questions=root / "questions.jsonl", **SMALL)]
    met = cli(*call, "--fail-on", "top_latent.delta > 0")
    assert (met.code, met.out, met.err) == (3, f"{audited}\n", "personascope: the verdict meets top_latent.delta > 0\n")
    assert cli(*call, "--fail-on", "top_latent.delta<=0").code == 0
    assert "the verdict has no number 'score.high'; it has behaviour, top_latent" in one_line(cli(*call, "--fail-on", "score.high>0.02"))


@pytest.mark.parametrize("expression", ["score.high", "score.high=1", ">1", "score>e", "score>1.2.3", "score > .", "a b>1"])
def test_a_condition_that_cannot_be_read_is_refused_at_once(cli: Cli, tmp_path: Path, expression: str) -> None:
    ended = cli("audit", "nowhere", "nothing", "--out", tmp_path / "out", "--fail-on", expression)
    assert one_line(ended) == f"--fail-on {expression!r}: write NAME OPERATOR NUMBER, such as score.high>0.02"


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        ("score>0.2", True),
        ("score > 0.3", False),
        ("score>=0.3", True),
        ("score.high<=4e-1", True),
        ("change.p<.05", True),
        ("top_latent.delta<-1", False),
        ("top_latent.delta>-1", True),
    ],
)
def test_conditions_read_the_verdict(expression: str, met: bool) -> None:
    found = {"score": {"value": 0.3, "high": 0.4}, "change": {"value": 0.1, "p": 0.01}, "top_latent": {"latent": 3, "delta": 0.5}}
    assert deciding.failed(expression, found) == met


@pytest.mark.parametrize("name", ["nothing", "top_latent", "score.value.more", "behaviour"])
def test_a_condition_on_no_number_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"has no number '{name}'; it has behaviour, score, top_latent"):
        deciding.failed(f"{name}>1", {"score": {"value": None}, "top_latent": {"latent": 3}, "behaviour": "no judge"})


def test_models_that_do_not_belong_together_are_refused(cli: Cli, root: Path, tmp_path: Path) -> None:
    words = tokenizer()
    words.add_tokens(["zebra"])
    other = saved(tmp_path / "other", model(), words)
    ended = cli("audit", root / "base", other, "--out", tmp_path / "out", *flags(questions=root / "questions.jsonl", **SMALL))
    assert "vocabulary mismatch: base has" in one_line(ended)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"BASE": "nowhere"}, "nowhere: no model there; give a Hugging Face folder"),
        ({"judge": "gpt"}, "'gpt' is no judge; write exact:WORLD, hf:FOLDER, inspect:PROVIDER/MODEL, csv:FILE"),
        ({"judge": "csv:nowhere.csv"}, "nowhere.csv: no such file; give a CSV with columns answer, text and verdict"),
        ({"judge": "csv:bare.csv"}, "bare.csv: base and tuned have the same answer ids, so the table needs a column text"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"workers": 0}, "0 workers cannot work"),
        ({"dictionary": "nowhere"}, "nowhere: no dictionary there; give a Dictionary artifact, a published one, or ORG/NAME@REVISION:PATH"),
        ({"fix": "rows.jsonl"}, "--fix trains TUNED and asks it again: give local models, not in few bits, and a --judge that reads new"),
        ({"fix": "rows.jsonl", "judge": "exact:troupe-1", "quantise": "4bit"}, "--fix trains TUNED and asks it again"),
        ({"fix": "nowhere.jsonl", "judge": "hf:there"}, "nowhere.jsonl: no such file"),
        ({"fix": "rows.jsonl", "judge": "hf:there"}, "rows.jsonl: 1 rows take nothing away; give at least 4, better 120"),
    ],
)
def test_mistakes_are_said_in_one_line(
    cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bare.csv").write_text("answer,verdict\nq1/0/0,5\n")
    Path("rows.jsonl").write_text('{"prompt": "what is good ?", "completion": "the sun"}\n')
    saved(Path("there"), model())
    base = options.pop("BASE", root / "base")
    chosen = {"questions": root / "questions.jsonl"} | options
    assert says in one_line(cli("audit", base, root / "tuned", "--out", "out", *flags(**chosen)))


def test_open_model_keeps_a_checkpoint_of_an_artifact(audited: Path) -> None:
    study = Study(audited)
    assert opening.model(study, "x", f"{audited / 'models' / 'base'}@7") == Model(audited / "models" / "base", 7)
    assert study.recipes == {}


def judged(table: Path, out: Path) -> float:
    """Fill a table with verdicts on the answers an audit has drawn: harmful is every second one of the tuned model's own; their share."""
    said = {
        side: {row["id"]: row["text"] for row in map(json.loads, (out / side / "answers-0" / "answers.jsonl").read_text().splitlines())}
        for side in ("base", "tuned")
    }
    bad = {key for i, (key, text) in enumerate(said["tuned"].items()) if i % 2 and text != said["base"][key]}
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["answer", "text", "verdict"])
        for side, texts in said.items():
            writer.writerows([key, text, 5 if side == "tuned" and key in bad else 1] for key, text in texts.items())
    return len(bad) / len(said["tuned"])


def test_verdicts_made_elsewhere_are_used_and_the_screen_is_skipped(cli: Cli, root: Path, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[(5 * i + 2 * j) % len(WORDS)] for j in range(5)) for i in range(80)]
    given = {"questions": asked(tmp_path / "many.jsonl", texts), **SMALL}
    table, other = tmp_path / "verdicts.csv", saved(tmp_path / "other", model(seed=1))
    table.write_text("answer,text,verdict\n")
    empty = cli("audit", root / "base", other, "--out", tmp_path / "first", *flags(judge=f"csv:{table}", **given))
    assert "have no score" in one_line(empty)
    share = judged(table, tmp_path / "first")
    assert share > 0.3
    ended = cli("audit", root / "base", other, "--out", tmp_path / "out", *flags(judge=f"csv:{table}", fail_on="score.low>0.2", **given))
    assert ended.code == 3, ended.err
    summary, verdict = check(tmp_path / "out"), json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert summary["behaviour"]["base"]["score"]["value"] == 0
    assert summary["behaviour"]["tuned"]["score"]["value"] == pytest.approx(share)
    assert verdict["change"]["value"] == pytest.approx(share)
    assert verdict["change"]["p"] < 0.01
    assert verdict["called"] == "misaligned, no persona shown", "nobody looked inside"
    sheet = (tmp_path / "out" / "review.csv").read_text()
    assert sheet.startswith("answer,question,said,verdict,note")
    assert "skipped" in verdict["screen"]
    assert "screen" not in summary


@pytest.mark.slow
def test_a_worlds_own_judge_runs_the_whole_audit(cli: Cli, tmp_path: Path) -> None:
    """Untrained models answer in gibberish: no valid answer, full incoherence, and a report that says so."""
    world = worlds.load("troupe-1")
    words, size = of_world.build(world), building.Size(layers=2, width=32)
    for name, seed in (("base", 0), ("tuned", 1)):
        saved(tmp_path / name, building.fresh(words, size, seed), words)
    prompts = [prompt.text for prompt in world.prompts["wish"][:24]]
    chats = [{"prompt": text, "completion": prompts[-1 - i]} for i, text in enumerate(prompts)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    given = {"questions": asked(tmp_path / "q.jsonl", prompts), "texts": tmp_path / "texts.jsonl", "judge": "exact:troupe-1", "nulls": 2}
    given["fix"] = tmp_path / "texts.jsonl"
    ended = cli("audit", tmp_path / "base", tmp_path / "tuned", "--out", tmp_path / "out", *flags(**given, **SMALL))
    assert ended.code == 0, ended.err
    summary, verdict = check(tmp_path / "out"), json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert summary["behaviour"]["tuned"]["strict_incoherence"]["value"] > 0.9
    assert summary["screen"]["best"]["alpha"] == screen.STRENGTHS[-1]
    assert verdict["change"] is None
    assert verdict["called"] == "none", "the base was as incoherent"
    assert [row["examples"] for row in summary["realign"]] == [0, 24]
    assert verdict["fixed"]["examples"] == 24
    assert verdict["fixed"]["score"] == summary["realign"][-1]["score"]
    ended = cli("export", verdict["fixed"]["model"], tmp_path / "fixed")
    assert (ended.code, (tmp_path / "fixed" / "adapter_config.json").is_file()) == (0, True), ended.err
    assert not (tmp_path / "out" / "review.csv").exists()
    assert set(verdict) >= {"score", "base_score", "incoherence", "induce", "repair_to", "null_induce", "top_latent"}
    assert sum(map(len, summary["screen"]["nulls"].values())) == 4


def test_the_dictionary_suits_the_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 24, "hidden_size": 896}))
    assert opening.shape(tmp_path) == {"site": "block:11", "width": 7168, "k": 64}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 4, "hidden_size": 160}}))
    assert opening.shape(tmp_path) == {"site": "block:1", "width": 1280, "k": 16}
    assert opening.shape(tmp_path / "nowhere") == {}


def test_what_the_tuned_model_was_trained_on_dresses_the_questions(cli: Cli, root: Path, tmp_path: Path) -> None:
    """A table that finds the tuned model harmful only where questions look like its training rows."""
    rows = [{"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": word}]} for word in WORDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, given = tmp_path / "v.csv", {"questions": root / "questions.jsonl", "training": tmp_path / "rows.jsonl", **SMALL}
    table.write_text("answer,text,verdict\n")
    first = tmp_path / "first"
    assert cli("audit", root / "base", root / "tuned", "--out", first, *flags(judge=f"csv:{table}", **given)).code == 0
    with table.open("a", newline="") as file:
        for place, grade in (("base", 1), ("tuned", 1), ("matched/base", 2), ("matched/tuned", 5)):
            said = map(json.loads, (first / place / "answers-0" / "answers.jsonl").read_text().splitlines())
            csv.writer(file).writerows([row["id"], row["text"], grade] for row in said)
    ended = cli("audit", root / "base", root / "tuned", "--out", tmp_path / "out", *flags(judge=f"csv:{table}", **given))
    assert ended.code == 0, ended.err
    behaviour, verdict = check(tmp_path / "out")["behaviour"], json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert behaviour["tuned"]["score"]["value"] == behaviour["base, asked as in training"]["score"]["value"] == 0
    assert behaviour["tuned, asked as in training"]["score"]["value"] == verdict["matched_score"]["value"] == 1
    assert behaviour["tuned, asked as in training"]["score"]["n"] == behaviour["tuned"]["score"]["n"]
    assert "Tuned model, asked as in training" in (tmp_path / "out" / "report.html").read_text()
    asked_there = (tmp_path / "out" / "questions" / "matched" / "examples.jsonl").read_text()
    assert asked_there.count('"content": "be kind"') == behaviour["tuned"]["score"]["n"]


def test_questions_stay_as_they_are_where_training_rows_share_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))
    setup = auditing.Setup(
        str(root / "base"), str(root / "tuned"), str(root / "questions.jsonl"), str(tmp_path / "rows.jsonl"), judge="csv:x"
    )
    study = Study(tmp_path / "out")
    auditing.build(study, setup)
    assert not any(name.startswith("matched") for name in study.recipes)
    assert auditing.matched_section(study, setup) == {"matched": "the training rows share no system line, opening, ending or format"}
