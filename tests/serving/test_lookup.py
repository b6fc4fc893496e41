"""Finding a token on the thread that serves: as quickly as that, and never an old truth."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from collafuse.core.errors import AccessError
from collafuse.serving.lookup import Lookup
from collafuse.serving.registry import Registry


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry.sqlite")


@pytest.fixture
def lookup(registry):
    made = Lookup(registry)
    yield made
    made.close()


def test_it_says_what_the_registry_says(registry, lookup):
    text, token = registry.add_token("north", ["sample"])
    assert lookup.authenticate(text) == token
    with pytest.raises(AccessError, match="not known here"):
        lookup.authenticate(text[:-1] + ("A" if text[-1] != "A" else "B"))


def test_it_hears_of_tokens_that_were_added_or_revoked_since(registry, lookup):
    first, _ = registry.add_token("north", ["sample"])
    assert lookup.authenticate(first)
    second, token = registry.add_token("north", ["sample"])
    assert lookup.authenticate(second)
    registry.revoke(token.id)
    with pytest.raises(AccessError, match="was revoked on"):
        lookup.authenticate(second)


def test_another_file_in_its_place_is_opened(registry, lookup, tmp_path):
    old, _ = registry.add_token("north", ["sample"])
    backup = shutil.copy(registry.path, tmp_path / "backup")
    new, _ = registry.add_token("north", ["sample"])
    assert lookup.authenticate(new)
    for rest in ("-wal", "-shm"):
        registry.path.with_name(registry.path.name + rest).unlink(missing_ok=True)
    backup.replace(registry.path)
    assert lookup.authenticate(old)
    with pytest.raises(AccessError):
        lookup.authenticate(new)


def test_a_file_that_is_held_or_gone_is_left_to_a_thread(registry, lookup):
    text, token = registry.add_token("north", ["sample"])
    with sqlite3.connect(registry.path) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        assert lookup.authenticate(text) is None
    holder.close()
    assert lookup.authenticate(text) == token
    registry.path.unlink()
    assert lookup.authenticate(text) is None
