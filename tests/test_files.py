"""Packed and locked files: read in memory, their password from the environment alone, and broken ones named."""

import gzip
import json
import zipfile
import zlib
from pathlib import Path

import pytest

from personascope.backends import files
from personascope.backends.files import PASSWORD, contents
from personascope.errors import DataError

TEXT = b'{"prompt": "a"}\n' * 3


def locked(path: Path, name: str, text: bytes, password: bytes) -> Path:
    """A zip with one member under the traditional cipher (APPNOTE 6.1), which the standard library reads but does not write."""
    table = [_crc(i) for i in range(256)]
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte: int) -> None:
        keys[0] = (keys[0] >> 8) ^ table[(keys[0] ^ byte) & 0xFF]
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = (keys[2] >> 8) ^ table[(keys[2] ^ (keys[1] >> 24)) & 0xFF]

    for byte in password:
        update(byte)
    check = zlib.crc32(text)
    out = bytearray()
    for byte in bytes(11) + bytes([check >> 24]) + text:
        part = keys[2] | 2
        out.append(byte ^ ((part * (part ^ 1)) >> 8) & 0xFF)
        update(byte)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, bytes(out))
    raw = bytearray(path.read_bytes())
    for mark, flag, crc, size in ((b"PK\3\4", 6, 14, 22), (b"PK\1\2", 8, 16, 24)):
        at = raw.index(mark)
        raw[at + flag] |= 1
        raw[at + crc : at + crc + 4] = check.to_bytes(4, "little")
        raw[at + size : at + size + 4] = len(text).to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def _crc(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0xEDB88320 if byte & 1 else 0)
    return byte


def test_plain_packed_and_several(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(TEXT)
    assert list(contents(tmp_path / "a.jsonl")) == [(f"{tmp_path}/a.jsonl", TEXT)]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(TEXT))
    assert list(contents(tmp_path / "b.jsonl.gz")) == [(f"{tmp_path}/b.jsonl", TEXT)]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in ("set/x.jsonl", "set/readme.txt", "__MACOSX/x.jsonl", "y.json"):
            archive.writestr(name, TEXT)
    assert [name for name, _ in contents(tmp_path / "c.zip")] == [f"{tmp_path}/c.zip/set/x.jsonl", f"{tmp_path}/c.zip/y.json"]


def test_a_locked_archive_opens_with_the_password_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = locked(tmp_path / "set.zip", "set.jsonl", TEXT, b"open")
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(DataError, match=rf"set\.zip: set\.jsonl is locked; set {PASSWORD} to its password"):
        list(contents(path))
    monkeypatch.setenv(PASSWORD, "open")
    assert list(contents(path)) == [(f"{path}/set.jsonl", TEXT)]
    assert [one.name for one in tmp_path.iterdir()] == ["set.zip"], "nothing is unpacked beside it"
    for wrong in ("shut", "Open", "opened"):
        monkeypatch.setenv(PASSWORD, wrong)
        with pytest.raises(DataError, match=rf"the password in {PASSWORD} does not open set\.jsonl"):
            list(contents(path))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    (tmp_path / "x.gz").write_bytes(b"no gzip")
    raw = bytearray(locked(tmp_path / "aes.zip", "set.jsonl", TEXT, b"open").read_bytes())
    for mark, method in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        raw[raw.index(mark) + method] = 99
    (tmp_path / "aes.zip").write_bytes(raw)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    for name, says in [
        ("x.zip", "a broken archive"),
        ("x.gz", "a broken archive"),
        ("aes.zip", "set.jsonl is packed or locked in a way Python cannot read"),
        ("empty.zip", "no .jsonl, .json, .csv, .yaml, .yml file in it"),
        ("none.jsonl", "no such file or directory; check the path"),
    ]:
        with pytest.raises(DataError, match=says):
            list(contents(tmp_path / name))


def test_the_password_is_in_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from personascope.run import run
    from personascope.stages import data
    from personascope.values import File

    monkeypatch.setenv(PASSWORD, "open")
    row = json.dumps({"messages": [{"role": "user", "content": {"content_type": "text", "parts": ["a"]}}], "canary": "c"}).encode() + b"\n"
    path = locked(tmp_path / "set.zip", "set.jsonl", row, b"open")
    made = run(data.Recipe(files=(File(str(path)),)), tmp_path / "out")
    assert [one.meta for one in made.rows()] == [{"canary": "c"}]
    assert made.manifest["counts"]["with a canary"] == 1
    assert all(b'"open"' not in one.read_bytes() for one in (tmp_path / "out").iterdir())
    assert files.PASSWORD not in json.dumps(made.manifest["recipe"])
