"""Captions: what is written of each image, from a file beside it, a table's column, or the names of its labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.conditioning import Labels
from ..core.errors import DataError

SUFFIX = ".txt"
MAX_TEXT_BYTES = 1 << 16
Captions = NDArray[np.object_]
"""A text for each image [N], "" where there is none. Objects, since one long text must not make all rows as wide."""


def captions_of(texts: Iterable[str]) -> Captions:
    """Texts on one line each, however their words stood."""
    lines = [" ".join(text.split()) for text in texts]
    captions = np.empty(len(lines), dtype=np.object_)
    captions[:] = lines
    return captions


def beside(root: Path, files: Sequence[str]) -> Captions:
    """What stands in ``<image>.txt`` beside each image below ``root``: face.jpg has face.txt; "" where none is.

    Raises DataError for a file that is no text, or a long one.
    """
    return captions_of(read_text((root / file).with_suffix(SUFFIX)) or "" for file in files)


def read_text(path: Path) -> str | None:
    """What stands in a small text file; None where there is none. Raises DataError for no text, or a long one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror}; make it readable or remove it.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8; save it as that or remove it.") from error
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(f"{path} has over {MAX_TEXT_BYTES} bytes; a caption is a sentence or two.")
    return text


def from_labels(labels: Labels, names: Sequence[str]) -> Captions:
    """The names of each image's labels, such as "Eyeglasses, Smiling"; "" for none of them."""
    return captions_of(", ".join(names[i] for i in np.flatnonzero(row)) for row in labels)
