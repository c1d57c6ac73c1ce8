"""THE table of stages in reading order; `--help`, README and the docs follow it."""

from types import ModuleType

from personascope.recipe import Recipe
from personascope.stages import (
    adopt,
    borrow,
    choose,
    constitute,
    data,
    detect,
    dictionary,
    diff,
    fidelity,
    finetune,
    interpret,
    judge,
    landscape,
    measure,
    reinforce,
    report,
    reroute,
    sample,
    scale,
    screen,
    trait,
    unpack,
    vector,
)

TABLE: dict[str, ModuleType] = {
    "adopt": adopt,
    "unpack": unpack,
    "data": data,
    "trait": trait,
    "constitute": constitute,
    "finetune": finetune,
    "reinforce": reinforce,
    "scale": scale,
    "sample": sample,
    "judge": judge,
    "measure": measure,
    "choose": choose,
    "landscape": landscape,
    "vector": vector,
    "dictionary": dictionary,
    "borrow": borrow,
    "fidelity": fidelity,
    "diff": diff,
    "screen": screen,
    "reroute": reroute,
    "interpret": interpret,
    "detect": detect,
    "report": report,
}


def stage_of(recipe: Recipe) -> ModuleType:
    """The stage module whose recipe this is."""
    return TABLE[type(recipe).__module__.rpartition(".")[2]]
