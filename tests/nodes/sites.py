"""A tiny experiment for the nodes' tests: 4x4 images, two labels, networks of a few thousand parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from collafuse.config import Config, from_mapping
from collafuse.core import release as releases
from collafuse.core.noise import SIGMA_MAX, SIGMA_MIN, Cut
from collafuse.core.release import Release
from collafuse.data.dealing import SiteData
from collafuse.data.imageset import ImageSet
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.client import Client
from collafuse.nodes.server import Server
from collafuse.nodes.sites import Site
from tests.tiny import CPU, denoiser, image_set

NETWORK = {"channels": 8, "multipliers": [1], "blocks": 1}
TRAINING = {"steps": 3, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2}


DATA = {"dataset": "folder", "path": "images", "image_size": 4, "channels": 1}


def config(
    clients: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **client: Any,
) -> Config:
    """One client ``a`` at cut 0.5, unless told otherwise; nothing is read from ``images``."""
    return from_mapping(
        {
            "data": data or DATA,
            "server": {"network": NETWORK, "training": TRAINING, "sampler": {"steps": 4}} | (server or {}),
            "client": {"cut": {"sigma": 0.5}, "network": NETWORK, "training": TRAINING, "sampler": {"steps": 2}}
            | client,
            "clients": clients or {"a": {}},
        }
    )


def client(images: ImageSet, settings: Config | None = None, name: str = "a") -> Client:
    """A client that holds these images and keeps none away from training."""
    return Client(settings or config(), name, SiteData(images, images.take(np.arange(0))))


def release_of(
    sigma: float, labels: tuple[str, ...] | None = ("x", "y"), *, side: int = 4, count: int = 8, simulated: bool = False
) -> Release:
    """A release of random images at this cut; labels None: the site keeps them."""
    images = image_set(count, labels or (), side)
    generator = np.random.default_rng(0)
    kept = None if labels is None else images.labels
    return releases.make(
        [images.x0()], Cut(sigma), generator.standard_normal, labels=kept, label_names=labels or (), simulated=simulated
    )


def server_of(settings: Config, sites: Mapping[str, Site]) -> Server:
    """A server with arbitrary weights that knows x and y, the labels of ``release_of``."""
    model = TrainedModel(denoiser(label_names=("x", "y")), "server", SIGMA_MIN, SIGMA_MAX, 0, "id")
    return Server(settings, model, sites, CPU)


def rows_of(made: Release, images: ImageSet) -> np.ndarray:
    """Of which image each row of a release is, which its order does not tell; for cuts that hide nothing."""
    apart = np.abs(np.asarray(made.z, dtype=np.float32)[:, None] - images.x0()[None]).mean(axis=(2, 3, 4))
    assert apart.min(axis=1).max() < 0.1
    rows = apart.argmin(axis=1)
    assert sorted(rows) == list(range(len(images)))
    return rows
