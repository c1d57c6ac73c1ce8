"""Models and dictionaries of the Hugging Face Hub by `ORG/NAME@REVISION`: pinned to a commit, found in the cache or downloaded into it.

A dictionary is a part of a repository, a folder or a file, and is called `ORG/NAME@REVISION:PATH`.
"""

import functools
import json
import re
from pathlib import Path

from personascope.errors import BackendError
from personascope.values import FOLDER_FILES, PINNED, PINNED_PART, WEIGHT_FILES

NAMED = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)(?::([\w./-]+))?")
KIND = "hf:"
"""May stand before a judge's folder, and so before its name on the Hub."""


def pinned(where: str) -> str:
    """`ORG/NAME@REVISION[:PATH]` with the commit that a branch or tag now means; a place on this disk, such as PATH@STEP, as it is.

    Asks the Hub, or only the cache where HF_HUB_OFFLINE is set, and downloads what is missing.

    Raises:
        BackendError: no such model or revision, no access, or not in the cache while offline.
    """
    kind, name = (KIND, where.removeprefix(KIND)) if where.startswith(KIND) else ("", where)
    found = NAMED.fullmatch(name)
    if not found or _is_pinned(name) or Path(name).exists() or Path(found[1]).exists():
        return where
    repository, revision, part = found.groups(default="")
    return f"{kind}{repository}@{snapshot(repository, revision, part).name}{part and ':'}{part}"


def local(where: str | Path) -> Path:
    """The place on this disk of a pinned model or part, downloaded if need be; any other path as it is. Raises BackendError as `pinned`."""
    name = str(where)
    if not _is_pinned(name):
        return Path(name)
    repository, _, rest = name.partition("@")
    revision, _, part = rest.partition(":")
    return snapshot(repository, revision, part) / part


def _is_pinned(name: str) -> bool:
    return bool(PINNED.fullmatch(name) or PINNED_PART.fullmatch(name))


@functools.cache
def snapshot(name: str, revision: str, part: str = "") -> Path:
    """The folder in the cache that holds a revision, called by its commit; asked once per process, so that no branch moves under way.

    Of a repository with a `part`, only that folder or file is there for sure, with the configurations beside a file.

    Raises:
        BackendError: as `pinned`, or a snapshot without all of its weights, or without the part.
    """
    from huggingface_hub import errors, snapshot_download  # lazy: half a second that local models need not wait

    where = f"{name}@{revision}"
    wanted = {"allow_patterns": [f"*{end}" for end in FOLDER_FILES], "ignore_patterns": ["*/*"]}
    if part:
        beside = [f"{part.rpartition('/')[0]}/*.json".lstrip("/")] if part.endswith(WEIGHT_FILES) else []
        wanted = {"allow_patterns": [part, *beside, *(f"{part}/*{end}" for end in (*WEIGHT_FILES, ".json"))]}
    try:
        folder = Path(snapshot_download(name, revision=revision, **wanted))
    except errors.GatedRepoError:
        raise BackendError(f"{where}: the model is gated; accept its terms on the Hub, then log in with `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise BackendError(f"{where}: {name} has no revision {revision!r}; give a branch, a tag or a commit of 40 digits") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise BackendError(f"{where}: no such model on the Hub, or it is private; check the name, or log in with `hf auth login`") from None
    except errors.IncompleteSnapshotError:
        raise BackendError(f"{where}: only part of it is in the cache and the Hub cannot be reached; download the rest") from None
    except errors.LocalEntryNotFoundError:
        raise BackendError(f"{where}: not in the cache and the Hub cannot be reached (is HF_HUB_OFFLINE set?); download it first") from None
    except errors.HfHubHTTPError as error:
        raise BackendError(f"{where}: the Hub says {str(error).splitlines()[0][:120]}; try again") from None
    if part and not (folder / part).exists():
        raise BackendError(f"{where}: no {part} in it, or not in the cache while offline; give the path of a folder or file there")
    if not part and (lacking := missing(folder)):
        raise BackendError(f"{where}: {lacking} is not in {folder}; download the rest, or give a model with *.safetensors")
    return folder


def missing(folder: Path) -> str:
    """The first file that a model or PEFT folder needs and does not have; nothing if it is whole."""
    if (folder / "adapter_config.json").is_file():
        needed = ["adapter_model.safetensors"]
    elif (index := folder / "model.safetensors.index.json").is_file():
        needed = ["config.json", *sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    else:
        needed = ["config.json", "model.safetensors"]
    return next((file for file in needed if not (folder / file).is_file()), "")
