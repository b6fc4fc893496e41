"""The file in which all processes of a run count what is left of a token's minute."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from collafuse.serving import buckets as module
from collafuse.serving.buckets import Buckets

NOW = 1.0e9


@pytest.fixture
def buckets(tmp_path):
    """Opens the buckets of one file, as a process does."""
    opened = []

    def open_(per_minute=60):
        opened.append(Buckets(tmp_path / "limits.sqlite", per_minute))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def test_two_processes_take_from_one_bucket(buckets):
    one, other = buckets(), buckets()
    assert one.take("a", 40, NOW).granted
    assert other.take("a", 15, NOW).granted
    refused = one.take("a", 10, NOW)
    assert (refused.granted, refused.level) == (False, 5)
    assert other.take("b", 60, NOW).granted
    assert one.take("a", 10, NOW + 5).granted
    assert one.times_alone == other.times_alone == 0


def test_a_restart_gives_nothing_back(buckets):
    before = buckets()
    before.take("a", 60, NOW)
    before.close()
    assert not buckets().take("a", 1, NOW).granted


def test_it_holds_a_minute_and_what_is_given_back_is_there_again(buckets):
    one = buckets()
    one.take("a", 60, NOW)
    assert one.take("a", -20, NOW).level == 20
    assert one.take("a", -200, NOW).level == 60
    assert one.take("a", 0, NOW + 1e6).level == 60


def test_a_clock_that_is_set_back_fills_nothing_and_freezes_nothing(buckets):
    one = buckets()
    one.take("a", 60, NOW)
    assert one.take("a", 1, NOW - 3600).level == 0
    assert one.take("a", 1, NOW - 3590).granted


def test_no_image_is_granted_twice_to_processes_that_ask_at_once(buckets):
    def ask(one):
        return sum(one.take("a", 1, NOW).granted for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, [buckets(100) for _ in range(4)])) == 100


def test_processes_that_begin_at_once_all_count_in_the_file(buckets, monkeypatch):
    """While another changes a new file's journal SQLite may say at once that it is locked, about once in a thousand."""
    told = iter(["database is locked", "database is locked"])

    class AtOnce(sqlite3.Connection):
        def execute(self, sql, *values):
            if "journal_mode" in sql and (reason := next(told, None)) is not None:
                raise sqlite3.OperationalError(reason)
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *place, **options: connect(*place, **options, factory=AtOnce))
    one = buckets()
    assert one.take("a", 10, NOW).granted and one.times_alone == 0 and next(told, None) is None
    told = iter(["disk I/O error"])
    assert buckets().take("a", 10, NOW).granted and next(told, None) is None  # alone, and not tried again


def test_a_file_that_another_process_holds_is_not_waited_for_long(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "ALONE_SECONDS", 0.0)
    one = buckets()
    one.take("a", 10, NOW)
    holder = sqlite3.connect(tmp_path / "limits.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    one.close()  # with the patience of this test
    assert one.take("a", 60, NOW).granted  # counted alone, from full
    assert not one.take("a", 1, NOW).granted
    assert one.times_alone == 2
    holder.execute("COMMIT")
    holder.close()
    assert one.take("a", 50, NOW).granted
    assert one.times_alone == 2


def test_a_file_that_is_no_database_is_worth_a_limit_of_its_own(buckets, tmp_path):
    (tmp_path / "limits.sqlite").write_bytes(b"nonsense" * 1000)
    one = buckets()
    assert one.take("a", 60, NOW).granted
    assert not one.take("a", 1, NOW).granted
    assert one.times_alone == 2
