"""A folder for a moment."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from collafuse.core.errors import StorageError


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder for files that nobody keeps, gone afterwards.

    Raises StorageError, which names what it is for, where none can be made or there is no room in it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="collafuse-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise StorageError(
            f"cannot write a temporary file ({error.strerror or error}), which {purpose} needs; set TMPDIR to a folder "
            "with some room."
        ) from error
