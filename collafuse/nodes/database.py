"""Opening a node's SQLite file: durable, waited for, and each failure as a sentence of ours."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..core.atomic import storage_error
from ..core.errors import FileFormatError, StorageError

WAIT_SECONDS = 30.0
"""How long another process may hold the file."""
PAUSE_SECONDS = 0.005
"""Between two tries to change a journal."""
UNWRITABLE = ("full", "readonly", "unable to open")


@contextmanager
def open_database(path: Path, what: str, advice: str) -> Iterator[sqlite3.Connection]:
    """A connection that commits each statement by itself, unless one begins a transaction; the folder is made.

    what: such as "the ledger", for messages. advice: what to do when it is damaged. Raises StorageError when the file
    cannot be written or stays locked, FileFormatError when it is damaged or something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
    except OSError as error:
        raise storage_error(path, error) from error
    except sqlite3.OperationalError as error:
        if any(reason in str(error) for reason in UNWRITABLE):
            raise StorageError(
                f"cannot write {what} {path}: {error}. Nothing was changed; make room or choose another place."
            ) from error
        raise StorageError(f"{what} {path} is busy or unreachable ({error}); try again.") from error
    except sqlite3.DatabaseError as error:
        raise FileFormatError(f"{what} {path} cannot be used ({error}); {advice}") from error


def write_ahead(connection: sqlite3.Connection, wait_seconds: float = WAIT_SECONDS) -> None:
    """Keep a write-ahead log in place of a journal, so that readers go on while one writes.

    Where two processes begin at once on a new file, SQLite tells one that it is locked without waiting, since each
    might hold what the other waits for; here it tries again.
    """
    until = time.monotonic() + wait_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
            time.sleep(PAUSE_SECONDS)
