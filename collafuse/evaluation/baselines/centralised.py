"""centralised: one model of the whole noise range on all clean images in one place. What collaborating costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...config import Config
from ...data.dealing import SiteData
from .part import Part, clean_data, clean_space
from .whole import WHOLE


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """The server's network, trained for the server's steps."""
    data = clean_data(sites, config)
    return [Part(WHOLE, "whole", config.server.network, config.server.training, clean_space(sites), data)]
