"""One image file to pixels, treating the file as hostile."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 50_000_000
"""Far above any training image, far below what would fill a machine's memory."""


def pixel_digest(pixels: NDArray[np.uint8]) -> bytes:
    """SHA-256 of decoded pixels [H, W, C]: what a ledger knows an image by, whatever its file is called."""
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def read_image(path: Path, channels: int, side: int) -> tuple[NDArray[np.uint8], bytes]:
    """An image file as grey levels [C, side, side], and the digest of its pixels before any change of size.

    EXIF orientation is applied, then EXIF is dropped. Resized by its shorter side (Lanczos), cropped in the
    middle. Raises DataError, naming the file, when it is no image, damaged, or larger than 50 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise DataError(f"{path} has {file.width} x {file.height} pixels; at most {MAX_PIXELS} are read.")
                upright = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not an image that can be read ({', '.join(FORMATS)}); remove or repair it."
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); remove or repair it.") from error
    digest = pixel_digest(_with_channels(np.asarray(upright)))
    if upright.size != (side, side):
        upright = ImageOps.fit(upright, (side, side), method=Image.Resampling.LANCZOS)
    return np.ascontiguousarray(_with_channels(np.asarray(upright)).transpose(2, 0, 1)), digest


def _with_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
