"""What an audit shows of its sites beside the tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_client.pictures import labelled_table, to_image

from ..core.pictures import contact_sheet, to_uint8

SHOWN = 8
"""Images of a site on the picture."""

Pictures = dict[str, NDArray[np.floating]]
"""What is shown of a site, by its kind: originals, releases, estimates, each [N, C, H, W]."""


def beside(names: Sequence[str], rows: Sequence[Pictures]) -> Image.Image:
    """Rows: each kind. Columns: sites; white where there is none."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row)) or ["original"]
    like = next((next(iter(row.values())) for row in rows if row), np.ones((1, 1, 8, 8)))
    sheets = [[_sheet(row.get(kind, np.ones_like(like))) for row in rows] for kind in kinds]
    return labelled_table(sheets, kinds, list(names))


def _sheet(x: NDArray[np.floating]) -> Image.Image:
    return to_image(contact_sheet(to_uint8(x), columns=SHOWN, width=460))
