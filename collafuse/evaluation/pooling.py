"""Images of several sites as one set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..data.imageset import ImageSet


def pooled(parts: Mapping[str, ImageSet]) -> ImageSet:
    """Images of several sites as one set, over all of their labels in alphabetical order."""
    names = tuple(sorted({name for images in parts.values() for name in images.label_names}))
    labels = np.zeros((sum(map(len, parts.values())), len(names)), dtype=np.uint8)
    start = 0
    for images in parts.values():
        columns = [names.index(name) for name in images.label_names]
        labels[start : start + len(images), columns] = images.labels
        start += len(images)
    pixels, digests = (np.concatenate([getattr(i, a) for i in parts.values()]) for a in ("pixels", "digests"))
    return ImageSet(pixels, labels, names, digests)
