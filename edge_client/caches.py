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


def cache_folder() -> Path:
    """Where the cache belongs; it need not exist. A relative XDG_CACHE_HOME is ignored, as its standard asks."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "collafuse"


def usable_folder(*parts: str) -> Path | None:
    """A folder in the cache that is ours alone to write, made when needed; None where there cannot be one."""
    try:
        folder = cache_folder().joinpath(*parts)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    foreign = hasattr(os, "geteuid") and status.st_uid != os.geteuid()
    # Engines are code to whoever loads them, so others must not be able to put theirs here.
    writable_by_others = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return None if foreign or writable_by_others or not os.access(folder, os.W_OK) else folder


def engine_folder(provider: str, digest: str) -> Path | None:
    """A folder for what a provider compiles from one bundle on this machine, or None.

    Engines fit one model, onnxruntime, TensorRT and GPU, so all four name the folder.
    """
    import onnxruntime  # here, because doctor asks for the cache where it may be missing

    parts = (digest, onnxruntime.__version__, machine.tensorrt_version(), machine.gpu())
    return usable_folder("engines", f"{provider}-{_name(parts)}")


def read_entry(kind: str, key: Mapping[str, str]) -> dict[str, Any] | None:
    """What was remembered under this key, unchecked but for its shape; None when there is nothing that can be read."""
    with suppress(OSError, RuntimeError, CollaFuseError):
        path = cache_folder() / _file(kind, key)
        if path.stat().st_size <= MAX_ENTRY_BYTES:
            entry = parse_json(path.read_bytes(), str(path))
            value = entry.get("value")
            if entry.get("key") == dict(key) and isinstance(value, dict):
                return value
    return None


def write_entry(kind: str, key: Mapping[str, str], value: Mapping[str, Any]) -> None:
    """Remember a value under this key, or not, where the cache cannot be written."""
    if usable_folder() is not None:
        with suppress(CollaFuseError):
            text = json.dumps({"key": dict(key), "value": dict(value)}, sort_keys=True)
            write_bytes(cache_folder() / _file(kind, key), text.encode(), overwrite=True, durable=False)


def _file(kind: str, key: Mapping[str, str]) -> str:
    return f"{kind}-{_name(tuple(f'{k}={v}' for k, v in sorted(key.items())))}.json"


def _name(parts: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
