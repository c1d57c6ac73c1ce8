"""A chat model puts latents into words and is tested on contexts it has not seen; every reply is a row."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personascope import suites
from personascope.backends import generation, models
from personascope.backends.judging import spelled
from personascope.errors import BackendError
from personascope.methods import describing as methods
from personascope.methods.parsing import without_marks
from personascope.methods.tokens import prompt_tokens
from personascope.values import REMOTE

Ask = Callable[[Sequence[tuple[str, str]]], Iterator[tuple[str, str]]]
"""(id, prompt) rows → (id, reply) rows, in any order."""
LAST = 200
"""Characters kept of a reply's end."""


def judge_name(spec: str) -> str:
    """The judge's identity: the content of its folder and of both prompts."""
    prompts = suites.digest(suites.prompt("explain") + suites.prompt("detect"))
    if spec.startswith(REMOTE):
        return f"{spec}/{prompts}"
    return f"hf:{models.identity_at(spec.partition(':')[2])[:12]}/{prompts}"


def asker(spec: str, max_tokens: int, api: Sequence[str] = ()) -> Ask:
    """The chat model behind `hf:FOLDER`, loaded once, or `inspect:PROVIDER/MODEL`, answering at temperature 0."""
    if spec.startswith(REMOTE):
        return _remote(spec, max_tokens, api)
    loaded = models.load_at(spec.partition(":")[2])

    def ask(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        prompts = [
            generation.Prompt(prompt_tokens(loaded.tokenizer, [{"role": "user", "content": spelled(loaded.tokenizer, text)}]), name)
            for name, text in rows
        ]
        for i, done in generation.generate(loaded, prompts, generation.Sampling(max_tokens=max_tokens, temperature=0)):
            yield rows[i][0], generation.split_thinking(loaded.tokenizer, done.ids)[1]

    return ask


def _remote(spec: str, max_tokens: int, api: Sequence[str]) -> Ask:
    """A model behind an API; what its provider withholds is a refusal, and a reply that was cut counts for nothing."""
    from personascope.backends import providers  # lazy: inspect is optional

    provider = providers.Provider(spec, providers.Wanted(max_tokens), providers.Limits.read(api))

    def ask(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        asks = [providers.Ask([{"role": "user", "content": without_marks(text)}]) for _, text in rows]
        for (name, _), reply in zip(rows, provider.replies(asks), strict=True):
            if reply.status == "error":
                raise BackendError(f"{spec}: no reply to {name} ({reply.reason}); run the same command again: what came is kept")
            yield name, {"said": reply.text, "refused": f"I can't: {reply.reason}", "cut": ""}[reply.status]

    return ask


def describe(ask: Ask, contexts: Sequence[dict[str, Any]], path: Path) -> dict[int, dict[str, Any]]:
    """One description a latent from the contexts shown; rows already in `path` are kept, new ones appended as they come."""
    template, prompts = suites.prompt("explain"), {}
    for latent in dict.fromkeys(row["latent"] for row in contexts if row["kind"] != "silent"):
        shown = [row for row in contexts if row["latent"] == latent and row["shown"]]
        active, silent = (
            "\n".join(f"- {methods.marked(r['tokens'], r['values'])}" for r in shown if (r["kind"] == "silent") == kind)
            for kind in (False, True)
        )
        prompts[str(latent)] = methods.fill(template, active=active, silent=silent or "(none)")

    def row(name: str, reply: str) -> dict[str, Any]:
        status, said = methods.read_description(reply)
        return {"id": name, "status": status, "description": said, "reason": reply.strip()[-LAST:]}

    return {int(name): found for name, found in _asked(ask, prompts, path, row).items()}


def detect(ask: Ask, contexts: Sequence[dict[str, Any]], described: dict[int, dict[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    """Each held-out context against its latent's description and, as a control, against the next latent's, one at a time."""
    template = suites.prompt("detect")
    worded = [latent for latent, row in described.items() if row["status"] == "scored"]
    following = dict(zip(worded, worded[1:] + worded[:1], strict=True)) if len(worded) > 1 else {}
    facts: dict[str, dict[str, Any]] = {}
    prompts: dict[str, str] = {}
    for row in contexts:
        for kind, source in (("own", {latent: latent for latent in worded}), ("control", following)):
            if not row["shown"] and row["latent"] in source:
                name, of = f"{row['id']}/{kind}", source[row["latent"]]
                facts[name] = {"latent": row["latent"], "kind": kind, "description_of": of, "active": row["kind"] == "active"}
                excerpt = " ".join("".join(row["tokens"]).split())
                prompts[name] = methods.fill(template, description=described[of]["description"], excerpt=excerpt)

    def row_of(name: str, reply: str) -> dict[str, Any]:
        status, says = methods.read_match(reply)
        return {"id": name, **facts[name], "status": status, "says": says, "reason": reply.strip()[-LAST:]}

    return _asked(ask, prompts, path, row_of)


def _asked(ask: Ask, prompts: dict[str, str], path: Path, row: Callable[[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The row of every prompt, in the order of the prompts; the file ends up in that order too."""
    # A killed run may have left half a line.
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    found = {one["id"]: one for one in map(json.loads, whole)}
    dump(path, found.values())
    with path.open("a", encoding="utf-8") as file:
        for name, reply in ask([(name, text) for name, text in prompts.items() if name not in found]):
            found[name] = row(name, reply)
            file.write(json.dumps(found[name], ensure_ascii=False, sort_keys=True) + "\n")
            file.flush()
    dump(path, [found[name] for name in prompts])
    return {name: found[name] for name in prompts}


def automatic(latent: int, described: dict[int, dict[str, Any]], tested: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A card's automatic label: description, how it was parsed, and its detection score beside the control."""
    rows = {kind: [row for row in tested.values() if row["latent"] == latent and row["kind"] == kind] for kind in ("own", "control")}
    said = described.get(latent, {"status": "error", "description": "", "reason": "never active on the texts"})
    scores = {{"own": "detection"}.get(kind, kind): methods.detection(found).to_dict() for kind, found in rows.items() if found}
    return {key: said[key] for key in ("status", "description", "reason")} | scores


def overall(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean balanced accuracy of descriptions and of the control, and how many replies had no answer."""
    found: dict[str, Any] = {}
    for kind in ("detection", "control"):
        scores = [card["automatic"][kind] for card in cards if kind in card["automatic"]]
        values = [one["balanced"]["value"] for one in scores if one["balanced"]]
        mean, unscored = round(float(np.mean(values)), 4) if values else None, sum(one["unscored"] for one in scores)
        found[kind] = {"mean": mean, "latents": len(values), "unscored": unscored}
    return found


def dump(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
    new.rename(path)
