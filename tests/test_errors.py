import pickle

import pytest

from personascope import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PersonascopeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind: type[errors.PersonascopeError]) -> None:
    """A worker's error must reach the parent as what it is."""
    back = pickle.loads(pickle.dumps(kind("rows.jsonl:3: bad")))
    assert type(back) is kind
    assert str(back) == "rows.jsonl:3: bad"


def test_the_tree_on_top_is_the_tree() -> None:
    assert errors.__doc__
    for kind in KINDS:
        assert kind.__name__ in errors.__doc__
    assert issubclass(errors.RecipeChanged, errors.RecipeError)
    for kind, builtin in ((errors.RecipeError, ValueError), (errors.ArtifactError, OSError), (errors.BackendError, RuntimeError)):
        assert issubclass(kind, builtin)
