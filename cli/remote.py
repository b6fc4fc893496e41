"""From the options of a command to the server they name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.remote import Remote


def open_remote(
    url: str,
    token_file: Path | None,
    authority: Path | None,
    certificate: Path | None,
    key: Path | None,
    patience: float | None,
    say: Callable[[str], None],
) -> Remote:
    """The server at this URL. Raises UsageError without a token, or for files that are none."""
    from collafuse.core.errors import UsageError
    from edge_client.remote import DEFAULT_PATIENCE_SECONDS, Remote, Trust, read_token

    if token_file is None:
        raise UsageError("--server needs --token-file, a file with the token that the server's operator gave you.")
    patience = DEFAULT_PATIENCE_SECONDS if patience is None else patience
    return Remote(url, Trust(read_token(token_file), authority, certificate, key), patience=patience, say=say)
