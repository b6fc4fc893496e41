"""What a device remembers between runs: verdicts on providers, and engines that a provider built.

In the user's cache folder (XDG_CACHE_HOME, by default ~/.cache), below ``collafuse/``. Everything in it can be made
again: a folder that cannot be written, or a file that is damaged or from someone else, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from collafuse.core.atomic import write_bytes
from collafuse.core.errors import CollaFuseError
from collafuse.core.metadata import parse_json

from . import machine

MAX_ENTRY_BYTES = 64 << 10
KEPT_ENGINES = 16
"""Of engines, those that were used last are kept: each has the size of its bundle and takes minutes to build."""


def cache_folder() -> Path:
    """Where the cache belongs; it need not exist. A relative XDG_CACHE_HOME is ignored, as its standard asks."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "collafuse"


def usable_folder(*parts: str) -> Path | None:
    """A folder in the cache that is ours alone to write, made when needed; None where there cannot be one."""
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(folder)
        for part in parts:  # one by one: what mkdir makes on the way gets the mode of any folder
            folder = folder / part
            folder.mkdir(mode=0o700, exist_ok=True)
            private = private and _is_private(folder)
        return folder if private and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None


def _is_private(folder: Path) -> bool:
    """Whether nobody but this user and root can have put something there. Engines are code to whoever loads them, and
    a verdict spares a bundle its trial. Raises OSError."""
    status = folder.stat()
    foreign = hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0)
    return not foreign and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def engine_folder(provider: str, digest: str) -> Path | None:
    """A folder for what a provider compiles from one bundle on this machine, or None; the oldest make room for it.

    Engines fit one model, onnxruntime, TensorRT and GPU, so all four name the folder.
    """
    import onnxruntime  # here, because doctor asks for the cache where it may be missing

    parts = (digest, onnxruntime.__version__, machine.tensorrt_version(), machine.gpu())
    folder = usable_folder("engines", f"{provider}-{_name(parts)}")
    if folder is not None:
        _keep_newest(folder)
    return folder


def _keep_newest(used: Path) -> None:
    """Remove the engines that were used longest ago. Whoever runs one has it in memory, and whoever builds one has
    just come here, so that its folder is among the newest."""
    with suppress(OSError):  # as where another process removes the same one
        os.utime(used)
        for old in sorted(used.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_ENGINES]:
            if emptied(old):
                old.rmdir()


def emptied(folder: Path) -> bool:
    """Remove the files of a folder in the cache; False where one stays."""
    try:
        for path in folder.iterdir():
            path.unlink()
    except OSError:
        return False
    return True


def read_entry(kind: str, key: Mapping[str, str]) -> dict[str, Any] | None:
    """What was remembered under this key, unchecked but for its shape; None when there is nothing that can be read."""
    with suppress(OSError, RuntimeError, CollaFuseError):
        path = entry_path(kind, key)
        if _is_private(path.parent) and path.stat().st_size <= MAX_ENTRY_BYTES:
            entry = parse_json(path.read_bytes(), str(path))
            value = entry.get("value")
            if entry.get("key") == dict(key) and isinstance(value, dict):
                return value
    return None


def write_entry(kind: str, key: Mapping[str, str], value: Mapping[str, Any]) -> bool:
    """Remember a value under this key; False where the cache cannot be written."""
    if usable_folder() is not None:
        with suppress(CollaFuseError):
            text = json.dumps({"key": dict(key), "value": dict(value)}, sort_keys=True)
            write_bytes(entry_path(kind, key), text.encode(), overwrite=True, durable=False)
            return True
    return False


def entry_path(kind: str, key: Mapping[str, str]) -> Path:
    """The file of what is remembered under this key; it need not exist. Raises RuntimeError without a home."""
    return cache_folder() / f"{kind}-{_name(tuple(f'{k}={v}' for k, v in sorted(key.items())))}.json"


def _name(parts: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
