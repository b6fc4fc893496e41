"""Texts as numbers: what files say of them, and the file of prompts for where no encoder is.

File format (safetensors, ``kind`` "text", version 1):

    text    float16 [P, T]   a row for each prompt, of root mean square 1

    metadata: text_encoder, which made the numbers (its kind, its width and a digest of its weights), and prompts, the P
    texts themselves

The prompts are inside, so that whoever has the file can see what it asks for. Leaving them out would hide nothing: with
the encoder at hand a guess is confirmed by its numbers. Limits: P in 1..256, T in 1..4096, a prompt of 1 to 500
printable characters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import tensorfile
from .conditioning import MAX_TEXT_WIDTH, RMS_SLACK, Texts, TextSpace, is_encoder
from .errors import FileFormatError
from .metadata import Fields, shown
from .tensorfile import HasLayout

KIND = "text"
VERSION = 1
MAX_PROMPTS = 256
MAX_PROMPT = 500
"""The longest prompt, in characters; an encoder reads no more than a few dozen words."""
MAX_ASKED = 16
"""Texts in one request to a server."""
MAX_ASKED_NUMBERS = 16 * 1024
"""Their numbers together, which fill most of what a body may have."""


@dataclass(frozen=True, eq=False)
class EncodedText:
    """Texts as numbers: rows float16 [N, T], and what they mean."""

    space: TextSpace
    rows: Texts

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Any) -> EncodedText:
        """These rows alone."""
        return EncodedText(self.space, self.rows[rows])


@dataclass(frozen=True, eq=False)
class Prompts:
    """What a file of prompts holds."""

    text: EncodedText
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """SHA-256 of what the file holds."""
        return hashlib.sha256(to_bytes(self)).hexdigest()


def most_asked(width: int) -> int:
    """How many texts of so many numbers one request to a server may hold."""
    return min(MAX_ASKED, MAX_ASKED_NUMBERS // width)


def to_bytes(prompts: Prompts) -> bytes:
    """The file's bytes; equal prompts give equal bytes."""
    fields = {**encoder_field(prompts.text.space), "prompts": list(prompts.prompts)}
    return tensorfile.to_bytes(KIND, VERSION, fields, {"text": prompts.text.rows})


def read(path: Path) -> Prompts:
    """Read and check a file of prompts. Raises FileFormatError."""
    file, source = tensorfile.read(path, KIND, VERSION), str(path)
    prompts = file.fields.sentences("prompts", most=MAX_PROMPTS, longest=MAX_PROMPT)
    left = dict(file.tensors)
    space = read_layout(file.fields, left, len(prompts), source)
    if space is None or not prompts:
        raise FileFormatError(f"{source} holds no text; make it anew with collafuse text.")
    file.fields.done()
    tensorfile.expect_nothing_else(left, source)
    rows = file.tensors["text"]
    check(rows, source)
    return Prompts(EncodedText(space, rows), prompts)


# --- the same in other files --------------------------------------------------------------------------------


def encoder_field(space: TextSpace | None) -> dict[str, Any]:
    """What the metadata of a file with the tensor "text" says of it; nothing without text."""
    return {} if space is None else {"text_encoder": space.encoder}


def read_layout(fields: Fields, tensors: dict[str, Any], count: int, source: str) -> TextSpace | None:
    """What text a file carries, whose layout is checked and taken; None when it carries none."""
    if "text" not in tensors:
        if fields.holds("text_encoder"):
            raise FileFormatError(f"{source} names a text encoder but holds no text; get the file anew from its maker.")
        return None
    encoder = _encoder(fields, source)
    layout: HasLayout = tensorfile.expect_layout(tensors, "text", ("float16",), 2, source)
    rows, width = layout.shape
    if rows != count or not 1 <= width <= MAX_TEXT_WIDTH:
        raise FileFormatError(
            f"{source}: text has shape {list(layout.shape)}, expected {count} rows of 1 to {MAX_TEXT_WIDTH} numbers; "
            "get the file anew from its maker."
        )
    return TextSpace(encoder, width)


def check(rows: NDArray[Any], source: str) -> None:
    """Refuse text, or a block of it, that is not finite or not of root mean square 1 (or 0, where there is none)."""
    tensorfile.check_finite(rows, "text", source)
    rms = np.sqrt(np.square(rows.astype(np.float32)).mean(axis=1))
    wrong = (np.abs(rms - 1) > RMS_SLACK) & (rms > 0)
    if wrong.any():
        raise FileFormatError(
            f"{source}: text has a row of root mean square {rms[wrong][0]:.4g}, expected 1, or 0 for no text; get the "
            "file anew from its maker."
        )


def found_in(tensors: Mapping[str, Any], space: TextSpace | None) -> EncodedText | None:
    """The checked text of a file, by what :func:`read_layout` said."""
    return None if space is None else EncodedText(space, tensors["text"])


def text_fields(space: TextSpace | None) -> dict[str, Any]:
    """What the metadata of a model says of the text that it takes; nothing where it takes none."""
    return {} if space is None else {"text_encoder": space.encoder, "text_width": space.width}


def read_text_space(fields: Fields, source: str) -> TextSpace | None:
    """What text a model takes, by its metadata; None where it says nothing, as models of before there was text."""
    if not fields.holds("text_encoder"):
        return None
    return TextSpace(_encoder(fields, source), fields.integer("text_width", at_least=1, at_most=MAX_TEXT_WIDTH))


def _encoder(fields: Fields, source: str) -> str:
    name = fields.take("text_encoder")
    if not is_encoder(name):
        raise FileFormatError(
            f"{source}: metadata text_encoder={shown(name)}, expected a short name of letters and digits; get the file "
            "anew from its maker."
        )
    return str(name)
