"""What is left of each token's minute, in one file that all processes of a run folder count in.

A token bucket holds at most a minute's worth of images and fills at that pace. It is a row of an SQLite file beside the
registry, taken from in one short transaction, so several `serve` processes behind a proxy hold a token to one limit
together, and a restart gives nothing back. Where the file cannot be used, a process counts alone for a while: a limit
that is too wide is better than a service that stands still.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..nodes.database import write_ahead

WAIT_SECONDS = 0.5
"""How long another process may hold the file; a transaction takes a ten-thousandth of it."""
ALONE_SECONDS = 30.0
"""How long a process counts alone before it tries the file again."""
SCHEMA = "CREATE TABLE IF NOT EXISTS buckets (token TEXT PRIMARY KEY, level REAL NOT NULL, filled REAL NOT NULL)"


@dataclass(frozen=True)
class Taken:
    """Whether so many units were there, and how many there are now."""

    granted: bool
    level: float


class Buckets:
    """The buckets of all tokens; for one thread. ``path`` None keeps them in this process alone.

    Times are seconds of the system's clock, which processes share; one that is set back fills nothing.
    """

    def __init__(self, path: Path | None, per_minute: float) -> None:
        self.per_second, self.size = per_minute / 60.0, per_minute
        self.times_alone = 0
        """How often units were counted in this process alone though there is a file."""
        self._path, self._connection = path, None if path is None else _Later(path)
        self._alone: dict[str, tuple[float, float]] = {}
        self._alone_until = 0.0

    def take(self, token: str, units: float, now: float) -> Taken:
        """Take units if they are there; units below 0 give some back."""
        if self._connection is not None and time.monotonic() >= self._alone_until:
            try:
                return self._take_shared(self._connection.open(), token, units, now)
            except (OSError, sqlite3.Error):
                self._connection.close()
                self._alone_until = time.monotonic() + ALONE_SECONDS
        self.times_alone += self._connection is not None
        taken = self._after(self._alone.get(token), units, now)
        self._alone[token] = (taken.level, now)
        return taken

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def _take_shared(self, connection: sqlite3.Connection, token: str, units: float, now: float) -> Taken:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute("SELECT level, filled FROM buckets WHERE token = ?", (token,)).fetchone()
        taken = self._after(row, units, now)
        connection.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)", (token, taken.level, now))
        connection.execute("COMMIT")
        return taken

    def _after(self, row: tuple[float, float] | None, units: float, now: float) -> Taken:
        level = self.size if row is None else row[0] + max(0.0, now - row[1]) * self.per_second
        level = min(self.size, level)
        granted = units <= level
        return Taken(granted, min(self.size, level - units) if granted else level)


class _Later:
    """A connection that is opened when it is needed, by the thread that needs it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: sqlite3.Connection | None = None

    def open(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = sqlite3.connect(
                self._path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            write_ahead(self._open, WAIT_SECONDS)
            self._open.execute("PRAGMA synchronous = NORMAL")  # whole after a power cut, though perhaps a moment old
            self._open.execute(SCHEMA)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
        self._open = None
