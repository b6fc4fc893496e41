"""Data sets: the digits that scikit-learn ships, and any folder of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import DataSettings
from ..core.conditioning import Labels
from ..core.errors import DataError, RuntimeMissingError
from ..core.metadata import MAX_NAME, MAX_NAMES, is_name, shown
from .images import SUFFIXES, pixel_digest, read_image
from .progress import Progress, unseen

MAX_IMAGE_BYTES = 8 << 30
"""The largest data set that is held in memory, in bytes of decoded pixels."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory. pixels: uint8 [N, C, H, W]; labels: uint8 [N, K] in the order of label_names;
    digests: uint8 [N, 32], each of one image's pixels as they were decoded."""

    pixels: NDArray[np.uint8]
    labels: Labels
    label_names: tuple[str, ...]
    digests: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[np.int64]) -> ImageSet:
        """The images of these rows."""
        return ImageSet(self.pixels[rows], self.labels[rows], self.label_names, self.digests[rows])

    def with_labels(self, names: tuple[str, ...]) -> ImageSet:
        """The same images, labelled by these names alone, in this order."""
        columns = [self.label_names.index(name) for name in names]
        return ImageSet(self.pixels, self.labels[:, columns], names, self.digests)

    def x0(self) -> NDArray[np.float32]:
        """float32 [N, C, H, W] in [-1, 1]."""
        return self.pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def load(settings: DataSettings, path: Path | None = None, progress: Progress = unseen) -> ImageSet:
    """The data set that the settings name; ``path`` takes the place of ``settings.path``. Raises DataError."""
    if settings.dataset == "digits":
        return _digits(settings)
    root = path or settings.path
    if root is None:
        raise DataError("no image folder is given; set data.path, or a path for each client.")
    return _folder(root, settings, progress)


def _digits(settings: DataSettings) -> ImageSet:
    """1,797 handwritten digits, 8x8 (Alpaydin and Kaynak 1998), as they come with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeMissingError("the digits need scikit-learn; pip install 'collafuse[train]'.") from error
    if settings.image_shape != (1, 8, 8):
        raise DataError(f"the digits are grey and 8x8, the configuration asks for {list(settings.image_shape)}.")
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = np.eye(10, dtype=np.uint8)[digits.target]
    return ImageSet(pixels, labels, tuple("0123456789"), _digests(pixels))


def _digests(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows = [pixel_digest(one.transpose(1, 2, 0)) for one in pixels]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(pixels), 32)


def _folder(root: Path, settings: DataSettings, progress: Progress) -> ImageSet:
    """Images below ``root``, labelled by the sub-folder they lie in; unlabelled when they lie in root itself."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; set data.path to a folder of images, one sub-folder per label.")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}); put one sub-folder per label there.")
    loose = [p for p in files if p.parent == root]
    if loose and len(loose) < len(files):
        raise DataError(
            f"{root} holds images beside labelled sub-folders, such as {loose[0].name}; "
            "move them into a sub-folder, or the sub-folders elsewhere."
        )
    names = () if loose else tuple(sorted({p.relative_to(root).parts[0] for p in files}))
    check_label_names(names, f"sub-folders of {root}")
    channels, side, _ = settings.image_shape
    if len(files) * channels * side * side > MAX_IMAGE_BYTES:
        raise DataError(
            f"{root} holds {len(files)} images, over {MAX_IMAGE_BYTES >> 30} GiB as {side}x{side}x{channels}; "
            "use a smaller image_size or fewer images."
        )
    pixels = np.empty((len(files), channels, side, side), dtype=np.uint8)
    digests = np.empty((len(files), 32), dtype=np.uint8)
    counter = progress(f"reading {root.name}", len(files))
    for row, (one, digest) in enumerate(_in_threads(partial(read_image, channels=channels, side=side), files)):
        pixels[row] = one
        digests[row] = np.frombuffer(digest, dtype=np.uint8)
        counter.advance(1)
    labels = np.zeros((len(files), len(names)), dtype=np.uint8)
    for row, file in enumerate(files):
        if names:
            labels[row, names.index(file.relative_to(root).parts[0])] = 1
    return ImageSet(pixels, labels, names, digests)


def check_label_names(names: Sequence[str], where: str) -> None:
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


def _in_threads(
    read: Callable[[Path], tuple[NDArray[np.uint8], bytes]], files: list[Path], chunk: int = 1024
) -> Iterator[tuple[NDArray[np.uint8], bytes]]:
    """Each file's pixels and digest, in order; at most ``chunk`` are read ahead."""
    # Pillow releases the interpreter lock while decoding. What it remarks about metadata concerns nobody; filters
    # are the whole process's, so they are set here and not in the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(files), chunk):
            yield from pool.map(read, files[start : start + chunk])
