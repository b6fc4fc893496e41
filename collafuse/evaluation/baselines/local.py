"""local: each site alone, with one model of the whole noise range on its own images. What collaborating gains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...config import Config
from ...data.dealing import SiteData
from ...learning.weights import TrainedModel
from ...nodes.sites import Site
from ..generated import Generated
from . import whole
from .part import Part, clean_data, names_of


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """At each site the server's network, trained for the server's steps."""
    made = []
    for name, site in sites.items():
        own = {name: site}
        data = clean_data(own, config)
        made.append(Part(name, "whole", config.server.network, config.server.training, names_of(own), data))
    return made


def sample(
    config: Config,
    models: Mapping[str, TrainedModel],
    sites: Mapping[str, Site],
    client: str,
    count: int,
    seed: int,
    device: torch.device,
) -> Generated:
    """Images of this site's own model."""
    asked = sites[client].label_names or ()
    return whole.sample(config, models[client], client, asked, count, seed, device)
