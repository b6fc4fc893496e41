"""collafuse tokens"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from . import options
from .console import emit, print_table, say

if TYPE_CHECKING:
    from collafuse.serving.registry import Registry

app = typer.Typer(no_args_is_help=True, help="At the server: who may ask it for what. Only digests are kept.")


@app.command()
def add(
    run: options.RunPath,
    client: options.ClientOption,
    scope: Annotated[
        list[str], typer.Option("--scope", help="sample, release or admin (everything, for every client). Repeatable.")
    ],
    days: Annotated[float, typer.Option("--days", help="How long it is valid.")] = 365.0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write it to a file that only you can read.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make a token for a client. It is shown once; hand it over on a way that others cannot read."""
    _check_client(run, client, scope)
    registry = _registry(run)
    with _private_file(out) as file:
        text, token = registry.add_token(client, scope, days=days)
        if file is not None:
            file.write(f"{text}\n")
    say(f"Token {token.id} of {client}: {', '.join(token.scopes)}, until {token.expires:%Y-%m-%d}.")
    if out is not None:
        say(f"Written to {out}, readable by you alone.")
    if as_json:
        emit({"id": token.id, "client": client, "scopes": list(token.scopes), "token": None if out else text})
    elif out is None:
        print(text)


@app.command("list")
def list_(run: options.RunPath, as_json: options.Json = False) -> None:
    """Show the tokens: id, client, scopes, and until when they are valid."""
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc)
    tokens = _existing_registry(run).tokens()
    if as_json:
        keys = ("id", "client", "scopes", "made", "expires", "revoked")
        rows = [{key: _plain(getattr(token, key)) for key in keys} | {"status": token.status(now)} for token in tokens]
        emit({"tokens": rows})
        return
    print_table(
        ("id", "client", "scopes", "made", "valid until", "status"),
        [
            (t.id, t.client, ", ".join(t.scopes), f"{t.made:%Y-%m-%d}", f"{t.expires:%Y-%m-%d}", t.status(now))
            for t in tokens
        ],
    )


@app.command()
def revoke(
    run: options.RunPath,
    token: Annotated[str, typer.Argument(metavar="ID", help="The id that `tokens list` shows.")],
) -> None:
    """End a token now; a running server refuses it at once."""
    ended = _existing_registry(run).revoke(token)
    say(f"Token {ended.id} of {ended.client} is revoked.")


def _registry(run: Path) -> Registry:
    from collafuse.nodes.runfolder import REGISTRY, RunFolder
    from collafuse.serving.registry import Registry

    return Registry(RunFolder(run).server.path / REGISTRY)


def _existing_registry(run: Path) -> Registry:
    """The registry of a run that has one: a mistyped run folder is not made."""
    from collafuse.core.errors import FileFormatError
    from collafuse.nodes.runfolder import REGISTRY, RunFolder

    path = RunFolder(run).server.path / REGISTRY
    if not path.is_file():
        raise FileFormatError(
            f"{path} does not exist, so {run} has no tokens; check the run folder, or make one: collafuse tokens add."
        )
    return _registry(run)


def _check_client(run: Path, client: str, scopes: list[str]) -> None:
    """Refuse a name that the server's configuration does not have, where it is trained.

    A site that joins later sends its first release before the server knows it, so that is only said. An
    administrator's token is for every client.
    """
    from collafuse.config import unknown_client
    from collafuse.nodes.runfolder import CONFIG, RunFolder

    folder = RunFolder(run).server
    if "admin" in scopes or not (folder.path / CONFIG).is_file():
        return
    known = folder.read_config().clients
    if client in known:
        return
    if "sample" in scopes:
        raise unknown_client(client, known)
    say(f"Client {client!r} is new to {run}, which knows {', '.join(known)}; it may release.")


@contextmanager
def _private_file(path: Path | None) -> Iterator[IO[str] | None]:
    """A new file that only its owner can read; opened first, so that no token is made that cannot be kept, and gone
    again when none is made."""
    from collafuse.core.atomic import refuse_existing, storage_error

    if path is None:
        yield None
        return
    refuse_existing(path, overwrite=False)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            try:
                yield file
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        raise storage_error(path, error) from error


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else None if value is None else str(value)
