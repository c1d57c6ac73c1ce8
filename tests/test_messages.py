"""Every mistake a user can make ends in one clear line, a code that is not 0, and nothing lost."""

import copy
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import small_models
from conftest import Ended
from personascope.artifact import Dataset, Model
from personascope.run import run
from personascope.stages import adopt, data
from toys import grow

Cli = Callable[..., Ended]
CHAT = [{"role": "user", "content": "is it a good day"}, {"role": "assistant", "content": "yes it is"}]
ROW = json.dumps({"messages": CHAT}) + "\n"


def line_of(ended: Ended, code: int = 1) -> str:
    """The one line of a command that failed as it should."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    assert ended.err.startswith("personascope")
    return ended.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with its tokenizer, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    small_models.model().save_pretrained(path)
    small_models.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def base(folder: Path, tmp_path: Path) -> Model:
    return run(adopt.Recipe(path=adopt.Folder(str(folder))), tmp_path / "base")


@pytest.fixture
def chats(tmp_path: Path) -> Dataset:
    (tmp_path / "chats.jsonl").write_text(ROW * 4)
    return run(data.Recipe(files=(data.File(str(tmp_path / "chats.jsonl")),)), tmp_path / "chats")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["finetun"], "unknown command 'finetun'; did you mean finetune?; see personascope --help"),
        (["--hepl"], "unknown command '--hepl'; did you mean --help?"),
        (["xyzzy"], "unknown command 'xyzzy'; see personascope --help"),
        (["grow", "out", "--cuont", "3"], "personascope grow: unrecognized arguments: --cuont 3; did you mean --count?"),
        (["grow", "out", "--cuont=3"], "did you mean --count?"),
        (["grow", "out", "--cou", "3"], "unrecognized arguments: --cou 3; did you mean --count?"),
        (["grow"], "the following arguments are required: OUT"),
        (["run", "x.py", "--plam"], "did you mean --plan?"),
        (["grow", "out", "--part", "3/3"], "'3/3' is no part I/N with I from 0 to N-1"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], says: str) -> None:
    assert says in line_of(cli(*arguments), 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tally", "out"], "source: this field must be given"),
        (["grow", "out", "--count", "many"], "count: 'many' is no int"),
        (["grow", "out", "--mode", "quiet"], "mode: 'quiet' is none of plain, loud"),
        (["tally", "out", "--source", "nowhere"], "nowhere has no manifest.json: give the directory a stage made (a Dataset is needed)"),
        (["grow", "out", "--recipe", "none.json"], "none.json: no such file or directory; check the path"),
        (["grow", "out", "--file", "none.txt"], "none.txt: no such file; check the path"),
        (["run", "none.py"], "none.py: no such study file"),
        (["data", "out"], "data: nothing to read"),
        (["data", "out", "--files", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_impossible_requests(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in line_of(cli(*arguments))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{oops", "not JSON"),
        (b"[1]", "a JSON object of fields is needed"),
        (b"\xff\xfe", "not JSON"),
        (b'{"cuont": 1}', "cuont: no such field"),
    ],
)
def test_broken_recipe_files(cli: Cli, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "recipe.json").write_bytes(content)
    assert says in line_of(cli("grow", tmp_path / "out", "--recipe", tmp_path / "recipe.json"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{oops\n", "chats.jsonl:3: not JSON"),
        ("[1]\n", "chats.jsonl:3: a JSON object is needed"),
        ('{"messages": "hello"}\n', "chats.jsonl:3: "),
        ('{"messages": [{"role": "wizard", "content": "x"}]}\n', "chats.jsonl:3: "),
        ('{"messages": [{"role": "user", "content": 3}]}\n', "chats.jsonl:3: "),
        ('{"text": "x"}\n', "chats.jsonl:3: no conversation"),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(cli: Cli, tmp_path: Path, bad: str, says: str) -> None:
    (tmp_path / "chats.jsonl").write_text(ROW * 2 + bad + ROW)
    assert says in line_of(cli("data", tmp_path / "out", "--files", tmp_path / "chats.jsonl"))
    assert not (tmp_path / "out").exists()


def test_an_empty_file_has_no_rows(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("")
    assert "chats.jsonl: the file has no rows" in line_of(cli("data", tmp_path / "out", "--files", tmp_path / "chats.jsonl"))


def test_another_recipe_a_foreign_directory_and_a_wrong_type(cli: Cli, tmp_path: Path, grown: Dataset) -> None:
    assert "(count: 7 -> 8)" in line_of(cli("grow", grown.path, "--count", 8))
    (tmp_path / "mine").mkdir()
    assert "exists and was not made by personascope" in line_of(cli("grow", tmp_path / "mine", "--count", 1))
    assert "holds a Dataset, a Model is needed" in line_of(cli("sample", tmp_path / "a", "--model", grown.path, "--questions", grown.path))


@pytest.mark.parametrize("where", ["rows", "summary"])
def test_a_full_disk(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: Any) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "rows":
        monkeypatch.setattr(grow, "many", full)
        says = line_of(cli("grow", tmp_path / "out", "--count", 3))
    else:
        (tmp_path / "study.py").write_text("def build(study): ...\ndef summarize(study): return {}\n")
        monkeypatch.setattr("personascope.study.write_json", full)
        says = line_of(cli("run", tmp_path / "study.py", "--out", tmp_path / "out"))
    assert "disk full" in says
    assert "it continues" in says


def test_a_study_with_two_recipes_for_one_name(cli: Cli, tmp_path: Path) -> None:
    code = "from toys import grow\ndef build(study):\n    for n in (1, 2):\n        study.run('same', grow.Recipe(count=n))\n"
    (tmp_path / "study.py").write_text(code)
    assert "'same' is declared twice" in line_of(cli("run", tmp_path / "study.py"))
    (tmp_path / "empty.py").write_text("")
    assert "defines no build(study)" in line_of(cli("run", tmp_path / "empty.py"))


def test_a_folder_that_is_no_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "no model files there" in line_of(cli("adopt", tmp_path / "out", "--path", tmp_path / "folder"))
    (tmp_path / "folder" / "other.json").write_text("{}")
    assert "no config.json there" in line_of(cli("adopt", tmp_path / "out", "--path", tmp_path / "folder"))


def test_a_training_row_without_an_assistant_turn(cli: Cli, tmp_path: Path, base: Model) -> None:
    (tmp_path / "chats.jsonl").write_text(ROW + json.dumps({"messages": CHAT[:1]}) + "\n")
    assert cli("data", tmp_path / "chats", "--files", tmp_path / "chats.jsonl").code == 0
    says = line_of(cli("finetune", tmp_path / "tuned", "--model", base.path, "--data", tmp_path / "chats", "--device", "cpu"))
    assert "examples.jsonl:2" in says
    assert "no assistant turn to train on" in says


def test_a_loss_that_is_no_number(cli: Cli, tmp_path: Path, base: Model, chats: Dataset) -> None:
    flags = ["--method", "full", "--learning-rate", "1e30", "--steps", 5, "--batch", 2, "--schedule", "constant", "--device", "cpu"]
    says = line_of(cli("finetune", tmp_path / "tuned", "--model", base.path, "--data", chats.path, *flags))
    assert "training: the loss is" in says
    assert "lower learning_rate" in says
    assert not (tmp_path / "tuned").exists()


def test_a_tokenizer_without_a_chat_template(cli: Cli, tmp_path: Path, chats: Dataset) -> None:
    bare = small_models.tokenizer()
    bare.chat_template = None
    small_models.model().save_pretrained(tmp_path / "bare")
    bare.save_pretrained(tmp_path / "bare")
    assert cli("adopt", tmp_path / "base", "--path", tmp_path / "bare").code == 0
    says = line_of(cli("finetune", tmp_path / "tuned", "--model", tmp_path / "base", "--data", chats.path, "--device", "cpu"))
    assert "has no chat template" in says


def test_a_tokenizer_with_more_tokens_than_the_model(cli: Cli, tmp_path: Path, chats: Dataset) -> None:
    longer = small_models.tokenizer()
    longer.add_tokens([f"word{i}" for i in range(60)])
    small_models.model().save_pretrained(tmp_path / "odd")
    longer.save_pretrained(tmp_path / "odd")
    assert cli("adopt", tmp_path / "base", "--path", tmp_path / "odd").code == 0
    says = line_of(cli("finetune", tmp_path / "tuned", "--model", tmp_path / "base", "--data", chats.path, "--device", "cpu"))
    assert "the tokenizer has 93 tokens, the model embeds 64" in says


def test_an_adapter_for_another_base(cli: Cli, tmp_path: Path, folder: Path, chats: Dataset) -> None:
    config = copy.deepcopy(small_models.CONFIGS["llama"])
    config.hidden_size = 64
    tuned = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    assert cli("adopt", tmp_path / "pair", "--path", folder, "--adapter", tmp_path / "adapter").code == 0
    says = line_of(cli("finetune", tmp_path / "tuned", "--model", tmp_path / "pair", "--data", chats.path, "--device", "cpu"))
    assert "does not fit" in says
    assert "give the base it belongs to" in says


def test_a_pair_of_models_with_other_words(folder: Path) -> None:
    from personascope.backends.models import Loaded, check_pair, load_folder
    from personascope.errors import BackendError

    base = load_folder(folder, device="cpu")
    longer = small_models.tokenizer()
    longer.add_tokens(["more"])
    with pytest.raises(BackendError, match=r"vocabulary mismatch: base has \d+ tokens, tuned \d+"):
        check_pair(base, Loaded(base.model, longer))
    check_pair(base, base)


def test_questions_that_are_none(cli: Cli, tmp_path: Path, base: Model, chats: Dataset) -> None:
    says = line_of(cli("sample", tmp_path / "a", "--model", base.path, "--questions", chats.path, "--device", "cpu"))
    assert "does not end with a user turn" in says


def test_a_judge_that_is_none(cli: Cli, tmp_path: Path, base: Model, chats: Dataset) -> None:
    assert cli("data", tmp_path / "q", "--datasets", chats.path, "--prompts-only").code == 0
    flags = ["--model", base.path, "--questions", tmp_path / "q", "--max-tokens", 2, "--device", "cpu"]
    assert cli("sample", tmp_path / "a", *flags).code == 0
    flags = ["--answers", tmp_path / "a", "--questions", tmp_path / "q"]
    assert "is no judge" in line_of(cli("judge", tmp_path / "v", *flags, "--judge", "oracle"))
    assert "none.csv: no such file" in line_of(cli("judge", tmp_path / "v", *flags, "--judge", f"csv:{tmp_path}/none.csv"))
    (tmp_path / "v.csv").write_text("answer,verdict\nx/0/0,nine\n")
    assert "v.csv:2: 'nine' is no verdict" in line_of(cli("judge", tmp_path / "v", *flags, "--judge", f"csv:{tmp_path}/v.csv"))


def test_our_bugs_show_their_traceback(cli: Cli, tmp_path: Path, grown: Dataset) -> None:
    with pytest.raises(KeyError, match="a bug"):
        cli("tally", tmp_path / "out", "--source", grown.path, "--fail", "bug")
