"""Data sets by name, through torchvision: CelebA, CIFAR-10 and -100, STL-10, MNIST and Fashion-MNIST.

torchvision reads its own layout of each and compares the files with their published MD5 sums where it has them,
CIFAR's before they are unpickled: docs/decisions/0007-published-data-sets.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import DataSettings
from ..core.errors import DataError, first_line
from .images import pixel_digest, shaped
from .imageset import ImageSet, check_label_names
from .listening import Listener
from .listing import Listing, read_listing
from .published import PUBLISHED

UNREADABLE = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, OSError, EOFError)
"""What torchvision raises on files that are not what they should be."""


def read_named(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """A set's training images below ``root``; with ``official_split`` its others as well, marked as held out.

    Raises DataError when the files are not the published ones.
    """
    published = PUBLISHED[settings.dataset]
    try:
        return _READERS[settings.dataset](root, settings, listener)
    except UNREADABLE as error:
        raise DataError(
            f"the files of {published.title} in {root} are not as published ({first_line(error)}); remove them and "
            f"get them anew from {published.page}."
        ) from error


def fetch(root: Path, settings: DataSettings) -> None:
    """Download a published set into ``root``, with torchvision's checks. Raises DataError."""
    published = PUBLISHED[settings.dataset]
    try:
        _reader(settings.dataset)(root, download=True)
    except (*UNREADABLE, HTTPException) as error:
        raise DataError(
            f"{published.title} could not be downloaded ({first_line(error)}); get it by hand. "
            f"{published.where_from(root, published.files)}"
        ) from error


# --- torchvision's own readers ------------------------------------------------------------------------------


def _reader(dataset: str) -> Any:
    """torchvision's class for a set."""
    from torchvision import datasets

    made = getattr(datasets, str(PUBLISHED[dataset].torchvision))
    if issubclass(made, datasets.MNIST):  # the same, but blind to tensors that an old torchvision saved
        made = type(made.__name__, (made,), {"_check_legacy_exist": lambda self: False})
    return made


def _read_celeba(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """40 attributes; the identity is the group, so that nobody is in training and held out."""
    parts = [_reader("celeba")(root, split=part) for part in _parts(settings, "train", "valid", "test")]
    names = tuple(parts[0].attr_names[: parts[0].attr.shape[1]])  # the line of names ends in a space
    check_label_names(names, "attributes of CelebA")
    images = root / "celeba" / "img_align_celeba"
    listing = Listing(
        images,
        tuple(Path(name).name for part in parts for name in part.filename),
        np.concatenate([part.attr.numpy() for part in parts]).astype(np.uint8),
        names,
        groups=np.concatenate([part.identity[:, 0].numpy() for part in parts]).astype(np.str_),
        test_part=_test_part([len(part) for part in parts], settings),
    )
    return read_listing(listing, settings, listener)


def _read_arrays(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """CIFAR, MNIST and Fashion-MNIST: one class per image, everything in memory."""
    make = _reader(settings.dataset)
    parts = [make(root, train=part == "train") for part in _parts(settings, "train", "test")]
    names = tuple("0123456789") if settings.dataset == "mnist" else tuple(parts[0].classes)
    return _from_arrays([(np.asarray(p.data), np.asarray(p.targets)) for p in parts], names, settings, listener)


def _read_stl10(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    parts = [_reader("stl10")(root, split=part) for part in _parts(settings, "train", "test")]
    arrays = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in parts]
    return _from_arrays(arrays, tuple(parts[0].classes), settings, listener)


_READERS: dict[str, Callable[[Path, DataSettings, Listener], ImageSet]] = {
    "celeba": _read_celeba,
    "cifar10": _read_arrays,
    "cifar100": _read_arrays,
    "stl10": _read_stl10,
    "mnist": _read_arrays,
    "fashion-mnist": _read_arrays,
}


def _parts(settings: DataSettings, *names: str) -> tuple[str, ...]:
    return names if settings.official_split else names[:1]


def _test_part(counts: Sequence[int], settings: DataSettings) -> NDArray[np.bool_] | None:
    """Which images are not in the first part; None when the split is not the official one."""
    return np.repeat([i > 0 for i in range(len(counts))], counts) if settings.official_split else None


def _from_arrays(
    parts: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    names: tuple[str, ...],
    settings: DataSettings,
    listener: Listener,
) -> ImageSet:
    """Images [N, H, W] or [N, H, W, C] and their classes [N], part after part, as a set of the shape asked for."""
    images = np.concatenate([images for images, _ in parts])
    classes = np.concatenate([classes for _, classes in parts]).astype(np.int64)
    images = images.reshape(*images.shape[:3], -1)
    if len(images) != len(classes) or not ((classes >= 0) & (classes < len(names))).all():
        raise ValueError(f"{len(images)} images with {len(classes)} labels of {len(names)} classes")
    check_label_names(names, f"classes of {PUBLISHED[settings.dataset].title}")
    channels, side, _ = settings.image_shape
    pixels = np.empty((len(images), channels, side, side), dtype=np.uint8)
    digests = np.empty((len(images), 32), dtype=np.uint8)
    counter = listener.bar(f"reading {settings.dataset}", len(images))
    for row, image in enumerate(images):
        digests[row] = np.frombuffer(pixel_digest(image), dtype=np.uint8)
        if image.shape == (side, side, channels):
            pixels[row] = image.transpose(2, 0, 1)
        else:
            pixels[row] = shaped(Image.fromarray(image.squeeze()).convert("RGB"), channels, side, settings.fit)
        if (row + 1) % 1000 == 0 or row + 1 == len(images):
            counter.advance(row % 1000 + 1)
    sources = np.asarray([f"{settings.dataset} {row}" for row in range(len(images))], dtype=np.str_)
    return ImageSet(
        pixels,
        np.eye(len(names), dtype=np.uint8)[classes],
        names,
        digests,
        sources,
        test_part=_test_part([len(images) for images, _ in parts], settings),
    )
