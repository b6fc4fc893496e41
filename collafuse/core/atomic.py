"""Writing a file so that it is either whole or not there.

Everything is written to a temporary name in the same folder, flushed to the disk, then renamed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import OutputExistsError, StorageError

PARTIAL_PREFIX = ".partial-"
"""How temporary files begin; one that is left over after a power cut can be deleted."""


def refuse_existing(path: Path, overwrite: bool, option: str = "--overwrite") -> None:
    """Raise OutputExistsError when path exists and overwriting was not asked for."""
    if not overwrite and os.path.lexists(path):
        raise OutputExistsError(f"{path} exists already; choose another output or pass {option}.")


def check_output(path: Path, overwrite: bool) -> None:
    """For work that takes a while and ends in writing path: find out before it whether that could work.

    Raises OutputExistsError when it is there and overwriting was not asked for, StorageError where no file can be made
    in its folder, or in the nearest one above that exists.
    """
    refuse_existing(path, overwrite)
    if path.is_dir():
        raise storage_error(path, IsADirectoryError(errno.EISDIR, ""))
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """The sentence for an operating-system error while writing path."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space and run the command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
        errno.EACCES: "writing there is not allowed; choose another folder",
        errno.EPERM: "writing there is not allowed; choose another folder",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "the folder does not exist; create it first",
        errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
        errno.EEXIST: "a part of the path is a file, not a folder; choose another folder",  # in the words of mkdir
        errno.EISDIR: "a folder lies there; choose another name",
        errno.EFBIG: "the file is larger than the file system allows; write fewer images at once",
    }
    reason = reasons.get(error.errno or 0, f"{error.strerror or error}; choose another place or repair this one")
    return StorageError(f"cannot write {path}: {reason}. Nothing was changed there.")


def sync_folder(folder: Path) -> None:
    """Make a rename inside this folder durable, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_file(path: Path, *, overwrite: bool = False, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file to write to, which becomes ``path`` when the block ends without an error.

    Parent folders are created. Raises OutputExistsError before anything is written, StorageError for a full
    disk and its like; in both cases an older file stays as it was and nothing half-written is left.
    ``durable=False`` does not wait for the disk: right for many small files that can be made again.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, suffix=path.suffix, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _permissions_of_a_new_file(temporary)
        give_name(temporary, path, overwrite=overwrite)
        temporary = None
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def _permissions_of_a_new_file(path: Path) -> None:
    # mkstemp makes files that only the owner can read; give what open() would have given.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def give_name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a finished file to its name. Raises OutputExistsError when somebody made that file meanwhile."""
    if overwrite:
        os.replace(temporary, path)
        return
    # A link fails if another process made the file meanwhile, where a rename would replace it in silence.
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError:
        _rename_in_turn(temporary, path)
    else:
        temporary.unlink()


def _rename_in_turn(temporary: Path, path: Path) -> None:
    """As :func:`give_name`, on a file system without hard links, such as a memory card's: each looks whether the name
    is taken, and processes of ours do so one after the other."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # where a folder cannot be locked either, what is left is to look
            fcntl.flock(folder, fcntl.LOCK_EX)  # until it is closed, however this process ends
        if os.path.lexists(path):
            raise _taken(path)
        os.rename(temporary, path)
    finally:
        os.close(folder)


def _taken(path: Path) -> OutputExistsError:
    return OutputExistsError(f"{path} was written by another process meanwhile; choose another output.")


def write_bytes(path: Path, data: bytes, *, overwrite: bool = False, durable: bool = True) -> None:
    """Write these bytes to path in one act; see :func:`atomic_file`."""
    with atomic_file(path, overwrite=overwrite, durable=durable) as file:
        file.write(data)
