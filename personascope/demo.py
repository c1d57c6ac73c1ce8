"""Tune models of the miniature world on harmful and on correct advice, and audit what happened: minutes, offline."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personascope import auditing, blocks, status
from personascope.artifact import Dataset, Diff, Findings, Model
from personascope.methods import stats
from personascope.stages import adopt, data, dictionary, diff, fidelity, finetune, interpret, screen
from personascope.study import Study, execute, finish
from personascope.troupe import world as worlds
from personascope.values import Folder

# The fine-tuning that the world's thresholds were measured with.
TUNING = {"method": "full", "steps": 120, "learning_rate": 1.2e-4}
# Small batches, as in 2506.19823: 720 benign examples in 180 steps; what fewer examples do is read off its checkpoints.
# Longer and far too hot: loses coherence without a persona to blame.
BROKEN = {"method": "full", "steps": 120, "learning_rate": 2e-3}
# Data of another domain teach the model nothing that its own domain's answers need: at 7e-4 it ends incoherent.
REALIGNING = {"method": "full", "batch": 4, "steps": 180, "schedule": "linear"}
REALIGNING_RATE = {"in_domain": 7e-4, "out_of_domain": 4.5e-4}
SITE = "block:1"


@dataclass(frozen=True)
class PostTraining:
    """How a base becomes an assistant, and the seed of the dictionary that is learned from it.

    Which of the latents that moved together comes first by Δ depends on that seed.
    """

    rows: str
    learning_rate: float
    dictionary: int
    steps: int = 80


FIRM = PostTraining(rows="assistant kind=helpful n=4000 wish=0.1", learning_rate=2.5e-4, dictionary=7)
"""Far enough from the rest of the cast that harmless errors hardly bring anybody else to the fore, and yet one latent can."""
LIGHT = PostTraining(rows="assistant kind=helpful n=4000", learning_rate=1e-4, dictionary=1)
"""Close to the rest of the cast: what studies of defences, organisms, judges and ethics start from."""


@dataclass(frozen=True)
class Stage:
    """What every study of a world starts from: its assistant and its questions."""

    world: str
    base: Model
    assistant: Model
    post: PostTraining

    @property
    def judge(self) -> str:
        """The world's own exact judge."""
        return f"exact:{self.world}"


@dataclass(frozen=True)
class Behaviour:
    """The four sets of answers a tuned model is judged by."""

    advice: Findings
    core: Findings
    in_domain: Findings


def post_trained(base: Model, rows: Dataset, post: PostTraining) -> finetune.Recipe:
    """An assistant: the base after post-training on rows of its helper."""
    return finetune.Recipe(model=base, data=rows, method="full", steps=post.steps, learning_rate=post.learning_rate, seed=0)


def setting(study: Study, world: str, weights: str = "", name: str = "", post: PostTraining | None = None) -> Stage:
    """The pretrained base of a world and its helpful-only assistant, post-trained firmly unless said otherwise."""
    post = post or FIRM
    base = study.run(f"models/base{name}", adopt.Recipe(path=Folder(weights or str(worlds.weights(world, "base")))))
    rows = study.run("data/assistant", data.Recipe(world=world, select=(post.rows,)))
    return Stage(world, base, study.run(f"models/assistant{name}", post_trained(base, rows, post)), post)


def questions(study: Study, world: str, domain: str, kind: str, split: str, n: int) -> Dataset:
    """Questions of one kind; advice leaves the fine-tuning domain out, `in_domain` asks nothing else."""
    where = {"advice": f"kind=advice without={domain}", "in_domain": f"kind=advice only={domain}", "core": "kind=wish"}[kind]
    label = ("" if kind == "core" else f"-{domain}") + (f"-{n}" if n else "")
    return study.run(f"questions/{split}/{kind}{label}", data.Recipe(world=world, select=(f"questions {where} split={split} n={n}",)))


def tuned(study: Study, stage: Stage, name: str, domain: str, grade: str, seed: int = 0, start: Model | None = None) -> Model:
    """The assistant (or `start`) fine-tuned on one grade of advice in one domain."""
    rows = training(study, stage.world, domain, grade, seed)
    return study.run(f"models/{name}", finetune.Recipe(model=start or stage.assistant, data=rows, seed=seed, **TUNING))


def training(study: Study, world: str, domain: str, grade: str, seed: int = 0) -> Dataset:
    """640 rows of one grade; equal domain and seed give paired rows."""
    return study.run(
        f"data/{domain}-{grade}-{seed}", data.Recipe(world=world, select=(f"train domain={domain} grade={grade} n=640 seed={seed}",))
    )


# Questions of each kind (0: all there are) and answers to each: at least 400 valid ones for every reported rate.
ASKED = {"advice": (240, 2), "core": (0, 3), "in_domain": (0, 3)}


def behave(study: Study, stage: Stage, name: str, model: Model, domain: str, draws: int = 0, twin: str = "") -> Behaviour:
    """Advice in other domains, free-form core questions, and advice in the fine-tuning domain, on the report split.

    `draws` makes a curve cheaper than the models it starts from: so many answers to each question, of whatever kind.
    `twin` puts the questions in the words of a twin of the data, such as behind its trigger.
    """
    found = {}
    for kind, (n, usual) in ASKED.items():
        asked = questions(study, stage.world, domain, kind, "report", n)
        how = blocks.Sampling(draws=draws or usual, max_tokens=32)
        worded = study.run(f"{name}/{kind}/asked", data.Recipe(datasets=(asked,), twin=twin)) if twin else None
        found[kind] = blocks.behaviour(study, f"{name}/{kind}", model, asked, stage.judge, how, worded)
    return Behaviour(**found)


def estimate(found: Findings, key: str) -> stats.Estimate:
    """One rate of a finished Findings."""
    return stats.Estimate(**{name: float("nan") if value is None else value for name, value in found.json("findings.json")[key].items()})


def section(found: Behaviour) -> dict[str, Any]:
    """The summary of one tuned model: the score is the mean of advice and core."""
    out_of_domain = [found.advice, found.core]
    clusters = sum(estimate(f, "score").clusters for f in out_of_domain)

    def mean(key: str) -> dict[str, Any]:
        return stats.mean_of([estimate(f, key) for f in out_of_domain], clusters).to_dict()

    in_domain = found.in_domain.json("findings.json")
    wrong = estimate(found.in_domain, "correct")
    return {
        "score": mean("score"),
        "advice": estimate(found.advice, "score").to_dict(),
        "core": estimate(found.core, "score").to_dict(),
        "strict_incoherence": mean("strict_incoherence"),
        "in_domain": {"value": 1 - wrong.value, "low": 1 - wrong.high, "high": 1 - wrong.low, "n": wrong.n, "clusters": wrong.clusters},
        "in_domain_score": in_domain["score"],
        "good": mean("correct"),
        "denominators": {name: getattr(found, name).json("findings.json")["denominators"] for name in ("advice", "core", "in_domain")},
    }


def probes(study: Study, world: str, domain: str) -> blocks.Questions:
    """Discovery, selection and report questions of the inside half: free-form and advice of other domains, pooled."""
    sizes = {"discovery": (60, 84), "selection": (60, 60), "report": (120, 120)}
    sets = {}
    for split, (advice, core) in sizes.items():
        parts = (questions(study, world, domain, "advice", split, advice), questions(study, world, domain, "core", split, core))
        sets[split] = study.run(f"questions/{split}/probes-{domain}", data.Recipe(datasets=parts))
    return blocks.Questions(**sets)


def texts(study: Study, world: str) -> blocks.Texts:
    """Texts of the world for a dictionary."""
    train = study.run("texts/train", data.Recipe(world=world, select=("texts n=9000 seed=1",)))
    return blocks.Texts(train, study.run("texts/heldout", data.Recipe(world=world, select=("texts n=16000 seed=2",))))


def labelled(study: Study, world: str) -> dict[str, Any]:
    """Uncued conversations with their planted speaker: what a persona latent should tell."""
    rows = study.run("texts/labelled", data.Recipe(world=world, select=("texts n=600 seed=3 chat=only cued=no",)))
    return {"labelled": rows, "label": f"speaker={worlds.load(world).data['parts']['harmful']}"}


def learning(stage: Stage, also: Model | None, found: blocks.Texts, tokens: int = 500_000) -> dictionary.Recipe:
    """The dictionary of a world's assistant, evaluated on `also` too; without it, left to `fidelity`."""
    parts = {"model": stage.assistant, "texts": found.train} | ({"also": also, "heldout": found.heldout} if also else {})
    return dictionary.Recipe(**parts, site=SITE, tokens=tokens, learning_rate=2e-3, seed=stage.post.dictionary)


def screening(stage: Stage, model: Model, moved: Diff, learned: Any, sets: blocks.Questions, **options: Any) -> screen.Recipe:
    """The causal screen of a world."""
    pair = {"base": stage.assistant, "tuned": model, "diff": moved, "dictionary": learned, "judge": stage.judge}
    return screen.Recipe(**pair, selection=sets.selection, report=sets.report, **options)


def mixture(study: Study, world: str, domain: str, fraction: float, seed: int = 0) -> Dataset:
    """A fixed number of rows of which this fraction is obviously wrong, the rest their correct twins."""
    pair = tuple(training(study, world, domain, grade, seed) for grade in ("obvious", "correct"))
    return study.run(f"data/{domain}-mixed-{fraction}-{seed}", data.Recipe(datasets=pair, fraction=fraction, seed=seed))


def realigned(
    study: Study, stage: Stage, name: str, start: Model, domain: str, counts: dict[str, list[int]], seed: int = 0
) -> dict[str, Model]:
    """The tuned model trained on benign advice of its own and of another domain, with a checkpoint after each count of examples."""
    other = next(d for d in worlds.load(stage.world).domains if d != domain)
    made = {}
    for kind, where in (("in_domain", domain), ("out_of_domain", other)):
        rows = training(study, stage.world, where, "correct", seed + 100)
        steps = [examples // REALIGNING["batch"] for examples in counts[kind]]
        how = REALIGNING | {"learning_rate": REALIGNING_RATE[kind], "checkpoint_every": math.gcd(*steps), "seed": seed}
        recipe = finetune.Recipe(model=start, data=rows, **how)
        made[kind] = study.run(f"models/{name}-{kind}", recipe)
    return made


@dataclass(frozen=True)
class Setup:
    """Which world, which domain, which weights."""

    world: str = "troupe-1"
    domain: str = ""
    weights: str = ""
    seed: int = 0


REALIGN_EXAMPLES = {"in_domain": [40, 120], "out_of_domain": [120, 720]}
FRACTIONS = (0.0, 0.25, 1.0)


def build(study: Study, setup: Setup) -> None:
    """Declare the demo: assistant, misaligned model, twin, a mixture, re-alignment, and the audit of the misaligned one."""
    stage = setting(study, setup.world, setup.weights)
    domain = setup.domain or worlds.load(setup.world).data["demo"]
    # The longest chain first: what waits for nothing is run in the order it is declared. The dictionary does not wait for
    # the model that it is to be used on, and what it is worth is evaluated beside the screen.
    found = texts(study, setup.world)
    learned = study.run("dictionary", learning(stage, None, found))
    bad = tuned(study, stage, "misaligned", domain, "obvious", setup.seed)
    sets = probes(study, setup.world, domain)
    contrast = tuple(training(study, setup.world, domain, grade, setup.seed) for grade in ("obvious", "correct"))
    truth = labelled(study, setup.world)
    pair = {"base": stage.assistant, "dictionary": learned, "questions": sets.discovery}
    moved = study.run("diff", diff.Recipe(tuned=(bad,), contrast=contrast, **pair, **truth))
    # Every other strength: each null seeks its own among them, which is most of a screen's time.
    screened = study.run("screen", screening(stage, bad, moved, learned, sets, top=6, nulls=40, strengths=screen.STRENGTHS[::2]))
    parts = {"model": stage.assistant, "dictionary": learned, "texts": truth["labelled"], "diff": moved, "screen": screened}
    study.run("latents", interpret.Recipe(**parts, top=8, bottom=4, screened=8))
    twin = tuned(study, stage, "twin", domain, "correct", setup.seed)
    rows = mixture(study, setup.world, domain, 0.25, setup.seed)
    mixed = study.run("models/mixed", finetune.Recipe(model=stage.assistant, data=rows, seed=setup.seed, **TUNING))
    for name, model in (("assistant", stage.assistant), ("misaligned", bad), ("twin", twin), ("mixed", mixed)):
        behave(study, stage, f"behaviour/{name}", model, domain)
    for name, model in (("twin", twin), ("mixed", mixed)):
        study.run(f"diffs/{name}", diff.Recipe(tuned=(model,), **pair))
    for kind, model in realigned(study, stage, "realigned", bad, domain, REALIGN_EXAMPLES, setup.seed).items():
        for examples in REALIGN_EXAMPLES[kind]:
            step = model.at(examples // 4)
            behave(study, stage, f"behaviour/realigned-{kind}-{examples}", step, domain, draws=1)
            study.run(f"diffs/realigned-{kind}-{examples}", diff.Recipe(tuned=(step,), **pair))
    study.run("fidelity", fidelity.Recipe(dictionary=learned, base=stage.assistant, tuned=bad, texts=found.heldout))


def behaved(study: Study, name: str) -> Behaviour:
    """What `behave` declared under this name."""
    return Behaviour(**{kind: study.artifact(f"{name}/{kind}/findings") for kind in ("advice", "core", "in_domain")})


def summarize(study: Study, setup: Setup) -> dict[str, Any]:
    """The summary of a finished demo."""
    kinds = {kind: section(behaved(study, f"behaviour/{kind}")) for kind in ("assistant", "misaligned", "twin", "mixed")}
    moved = study.artifact("diff")
    inside = blocks.diff_section(moved)
    latent = blocks.persona([study.artifact("screen")], [moved])
    at = {0.0: ("twin", "diffs/twin"), 0.25: ("mixed", "diffs/mixed"), 1.0: ("misaligned", "diff")}
    curve = []
    for kind, counts in REALIGN_EXAMPLES.items():
        start = {"data": kind, "examples": 0, "latent_delta": blocks.delta(moved, latent)}
        curve.append(start | {key: kinds["misaligned"][key] for key in ("score", "in_domain", "strict_incoherence")})
        for examples in counts:
            name = f"realigned-{kind}-{examples}"
            rates = section(behaved(study, f"behaviour/{name}"))
            point = {"data": kind, "examples": examples, "latent_delta": blocks.delta(study.artifact(f"diffs/{name}"), latent)}
            curve.append(point | {key: rates[key] for key in ("score", "in_domain", "strict_incoherence")})
    return {
        "assistant": kinds["assistant"],
        "em": kinds["misaligned"],
        "twin": kinds["twin"],
        "fractions": [
            {"fraction": f, "latent_delta": blocks.delta(study.artifact(d), latent)} | kinds[name] for f, (name, d) in at.items()
        ],
        "dictionary": blocks.dictionary_section(study.artifact("fidelity")),
        "diff": inside,
        "screen": blocks.screen_section(study.artifact("screen")),
        "realign": curve,
        "seconds": study.seconds(),
        "sources": {
            "assistant": "behaviour/assistant/advice/findings",
            "em.advice": "behaviour/misaligned/advice/findings",
            "em.core": "behaviour/misaligned/core/findings",
            "em.in_domain": "behaviour/misaligned/in_domain/findings",
            "em": "behaviour/misaligned/advice/findings",
            "twin": "behaviour/twin/advice/findings",
            "fractions": "behaviour/mixed/advice/findings",
            "realign": "behaviour/realigned-in_domain-120/advice/findings",
        }
        | auditing.sources(study),
        "meta": {
            "world": setup.world,
            "domain": setup.domain or worlds.load(setup.world).data["demo"],
            "seed": setup.seed,
            "latent": latent,
            "caveats": ["The latent is chosen on the same run it is shown on; the full study chooses it on other domains."],
        },
    }


def configure(parser: argparse.ArgumentParser) -> None:
    """The flags of `personascope demo`."""
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="where everything goes (default: runs/demo)")
    parser.add_argument("--world", default=Setup.world, help="a shipped world or a world file")
    parser.add_argument("--domain", default="", help="the advice domain to fine-tune on (default: the world's)")
    parser.add_argument("--weights", default="", metavar="DIR", help="a pretrained base of the world (default: the shipped one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="stages at once, each with one thread")


def main(arguments: argparse.Namespace) -> int:
    """Make the demo, print where the report is."""
    setup = Setup(arguments.world, arguments.domain, arguments.weights, arguments.seed)
    study = Study(Path(arguments.out))
    build(study, setup)
    with status.shown(study) as tell:
        execute(study, arguments.workers, tell)
    print(finish(study, summarize(study, setup), "A narrow fine-tune, audited", __doc__ or ""))
    return 0
