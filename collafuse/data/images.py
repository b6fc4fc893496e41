"""One image file to pixels, treating the file as hostile."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..core.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 50_000_000
"""Far above any training image, far below what would fill a machine's memory."""
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers per pixel by a PNG's colour type."""
MOST_DEFLATED = 1032
"""How many bytes one byte of a PNG can hold; the most that its compression is able to."""
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError, struct.error)
"""What Pillow raises on damaged files (found by damaging some)."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


HOLD_ORIENTATION = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""Where Pillow finds EXIF; TIFF files it has turned already."""


def pixel_digest(pixels: NDArray[np.uint8]) -> bytes:
    """SHA-256 of decoded pixels [H, W, C]: what a ledger knows an image by, whatever its file is called.

    Grey is taken as RGB, so that an image is the same one however it is converted for training.
    """
    rgb = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels)
    digest = hashlib.sha256(f"{rgb.shape}".encode())
    digest.update(rgb.data)
    return digest.digest()


@dataclass(frozen=True)
class Transform:
    """What images become: grey (1) or RGB (3), their side in pixels, and how one that is not square gets there."""

    channels: int
    side: int
    fit: str = "crop"


def read_image(
    path: Path | str, channels: int, side: int, fit: str = "crop", data: bytes | None = None
) -> tuple[NDArray[np.uint8], bytes]:
    """An image file as grey levels [C, side, side], and the digest of its pixels before any change of size.

    EXIF orientation is applied, then EXIF is dropped. What is transparent shows white paper. 16-bit grey levels
    are scaled to 8 bits. For ``fit`` see :func:`shaped`. Raises DataError, naming the file, when it is no image,
    damaged, or larger than 50 megapixels. ``data`` are its bytes where it is no file; ``path`` is then only a name.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{path} has {file.width} x {file.height} pixels; at most {MAX_PIXELS} are read.")
            if file.format == "PNG" and _holds_too_little(file):
                raise DataError(f"{path} is too short for its {file.width} x {file.height} pixels; get the image anew.")
            if getattr(file, "is_animated", False) and file.format != "MPO":  # a photograph with its own preview
                raise DataError(f"{path} holds {file.n_frames} pictures; save the one that you mean by itself.")
            upright = _as_rgb(_upright(file), path)
            levels = np.asarray(upright)
            if levels.shape == (side, side, channels):
                return np.ascontiguousarray(levels.transpose(2, 0, 1)), pixel_digest(levels)
            return shaped(upright, channels, side, fit), pixel_digest(levels)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not an image that can be read ({', '.join(FORMATS)}); remove or repair it."
        ) from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); remove or repair it.") from error


def shaped(image: Image.Image, channels: int, side: int, fit: str = "crop") -> NDArray[np.uint8]:
    """An RGB image as grey levels [C, side, side], resized with Lanczos.

    fit crop: by its shorter side, cropped in the middle; pad: by its longer side, black beside it.
    """
    if channels == 1:
        image = image.convert("L")
    if image.size != (side, side):
        change = ImageOps.pad if fit == "pad" else ImageOps.fit
        image = change(image, (side, side), method=Image.Resampling.LANCZOS)
    pixels = np.asarray(image).reshape(side, side, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _holds_too_little(file: Image.Image) -> bool:
    """Whether a PNG claims more rows than its length can hold: Pillow would make the missing ones black in silence."""
    handle = getattr(file, "fp", None)
    if handle is None:
        return False
    here = handle.tell()
    handle.seek(24)
    depth, colour = handle.read(2)
    size = handle.seek(0, os.SEEK_END)
    handle.seek(here)
    bits = file.height * file.width * depth * PNG_SAMPLES.get(colour, 1)
    return bits // 8 > MOST_DEFLATED * size


def _upright(file: Image.Image) -> Image.Image:
    """Not ImageOps.exif_transpose, which writes EXIF anew and stumbles over what it cannot write."""
    file.load()  # which turns TIFF files by itself
    if not file.info.keys() & HOLD_ORIENTATION:
        return file
    method = UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    return file if method is None else file.transpose(method)


def _as_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    """Any image that Pillow opens as 8-bit RGB."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(f"{path} has 32-bit grey levels, whose range is not known; save it with 8 or 16 bits.")
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
