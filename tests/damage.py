"""Ways to spoil a file, for the tests of everything that reads one."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


def truncations(data: bytes, count: int) -> Iterator[bytes]:
    """The file cut short at ``count`` lengths, none included, spread over all of it."""
    for length in np.linspace(0, len(data) - 1, count).astype(int):
        yield data[:length]


def bit_flips(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The file with one bit turned, at ``count`` places; half of them in its first 2 KiB, where headers lie."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        spoiled = bytearray(data)
        spoiled[rng.integers(min(len(data), 2048) if index % 2 else len(data))] ^= 1 << rng.integers(8)
        yield bytes(spoiled)


def safetensors_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a safetensors file, read without the library."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def safetensors_file(header: str | dict[str, Any], payload: bytes) -> bytes:
    """A safetensors file from a header, which may be text that the library would never write."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + payload
