"""Decoding once: the pixels of a set of files, kept in a folder and mapped into memory the next time.

    CACHE/KEY/pixels.u8    uint8 [M, C, H, W]    of the files that could be read, in their order
              digests.u8   uint8 [M, 32]
              about.json   the shape, and for each other file its place and the reason

The key is a digest of the transform, Pillow's version and every file's path, size and time of change. An entry is made
under another name and renamed when it is whole, so that an interrupted process leaves nothing that counts and of two
that start together the second finds the first one's. It is a copy of a site's clean images: it is made only where
``data.cache`` says so, and only its owner can read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from ..core import rows
from ..core.atomic import PARTIAL_PREFIX, storage_error, sync_folder
from ..core.errors import FileFormatError
from ..core.metadata import parse_json
from .decoding import Decoded
from .images import Transform

VERSION = 1
LEFT_OVER_SECONDS = 24 * 3600.0
"""An unfinished entry to which nothing was added for so long has no maker any more."""
PIXELS, DIGESTS, ABOUT = "pixels.u8", "digests.u8", "about.json"


@dataclass(frozen=True, eq=False)
class Entry:
    """What the cache holds of a set of files. pixels are mapped, and of a large set left in their file, not read.
    problems: place and reason."""

    pixels: NDArray[np.uint8] | rows.FileRows
    digests: NDArray[np.uint8]
    problems: tuple[tuple[int, str], ...]


def key_of(root: Path, files: Sequence[str], transform: Transform) -> str:
    """What these files below ``root``, as they are now, decode under."""
    digest = hashlib.sha256(json.dumps([VERSION, PIL.__version__, str(root.resolve()), asdict(transform)]).encode())
    prefix = f"{root}/"
    for file in files:
        try:
            found = os.stat(prefix + file)  # noqa: PTH116 -- half the time of Path.stat, for very many files
            state = b"%d %d" % (found.st_size, found.st_mtime_ns)
        except OSError:
            state = b"gone"  # decoding will say so
        digest.update(b"%b\0%b\n" % (os.fsencode(file), state))
    return digest.hexdigest()[:32]


def find(cache: Path, key: str, count: int, transform: Transform) -> Entry | None:
    """The entry for a key, or None; one that is damaged is removed. count: of the files."""
    folder = cache / key
    if not folder.is_dir():
        return None
    try:
        return _open(folder, count, transform)
    except (FileFormatError, OSError, ValueError, TypeError, KeyError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _open(folder: Path, count: int, transform: Transform) -> Entry:
    about = parse_json((folder / ABOUT).read_bytes(), str(folder))
    problems = tuple((int(place), str(reason)) for place, reason in about["problems"])
    if any(not 0 <= place < count for place, _ in problems):
        raise ValueError(f"{folder} names a file beyond the {count} there are")
    kept = count - len(problems)
    shape = (kept, transform.channels, transform.side, transform.side)
    sizes = [(folder / name).stat().st_size for name in (PIXELS, DIGESTS)]
    if sizes != [int(np.prod(shape)), kept * 32] or kept < 1:
        raise ValueError(f"{folder} holds {sizes} bytes for {kept} images")
    return Entry(
        _pixels(folder / PIXELS, shape),
        np.fromfile(folder / DIGESTS, dtype=np.uint8).reshape(kept, 32),
        problems,
    )


def _pixels(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | rows.FileRows:
    if int(np.prod(shape)) <= rows.IN_MEMORY_BYTES:
        return np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    with path.open("rb") as file:
        return rows.FileRows(file, np.dtype(np.uint8), shape, source=str(path))


def keep(cache: Path, key: str, chunks: Iterable[Decoded]) -> tuple[tuple[int, str], ...]:
    """Write an entry as its chunks come, and name it when it is whole; returns the problems. Raises StorageError.

    Nothing is kept when no file could be read.
    """
    temporary = None
    problems: list[tuple[int, str]] = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        temporary = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=cache))  # which only its owner can enter
        seen, kept = 0, 0
        with (temporary / PIXELS).open("wb") as pixels, (temporary / DIGESTS).open("wb") as digests:
            for chunk in chunks:
                pixels.write(chunk.pixels.tobytes())
                digests.write(chunk.digests.tobytes())
                problems += [(seen + place, reason) for place, reason in chunk.problems]
                seen, kept = seen + chunk.count, kept + len(chunk.pixels)
            for file in (pixels, digests):
                file.flush()
                os.fsync(file.fileno())
        (temporary / ABOUT).write_text(json.dumps({"problems": problems}))
        if kept:
            _name(temporary, cache / key)
    except OSError as error:
        raise storage_error(cache, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return tuple(problems)


def _sweep(cache: Path) -> None:
    """Remove what killed processes left behind: it may be images, and nobody else will."""
    for folder in cache.glob(f"{PARTIAL_PREFIX}*"):
        with suppress(OSError):  # its maker has named it meanwhile, or is somebody else
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > LEFT_OVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _name(temporary: Path, final: Path) -> None:
    """Give an entry its name, unless another process has made the same one meanwhile."""
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    sync_folder(final.parent)
