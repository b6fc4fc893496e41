"""SHA-256 of large files, which are read again only when something about them changed.

    FOLDER/digests.json    {path: [bytes, time of change of what is in it, of the file itself, inode, SHA-256]}

A text encoder's weights are the same at every start, and reading some gigabytes takes as many seconds.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.atomic import write_bytes
from ..core.errors import FileFormatError, StorageError
from ..core.metadata import parse_json
from ..core.tensorfile import file_digest

FILE = "digests.json"
FRESH_NS = 10 * 10**9
"""A file that changed so short a while ago could change again without its times telling."""


def digest_of(path: Path, memory: Path | None) -> str:
    """SHA-256 of a file, as it is remembered in the folder ``memory`` where nothing about the file changed since.

    None remembers nothing, and a memory that cannot be written is none. Raises OSError for a file that cannot be read.
    """
    if memory is None:
        return file_digest(path)
    place, state, known = str(path.resolve()), _state(path), _read(memory / FILE)
    found = known.get(place)
    if isinstance(found, list) and found[:-1] == state and isinstance(found[-1], str):
        return found[-1]
    digest = file_digest(path)
    if state == _state(path) and time.time_ns() - max(state[1:3]) > FRESH_NS:
        with suppress(StorageError, OSError):
            memory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it tells where things lie
            write_bytes(memory / FILE, json.dumps({**known, place: [*state, digest]}).encode(), overwrite=True)
    return digest


def _state(path: Path) -> list[int]:
    # The last but one tells also of a change after which somebody put the time of the first back.
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, FileFormatError):
        return parse_json(path.read_bytes(), str(path))
    return {}
