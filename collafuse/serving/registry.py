"""Who may ask this server for what, and which releases it has received: one SQLite file beside the server's weights.

A token is 256 random bits that one client holds; only its SHA-256 is kept here. It is bound to the client's name
and to scopes, and it ends on a day or when it is revoked:

    sample     intermediates for this client
    release    this client's releases
    admin      everything, for every client

A release is listed only when its file lies durably on the disk.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..config import ClientName
from ..core.errors import AccessError, UsageError
from ..nodes.database import open_database, write_ahead

SCOPES = ("sample", "release", "admin")
LONGEST_DAYS = 3660
TOKEN = re.compile(r"collafuse_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY, digest BLOB NOT NULL, client TEXT NOT NULL, scopes TEXT NOT NULL,
    made TEXT NOT NULL, expires TEXT NOT NULL, revoked TEXT
);
CREATE TABLE IF NOT EXISTS releases (
    client TEXT NOT NULL, id TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, images INTEGER NOT NULL,
    sigma_cut REAL NOT NULL, received TEXT NOT NULL, PRIMARY KEY (client, id)
);
"""


class EndedTokenError(AccessError):
    """A token that was good and has expired or was revoked: whoever brings it does not guess."""


@dataclass(frozen=True)
class Token:
    """What is known of a token; never the token itself. Times are UTC."""

    id: str
    client: str
    scopes: tuple[str, ...]
    made: datetime
    expires: datetime
    revoked: datetime | None

    def allows(self, scope: str) -> bool:
        """Whether it carries this scope; admin carries all."""
        return scope in self.scopes or "admin" in self.scopes

    def status(self, now: datetime) -> str:
        """valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if now < self.expires else "expired"

    def require(self, scope: str, client: str) -> None:
        """Raise AccessError unless it carries this scope and is this client's."""
        if not self.allows(scope):
            raise AccessError(
                f"this token of client {self.client!r} has the scopes {', '.join(self.scopes)}, this needs {scope}; "
                "ask the server's operator for another."
            )
        if client != self.client and "admin" not in self.scopes:
            raise AccessError(
                f"this token belongs to client {self.client!r}, not to {client!r}; use the token of that client."
            )


@dataclass(frozen=True)
class Received:
    """A release that this server holds."""

    client: str
    id: str
    sha256: str
    bytes: int
    images: int
    sigma_cut: float
    received: str


class Registry:
    """The registry of one server. Raises StorageError when it cannot be written, FileFormatError when damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as connection:
            write_ahead(connection)
            connection.executescript(SCHEMA)

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        advice = "restore it from a backup, or remove it and enrol the clients again."
        return open_database(self.path, "the registry", advice)

    def add_token(
        self, client: str, scopes: Sequence[str], *, days: float = 365.0, now: datetime | None = None
    ) -> tuple[str, Token]:
        """A new token: its text, which is shown once and kept nowhere, and what is known of it."""
        _check(client, scopes, days)
        now = now or datetime.now(timezone.utc)
        token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        token = Token(token_id, client, tuple(dict.fromkeys(scopes)), now, now + timedelta(days=days), None)
        values = (token_id, _digest(secret), client, " ".join(token.scopes), now.isoformat(), token.expires.isoformat())
        with self._open() as connection:
            connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL)", values)
        return f"collafuse_{token_id}_{secret}", token

    def tokens(self) -> list[Token]:
        """All tokens, also those that have ended, in the order in which they were made."""
        with self._open() as connection:
            rows = connection.execute("SELECT id, client, scopes, made, expires, revoked FROM tokens ORDER BY made, id")
            return [_token(row) for row in rows.fetchall()]

    def revoke(self, token_id: str) -> Token:
        """End a token now. Raises UsageError for an unknown id."""
        with self._open() as connection:
            now = datetime.now(timezone.utc).isoformat()
            connection.execute("UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?", (now, token_id))
        for token in self.tokens():
            if token.id == token_id:
                return token
        raise UsageError(f"there is no token {token_id!r}; `collafuse tokens list` shows the ids.")

    def authenticate(
        self, text: str, *, now: datetime | None = None, connection: sqlite3.Connection | None = None
    ) -> Token:
        """The token of this text. Raises AccessError when it is unknown, EndedTokenError when it has expired or was
        revoked.

        connection: one to this file that the caller keeps, whose errors are the caller's too.
        """
        parts = TOKEN.fullmatch(text)
        token_id, secret = parts.groups() if parts else ("", "")
        with self._open() if connection is None else nullcontext(connection) as opened:
            query = "SELECT id, client, scopes, made, expires, revoked, digest FROM tokens WHERE id = ?"
            row = next(iter(opened.execute(query, (token_id,)).fetchall()), None)
        # Compared also where there is no such id, so that the time does not tell.
        matches = hmac.compare_digest(row[-1] if row else bytes(32), _digest(secret))
        if row is None or not matches:
            raise AccessError("this token is not known here; ask the server's operator for one (collafuse tokens add).")
        token = _token(row[:-1])
        status = token.status(now or datetime.now(timezone.utc))
        if status != "valid":
            ended = (
                f"was revoked on {token.revoked:%Y-%m-%d %H:%M}"
                if token.revoked
                else f"expired on {token.expires:%Y-%m-%d %H:%M}"
            )
            raise EndedTokenError(
                f"this token of client {token.client!r} {ended} UTC; ask the server's operator for another."
            )
        return token

    @contextmanager
    def listing(self) -> Iterator[Callable[[Received], None]]:
        """Gives what lists a release, whose file has to lie durably on the disk by then; listed already, it stays.

        While the block runs nobody else lists one, in no process. It is listed when the block ends well.
        """
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")

            def add(release: Received) -> None:
                values = tuple(vars(release).values())
                connection.execute("INSERT OR IGNORE INTO releases VALUES (?, ?, ?, ?, ?, ?, ?)", values)

            yield add
            connection.execute("COMMIT")

    def release(self, client: str, release_id: str) -> Received | None:
        """One release, or None when it was never received."""
        found = [one for one in self.releases(client) if one.id == release_id]
        return found[0] if found else None

    def releases(self, client: str | None = None) -> list[Received]:
        """The releases of one client, or all, in the order in which they came."""
        with self._open() as connection:
            query = "SELECT * FROM releases WHERE ? IS NULL OR client = ? ORDER BY received, id"
            return [Received(*row) for row in connection.execute(query, (client, client))]


def _check(client: str, scopes: Sequence[str], days: float) -> None:
    try:
        TypeAdapter(ClientName).validate_python(client)
    except ValidationError as error:
        raise UsageError(
            f"client name {client!r}; expected up to 64 letters, digits, - and _, as in a configuration."
        ) from error
    if not scopes or not set(scopes) <= set(SCOPES):
        raise UsageError(f"scopes {', '.join(scopes) or 'none'}; give one or more of {', '.join(SCOPES)}.")
    if not 0 < days <= LONGEST_DAYS:
        raise UsageError(f"days={days:g}; a token is valid for more than 0 and at most {LONGEST_DAYS} days.")


def _digest(secret: str) -> bytes:
    # One round is enough: the secret is 256 random bits, not a password that could be guessed.
    return hashlib.sha256(secret.encode()).digest()


def _token(row: Sequence[str | None]) -> Token:
    token_id, client, scopes, made, expires, revoked = row
    ended = None if revoked is None else datetime.fromisoformat(revoked)
    times = (datetime.fromisoformat(str(made)), datetime.fromisoformat(str(expires)))
    return Token(str(token_id), str(client), tuple(str(scopes).split()), *times, ended)
