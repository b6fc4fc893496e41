"""Where a configuration's images come from: scikit-learn's digits, a published set, or any folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import Config, DataSettings
from ..core.errors import DataError, RuntimeMissingError, UsageError
from .folder import read_folder
from .hub import read_hub
from .imageset import ImageSet, digests_of
from .layouts import read_layout
from .listening import UNHEARD, Listener
from .named import fetch, read_named
from .published import PUBLISHED
from .volumes import read_brats


def load(settings: DataSettings, path: Path | None = None, listener: Listener = UNHEARD) -> ImageSet:
    """The data set that the settings name; ``path`` takes the place of ``settings.path``. Raises DataError."""
    if settings.dataset == "digits":
        return _digits(settings)
    root = path or settings.path
    if root is None:
        raise DataError("no folder is given; set data.path, or a path for each client.")
    if settings.dataset == "folder":
        return read_folder(root, settings, listener)
    if settings.dataset == "huggingface":
        return read_hub(root, settings, listener)
    published = PUBLISHED[settings.dataset]
    if missing := published.missing(root):
        raise DataError(published.where_from(root, missing))
    if settings.dataset == "brats2020":
        return read_brats(root, settings, listener)
    read = read_named if published.torchvision else read_layout
    return read(root, settings, listener)


def fetch_missing(config: Config, client: str | None) -> None:
    """Download a published set to where it is looked for, if it is not there: for one client, or for all.

    Raises UsageError for a data set that is not published, DataError when it cannot be had.
    """
    published = PUBLISHED.get(config.data.dataset)
    if published is None or published.torchvision is None:
        fetched = ", ".join(name for name, one in PUBLISHED.items() if one.torchvision)
        raise UsageError(f"dataset {config.data.dataset!r} cannot be downloaded; these can: {fetched}.")
    clients = config.clients.values() if client is None else [config.client(client)]
    for root in dict.fromkeys(one.path or config.data.path for one in clients):
        if root is not None and published.missing(root):
            fetch(root, config.data)


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
    return ImageSet(pixels, labels, tuple("0123456789"), digests_of(pixels))
