"""centralised: one model of the whole noise range on all clean images in one place. What collaborating costs."""

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

WHOLE = "whole"


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """The server's network, trained for the server's steps."""
    data = clean_data(sites, config)
    return [Part(WHOLE, "whole", config.server.network, config.server.training, names_of(sites), data)]


def sample(
    config: Config,
    models: Mapping[str, TrainedModel],
    sites: Mapping[str, Site],
    client: str,
    count: int,
    seed: int,
    device: torch.device,
) -> Generated:
    """Images that show this client's labels."""
    asked = sites[client].label_names or ()
    return whole.sample(config, models[WHOLE], client, asked, count, seed, device)
