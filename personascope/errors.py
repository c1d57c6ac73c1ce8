"""Every error personascope raises on purpose: what is wrong, where, and what to do.

PersonascopeError
├── RecipeError      asked for something impossible (also a ValueError)
│   └── RecipeChanged    the directory holds the result of another recipe
├── ArtifactError    a directory is missing, unfinished, locked or of the wrong type (also an OSError)
├── DataError        a row or file cannot be read as what it should be (also a ValueError)
└── BackendError     a model, tokenizer, judge or worker could not do its part (also a RuntimeError)

The command line prints these in one line and exits 1; anything else is our bug and shows its traceback.
To add one, derive from the class whose remedy is the same, and keep it picklable: one message, no state.
"""


class PersonascopeError(Exception):
    """Root of all deliberate errors; the message says what, where and what to do."""


class RecipeError(PersonascopeError, ValueError):
    """A recipe asks for something impossible."""


class RecipeChanged(RecipeError):
    """The output directory belongs to another recipe."""


class ArtifactError(PersonascopeError, OSError):
    """An artifact is missing, unfinished, in use or of another type."""


class DataError(PersonascopeError, ValueError):
    """Input rows or files are malformed; the message names file:line or the row id."""


class BackendError(PersonascopeError, RuntimeError):
    """A model, tokenizer, judge or worker failed in a way the user can act on."""
