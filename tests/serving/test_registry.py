"""Who may ask for what: tokens of which only a digest is kept, and the releases that came."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from collafuse.core.errors import AccessError, FileFormatError, StorageError, UsageError
from collafuse.serving.registry import TOKEN, Received, Registry

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "server" / "registry.sqlite")


def test_a_token_is_256_random_bits_bound_to_a_client_and_scopes(registry):
    text, token = registry.add_token("north", ["sample", "release", "sample"], now=NOW, days=2)
    assert len(TOKEN.fullmatch(text).group(2)) == 43
    assert (token.client, token.scopes) == ("north", ("sample", "release"))
    assert registry.authenticate(text, now=NOW) == token
    assert registry.add_token("north", ["sample"])[0] != text


def test_the_token_itself_is_kept_nowhere(registry):
    text, token = registry.add_token("north", ["sample"])
    secret = TOKEN.fullmatch(text).group(2)
    for path in registry.path.parent.iterdir():
        assert secret.encode() not in path.read_bytes()
    assert secret not in repr(token)


DAMAGE = [
    lambda text: text[:-1],
    lambda text: text[:40] + ("A" if text[40] != "A" else "B") + text[41:],
    lambda text: f"x{text}",
    lambda text: "",
    str.upper,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_another_text_is_no_token(registry, damage):
    text, _ = registry.add_token("north", ["sample"])
    with pytest.raises(AccessError, match=r"not known here; ask the server's operator.*tokens add"):
        registry.authenticate(damage(text))


def test_it_ends_on_its_day(registry):
    text, _ = registry.add_token("north", ["sample"], now=NOW, days=1)
    registry.authenticate(text, now=NOW + timedelta(hours=23))
    with pytest.raises(AccessError, match=r"'north' expired on 2026-01-03 03:04 UTC"):
        registry.authenticate(text, now=NOW + timedelta(hours=24))


def test_it_can_be_revoked_and_then_stays_so(registry):
    text, token = registry.add_token("north", ["sample"])
    other, _ = registry.add_token("north", ["sample"])
    first = registry.revoke(token.id)
    assert registry.revoke(token.id).revoked == first.revoked
    with pytest.raises(AccessError, match=r"'north' was revoked on 20"):
        registry.authenticate(text)
    assert registry.authenticate(other).client == "north"
    with pytest.raises(UsageError, match="no token 'beef'"):
        registry.revoke("beef")


def test_scopes_and_clients_are_held_apart(registry):
    _, sample = registry.add_token("north", ["sample"])
    _, admin = registry.add_token("operator", ["admin"])
    sample.require("sample", "north")
    with pytest.raises(AccessError, match="scopes sample, this needs release"):
        sample.require("release", "north")
    with pytest.raises(AccessError, match="belongs to client 'north', not to 'east'"):
        sample.require("sample", "east")
    for scope in ("sample", "release", "admin"):
        admin.require(scope, "east")


@pytest.mark.parametrize(
    ("client", "scopes", "days", "says"),
    [
        ("../north", ["sample"], 1, "client name '../north'"),
        ("north", [], 1, "scopes none"),
        ("north", ["root"], 1, "one or more of sample, release, admin"),
        ("north", ["sample"], 0, "days=0"),
        ("north", ["sample"], 1e9, "at most 3660"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(registry, client, scopes, days, says):
    with pytest.raises(UsageError, match=says):
        registry.add_token(client, scopes, days=days)
    assert registry.tokens() == []


def test_releases_are_listed_once(registry):
    one = Received("north", "id1", "aa", 10, 2, 0.5, "2026")
    with registry.listing() as add:
        add(one)
    with registry.listing() as add:
        add(replace(one, received="2027"))
    with pytest.raises(KeyboardInterrupt), registry.listing() as add:
        add(replace(one, id="id2"))
        raise KeyboardInterrupt
    assert registry.releases("north") == registry.releases() == [one]
    assert registry.releases("east") == []
    assert registry.release("north", "id1") == one
    assert registry.release("east", "id1") is None


def test_a_second_process_sees_what_the_first_wrote(registry):
    text, token = registry.add_token("north", ["sample"])
    again = Registry(registry.path)
    assert again.authenticate(text) == token
    assert sqlite3.connect(registry.path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_registry_is_refused(tmp_path):
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(FileFormatError, match="cannot be used .*restore it"):
        Registry(path)
    with pytest.raises(StorageError):
        Registry(tmp_path / "registry.sqlite" / "below-a-file")
