"""Images with what is known of each, in memory or, where they would not fit, in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..core.conditioning import Conditions, ConditionSpace, Labels
from ..core.errors import DataError
from ..core.metadata import MAX_NAME, MAX_NAMES, is_name, shown
from ..core.rows import FileRows
from ..core.texts import EncodedText
from .images import pixel_digest


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images. pixels: uint8 [N, C, H, W], as rows of a file where memory would not hold them; labels: uint8 [N, K] in
    the order of label_names; digests: uint8 [N, 32], each of one image's pixels as they were decoded.

    sources: what a person knows each image by, [N], such as its file below the folder. groups: what each image
    belongs to, [N], such as a patient. test_part: which images the set's makers keep for testing, [N].
    problems: a sentence for each file that was left out. captions: what is written of each image [N], "" for nothing.
    text: the captions as numbers.
    """

    pixels: NDArray[np.uint8] | FileRows
    labels: Labels
    label_names: tuple[str, ...]
    digests: NDArray[np.uint8]
    sources: NDArray[np.str_] | None = None
    groups: NDArray[np.str_] | None = None
    test_part: NDArray[np.bool_] | None = None
    problems: tuple[str, ...] = ()
    captions: NDArray[np.object_] | None = None
    text: EncodedText | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[np.int64]) -> ImageSet:
        """The images of these rows."""
        return replace(
            self,
            pixels=self.pixels.take(rows) if isinstance(self.pixels, FileRows) else self.pixels[rows],
            labels=self.labels[rows],
            digests=self.digests[rows],
            sources=None if self.sources is None else self.sources[rows],
            groups=None if self.groups is None else self.groups[rows],
            test_part=None if self.test_part is None else self.test_part[rows],
            captions=None if self.captions is None else self.captions[rows],
            text=None if self.text is None else self.text.take(rows),
        )

    def with_labels(self, names: tuple[str, ...]) -> ImageSet:
        """The same images, labelled by these names alone, in this order."""
        columns = [self.label_names.index(name) for name in names]
        return replace(self, labels=self.labels[:, columns], label_names=names)

    def rows_with(self, name: str) -> NDArray[np.int64]:
        """The images that show a label; none where the set does not know it."""
        if name not in self.label_names:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self.labels[:, self.label_names.index(name)])

    @property
    def space(self) -> ConditionSpace:
        """What the images are described by."""
        return ConditionSpace(self.label_names, None if self.text is None else self.text.space)

    def conditions(self) -> Conditions:
        """Each image's labels and text, as a model of :attr:`space` takes them [N, W]."""
        return self.space.conditions(len(self), self.labels, None if self.text is None else self.text.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def in_memory(self) -> NDArray[np.uint8]:
        """The pixels as an array, read where they lie in a file."""
        return np.asarray(self.pixels)

    def x0(self) -> NDArray[np.float32]:
        """float32 [N, C, H, W] in [-1, 1]."""
        return x0_of(self.in_memory())


def x0_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels as float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def digests_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The digests [N, 32] of images [N, C, H, W] that were never anything but these pixels."""
    rows = [pixel_digest(one.transpose(1, 2, 0)) for one in pixels]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(pixels), 32)


def check_label_names(names: tuple[str, ...], where: str) -> None:
    """Refuse names that no release or bundle could carry, before anything is trained. ``where``: what is named so."""
    if len(names) > MAX_NAMES:
        raise DataError(
            f"{where} name {len(names)} labels; at most {MAX_NAMES} are possible. Put several into one, or put the "
            "images into one folder and leave them unlabelled."
        )
    for name in names:
        if not is_name(name):
            raise DataError(
                f"{where}: {shown(name)} cannot be the name of a label; rename it to at most {MAX_NAME} printable "
                "characters."
            )
