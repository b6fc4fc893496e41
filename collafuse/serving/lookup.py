"""The token of a request, found in microseconds by the thread that serves HTTP.

Opening the registry for each request costs half a millisecond and a place in the pool of threads, behind uploads that
wait for the disk. One kept connection answers in a fiftieth of it (SQLite reads its file from memory, and in WAL mode a
reader waits for no writer), and still sees a token that was revoked a moment ago.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from .registry import Registry, Token


class Lookup:
    """For one thread at a time. ``close`` ends the connection."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def authenticate(self, text: str) -> Token | None:
        """As :meth:`Registry.authenticate`; None where that would have to wait, so that a thread has to ask it."""
        try:
            return self._registry.authenticate(text, connection=self._open())
        except (OSError, sqlite3.Error):  # another process mends the file, or it is gone: the slow way says which
            self.close()
            return None

    def close(self) -> None:
        """End the connection; the next question opens one."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _open(self) -> sqlite3.Connection:
        found = self._registry.path.stat()
        file = (found.st_dev, found.st_ino)
        if self._connection is None or file != self._file:  # an operator may put a backup in its place
            self.close()
            self._connection = sqlite3.connect(
                self._registry.path, timeout=0.0, isolation_level=None, check_same_thread=False
            )
            self._file = file
        return self._connection
