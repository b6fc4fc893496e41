"""PNG files with their settings inside, and labelled tables of pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from collafuse.core.atomic import write_bytes
from collafuse.core.pictures import PAPER, Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""How every PNG file begins."""
MAX_FILE_BYTES = 64 << 20
"""The largest file that is read: more than a picture of 1024x1024 takes however badly it compresses."""
DAMAGED = (OSError, EOFError, ValueError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on files that are no whole PNG."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A PNG file that was read whole: its texts, and its pixels uint8 [H, W, C]."""

    text: dict[str, str]
    pixels: NDArray[np.uint8]


def to_image(pixels: Pixels) -> Image.Image:
    """A Pillow image from the first of uint8 [N, H, W, C]."""
    one = pixels[0]
    return Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else one)


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG file's bytes with these texts inside; nothing else about the image's origin is kept."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(
    path: Path, image: Image.Image, text: Mapping[str, str] | None = None, *, overwrite: bool = False
) -> None:
    """Write a PNG in one act, without waiting for the disk. Raises OutputExistsError or StorageError."""
    write_bytes(path, png_bytes(image, text), overwrite=overwrite, durable=False)


def read_png(path: Path) -> Picture | None:
    """A grey or RGB picture of 8 bits, every chunk checked against its checksum; None for anything else."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
            file.verify()  # the checksums, which decoding does not look at
        with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
            if file.mode not in ("L", "RGB"):
                return None
            text = {str(key): str(value) for key, value in file.info.items() if isinstance(value, str)}
            pixels = np.asarray(file, dtype=np.uint8)
    except DAMAGED:
        return None
    return Picture(text, pixels.reshape(*pixels.shape[:2], -1))


def is_png(path: Path) -> bool:
    """Whether a file is a whole PNG by its checksums, whatever picture is in it; so is one too large to look into."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return True
        with Image.open(path, formats=("PNG",)) as file:
            file.verify()
    except Image.DecompressionBombError:
        return True
    except DAMAGED:
        return False
    return True


def labelled_table(
    pictures: Sequence[Sequence[Image.Image]], row_names: Sequence[str], column_names: Sequence[str]
) -> Image.Image:
    """Pictures[row][column] with names beside the rows and above the columns."""
    from PIL import ImageDraw  # here, because finishing draws nothing

    left, top, space = 170, 40, 12
    width = max(p.width for row in pictures for p in row) + space
    height = max(p.height for row in pictures for p in row) + space
    page = Image.new("RGB", (left + len(column_names) * width, top + len(row_names) * height), (PAPER,) * 3)
    draw = ImageDraw.Draw(page)
    for column, name in enumerate(column_names):
        draw.text((left + column * width, 12), name, fill=(0, 0, 0), font_size=16)
    for row, name in enumerate(row_names):
        draw.multiline_text((8, top + row * height + 8), name, fill=(0, 0, 0), font_size=16)
        for column, picture in enumerate(pictures[row]):
            page.paste(picture, (left + column * width, top + row * height))
    return page
