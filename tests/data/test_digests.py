"""collafuse.data.digests: a file that did not change is not read again, and one that did is."""

from __future__ import annotations

import hashlib
import os

import pytest

from collafuse.core.tensorfile import file_digest
from collafuse.data import digests
from collafuse.data.digests import FILE, digest_of


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "FRESH_NS", -1)
    (tmp_path / "weights").write_bytes(b"first")
    return tmp_path / "weights"


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read."""
    seen: list[str] = []
    monkeypatch.setattr(digests, "file_digest", lambda path: seen.append(path.name) or file_digest(path))
    return seen


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_that_did_not_change_is_read_once(weights, read, tmp_path):
    assert [digest_of(weights, tmp_path / "cache") for _ in range(2)] == [sha256(b"first")] * 2
    assert read == ["weights"] and (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert digest_of(weights, None) == sha256(b"first") and len(read) == 2


def test_a_change_is_noticed_though_size_and_time_are_put_back(weights, tmp_path):
    digest_of(weights, tmp_path)
    before = weights.stat()
    while weights.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of some file systems is slow
        with weights.open("r+b") as file:
            file.write(b"other")
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (weights.stat().st_mtime_ns, weights.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert digest_of(weights, tmp_path) == sha256(b"other")


def test_a_file_that_changed_just_now_is_not_remembered(weights, read, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "FRESH_NS", 10**18)
    assert digest_of(weights, tmp_path) == digest_of(weights, tmp_path)
    assert read == ["weights"] * 2 and not (tmp_path / FILE).exists()


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"a": 1}', b"\xff"])
def test_a_damaged_memory_is_none(weights, tmp_path, damage):
    (tmp_path / FILE).write_bytes(damage)
    assert digest_of(weights, tmp_path) == sha256(b"first")


@pytest.mark.parametrize("value", ["1", "[]", "[1, 2]", '{"0": 1}', "null"])
def test_a_damaged_entry_is_none(weights, tmp_path, value):
    (tmp_path / FILE).write_text(f'{{"{weights}": {value}}}')
    assert digest_of(weights, tmp_path) == sha256(b"first")


def test_a_memory_that_cannot_be_written_is_none(weights, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert digest_of(weights, tmp_path / "file" / "cache") == sha256(b"first")
