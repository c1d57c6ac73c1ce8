"""Models of the Hub: from a cache laid out as the Hub's, and from a small Hub on this machine that refuses what the real one refuses."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import small_models
from conftest import ROOT, Ended
from personascope import auditing, opening
from personascope.artifact import Dictionary, Model
from personascope.backends import hub, models
from personascope.backends.inspect_model import Options
from personascope.backends.judging import Judge
from personascope.errors import BackendError, DataError, RecipeError
from personascope.exporting import export
from personascope.run import run
from personascope.stages import adopt
from personascope.study import Study
from personascope.values import Folder

FIRST, SECOND = "0123456789abcdef" * 2 + "01234567", "f" * 40
Cli = Callable[..., Ended]


def saved(folder: Path, seed: int = 0) -> Path:
    small_models.model(seed=seed).save_pretrained(folder)
    small_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a model `org/tiny` with two commits, `main` at the first; the Hub is out of reach."""
    root = tmp_path / "hub"
    repo = root / "models--org--tiny"
    for seed, commit in enumerate((FIRST, SECOND)):
        saved(repo / "snapshots" / commit, seed)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(FIRST)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.snapshot.cache_clear()
    yield repo
    hub.snapshot.cache_clear()


def test_a_branch_is_pinned_to_its_commit(cache: Path) -> None:
    assert hub.pinned("org/tiny@main") == f"org/tiny@{FIRST}"
    assert hub.pinned("hf:org/tiny@main") == f"hf:org/tiny@{FIRST}"
    assert hub.pinned(f"org/tiny@{SECOND}") == f"org/tiny@{SECOND}"
    assert hub.local(f"org/tiny@{SECOND}") == cache / "snapshots" / SECOND


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("where", ["org/tiny", "runs/tuned", "/tmp/a@b", "inspect:openai/gpt@x", "hf:judge", "none", "exact:troupe-1", ""])
def test_what_is_no_name_of_the_hub_stays(where: str) -> None:
    assert hub.pinned(where) == where
    assert hub.local(where) == Path(where)


@pytest.mark.usefixtures("cache")
def test_a_folder_of_that_name_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny@main").mkdir(parents=True)
    assert hub.pinned("org/tiny@main") == "org/tiny@main"
    (tmp_path / "org" / "tiny").mkdir()
    assert hub.pinned("org/tiny@40") == "org/tiny@40"


def test_a_branch_does_not_move_within_a_process(cache: Path) -> None:
    assert hub.pinned("org/tiny@main") == f"org/tiny@{FIRST}"
    (cache / "refs" / "main").write_text(SECOND)
    assert hub.pinned("org/tiny@main") == f"org/tiny@{FIRST}"


def test_the_commit_is_the_identity_and_is_recorded(cache: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("adopt", tmp_path / "a", "--path", "org/tiny@main").code == 0
    made = Model(tmp_path / "a")
    assert made.json("model.json")["base"] == {"id": "org/tiny", "revision": FIRST, "digest": Folder(f"org/tiny@{FIRST}").identity}
    assert made.manifest["recipe"]["path"] == f"org/tiny@{FIRST}"
    again = run(adopt.Recipe(path=Folder(f"org/tiny@{FIRST}")), tmp_path / "b")
    other = run(adopt.Recipe(path=Folder(f"org/tiny@{SECOND}")), tmp_path / "c")
    assert again.identity == made.identity != other.identity
    for model, commit in ((made, FIRST), (other, SECOND)):
        ours, theirs = models.load(model, "cpu").model, models.load_folder(cache / "snapshots" / commit, device="cpu").model
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/other@main", "org/other@main: not in the cache and the Hub cannot be reached (is HF_HUB_OFFLINE set?)"),
        ("org/tiny@v2", "org/tiny@v2: not in the cache and the Hub cannot be reached"),
        (f"org/tiny@{'0' * 40}", f"org/tiny@{'0' * 40}: not in the cache and the Hub cannot be reached"),
    ],
)
def test_what_is_not_in_the_cache(cache: Path, tmp_path: Path, cli: Cli, name: str, says: str) -> None:
    assert cache.is_dir()
    ended = cli("adopt", tmp_path / "out", "--path", name)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert says in ended.err


def test_half_a_download_is_named(cache: Path) -> None:
    folder = cache / "snapshots" / FIRST
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(BackendError, match=r"org/tiny@main: model\.safetensors is not in .*; download the rest"):
        hub.pinned("org/tiny@main")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(BackendError, match=r"model-00002-of-00002\.safetensors is not in"):
        hub.pinned("org/tiny@main")


def test_a_branch_in_a_recipe_is_refused() -> None:
    with pytest.raises(DataError, match=r"org/tiny@main: no model files there; give .* or ORG/NAME@COMMIT of the Hub"):
        adopt.Recipe(path=Folder("org/tiny@main")).identity()


@pytest.mark.usefixtures("cache")
def test_an_audit_opens_both_models_pinned_and_loads_them_as_told(tmp_path: Path) -> None:
    study = Study(tmp_path / "audit")
    setup = auditing.Setup(hub.pinned("org/tiny@main"), f"org/tiny@{SECOND}", dtype="bfloat16", device_map="auto")
    auditing.build(study, setup)
    recipes = [study.recipes[f"models/{side}"] for side in ("base", "tuned")]
    assert [recipe.to_json() for recipe in recipes] == [
        {"path": f"org/tiny@{commit}", "dtype": "bfloat16", "device_map": "auto"} for commit in (FIRST, SECOND)
    ]
    assert study.recipes["dictionary"].to_json()["width"] == 8 * 32
    plain = run(adopt.Recipe(path=Folder(f"org/tiny@{FIRST}")), tmp_path / "plain")
    with pytest.raises(RecipeError, match="plain is a Model artifact, which knows how it is loaded; leave out dtype"):
        opening.model(study, "models/base", str(plain.path), loading={"dtype": "bfloat16"})


@pytest.mark.usefixtures("cache")
def test_a_judge_and_a_model_of_inspect_come_from_the_hub_too() -> None:
    judge = Judge(hub.pinned("hf:org/tiny@main"))
    assert judge.name.startswith(f"hf:{Folder(f'org/tiny@{FIRST}').identity[:12]}/")
    assert [v.status for v in judge.verdicts([("a", "is it good", "it is")])] == ["unparsed"]
    loaded, identity = Options().load("org/tiny@main")
    assert identity == Folder(f"org/tiny@{FIRST}").identity
    assert loaded.model.dtype == torch.float32


def test_an_exported_adapter_names_the_commit_of_its_base(cache: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(cache / "snapshots" / FIRST)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    parts = {"path": f"org/tiny@{FIRST}", "adapter": str(tmp_path / "adapter")}
    out = export(run(adopt.Recipe.from_json(parts), tmp_path / "tuned"), tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", FIRST)
    assert 'base_model: "org/tiny"\n' in (out / "README.md").read_text()
    few = run(adopt.Recipe.from_json(parts | {"quantise": "4bit"}), tmp_path / "few")
    with pytest.raises(RecipeError, match="is loaded in 4bit, which is no plain form"):
        export(few, tmp_path / "merged", merged=True)


class Shelf(BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for: `org/tiny` with a branch and a tag, and `org/gated`."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        """What a file is, without the file."""
        self.do_GET()

    def do_GET(self) -> None:
        """A revision, its list of files, or a file."""
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/org/gated"):
            return self.said(403, b"", {"X-Error-Code": "GatedRepo"})
        if not path.removeprefix("/api/models").startswith("/org/tiny/"):
            return self.said(404, b"", {"X-Error-Code": "RepoNotFound"})
        kind, _, rest = path.partition("/org/tiny/")[2].partition("/")
        if kind == "revision":
            known = rest in ("main", "v1")
            held = {"id": "org/tiny", "sha": FIRST, "siblings": [], "tags": [], "private": False}
            return self.said(200 if known else 404, json.dumps(held).encode(), {} if known else {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            held = [p for p in self.folder.rglob("*") if p.is_file()]
            files = [{"type": "file", "path": str(p.relative_to(self.folder)), "size": p.stat().st_size, "oid": p.name} for p in held]
            return self.said(200, json.dumps(files).encode(), {})
        name = rest.partition("/")[2]
        return self.said(200, (self.folder / name).read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": FIRST})

    def said(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Answer."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the small Hub, and what it was asked."""
    folder = saved(tmp_path / "shelf")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    kind = type("Stocked", (Shelf,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind.asked
    server.shutdown()
    server.server_close()


def adopted(
    place: Path, name: str, out: str, endpoint: str, offline: str = "0", stage: str = "adopt"
) -> "subprocess.CompletedProcess[str]":
    """`personascope adopt`, or another stage, in a process with a cache of its own."""
    names = {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": offline, "PYTHONPATH": str(ROOT)}
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")} | names
    command = [sys.executable, "-m", "personascope", stage, str(place / out), "--path", name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_download_pins_what_it_downloads_and_is_not_repeated(shelf: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = shelf
    ended = adopted(tmp_path, "org/tiny@v1", "a", endpoint)
    assert ended.returncode == 0, ended.stderr
    made = Model(tmp_path / "a")
    assert made.json("model.json")["base"]["revision"] == FIRST
    assert not any("pytorch_model" in path for path in asked if "resolve" in path)
    asked.clear()
    ended = adopted(tmp_path, f"org/tiny@{FIRST}", "b", endpoint, offline="1")
    assert ended.returncode == 0, ended.stderr
    assert Model(tmp_path / "b").identity == made.identity
    assert asked == []


def test_a_dictionary_is_one_part_of_a_repository(shelf: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = shelf
    for name in ("layers.3", "layers.4"):
        shutil.copytree(ROOT / "tests" / "data" / "dictionaries" / "sparsify" / "layers.3", tmp_path / "shelf" / "saes" / name)
    ended = adopted(tmp_path, "org/tiny@main:saes/layers.3", "a", endpoint, stage="borrow")
    assert ended.returncode == 0, ended.stderr
    made = Dictionary(tmp_path / "a")
    assert made.json("cfg.json")["metadata"] == {"site": "block:3", "format": "sparsify", "origin": f"org/tiny@{FIRST}:saes/layers.3"}
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for path in asked if "resolve" in path}
    assert fetched == {"saes/layers.3/cfg.json", "saes/layers.3/sae.safetensors", "saes/layers.3/expected.safetensors"}
    asked.clear()
    ended = adopted(tmp_path, f"org/tiny@{FIRST}:saes/layers.3/sae.safetensors", "b", endpoint, offline="1", stage="borrow")
    assert ended.returncode == 0, ended.stderr
    assert asked == []
    ended = adopted(tmp_path, "org/tiny@main:saes/layers.9", "c", endpoint, stage="borrow")
    assert ended.returncode == 1
    assert "no saes/layers.9 in it" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("org/gated@main", "the model is gated; accept its terms on the Hub, then log in with `hf auth login`"),
        ("org/tiny@v9", "org/tiny has no revision 'v9'; give a branch, a tag or a commit of 40 digits"),
        ("org/none@main", "no such model on the Hub, or it is private; check the name"),
    ],
)
def test_what_the_hub_refuses_is_one_line(shelf: tuple[str, list[str]], tmp_path: Path, name: str, says: str) -> None:
    ended = adopted(tmp_path, name, "a", shelf[0])
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.strip().splitlines()[-1].startswith(f"personascope: {name}: {says}")
