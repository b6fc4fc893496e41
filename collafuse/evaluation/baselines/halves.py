"""Server and client of a baseline that splits the noise range: their parts, and sampling through both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...config import ClientSettings, Config
from ...core.noise import SIGMA_MIN
from ...core.pairing import conditions_for
from ...core.release import Release
from ...data.dealing import SiteData
from ...nodes.client import Client, finish_all
from ...nodes.server import Server
from ...nodes.sites import space_of, training_data
from ..generated import Generated
from .asked import Asked
from .part import Part

SERVER = "server"

HandOver = Callable[[NDArray[np.float32], float, ClientSettings], tuple[NDArray[np.float32], float]]
"""(x, sigma, the client's settings) -> x and the level at which the client takes it to be."""


def server_part(config: Config, found: Mapping[str, Sequence[Release]]) -> Part:
    """The server as the method trains it, from releases."""
    space = space_of(found)
    data = training_data(found, space, config.data.horizontal_flip)
    low = float(data.sigma_floor.min())
    return Part(SERVER, "server", config.server.network, config.server.training, space, data, low)


def client_part(config: Config, name: str, site: SiteData, sigma_high: float | None = None) -> Part:
    """A client as the method trains it, or up to another level."""
    client = Client(config, name, site)
    data = client.training_data()
    if sigma_high is not None:
        data = replace(data, sigma_high=sigma_high)
    settings = client.settings
    return Part(name, "client", settings.network, settings.training, site.train.space, data, SIGMA_MIN)


def sample(asked: Asked, hand_over: HandOver = lambda x, sigma, settings: (x, sigma)) -> Generated:
    """What is asked for: the server delivers, ``hand_over`` says how the client takes it, it finishes."""
    server = Server(asked.config, asked.model(SERVER, asked.config.server.sampler), asked.sites, asked.device)
    planned = asked.planned(server.model.space)
    delivered = server.deliver(asked.client, asked.count, planned=planned, seed=asked.seed)
    settings = asked.config.client(asked.client)
    model = asked.model(asked.client, settings.sampler)
    conditions = conditions_for(delivered, model.space)
    x, sigma = hand_over(delivered.x, delivered.sigma, settings)
    # The server's last step belongs to what it delivered, not to what another method takes that for.
    history = delivered.history(slice(None)) if x is delivered.x else None
    pixels = finish_all(model.denoiser, x, sigma, conditions, settings, asked.device, history=history)
    return Generated(pixels, delivered.labels, delivered.label_names)
