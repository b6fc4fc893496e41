"""Captions as numbers, each different one encoded once and, where ``data.cache`` says so, kept.

    CACHE/text-ENCODER/captions.safetensors    keys uint8 [M, 32], text float16 [M, T]
    CACHE/text-encoders/digests.json           see ``digests``

A key is a digest of a caption and of how much of it is read. The file is written anew when there are new ones, in one
act; of two processes that do so together the later one's stays, and what is missing then is encoded again. The numbers
tell the captions, as the pixels beside them tell the images: only their owner can read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.data import TextSettings
from ..core import tensorfile
from ..core.atomic import storage_error
from ..core.conditioning import Texts
from ..core.errors import DataError, FileFormatError, UsageError
from ..core.metadata import is_sentence, shown
from ..core.texts import MAX_PROMPT, MAX_PROMPTS, EncodedText, Prompts
from .captions import Captions, captions_of, read_text
from .listening import Listener
from .t5 import Encoder, EncoderFiles, find

KIND, VERSION = "captions", 1
FILE = "captions.safetensors"
ENCODERS = "text-encoders"
KEY_BYTES = 32


class Embedder:
    """Turns captions into numbers; opens the encoder when the first caption is not known yet."""

    def __init__(self, settings: TextSettings, cache: Path | None, listener: Listener) -> None:
        self._settings, self._listener = settings, listener
        self._files: EncoderFiles = find(settings.encoder, None if cache is None else cache / ENCODERS)
        self._path = None if cache is None else cache / f"text-{self._files.space.encoder}" / FILE
        self._known: dict[bytes, Texts] = {} if self._path is None else _read(self._path, self._files.space.width)
        self._encoder: Encoder | None = None

    def embed(self, captions: Captions) -> EncodedText:
        """The captions as numbers [N, T]; zeros for an empty one. Raises DataError, RuntimeMissingError."""
        texts = sorted(set(captions.tolist()) - {""})
        keys = {text: self._key(text) for text in texts}
        if missing := [text for text in texts if keys[text] not in self._known]:
            rows = self._encode(missing)
            self._known |= {keys[text]: row for text, row in zip(missing, rows, strict=True)}
            self._keep()
        rows = np.zeros((len(captions), self._files.space.width), dtype=np.float16)
        for place, text in enumerate(captions.tolist()):
            if text:
                rows[place] = self._known[keys[text]]
        return EncodedText(self._files.space, rows)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._settings.max_tokens}\0{text}".encode()).digest()

    def _encode(self, texts: Sequence[str]) -> Texts:
        if self._encoder is None:
            self._encoder = Encoder(self._files, self._settings.max_tokens)
        before = self._encoder.truncated
        rows = self._encoder.encode(texts, self._listener.bar("encoding captions", len(texts)).advance)
        if cut := self._encoder.truncated - before:
            self._listener.say(
                f"{cut} of {len(texts)} different texts have more than {self._settings.max_tokens} tokens "
                "(data.text.max_tokens; of prompts --max-tokens); what comes after is not read."
            )
        return rows

    def _keep(self) -> None:
        if self._path is None:
            return
        keys = np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, KEY_BYTES)
        tensors: dict[str, NDArray[Any]] = {"keys": keys, "text": np.stack(list(self._known.values()))}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self._path, error) from error
        tensorfile.write(self._path, KIND, VERSION, {}, tensors, overwrite=True)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one a line; empty lines are left out. Raises DataError."""
    most = MAX_PROMPTS * (4 * MAX_PROMPT + 2)  # in UTF-8, with the ends of the lines
    text = read_text(path, most, f"at most {MAX_PROMPTS} prompts of {MAX_PROMPT} characters fit one file")
    if text is None:
        raise DataError(f"{path} does not exist; expected a text file with one prompt a line.")
    return [line.strip() for line in text.splitlines() if line.strip()]


def encode_prompts(prompts: Sequence[str], encoder: str, max_tokens: int, listener: Listener) -> Prompts:
    """Prompts as numbers, for a file. Raises UsageError for none, too many or long ones, and as Embedder.embed."""
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise UsageError(f"{len(prompts)} prompts; give 1 to {MAX_PROMPTS}, as arguments or with --file.")
    clean = captions_of(prompts)
    for prompt in clean:
        if not is_sentence(prompt, MAX_PROMPT):
            raise UsageError(
                f"the prompt {shown(prompt)} is not 1 to {MAX_PROMPT} printable characters; write it anew."
            )
    settings = TextSettings(encoder=encoder, max_tokens=max_tokens)
    return Prompts(Embedder(settings, None, listener).embed(clean), tuple(clean.tolist()))


def _read(path: Path, width: int) -> dict[bytes, Texts]:
    """What is kept; nothing where the file is not there or not what it should be."""
    try:
        tensors = tensorfile.read(path, KIND, VERSION).tensors
        keys, rows = tensors["keys"], tensors["text"]
    except (FileFormatError, KeyError):
        return {}
    if keys.shape != (len(rows), KEY_BYTES) or rows.shape[1:] != (width,) or rows.dtype != np.float16:
        return {}
    return {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}
