"""local: each site alone, with one model of the whole noise range on its own images. What collaborating gains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...config import Config
from ...data.dealing import SiteData
from ..generated import Generated
from . import whole
from .asked import Asked
from .part import Part, clean_data, clean_space


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """At each site the server's network, trained for the server's steps."""
    made = []
    for name, site in sites.items():
        own = {name: site}
        data = clean_data(own, config)
        made.append(Part(name, "whole", config.server.network, config.server.training, clean_space(own), data))
    return made


def sample(asked: Asked) -> Generated:
    """Images of this site's own model."""
    return whole.sample(asked, asked.client)
