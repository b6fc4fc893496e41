"""PNG files of 8-bit grey and RGB pictures with texts inside: written, checked and read back.

A device writes many small pictures and starts often, and an image library takes longer to load than a picture to
finish. Format: ISO/IEC 15948 (PNG), of which this writes one way and reads back what it wrote.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collafuse.core.atomic import write_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
"""Colour types of the header, for 1 and 3 channels."""
SUB = 1
"""The filter that keeps the difference to the pixel on the left, which compresses better than the pixel."""
MAX_FILE_BYTES = 64 << 20
"""The largest file that is read: more than a picture of 1024x1024 takes however badly it compresses."""


@dataclass(frozen=True)
class Picture:
    """A whole PNG file: its texts, its size and its compressed pixels."""

    text: dict[str, str]
    header: bytes
    compressed: bytes

    def pixels(self) -> NDArray[np.uint8] | None:
        """uint8 [H, W, C], or None for a picture that this module did not write."""
        width, height, *rest = struct.unpack(">IIBBBBB", self.header)
        channels = {(8, GREY, 0, 0, 0): 1, (8, RGB, 0, 0, 0): 3}.get(tuple(rest))
        if channels is None or not 0 < width * height * channels <= MAX_FILE_BYTES:
            return None
        expected = height * (1 + width * channels)
        try:
            data = zlib.decompressobj().decompress(self.compressed, expected + 1)
        except zlib.error:
            return None
        rows = np.frombuffer(data, dtype=np.uint8)
        if len(rows) != expected or (rows[:: 1 + width * channels] != SUB).any():
            return None
        differences = rows.reshape(height, -1)[:, 1:].reshape(height, width, channels)
        return np.add.accumulate(differences, axis=1, dtype=np.uint8)


def encode(pixels: NDArray[np.uint8], text: Mapping[str, str]) -> bytes:
    """A PNG file's bytes from uint8 [H, W, C], C being 1 or 3, with these texts inside and nothing else."""
    height, width, channels = pixels.shape
    filtered = np.full((height, 1 + width * channels), SUB, dtype=np.uint8)
    filtered[:, 1:] = np.diff(pixels, axis=1, prepend=np.uint8(0)).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, GREY if channels == 1 else RGB, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *(_text_chunk(key, value) for key, value in text.items()),
        (b"IDAT", zlib.compress(filtered.tobytes())),
        (b"IEND", b""),
    ]
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def write(path: Path, pixels: NDArray[np.uint8], text: Mapping[str, str], *, overwrite: bool = False) -> None:
    """Write a picture in one act, without waiting for the disk. Raises OutputExistsError or StorageError."""
    write_bytes(path, encode(pixels, text), overwrite=overwrite, durable=False)


def read(path: Path) -> Picture | None:
    """A whole PNG file, every chunk checked against its checksum; None for anything else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    if not data.startswith(SIGNATURE) or len(data) > MAX_FILE_BYTES:
        return None
    chunks = list(_chunks(data))
    if len(chunks) < 2 or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 or chunks[-1] != (b"IEND", b""):
        return None
    text = dict(pair for kind, body in chunks if (pair := _text(kind, body)) is not None)
    return Picture(text, chunks[0][1], b"".join(body for kind, body in chunks if kind == b"IDAT"))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk, up to the first that is cut short or damaged."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data) or zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return
        yield data[position + 4 : position + 8], data[position + 8 : end - 4]
        position = end


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text_chunk(key: str, value: str) -> tuple[bytes, bytes]:
    """A text as tEXt where Latin-1 holds it, as iTXt otherwise (uncompressed, of no language)."""
    name = key.encode("latin-1")
    try:
        return b"tEXt", name + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name + b"\0\0\0\0\0" + value.encode()


def _text(kind: bytes, body: bytes) -> tuple[str, str] | None:
    """The inverse of :func:`_text_chunk`; None for another chunk."""
    key, separator, value = body.partition(b"\0")
    if kind == b"tEXt" and separator:
        return key.decode("latin-1"), value.decode("latin-1")
    if kind == b"iTXt" and value.startswith(b"\0\0\0\0"):
        return key.decode("latin-1"), value[4:].decode(errors="replace")
    return None
