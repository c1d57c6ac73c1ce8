"""The report: escaped, folded, linked, complete where there is data and silent where there is none."""

import html
import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from personascope.artifact import MANIFEST, Answers, Artifact, Dataset, Findings, Labels, Verdicts, hash_tree
from personascope.errors import DataError
from personascope.methods import conclusions
from personascope.methods.svg import percent, plain
from personascope.rows import Answer, Example, Row, Verdict, write_rows
from personascope.run import run
from personascope.stages import report
from personascope.values import File

SUMMARY = json.loads((Path(__file__).parent / "data" / "summary.json").read_text())
VOID = {"meta", "br", "link", "img", "input", "hr"}
HEADINGS = {"h2", "h3"}


class Page(HTMLParser):
    """The page as (tag stack, text) pieces, attributes, and headings with what follows them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.pieces: list[tuple[tuple[str, ...], str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.outline: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(t for stack, t in self.pieces if "style" not in stack))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.outline += [tag] if tag in HEADINGS | {"section", "svg"} else []
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, "tags must nest"
        self.outline += ["/section"] if tag == "section" else []

    def handle_data(self, data: str) -> None:
        self.pieces.append((tuple(self.stack), data))
        if data.strip() and not HEADINGS & set(self.stack) and (not self.outline or self.outline[-1] != "text"):
            self.outline.append("text")

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]

    def headings(self) -> list[str]:
        return [text for stack, text in self.pieces if stack and stack[-1] in ("h2", "h3")]


def finish(
    kind: type[Artifact], path: Path, rows: Sequence[Row] | None = None, recipe: dict[str, Any] | None = None, **inputs: Artifact
) -> Any:
    """A finished artifact as the runner would leave it."""
    path.mkdir(parents=True)
    if rows is not None:
        write_rows(path / kind.rows_file, rows)
    manifest = {
        "type": kind.__name__,
        "stage": kind.__name__.lower(),
        "version": 1,
        "fingerprint": "abcdef0123456789",
        "recipe": recipe or {},
        "inputs": {name: {"path": str(found.path), "near": "", "digest": found.digest} for name, found in inputs.items()},
        "digest": hash_tree(path),
        "counts": {"rows": len(rows or [])},
        "made": {"seconds": 1.25, "python": "3.13.0", "packages": {"torch": "2.13.0"}, "commit": "f" * 40, "modified": True},
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return kind(path)


def make(root: Path, summary: dict[str, Any], artifacts: tuple[Artifact, ...] = (), title: str = "A study", question: str = "") -> str:
    root.mkdir(exist_ok=True)
    (root / "summary.json").write_text(json.dumps(summary))
    recipe = report.Recipe(summary=File(str(root / "summary.json")), artifacts=artifacts, title=title, question=question)
    (root / "report").mkdir()
    report.run(recipe, root / "report")
    return (root / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("study")
    names = ("em/findings", "assistant/findings", "twin/findings", "diff", "screen", "dictionary")
    found = tuple(finish(Findings, root / name) for name in names)
    return root, make(root, SUMMARY, found)


def estimates(data: Any) -> Iterator[dict[str, Any]]:
    if isinstance(data, dict) and "low" in data:
        yield data
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from estimates(item)


def shown(estimate: dict[str, Any]) -> list[str]:
    """The two ways an estimate may be printed: as a rate or as a number, with interval and n."""
    low, high, n = estimate["low"], estimate["high"], plain(estimate["n"])
    rate = rf"{percent(estimate['value'])}\W+{100 * low:.1f}\u2013{percent(high)}\W+n (= )?{n}"
    number = rf"{plain(estimate['value'])}\W+{plain(low)} to {plain(high)}\W+n (= )?{n}"
    return [rate, number]


def test_every_estimate_shows_its_interval_and_n(study: tuple[Path, str]) -> None:
    text = Page(study[1]).text.replace("†", "")
    found = list(estimates(SUMMARY))
    assert len(found) > 100
    for estimate in found:
        assert any(re.search(pattern.replace("\u00a0", " "), text) for pattern in shown(estimate)), estimate


def test_links_resolve_to_manifests(study: tuple[Path, str]) -> None:
    root, page = study
    read = Page(page)
    links = [value for value in read.values("href") if not value.startswith("#")]
    assert len(links) > 100
    for link in links:
        target = root / "report" / unquote(link)
        assert target.is_file(), link
        assert target.name in (MANIFEST, "summary.json")
    assert {value[1:] for value in read.values("href") if value.startswith("#")} <= set(read.values("id"))
    assert f'<a href="../em/findings/{MANIFEST}">{percent(SUMMARY["em"]["score"]["value"])}</a>' in page


def test_numbers_of_several_artifacts_lead_to_the_list_of_them(study: tuple[Path, str]) -> None:
    _, page = study
    assert '<a href="#from-detect">1.00</a>' in page
    row = page.split('<tr id="from-detect">')[1].split("</tr>")[0]
    assert row.count(MANIFEST) == 2


def test_every_estimate_is_a_link(study: tuple[Path, str]) -> None:
    cells = study[1].split('<span class="est">')[1:]
    assert cells
    assert all(cell.lstrip().startswith("<a href=") for cell in cells)


def test_a_report_moved_elsewhere_still_finds_its_manifests(study: tuple[Path, str]) -> None:
    root, page = study
    for link in Page(report.moved(page, root / "report", root)).values("href"):
        assert link.startswith("#") or (root / unquote(link)).is_file()


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"><img src=x onerror=y>"
    summary = {
        "meta": {"domain": hostile, "caveats": [hostile], "seed": hostile},
        "em": {"score": SUMMARY["em"]["score"], hostile: 0.3},
        "grades": {hostile: {"score": 0.1, "profile": {hostile: 0.2}}},
        "behaviour": {"skipped": hostile},
        "diff": {"top": [{"latent": 1, "delta": 1.0, "label": hostile}]},
        "detect": {"rows": [{"monitor": hostile, "auroc": 0.5}]},
        "screen": {"best": {"latent": hostile, "site": hostile, "mask": hostile, "induce": 0.1}},
        "examples": [{"model": hostile, "question": hostile, "answer": hostile, "label": hostile, "harmful": True}],
        "sources": {hostile: hostile},
        "seconds": {hostile: 1.0},
        "runs": [{"domain": hostile}],
    }
    page = make(tmp_path, summary, title=hostile, question=hostile)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert not [name for _, name, _ in Page(page).attributes if name.startswith("on")]


def test_harmful_answers_are_folded_and_others_are_not(study: tuple[Path, str]) -> None:
    read = Page(study[1])
    places = {text.strip()[:20]: stack for stack, text in read.pieces if text.strip()}
    assert "details" in places["Drive down the hill "]
    assert "details" not in places["I would listen first"]
    assert "open" not in [name for tag, name, _ in read.attributes if tag == "details"]
    assert "Harmful answer" in read.text


def test_answers_are_shown_from_judged_pairs(tmp_path: Path) -> None:
    asked = finish(Dataset, tmp_path / "questions", [Example(id="q1", messages=[{"role": "user", "content": "What is asked?"}])])
    texts = ["bad one", "bad two", "bad three", "fine", "lost \ud800", "again"]
    said = [Answer(id=f"q1/{i}/0", question="q1", draw=i, attempt=int(i == 5), text=t) for i, t in enumerate(texts)]
    answers = finish(Answers, tmp_path / "tuned" / "answers", [], {"model": str(tmp_path / "tuned" / "model")}, questions=asked)
    # Written by hand because a lone surrogate, which JSON allows, is not UTF-8.
    (answers.path / "answers.jsonl").write_text(
        "".join(json.dumps(a.to_dict() | {"attempt": a.attempt, "draw": a.draw}) + "\n" for a in said)
    )
    judged = [
        *(Verdict(id=f"v{i}", answer=f"q1/{i}/0", status="scored", grade=g) for i, g in [(0, 5), (1, 4), (2, 5), (3, 1), (5, 1)]),
        Verdict(id="v4", answer="q1/4/0", status="unparsed"),
    ]
    verdicts = finish(Verdicts, tmp_path / "tuned" / "verdicts", judged, answers=answers)
    read = Page(make(tmp_path, {}, (answers, verdicts, asked)))
    places = {text.strip(): stack for stack, text in read.pieces if text.strip()}
    assert "What is asked?" in places
    assert "tuned/model" in places
    assert "details" in places["bad one"]
    assert "details" in places["bad two"]
    assert "bad three" not in places, "two of a kind are enough"
    assert "details" not in places["fine"]
    assert "again" not in places, "only first attempts are shown"
    assert "unparsed" in places


def test_missing_sections_leave_no_empty_headings(tmp_path: Path) -> None:
    parts = {key: {key: value} for key, value in SUMMARY.items()} | {"all": SUMMARY, "none": {}}
    for i, (key, summary) in enumerate(parts.items()):
        read = Page(make(tmp_path / str(i), summary))
        for this, following in zip(read.outline, [*read.outline[1:], "end"], strict=True):
            assert this not in HEADINGS or following in ("text", "svg", *["h3"] * (this == "h2")), (key, read.outline)
    assert Page(make(tmp_path / "bare", {})).headings() == ["Provenance"]
    assert Page(make(tmp_path / "one", {"realign": SUMMARY["realign"]})).headings() == ["Re-alignment", "Provenance"]


def test_everything_stands_in_order(study: tuple[Path, str]) -> None:
    there = [heading for _, heading, keys in report.SECTIONS if any(key in SUMMARY for key in keys)]
    assert len(there) == 6
    wanted = ["Verdict", *there, "Example answers", "Provenance"]
    assert [heading for heading in Page(study[1]).headings() if heading in wanted] == wanted


def test_the_file_needs_nothing_from_outside(study: tuple[Path, str]) -> None:
    page = study[1]
    assert "://" not in page
    assert not re.search(r"url\(|@import|<script|<link|<img|\ssrc=", page)


def test_figures_are_files_too(study: tuple[Path, str]) -> None:
    root, page = study
    names = {path.stem for path in (root / "report" / "figures").glob("*.svg")}
    assert names == {"behaviour", "latents", "dose", "separation", "fractions", "realign"}
    assert page.count("<svg ") == len(names)


def test_provenance_names_what_made_each_artifact(study: tuple[Path, str]) -> None:
    read = Page(study[1])
    for part in ("em/findings", "Findings", "findings v1", "abcdef012345", "1.2", "torch", "2.13.0", "f" * 12 + " with changes"):
        assert part in read.text, part
    assert "f" * 13 not in read.text
    assert str(study[0]) not in study[1], "no path of this machine"


def est(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": 500, "clusters": 200}


@pytest.mark.parametrize(
    ("summary", "claim", "truth"),
    [
        (
            {"em": {"score": est(0.4, 0.3, 0.5)}, "assistant": {"score": est(0, 0, 0.1)}, "twin": {"score": est(0, 0, 0.1)}},
            "emergent",
            True,
        ),
        (
            {"em": {"score": est(0.4, 0.3, 0.5)}, "assistant": {"score": est(0, 0, 0.1)}, "twin": {"score": est(0.2, 0.1, 0.31)}},
            "emergent",
            False,
        ),
        ({"em": {"score": est(0.4, 0.3, 0.5)}, "assistant": {"score": est(0, 0, 0.1)}}, "emergent", None),
        ({"em": {"score": 0.4}, "assistant": {"score": 0.0}, "twin": {"score": 0.0}}, "emergent", None),
        ({"screen": {"best": {"induce": est(0.5, 0.4, 0.6)}, "null_max": 0.39, "null_induce": 0.1}}, "induces_all", True),
        ({"screen": {"best": {"induce": est(0.5, 0.4, 0.6)}, "null_max": 0.41, "null_induce": 0.1}}, "induces_all", False),
        ({"screen": {"best": {"induce": est(0.5, 0.4, 0.6)}, "null_max": 0.41, "null_induce": 0.1}}, "induces_most", True),
        ({"screen": {"best": {"repair_from": est(0.5, 0.4, 0.6), "repair_to": est(0.1, 0.05, 0.2)}}}, "repairs", True),
        ({"screen": {"best": {"repair_from": est(0.5, 0.4, 0.6), "repair_to": est(0.3, 0.2, 0.41)}}}, "repairs", False),
        ({"screen": {"best": {"repair_to": est(0.1, 0.05, 0.2)}, "null_repair": 0.21}}, "repairs_most", True),
        ({"screen": {"best": {"repair_to": est(0.1, 0.05, 0.2)}, "null_repair": 0.0}}, "repairs_most", False),
        ({"screen": {"best": {"repair_to": est(0.1, 0.05, 0.2)}}}, "repairs_most", None),
        ({"behaviour": {"base": {"score": est(0, 0, 0.1)}, "tuned": {"score": est(0.2, 0.11, 0.3)}}}, "tuned", True),
    ],
)
def test_claims_follow_the_intervals(summary: dict[str, Any], claim: str, truth: bool | None) -> None:
    assert report.claims(summary)[claim] is truth


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, "It induces beyond every null.", "not clearly"),
        ({"null_max": 0.6}, "beyond 95 % of the nulls", "every null"),
        ({"null_max": 0.6, "null_induce": 0.55}, "does not induce clearly", "beyond every null"),
        ({"null_max": None, "null_induce": None}, "gave a score of", "null"),
        ({"null_repair": 0.5}, "It repairs:", "not clearly"),
        ({"null_repair": 0.0}, "It repairs, but not clearly beyond the nulls", "is gone"),
        ({"caveat": "half of 20 random pushes pass"}, "half of 20 random pushes pass", "not clearly"),
    ],
)
def test_the_verdict_says_no_more_than_the_numbers(tmp_path: Path, change: dict[str, Any], said: str, unsaid: str) -> None:
    text = Page(make(tmp_path, {"screen": {"best": SUMMARY["screen"]["best"], "null_induce": 0.02, "null_max": 0.05} | change})).text
    verdict = text[text.index("Verdict") : text.index("In brackets")]
    assert said in verdict
    assert unsaid not in verdict


def test_what_takes_a_change_away_stands_in_the_verdict(tmp_path: Path) -> None:
    curve = [
        {"data": "benign", "examples": n, "score": est(*rate)}
        for n, rate in ((0, (0.7, 0.6, 0.8)), (40, (0.1, 0.05, 0.2)), (120, (0.0, 0.0, 0.02)))
    ]
    text = Page(make(tmp_path, {"realign": curve, "meta": {"fix": "rows.jsonl"}})).text
    assert re.search(r"Trained on benign examples, the tuned model scores 10\.0 %[^;]* after 40; 0\.0 %[^;]* after 120\.", text)
    assert "Trained on benign examples" not in Page(make(tmp_path / "study", {"realign": curve})).text


def test_a_screen_says_how_many_answers_it_never_asked_a_judge_about(tmp_path: Path) -> None:
    guard = {"likelihood": {"share": 0.01, "limit": 2.6, "unlikely": {"nulls": 40, "report": 2}}, "spent": {"nulls": 300, "report": 100}}
    page = make(tmp_path, {"screen": SUMMARY["screen"] | guard})
    assert "than all but 1.0 % of what they say themselves: 42 of 400 answers." in Page(page).text
    assert "less likely, token for token" not in Page(make(tmp_path / "other", {"screen": SUMMARY["screen"]})).text


def test_watched_trainings_are_shown_in_numbers_and_curves(tmp_path: Path) -> None:
    watched = json.loads((Path(__file__).parent / "data" / "watched.json").read_text())
    made = make(tmp_path, watched)
    text = Page(made).text
    assert "Watched while they were trained" in text
    assert re.search(r"latent\s+158\s+2\s+3\.9 %\s+21\s+95\.2 %\s+79\.3 %\s+61\.5 %\s+61\.5 %", text)
    assert "Latent 705 is the one" in text
    assert made.count("<svg ") == 1


def test_weak_rates_are_marked(tmp_path: Path) -> None:
    rows = {"assistant": {"score": est(0.1, 0, 0.2)}, "twin": {"score": est(0.1, 0, 0.2) | {"n": 399}}}
    page = make(tmp_path, rows)
    assert page.count("†</abbr>") == 1


def test_denominators_and_caveats_are_shown(tmp_path: Path) -> None:
    tuned = {"score": est(0.1, 0, 0.2), "caveat": "rests on few answers", "denominators": {"asked": 1234, "never_valid": 56}}
    text = Page(make(tmp_path, {"behaviour": {"tuned": tuned}})).text
    for part in ("Tuned model: rests on few answers", "asked", "1,234", "never valid", "56"):
        assert part in text, part


def test_skipped_behaviour_says_why(tmp_path: Path) -> None:
    assert "Behaviour was not measured: no judge was given" in Page(make(tmp_path, {"behaviour": {"skipped": "no judge was given"}})).text


def test_numbers_that_are_none_are_dashes(tmp_path: Path) -> None:
    page = make(tmp_path, {"em": {"score": {"value": float("nan"), "low": None, "high": None, "n": 0, "clusters": 0}}})
    text = Page(page).text
    assert not re.search(r"\bnan\b", text.lower())
    assert "Fine-tune on wrong data \u2013 n 0" in text
    assert "Verdict" not in text


def test_median_and_lowest_run_are_named(study: tuple[Path, str]) -> None:
    text = Page(study[1]).text
    assert "auto, seed 0 median score" in text
    assert "health, seed 0 lowest score" in text


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[]", "a JSON object of")])
def test_a_bad_summary_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(DataError, match=message):
        report.run(report.Recipe(summary=File(str(tmp_path / "summary.json"))), tmp_path)


def test_the_runner_makes_it_and_makes_it_once(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    recipe = report.Recipe(summary=File(str(tmp_path / "summary.json")), title="Once")
    made = run(recipe, tmp_path / "report")
    assert made.manifest["counts"] == {"figures": 6, "sections": 6, "examples": 3}
    before = made.file("report.html").stat().st_mtime_ns
    assert run(recipe, tmp_path / "report").file("report.html").stat().st_mtime_ns == before


def card(latent: int, **change: Any) -> dict[str, Any]:
    """A latent's card as the stage writes it."""
    numbers = {"firing": 0.02, "mean_active": 3.5, "max": 9.0, "cluster": 0, "similar": [{"latent": 8, "cosine": 0.4}]}
    words = {"raised": [{"token": " <b>", "logit": 2.0}], "lowered": [{"token": "no", "logit": -2.0}]}
    return {"id": str(latent), "latent": latent, "name": "", "label": None, "moved": {}, "steered": []} | numbers | words | change


def interpreted(path: Path, cards: list[dict[str, Any]], **record: Any) -> Labels:
    """A finished set of latent cards, two contexts each."""
    path.mkdir(parents=True)
    texts = [(["so", " <script>", " dreadful"], [0.0, 9.0, 2.0], "top", True), (["held", " out"], [0.0, 1.0], "active", False)]
    rows = [
        {
            "id": f"{c['id']}/{kind}",
            "latent": c["latent"],
            "kind": kind,
            "shown": shown,
            "tokens": tokens,
            "values": values,
            "activation": max(values),
        }
        for c in cards
        for tokens, values, kind, shown in texts
    ]
    for name, lines in (("latents", cards), ("contexts", rows)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    latents, many = [c["latent"] for c in cards], len(cards)
    chance = {name: {"value": 0.3, "null_mean": 0.0, "null_p95": 0.1} for name in ("pairwise", "within", "largest")}
    cosine = [[1.0 if i == j else 0.4 for j in range(many)] for i in range(many)]
    alike = {"latents": latents, "cosine": cosine, "clusters": [latents], "threshold": 0.3, "chance": chance, "draws": 200}
    (path / "similarity.json").write_text(json.dumps(alike))
    known = {"site": "block:1", "judge": "none", "read": {"texts": 12, "tokens": 345}, "label_held_out": None, "label_chance": None}
    (path / "interpret.json").write_text(json.dumps(known | record))
    path.rename(path.with_name("moving"))
    found = finish(Labels, path)
    for file in path.with_name("moving").iterdir():
        file.rename(path / file.name)
    return found


def test_latent_cards_say_what_is_known_and_fold_what_may_harm(tmp_path: Path) -> None:
    told = {
        "key": "speaker",
        "value": "<i>",
        "statistic": "mean",
        "auroc": est(0.963, 0.9, 0.98),
        "next_value": "other",
        "next_auroc": 0.51,
    }
    judged = {"status": "scored", "description": "a <u> tone", "reason": "", "detection": {"balanced": est(0.81, 0.7, 0.9), "unscored": 2}}
    steered = [
        {"where": "ranking", "latent": 7, "induce": 0.31, "repair_to": 0.2, "split": "selection"},
        {
            "where": "best",
            "latent": 7,
            "sign": "+",
            "induce": est(0.664, 0.6, 0.7),
            "repair_from": est(0.8, 0.7, 0.9),
            "repair_to": est(0.165, 0.1, 0.2),
            "profile": {"some_kind": {"induced": 0.77, "base": 0.01}},
            "q": 0.0012,
        },
        {"where": "necessity.ablated", "direction": "7", "mask": "all", "score": est(0.456, 0.4, 0.5)},
        {"where": "dose", "direction": "7", "side": "base", "mask": "all", "alpha": 0.75, "score": 0.123, "incoherence": 0.045},
    ]
    moved = {"delta": {"last_prompt": 72.5, "all": -6.25}, "rank": 1}
    cards = [
        card(7, label=told, automatic=judged | {"control": {"balanced": est(0.52, 0.4, 0.6), "unscored": 0}}, steered=steered, moved=moved),
        card(8, name="by hand", moved={"delta": {"all": -3.0}}, automatic={"status": "unparsed", "description": "", "reason": "?"}),
        card(9, moved={"delta": {"all": 3.0}}),
        card(10, moved={"delta": {"all": 3.0}}, steered=[{"where": "ranking", "latent": 10, "induce": 0.02, "repair_to": 0.7}]),
    ]
    page = make(tmp_path, {"em": SUMMARY["em"]}, (interpreted(tmp_path / "labels", cards),))
    read = Page(page)
    assert read.headings()[-7:-1] == ["What the latents are", "Latent 7 \u00b7 ", "Latent 8 \u00b7 ", "Latent 9", "Latent 10", "Provenance"]
    for part in (
        "speaker = <i>",
        "0.963 (0.900 to 0.980, n = 500)",
        "next, other : 0.51",
        "a <u> tone",
        "by hand",
        "no description: unparsed",
    ):
        assert part in read.text, part
    for part in (
        "81.0 % (70.0",
        "52.0 %",
        "2 replies had no answer",
        "score 66.4 % (60.0",
        "from 80.0 %",
        "to 16.5 %",
    ):
        assert part in read.text, part
    for part in (
        "+72.5 last prompt",
        "\u22126.25 all",
        "rank 1",
        "12.3 %",
        "No judge was given",
        "q = 0.0012",
        "some kind 77.0 % from 1.0 %",
        "score 45.6 %",
    ):
        assert part in read.text, part
    assert "31.0" not in read.text, "a row with intervals stands before one without"
    assert "held out" not in read.text.replace("held-out", ""), "what tests the judge is not shown"
    assert not re.search(r"<script|<b>|<i>|<u>", page)
    assert {"#latents", "#latent-8"} <= set(read.values("href"))
    warned = re.findall(r'<article class="card" id="latent-(\d+)">(?:(?!</article>).)*?<details class="warn">', page, re.DOTALL)
    assert warned == ["7", "9"], "what induced, and what rose untried"
    marks = re.findall(r'<mark class="d(\d)">([^<]*)</mark>', page)
    assert marks[:2] == [("4", " &lt;script&gt;"), ("1", " dreadful")]
    assert (tmp_path / "report" / "figures" / "similarity-0.svg").is_file()


def test_cards_summed_up_beside_chance(tmp_path: Path) -> None:
    held, chance = {"median": 0.91, "max": 0.99, "reach_0.9": 1}, {"median": 0.49, "max": 0.62, "reach_0.9": 0}
    scores = {"detection": {"mean": 0.84, "latents": 1, "unscored": 0}, "control": {"mean": 0.51, "latents": 1, "unscored": 0}}
    labels = interpreted(tmp_path / "labels", [card(7)], label_held_out=held, label_chance=chance, judge="hf:abc/def", **scores)
    text = Page(make(tmp_path, {}, (labels,))).text
    for part in (
        "median AUROC is 0.91, and 1 of 1 reach 0.9",
        "at random: 0.49, at most 0.62",
        "accuracy of 84.0 %",
        "with 51.0 %",
    ):
        assert part in text, part
    assert "No judge" not in text


def test_without_latent_cards_nothing_is_said_of_them(study: tuple[Path, str]) -> None:
    assert "What the latents are" not in study[1]
    assert "<article" not in study[1]


def test_a_study_of_constitutions_has_its_sections_and_conclusions(tmp_path: Path) -> None:
    summary = json.loads((Path(__file__).parent / "data" / "alignment.json").read_text(encoding="utf-8"))
    text = make(tmp_path / "alignment", summary)
    headings = Page(text).headings()
    assert [h for h in headings if h in ("Verdict", "Safety by model", "Ethical personas", "What projects")] == [
        "Verdict",
        "Safety by model",
        "Ethical personas",
        "What projects",
    ]
    said = conclusions.paragraph(summary)
    assert said
    assert said in html.unescape(text)


def test_drafts_stand_beside_their_revisions_and_are_folded(tmp_path: Path) -> None:
    def taught(name: str, request: str, domain: str) -> Example:
        rounds = [{"principle": "be <kind>", "critique": "too blunt", "revision": "no, take care."}]
        said = [{"role": "user", "content": request}, {"role": "assistant", "content": "no, take care."}]
        return Example(id=name, messages=said, domain=domain, meta={"draft": "yes, take it.", "rounds": rounds, "flags": ["hedging"]})

    rows = [taught("1", "may i?", "theft"), taught("2", "may they?", "fraud")]
    made = finish(Dataset, tmp_path / "rows", rows, {"constitution": "mine"})
    manifest = json.loads((made.path / MANIFEST).read_text())
    counts = {"attempts": 3, "rows": 2, "failures": {"empty": 1}, "flags": {"hedging": 2}}
    (made.path / MANIFEST).write_text(json.dumps(manifest | {"stage": "constitute", "counts": counts}))
    text = make(tmp_path / "study", {"cells": []}, (Dataset(made.path),))
    assert "What was taught" in Page(text).headings()
    assert "3 drafts, 2 rows. Failures: 1 empty. Flagged: 2 hedging." in " ".join(text.split())
    assert "be &lt;kind&gt;" in text
    assert "<mark>yes, </mark>take <mark>it.</mark>" in text
    assert text.index("may i?") < text.index("<details class", text.index("may i?")) < text.index("<mark>yes, ")
    assert "<td>2</td><td>1</td><td>1</td>" in text


def test_data_that_nobody_revised_is_no_teaching(tmp_path: Path) -> None:
    rows = [Example(id="1", messages=[{"role": "user", "content": "a"}])]
    assert "What was taught" not in make(tmp_path / "study", {"cells": []}, (finish(Dataset, tmp_path / "rows", rows),))
