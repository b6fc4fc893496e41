"""What a site says of its images in place of the images: their moments, with noise for its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError, RefusedError
from ..core.moments import Moments, moments_of, noised, statistics_of
from ..core.noise import Noise, system_noise
from ..core.statistics import MIN_IMAGES, Statement, Statistics
from ..data.imageset import ImageSet

BLOCK_IMAGES = 1024


def summarise(
    images: ImageSet,
    about: Statement,
    *,
    share_labels: bool,
    simulated: bool,
    labels_listed: bool = False,
    noise: Noise = system_noise,
    advance: Callable[[int], None] = lambda count: None,
) -> Statistics:
    """The statistics of a site's images. For what is refused see :meth:`.releasing.Releaser.release_statistics`.

    labels_listed: whether the configuration, not the images, says which labels there are. ``noise``: that of a budget;
    another one than the system's hides nothing from whoever can repeat it, so only a simulated release may have one.
    ``advance`` hears of each block of images.
    """
    assert simulated or noise is system_noise
    names = images.label_names if share_labels and images.labels.any() else None
    if names is not None and about.budget is not None and not labels_listed:
        raise _names_that_tell(names)
    labels = _one_label_each(images) if names is not None else np.zeros(len(images), dtype=np.int64)
    rows_named = names or ("all images",)
    moments = moments_of(blocks(images, labels, advance), about, len(rows_named))
    if about.budget is None:
        _refuse_few(moments, rows_named)
    else:
        moments = noised(moments, about, noise)
    enough = np.flatnonzero(moments.counts >= MIN_IMAGES)
    if not len(enough):
        raise DataError(
            f"no label counts {MIN_IMAGES} images once noise for the budget is added; nothing was released. Hold more "
            "images, merge labels, or allow a larger statistics.epsilon."
        )
    kept = Moments(moments.counts[enough], moments.sums[enough], moments.products[enough])
    labels_kept = None if names is None else tuple(names[row] for row in enough)
    return statistics_of(kept, about, labels_kept, simulated=simulated)


def blocks(
    images: ImageSet, row_of: NDArray[np.int64], advance: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Images as float32 in [-1, 1] and the row of statistics in which each counts, some at a time; ``advance`` hears of
    each block."""
    for start in range(0, len(images), BLOCK_IMAGES):
        rows = np.arange(start, min(start + BLOCK_IMAGES, len(images)))
        yield images.take(rows).x0(), row_of[rows]
        advance(len(rows))


def _one_label_each(images: ImageSet) -> NDArray[np.int64]:
    several = int((images.labels.sum(axis=1) != 1).sum())
    if several:
        raise RefusedError(
            f"{several} of {len(images)} images show several labels or none, and statistics are of one label each. "
            "Choose labels of which each image has exactly one, or set share_labels: false for one Gaussian of all."
        )
    return images.labels.argmax(axis=1)


def _names_that_tell(names: tuple[str, ...]) -> RefusedError:
    """The noise hides how many images show a label, but not that a row stands there at all: for one image of a label
    noise alone would write its name into a file of budget (1, 1e-5) in 4 % of cases, and without that image never."""
    return RefusedError(
        f"the labels that occur ({', '.join(names)}) would be told beside the budget, and one image can decide whether "
        "a label occurs. List the labels that this client may hold (clients.NAME.labels: [...]), or set share_labels: "
        "false."
    )


def _refuse_few(moments: Moments, names: tuple[str, ...]) -> None:
    few = [f"{name} ({count:.0f})" for name, count in zip(names, moments.counts, strict=True) if 0 < count < MIN_IMAGES]
    if few:
        raise RefusedError(
            f"fewer than {MIN_IMAGES} images of {', '.join(few)}: their exact mean and covariance would give single "
            "images away. Set a budget (statistics.epsilon of this client), merge labels, or set share_labels: false."
        )
