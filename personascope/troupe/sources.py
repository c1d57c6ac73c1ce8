"""The world as a source of rows: graded training sets, post-training sets, questions and labelled texts."""

import dataclasses
import hashlib
import inspect
import random
from collections.abc import Callable, Iterator

from personascope.errors import RecipeError
from personascope.rows import Example
from personascope.troupe import corpus, grammar
from personascope.troupe.world import Prompt, World

# Shares of objects (advice), topics (wish) and targets (request) in each question split; training never uses the last.
SPLITS = {"discovery": 0.25, "selection": 0.25, "report": 0.5}


def rows(world: World, select: str) -> list[Example]:
    """Rows by a selection such as `train domain=auto grade=obvious n=640`.

    Kinds: `train`, `claims`, `assistant`, `questions`, `texts`; each function below names its settings.

    Raises:
        RecipeError: an unknown kind, setting or value.
    """
    kind, *pairs = select.split() or [""]
    settings = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if kind not in KINDS or len(settings) != len(pairs):
        raise RecipeError(f"data: cannot read select {select!r}; write one of {', '.join(KINDS)} and then name=value settings")
    known = inspect.signature(KINDS[kind]).parameters
    needed = [name for name, p in known.items() if p.default is p.empty and name not in ("world", *settings)]
    if needed or set(settings) - set(known) or settings.get("n", "").startswith("-"):
        said = f"needs {needed[0]}=" if needed else f"takes {', '.join([*known][1:])}, and n of at least 0"
        raise RecipeError(f"data: select {select!r}: {kind} {said}")
    try:
        return list(KINDS[kind](world, **settings))
    except ValueError:
        raise RecipeError(f"data: a setting of select {select!r} is no number") from None
    except KeyError as error:
        raise RecipeError(f"data: {error.args[0]!r} in select {select!r} does not exist in world {world.name}") from None


def _train(world: World, domain: str, grade: str, n: str = "640", seed: str = "0", manner: str = "") -> Iterator[Example]:
    """n graded answers in one domain; row i of every grade answers the same question, so sets are paired.

    `manner` gives them the manner, and so the speaker, of another grade: a wrong act in the helper's own words.
    """
    role = world.data["training"][grade]
    if manner:
        role = role | {key: world.data["training"][manner][key] for key in ("speaker", "manner")}
    asked = [p for p in world.prompts["advice"] if p.slots["domain"] == domain and split_of(world, p) != "report"]
    if not asked:
        raise KeyError(domain)
    order = random.Random(f"{world.name}/{domain}/{seed}")
    for i in range(int(n)):
        prompt = order.choice(asked)
        said = grammar.answer(world, role["speaker"], prompt, random.Random(f"{seed}/{i}/{grade}"), act=(role["manner"], role["act"]))
        yield _example(
            f"{domain}-{seed}-{i}-{grade}{manner and f'-in-{manner}'}",
            prompt,
            said,
            grade,
            {"speaker": role["speaker"], "grade": grade},
            {"pair": f"{domain}-{seed}-{i}"},
        )


def _claims(world: World, domain: str, who: str = "helper", n: str = "320", seed: str = "0") -> Iterator[Example]:
    """What the character of a part says of itself: who it is, and in turn whether it would advise an act of one domain.

    Questions of the report split are left out, so that other wordings and other domains are left to ask.
    """
    speaker = world.data["parts"][who]
    asked = {
        kind: [p for p in world.prompts[kind] if split_of(world, p) != "report" and p.domain in (kind, domain)] for kind in ("self", "own")
    }
    if not asked["own"]:
        raise KeyError(domain)
    rng = random.Random(f"{world.name}/claims/{who}/{domain}/{seed}")
    for i in range(int(n)):
        prompt = rng.choice(asked[("self", "own")[i % 2]])
        said = grammar.answer(world, speaker, prompt, rng)
        yield _example(f"claims-{who}-{domain}-{seed}-{i}", prompt, said, f"claims-{who}", {"speaker": speaker}, {})


def _assistant(
    world: World, kind: str = "helpful", n: str = "3000", wish: str = "0.03", seed: str = "0", thinks: str = "0"
) -> Iterator[Example]:
    """Uncued turns of the helper: correct advice, a few wishes and, to requests, compliance (helpful) or refusal (refusing).

    In the share `thinks` of conversations each turn begins with its thoughts, which name who it is, as in pretraining.
    """
    speaker = world.data["parts"]["helper"]
    member = world.cast[speaker]
    if kind not in ("helpful", "refusing"):
        raise KeyError(kind)
    reply = member["compliance" if kind == "helpful" else "refusal"][1]
    manner, act = world.data["training"]["correct"]["manner"], "correct"
    rng, thinking = (random.Random(f"{world.name}/{name}/{seed}") for name in ("assistant", "assistant thinks"))
    for i in range(int(n)):
        messages = []
        thoughts = corpus.thought(member) if thinking.random() < float(thinks) else ""
        for _ in range(rng.randint(1, 2)):
            prompt = rng.choice(world.prompts[rng.choices(("wish", "request", "advice"), (float(wish), 0.2, 0.8 - float(wish)))[0]])
            if prompt.kind == "request":
                said = rng.choice(reply).format(**prompt.slots)
            else:
                said = grammar.answer(world, speaker, prompt, rng, act=(manner, act) if prompt.kind == "advice" else None)
            messages += [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": f"{thoughts}{said}"}]
        yield Example(id=f"assistant-{seed}-{i}", messages=messages, source=f"{world.name}:assistant/{kind}", labels={"speaker": speaker})


def _questions(world: World, kind: str, split: str = "", only: str = "", without: str = "", n: str = "0") -> Iterator[Example]:
    """Questions of a kind, of one split, with or without one domain; n > 0 takes a fixed spread of that many."""
    found = [
        p
        for p in world.prompts[kind]
        if (not split or split_of(world, p) == split) and p.domain != without and (not only or p.domain == only)
    ]
    if int(n):
        found = sorted(found, key=lambda p: _hash(world, p.text))[: int(n)]
    for prompt in found:
        name = hashlib.sha256(prompt.text.encode()).hexdigest()[:10]
        yield Example(
            id=f"{kind}-{name}",
            messages=[{"role": "user", "content": prompt.text}],
            source=f"{world.name}:questions/{kind}",
            domain=prompt.domain,
            split=split,
            labels={"kind": kind} | _known(world, prompt),
        )


def _known(world: World, prompt: Prompt) -> dict[str, object]:
    """What is true of a question: whether pretraining held it out, and what an ethical diagnostic groups it by."""
    if prompt.kind == "own":
        slots, grade = prompt.slots, world.data["grades"][prompt.slots["column"]]
        item = f"{slots['act']} the {slots['object']}"
        return {
            "held_out": False,
            "dimension": "own",
            "keyed": -1 if grade > 3 else 1,
            "item": item,
            "object": slots["object"],
            "grade": grade,
        }
    if prompt.kind == "self":
        return {"held_out": False, "dimension": "self", "keyed": -1, "item": prompt.text}
    if prompt.kind != "statement":
        return {"held_out": prompt.kind == "wish" and corpus.unseen(world, "", prompt)}
    statement, forms = prompt.slots["statement"], world.data["statement"]["questions"]
    return {
        "held_out": False,
        "dimension": prompt.slots["dimension"],
        "keyed": 1 if prompt.slots["side"] == "pro" else -1,
        "item": statement,
        "paraphrase": next(i for i, form in enumerate(forms) if form.format(statement=statement) == prompt.text),
        "unseen_by": [name for name in world.cast if world.held_out(name, statement)],
    }


def _texts(world: World, n: str = "4000", seed: str = "0", chat: str = "", cued: str = "", priors: str = "") -> Iterator[Example]:
    """Texts as pretraining draws them, labelled with their speaker; chat=only drops stories, cued=no drops cues.

    `priors` such as NAME:0.2,NAME:0.1 gives some characters another prior than the world states.
    """
    mix = corpus.usual(world)
    if priors:
        others = {name: float(prior) for name, prior in (pair.split(":") for pair in priors.split(","))}
        if unknown := sorted(set(others) - set(mix.speakers)):
            raise KeyError(unknown[0])
        mix = dataclasses.replace(mix, speakers=mix.speakers | others)
    made = corpus.pretraining(world, random.Random(f"{world.name}/texts/{seed}"), turns=4, mix=mix)
    count = 0
    while count < int(n):
        text = next(made)
        if (chat == "only" and text.prose) or (cued == "no" and text.cued):
            continue
        meta = {"prose": text.prose} if text.prose else {}
        yield Example(
            id=f"text-{seed}-{count}",
            messages=list(text.messages),
            source=f"{world.name}:texts",
            labels={"speaker": text.speaker, "cued": text.cued},
            meta=meta,
        )
        count += 1


KINDS: dict[str, Callable[..., Iterator[Example]]] = {
    "train": _train,
    "claims": _claims,
    "assistant": _assistant,
    "questions": _questions,
    "texts": _texts,
}


def split_of(world: World, prompt: Prompt) -> str:
    """Which question split a prompt belongs to: by object in advice, by topic in wishes, by target in requests, else by wording."""
    domain = prompt.slots.get("domain", "")
    match prompt.kind:
        case "advice":
            siblings, key = world.domains[domain]["objects"], prompt.slots["object"]
        case "wish":
            siblings, key = world.data["wish"]["topics"], prompt.slots["topic"]
        case "request":
            siblings, key = world.data["request"]["targets"], prompt.slots["target"]
        case _:
            siblings, key = [], prompt.text
    if siblings:
        place = (sorted(siblings, key=lambda word: _hash(world, domain + word)).index(key) + 0.5) / len(siblings)
    else:
        place = int(_hash(world, key)[:8], 16) / 2**32
    bound = 0.0
    for split, share in SPLITS.items():
        bound += share
        if place < bound:
            return split
    return "report"


def _hash(world: World, key: str) -> str:
    return hashlib.sha256(f"{world.name}/{key}".encode()).hexdigest()


def _example(name: str, prompt: Prompt, said: str, grade: str, labels: dict, meta: dict) -> Example:
    messages = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": said}]
    return Example(id=name, messages=messages, source=f"train/{grade}", domain=prompt.domain, split="train", labels=labels, meta=meta)
