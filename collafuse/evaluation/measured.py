"""The images that a run is measured with: in memory, and of a large site a part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..data.dealing import SiteData, load_sites
from ..data.imageset import ImageSet
from ..data.listening import UNHEARD, Listener
from ..learning.seeds import keyed_seed

MOST = 20_000
"""Images of a site's part. Distances hardly change with more of them, and sets larger than memory have many more."""


def load_measured(config: Config, listener: Listener = UNHEARD) -> dict[str, SiteData]:
    """Each site's images as :func:`load_sites` deals them, at most MOST to train on and as many held out.

    Raises what loading them raises.
    """
    return {name: measured(name, site, listener) for name, site in load_sites(config, listener).items()}


def measured(name: str, site: SiteData, listener: Listener = UNHEARD) -> SiteData:
    """At most MOST of a site's images to train on, and as many held out, in memory.

    Which these are is drawn by the site's name alone, so that runs over the same images are measured with the same.
    """
    parts = []
    for part, images in (("to train on", site.train), ("held out", site.held_out)):
        if len(images) > MOST:
            listener.say(f"{name} is measured with {MOST} of its {len(images)} images {part}.")
        parts.append(in_memory(images, MOST, keyed_seed(0, "measured", name, part)))
    return SiteData(*parts)


def in_memory(images: ImageSet, most: int, seed: int) -> ImageSet:
    """At most so many of the images, read into memory where they lie in a file."""
    if len(images) > most:
        images = images.take(some(len(images), most, np.random.default_rng(seed)))
    return replace(images, pixels=images.in_memory())


def some(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most so many rows of count, in their order."""
    return np.sort(rng.choice(count, min(count, most), replace=False))


def halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Images in two that show the same: as those of a site that a classifier may learn from, and those of which the
    floor is made.

    Every second image of each combination of labels, since sets whose labels take turns are not rare, and folders are
    read label by label.
    """
    order = np.lexsort(images.labels.T) if images.labels.shape[1] else np.arange(len(images))
    one, other = (images.take(np.sort(order[start::2])) for start in (0, 1))
    return one, other
