"""pfdm: clip each image, noise it once, and state what that guarantees, after PFDM (arXiv 2504.00952).

The clip and the guarantee are what it has and our release has not; server and clients train as ours. After clipping no
image is further than twice the bound from another, so a release is a Gaussian mechanism of sensitivity 2 C: local
differential privacy of each image, whoever sees the file. ``guarantee.json`` says how much, tightly; at cuts at which
pictures stay good it is little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...config import Config
from ...core import release as releases
from ...core.atomic import write_bytes
from ...core.noise import system_noise
from ...data.dealing import SiteData
from ...nodes.sites import SUFFIX, read_releases
from ..accounting import DELTA, gaussian_epsilon, gaussian_mu
from . import halves
from .part import Part

CLIP_RMS = 0.5
"""The bound on an image's root mean square, a constant so that it says nothing about the images: EDM's usual standard
deviation of images in [-1, 1]."""
RELEASES, GUARANTEE = "releases", "guarantee.json"


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """The server on releases of clipped images, which the folder keeps, and each client on its clean ones."""
    for name, site in sites.items():
        path = folder / RELEASES / f"{name}{SUFFIX}"
        if not path.exists():
            write_bytes(path, releases.to_bytes(clipped_release(config, name, site)))
    write_bytes(folder / GUARANTEE, json.dumps(guarantees(config), indent=1).encode(), overwrite=True)
    found = read_releases(folder / RELEASES, accept_simulated=True)
    clients = [halves.client_part(config, name, site) for name, site in sites.items()]
    return [halves.server_part(config, found), *clients]


def guarantees(config: Config) -> dict[str, dict[str, float]]:
    """What each site's release guarantees of an image that was replaced by another."""
    sensitivity = 2 * CLIP_RMS * math.sqrt(math.prod(config.data.image_shape))
    made = {}
    for name, client in config.clients.items():
        mu = gaussian_mu(sensitivity, client.cut.resolve().sigma)
        made[name] = {"sensitivity": sensitivity, "mu": mu, "epsilon": gaussian_epsilon(mu), "delta": DELTA}
    return made


def clipped_release(config: Config, name: str, site: SiteData) -> releases.Release:
    """A simulated release of a site's images, clipped."""
    settings, images = config.client(name), site.train
    return releases.make(
        [clipped(images.x0())],
        settings.cut.resolve(),
        system_noise,
        labels=images.labels if settings.share_labels else None,
        label_names=images.label_names,
        simulated=True,
        text=images.text if settings.share_text else None,
    )


def clipped(x0: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [N, C, H, W], those of a larger root mean square than CLIP_RMS scaled down to it."""
    rms = np.sqrt(np.square(x0, dtype=np.float64).mean(axis=(1, 2, 3), keepdims=True))
    return (x0 * np.minimum(1.0, CLIP_RMS / np.maximum(rms, 1e-12))).astype(np.float32)
