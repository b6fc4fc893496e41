"""Captions: what is written of each image, from a file beside it, a table's column, or the names of its labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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

    Raises DataError for a file that is no text, or a long one, and where no image has one.
    """
    captions = captions_of(read_text((root / file).with_suffix(SUFFIX)) or "" for file in files)
    expected = (root / files[0]).with_suffix(SUFFIX)
    return check_some(captions, f"no image below {root} has a text beside it, such as {expected} for {files[0]}")


def check_some(captions: Captions, none: str) -> Captions:
    """The captions, where there is one. Raises DataError that begins with ``none``: a release cannot be made again."""
    if not any(captions):
        raise DataError(f"{none}, so nothing would be learned of text; write captions there, or leave data.text out.")
    return captions


def first_of(value: Any) -> Any:
    """A cell's caption: of a list of several the first, None of an empty one."""
    return next(iter(value), None) if isinstance(value, list) else value


def read_text(path: Path, most: int = MAX_TEXT_BYTES, expected: str = "a caption is a sentence or two") -> str | None:
    """What stands in a text file; None where there is none. Raises DataError for no text, or over ``most`` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror}; make it readable or remove it.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8; save it as that or remove it.") from error
    if len(data) > most:
        raise DataError(f"{path} has over {most} bytes; {expected}.")
    return text


def from_labels(labels: Labels, names: Sequence[str]) -> Captions:
    """The names of each image's labels, such as "Eyeglasses, Smiling"; "" for none of them."""
    return captions_of(", ".join(names[i] for i in np.flatnonzero(row).tolist()) for row in labels)
