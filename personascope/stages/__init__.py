"""THE table of stages in reading order; `--help`, README and the docs follow it."""

from types import ModuleType

from personascope.recipe import Recipe
from personascope.stages import adopt, data, detect, dictionary, diff, finetune, judge, measure, report, sample, screen

TABLE: dict[str, ModuleType] = {
    "adopt": adopt,
    "data": data,
    "finetune": finetune,
    "sample": sample,
    "judge": judge,
    "measure": measure,
    "dictionary": dictionary,
    "diff": diff,
    "screen": screen,
    "detect": detect,
    "report": report,
}


def stage_of(recipe: Recipe) -> ModuleType:
    """The stage module whose recipe this is."""
    return TABLE[type(recipe).__module__.rpartition(".")[2]]
