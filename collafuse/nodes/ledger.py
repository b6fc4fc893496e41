"""A site's own record of which images it has released, so that no image is released twice.

An SQLite file, keyed by the digest of an image's decoded pixels. An image is *spent* before the release file
gets its name: if the machine stops in between, the file lies finished under a temporary name that the ledger
knows, and the next ``release`` gives it its name instead of drawing new noise.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..core.atomic import give_name, refuse_existing, storage_error, sync_folder
from ..core.errors import CollaFuseError, OutputExistsError, RefusedError, StorageError
from ..core.mechanism import Budget
from .database import open_database

SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    id TEXT PRIMARY KEY, sigma_cut REAL NOT NULL, made TEXT NOT NULL,
    partial TEXT NOT NULL, path TEXT NOT NULL, complete INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS spent (
    image BLOB NOT NULL, release TEXT NOT NULL REFERENCES releases (id), PRIMARY KEY (image, release)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budgets (
    release TEXT PRIMARY KEY REFERENCES releases (id), epsilon REAL, delta REAL
);
"""
"""A release of statistics has a row in ``budgets``, null for exact ones, and a sigma_cut of 0: it has no level."""


Write = Callable[[IO[bytes]], object]
"""Writes a release into an open file that has its path as ``name``; what it raises spends nothing."""


class Ledger:
    """One site's ledger. Raises FileFormatError when the file is no ledger, StorageError when it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        advice = "restore it from a backup. Without it nobody knows which images were released, so nothing is released."
        with open_database(self.path, "the ledger", advice) as connection:
            if (found := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            connection.executescript(SCHEMA)
            yield connection

    def require(self) -> None:
        """Raise RefusedError when there is no ledger yet, or an empty file: nobody would know what was released."""
        if not self.path.is_file() or not self.path.stat().st_size:
            raise RefusedError(
                f"there is no ledger at {self.path.absolute()}, so nobody knows what was released. Pass "
                "--new-ledger if this site has never released an image; otherwise restore it, or run where it lies."
            )

    def begin(self) -> None:
        """Make the file, where there is none."""
        with self._open():
            pass

    def released_others(self, digests: NDArray[np.uint8]) -> bool:
        """Whether what was released, if anything was, is not just these images [N, 32]."""
        with self._open() as connection:
            count = connection.execute("SELECT COUNT(DISTINCT image) FROM spent").fetchone()[0]
            different = len(np.unique(digests, axis=0))
            return count > 0 and not (count == different and _spent(connection, digests).all())

    def spent(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of these images [N, 32] were released before."""
        with self._open() as connection:
            return _spent(connection, digests)

    def commit(
        self,
        digests: NDArray[np.uint8],
        sigma_cut: float,
        path: Path,
        write: Write,
        *,
        statistics: bool = False,
        budget: Budget | None = None,
        spend_again: bool,
        overwrite: bool,
    ) -> None:
        """Record these images as released and give the release file, which ``write`` writes, its name, as one act.

        ``statistics``: it is a release of statistics, for this budget; then sigma_cut is 0.

        Raises RefusedError when one was released before and ``spend_again`` is not set, OutputExistsError, or
        StorageError; nothing is spent and nothing is written then.
        """
        path = path.absolute()
        refuse_existing(path, overwrite)
        release = secrets.token_hex(16)
        partial = path.with_name(f"{_partial_prefix(path)}{release}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                if not spend_again and (again := _spent(connection, digests)).any():
                    raise _already_released(int(again.sum()), len(digests), connection)
                _write_partial(connection, partial, path, write)
                values = (release, sigma_cut, datetime.now(timezone.utc).isoformat(), partial.name, str(path))
                connection.execute("INSERT INTO releases VALUES (?, ?, ?, ?, ?, 0)", values)
                if statistics:
                    spent = (None, None) if budget is None else (budget.epsilon, budget.delta)
                    connection.execute("INSERT INTO budgets VALUES (?, ?, ?)", (release, *spent))
                connection.executemany(
                    "INSERT INTO spent VALUES (?, ?)", ((digest.tobytes(), release) for digest in digests)
                )
                connection.execute("COMMIT")
        except BaseException as error:
            # Ctrl-C may come between a commit and the next line: only the ledger itself knows.
            if not self._may_hold(release):
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise storage_error(path, error) from error
            raise
        self._complete(release, partial, path, overwrite)

    def refusal(self, again: int, total: int) -> RefusedError:
        """The refusal to release ``again`` of ``total`` images a second time; names what still waits for its name."""
        with self._open() as connection:
            return _already_released(again, total, connection)

    def waits(self, path: Path) -> bool:
        """Whether a finished release waits to be given this name, which :meth:`recover` does."""
        with self._open() as connection:
            return any(at == path.absolute() and partial.exists() for _, partial, at in _pending(connection))

    def recover(self, path: Path, *, overwrite: bool = False) -> bool:
        """Give a release its name that was finished but not named when the machine stopped.

        True when there was one for this path; its images are spent already. Raises OutputExistsError when another
        file has that name and ``overwrite`` is not set.
        """
        path = path.absolute()
        with self._open() as connection:
            pending = [(release, partial) for release, partial, at in _pending(connection) if at == path]
        found = False
        for release, partial in pending:
            if partial.exists():
                found = True
                self._complete(release, partial, path, overwrite)
            elif path.exists():
                self._mark(release)
        return found

    def _complete(self, release: str, partial: Path, path: Path, overwrite: bool) -> None:
        try:
            if path.exists() and path.samefile(partial):  # stopped between the two halves of giving it its name
                partial.unlink()
            else:
                give_name(partial, path, overwrite=overwrite)
        except OutputExistsError as error:
            raise OutputExistsError(f"{error} {self._waiting(partial)}") from error
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}. {self._waiting(partial)}") from error
        sync_folder(path.parent)
        self._mark(release)

    def _waiting(self, partial: Path) -> str:
        return (
            f"The images are recorded as released in {self.path}, and their release lies finished in {partial}; "
            "make room, then run the same command again, which gives it its name."
        )

    def _may_hold(self, release: str) -> bool:
        """Whether a release is recorded. True where that cannot be found out: a file that nobody recorded is swept by
        the next release, one that was recorded and is removed is lost."""
        try:
            with self._open() as connection:
                found = connection.execute("SELECT 1 FROM releases WHERE id = ?", (release,)).fetchone()
        except CollaFuseError:
            return True
        return found is not None

    def _mark(self, release: str) -> None:
        with self._open() as connection:
            connection.execute("UPDATE releases SET complete = 1 WHERE id = ?", (release,))


def _spent(connection: sqlite3.Connection, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
    query = "SELECT 1 FROM spent WHERE image = ? LIMIT 1"
    found = [connection.execute(query, (digest.tobytes(),)).fetchone() is not None for digest in digests]
    return np.asarray(found, dtype=bool)


def _partial_prefix(path: Path) -> str:
    """How the temporary names of releases to this path begin."""
    return f".release-{hashlib.sha256(path.name.encode()).hexdigest()[:16]}-"


def _write_partial(connection: sqlite3.Connection, partial: Path, path: Path, write: Write) -> None:
    """Write a release durably under its temporary name.

    What an interrupted call left, which spent nothing, is removed: beside this one it would be a second noisy copy.
    Under the lock, so that nobody is still writing it.
    """
    try:
        for left in path.parent.glob(f"{_partial_prefix(path)}*.partial"):
            if connection.execute("SELECT 1 FROM releases WHERE partial = ?", (left.name,)).fetchone() is None:
                left.unlink()
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def _pending(connection: sqlite3.Connection) -> list[tuple[str, Path, Path]]:
    """Releases that were recorded but have no name yet: id, where the file lies, what it is to be called."""
    rows = connection.execute("SELECT id, partial, path FROM releases WHERE complete = 0")
    return [(release, Path(path).with_name(partial), Path(path)) for release, partial, path in rows]


def _already_released(again: int, total: int, connection: sqlite3.Connection) -> RefusedError:
    waiting = "".join(
        f" One was interrupted after it was recorded: run the command again with -o {path} to complete it."
        for _, partial, path in _pending(connection)
        if partial.exists()
    )
    rows = connection.execute("SELECT epsilon, delta FROM budgets").fetchall()
    budgets = ["none" if e is None else f"epsilon {e:g}, delta {d:g}" for e, d in rows]
    statistics = f" This site released statistics for the budgets {'; '.join(budgets)}; budgets add up." if rows else ""
    others = "pass --new-only to release the others alone, " if again < total else ""
    return RefusedError(
        f"{again} of {total} images were released before. A second noisy copy lets the server average the noise away. "
        f"Send the first release's file again instead, {others}or pass --spend-again if you accept the loss of "
        f"privacy.{statistics}{waiting}"
    )
