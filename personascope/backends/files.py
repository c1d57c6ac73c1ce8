"""What lies in a file of the user's, packed or locked or not: names and contents, in memory alone."""

import gzip
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from personascope.errors import DataError

PASSWORD = "PERSONASCOPE_ZIP_PASSWORD"
"""The environment variable with the password of a locked archive; no recipe and no manifest ever holds it."""
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
READ = (".jsonl", ".json", ".csv", ".yaml", ".yml")


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the file, of what a `.gz` holds, or of every data file in a `.zip`; nothing is unpacked to disk.

    Published training sets are locked so that no crawler reads them; a locked archive is opened with the password in the
    environment variable PERSONASCOPE_ZIP_PASSWORD.

    Raises:
        DataError: no such file, a broken or empty archive, or one whose password is missing or wrong.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from _members(path, archive)
        elif path.suffix == ".gz":
            yield str(path.with_suffix("")), gzip.decompress(path.read_bytes())
        else:
            yield str(path), path.read_bytes()
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: a broken archive ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}; check the path") from None


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    wanted = [
        one for one in archive.infolist() if not one.is_dir() and Path(one.filename).suffix in READ and "__MACOSX" not in one.filename
    ]
    if not wanted:
        raise DataError(f"{path}: no {', '.join(READ)} file in it; give an archive of rows")
    password = os.environ.get(PASSWORD, "")
    for one in wanted:
        if one.compress_type not in PACKED:
            raise DataError(f"{path}: {one.filename} is packed or locked in a way Python cannot read; pack it as a plain zip")
        if one.flag_bits & 1 and not password:
            raise DataError(f"{path}: {one.filename} is locked; set {PASSWORD} to its password")
        try:
            yield f"{path}/{one.filename}", archive.read(one, pwd=password.encode() or None)
        except (RuntimeError, zlib.error, zipfile.BadZipFile):
            if not one.flag_bits & 1:
                raise
            raise DataError(f"{path}: the password in {PASSWORD} does not open {one.filename}; check it") from None
