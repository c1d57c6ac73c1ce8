"""Read the vector that a Direction names, and turn interventions into edits of a batch."""

from safetensors import safe_open
from torch import Tensor

from personascope.artifact import Dictionary
from personascope.backends.generation import Steer
from personascope.backends.hooks import site_index
from personascope.errors import RecipeError
from personascope.recipe import Direction, Intervention


def vector(direction: Direction) -> Tensor:
    """The unit vector (width,) of a direction.

    Raises:
        RecipeError: the artifact holds no such tensor, or it has length 0.
    """
    if isinstance(direction.source, Dictionary):
        name, _, latent = direction.tensor.partition("/")
        with safe_open(direction.source.file("sae_weights.safetensors"), "pt") as file:
            decoder = file.get_tensor("W_dec")
        if name != "decoder" or not latent.isdigit() or int(latent) >= len(decoder):
            raise RecipeError(f"direction {direction.tensor!r}: in a dictionary write decoder/LATENT with LATENT below {len(decoder)}")
        found = decoder[int(latent)].float()
    else:
        with safe_open(direction.source.file("directions.safetensors"), "pt") as file:
            if direction.tensor not in file.keys():  # noqa: SIM118 - safe_open is no mapping
                raise RecipeError(f"direction {direction.tensor!r}: {direction.source.path} has {', '.join(file.keys())}")
            found = file.get_tensor(direction.tensor).float()
    if not found.norm() > 0:
        raise RecipeError(f"direction {direction.tensor!r} of {direction.source.path} has length 0")
    return found / found.norm()


def steers_of(interventions: tuple[Intervention, ...], rows: int) -> list[Steer]:
    """Every intervention applied to every row of a batch."""
    steers = []
    for edit in interventions:
        scale = edit.strength * edit.unit if edit.op == "add" else 1.0
        steers.append(Steer(site_index(edit.site), edit.op, edit.mask, vector(edit.direction)[None] * scale, [0] * rows))
    return steers
