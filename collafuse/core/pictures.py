"""Images as arrays for people to look at: grey levels and contact sheets. No image library is needed here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CHANNELS = 4
MAX_SIDE = 1024
"""The largest images that any file of ours holds, H and W in pixels."""
SHEET_PIXELS = 1024
"""About how wide a contact sheet becomes."""
LARGEST_TILE = 256
GAP = 2
PAPER = 255

Pixels = NDArray[np.uint8]
"""uint8 [N, H, W, C] with C = 1 or 3."""


def to_uint8(x: NDArray[Any]) -> Pixels:
    """Images [N, C, H, W] in [-1, 1] as grey levels [N, H, W, C]; values outside are clipped."""
    levels = np.rint((x.astype(np.float32).clip(-1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def contact_sheet(pixels: Pixels, columns: int | None = None, width: int = SHEET_PIXELS) -> Pixels:
    """Images side by side as one RGB picture [1, h, w, 3], enlarged by a whole factor to about this width."""
    count, tile_height, tile_width, _ = pixels.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    scale = max(1, min(width // (columns * (tile_width + GAP)), LARGEST_TILE // max(tile_height, tile_width)))
    tile_height, tile_width = tile_height * scale, tile_width * scale
    sheet = np.full((rows * (tile_height + GAP) + GAP, columns * (tile_width + GAP) + GAP, 3), PAPER, dtype=np.uint8)
    for index, one in enumerate(pixels):
        top = GAP + index // columns * (tile_height + GAP)
        left = GAP + index % columns * (tile_width + GAP)
        sheet[top : top + tile_height, left : left + tile_width] = one.repeat(scale, axis=0).repeat(scale, axis=1)
    return sheet[None]


def side_by_side(*parts: Pixels) -> Pixels:
    """Equal batches joined along the width, image by image, with a light line between."""
    line = np.full((*parts[0].shape[:2], 1, parts[0].shape[3]), PAPER, dtype=np.uint8)
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [line, part]
    return np.concatenate(joined, axis=2)
