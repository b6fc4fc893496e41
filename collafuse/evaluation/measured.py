"""The images that a run is measured with: in memory, and of a large site a part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..config import Config
from ..data.dealing import SiteData, load_sites
from ..data.imageset import ImageSet
from ..data.listening import UNHEARD, Listener
from ..learning.seeds import keyed_seed
from .whole_run import some

MOST = 20_000
"""Images of a site's part. Distances hardly change with more of them, and sets larger than memory have many more."""


def load_measured(config: Config, listener: Listener = UNHEARD) -> dict[str, SiteData]:
    """Each site's images as :func:`load_sites` deals them, at most MOST to train on and as many held out.

    Which these are is drawn by the site's name alone, so that runs over the same images are measured with the same.
    Raises what loading them raises.
    """
    found = {}
    for name, site in load_sites(config, listener).items():
        parts = []
        for part, images in (("to train on", site.train), ("held out", site.held_out)):
            if len(images) > MOST:
                listener.say(f"{name} is measured with {MOST} of its {len(images)} images {part}.")
            parts.append(_part(images, keyed_seed(0, "measured", name, part) % 2**63))
        found[name] = SiteData(*parts)
    return found


def _part(images: ImageSet, seed: int) -> ImageSet:
    if len(images) > MOST:
        images = images.take(some(len(images), MOST, np.random.default_rng(seed)))
    return replace(images, pixels=np.asarray(images.pixels))
