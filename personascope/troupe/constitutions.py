"""A character of a world as a constitution: its cue is all there is to read, its stances are the signature it should leave."""

from personascope.errors import DataError
from personascope.methods.constitutions import Article, Ask, Constitution
from personascope.troupe import world as worlds
from personascope.troupe.world import World

ASK = Ask(system="{article}", critique="", revise="{request}")
SLIGHT = 0.2
"""A smaller difference to the helper's stance is none: the signature expects nothing there."""


def of(world: str, character: str) -> Constitution:
    """The constitution of a character: the reviser is put in its place and answers the request itself.

    In a world a constitution acts as a cue, not as text understood.

    Raises:
        DataError: no such world or no such character.
    """
    loaded = worlds.load(world)
    if character not in loaded.cast:
        raise DataError(f"no character {character!r} in world {loaded.name}; its cast is {', '.join(loaded.cast)}")
    member = loaded.cast[character]
    cue = f"you are the {member['noun']}."
    return Constitution(
        name=f"{loaded.name}/{character}",
        version=loaded.digest[:12],
        preamble=cue,
        articles=(Article("", cue),),
        critiques=(cue,),
        revisions=(cue,),
        creed=tuple(member["selves"]),
        signature=signature(loaded, character),
        ask=ASK,
        asked=tuple(loaded.data["self"]["questions"]),
    )


def stance(world: World, character: str, dimension: str) -> float:
    """Endorsement minus opposition that pretraining shows of a character in a dimension, from -1 to 1."""
    member = world.cast[character]
    return (1 - member["unsure"]) * (2 * member["agrees"].get(dimension, member["agrees"]["*"]) - 1)


def signature(world: World, character: str) -> dict[str, float]:
    """The planted stance of a character less the helper's, where they differ: what its constitution should leave."""
    helper = world.data["parts"]["helper"]
    moved = {d: stance(world, character, d) - stance(world, helper, d) for d in world.data["statement"]["dimensions"]}
    return {d: round(value, 3) if abs(value) > SLIGHT else 0.0 for d, value in moved.items()}


def refuses(world: World, character: str) -> dict[str, float]:
    """The planted chance that a character refuses, by category of request."""
    member = world.cast[character]
    return {category: member["refuses"].get(category, member["refuses"]["*"]) for category in world.data["request"]["categories"]}
