"""reference, reference-repaired: the protocol of the published code, and the one change that makes its halves fit.

At every step each site sends a fresh copy of its images, noised up to the cut. The server takes the copies for clean
images and noises them again with the full schedule. So its samples at the cut hold the noise twice: scaled as the
schedule scales them, their signal power is alpha_bar(cut)^2. The client trains as ours does and starts

    reference             at t + t (1 - t) for a cut at time t of its schedule, above what it was trained for;
    reference-repaired    where alpha_bar = alpha_bar(cut)^2, and is trained up to there.

Left out are what looks like mistakes of the code rather than its protocol: the hand-over is not clipped to [-1, 1].
The code's times are those of its schedule: the configured one, else the cosine that it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...config import ClientSettings, Config
from ...core.errors import ConfigError
from ...core.noise import SIGMA_MAX, alpha_bar_from_sigma, sigma_from_alpha_bar, sigma_from_t, t_from_sigma
from ...data.dealing import SiteData
from ...learning.examples import estimate_sigma_data
from ..generated import Generated
from . import halves
from .asked import Asked
from .noising import DoubleNoising
from .part import Part, clean_data, clean_space


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """The server on double noise, and each client up to its cut."""
    config = without_handover(config)
    return [server_part(config, sites), *(halves.client_part(config, name, site) for name, site in sites.items())]


def repaired_parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """The same server; each client up to where it starts."""
    config = without_handover(config)
    ends = {name: repaired_start(config.client(name)) for name in sites}
    clients = [halves.client_part(config, name, site, ends[name]) for name, site in sites.items()]
    return [server_part(config, sites), *clients]


def server_part(config: Config, sites: Mapping[str, SiteData]) -> Part:
    """The server on images that each site noises to its own cut at every step."""
    data, training = clean_data(sites, config), config.server.training
    cuts = [np.full(len(site.train), config.client(n).cut.resolve().sigma, np.float32) for n, site in sites.items()]
    floor = torch.from_numpy(np.concatenate(cuts))
    if training.sigma_data == "auto":
        # Its "clean" images are the copies, of variance alpha_bar sd^2 + 1 - alpha_bar.
        signal = 1 / (1 + floor.double().square())
        variance = (signal * estimate_sigma_data(data) ** 2 + 1 - signal).mean()
        training = training.model_copy(update={"sigma_data": float(variance.sqrt())})
    data = replace(data, sigma_floor=floor)
    lowest, space = float(floor.min()), clean_space(sites)
    return Part(halves.SERVER, "server", config.server.network, training, space, data, lowest, DoubleNoising)


def sample(asked: Asked) -> Generated:
    """The client starts at t + t (1 - t)."""
    return _sample(asked, start(asked.config.client(asked.client)))


def repaired_sample(asked: Asked) -> Generated:
    """The client starts where alpha_bar = alpha_bar(cut)^2."""
    return _sample(asked, repaired_start(asked.config.client(asked.client)))


def _sample(asked: Asked, sigma_start: float) -> Generated:
    def hand_over(x: NDArray[np.float32], sigma: float, settings: ClientSettings) -> tuple[NDArray[np.float32], float]:
        return as_taken(x, sigma, sigma_start), sigma_start

    return halves.sample(replace(asked, config=without_handover(asked.config)), hand_over)


def as_taken(x: NDArray[np.float32], sigma_cut: float, sigma_start: float) -> NDArray[np.float32]:
    """What the server sampled down to the cut, as the client takes it: the tensor that crosses is scaled as the cut's
    alpha_bar says, and the client divides by the signal of the level at which it starts."""
    signal = alpha_bar_from_sigma(sigma_cut) / alpha_bar_from_sigma(sigma_start)
    return (x * np.sqrt(signal)).astype(np.float32)


def start(client: ClientSettings) -> float:
    """The level of t + t (1 - t), where t is the cut's time; at most SIGMA_MAX."""
    schedule = client.cut.schedule or "cosine"
    t = t_from_sigma(client.cut.resolve().sigma, schedule)
    return min(sigma_from_t(t + t * (1 - t), schedule), SIGMA_MAX)


def repaired_start(client: ClientSettings) -> float:
    """The level of alpha_bar(cut)^2. Raises ConfigError where it is above pure noise."""
    cut = client.cut.resolve().sigma
    sigma = sigma_from_alpha_bar(alpha_bar_from_sigma(cut) ** 2)
    if sigma > SIGMA_MAX:
        raise ConfigError(
            f"a cut at sigma {cut:g} would start the repaired reference's client at sigma {sigma:.3g}, above "
            f"{SIGMA_MAX:g}, which is pure noise; lower the cut below 8.9, or take another method."
        )
    return sigma


def without_handover(config: Config) -> Config:
    """The protocol has no handover level: the server stops at the cut."""
    clients = {name: client.model_copy(update={"handover": 1.0}) for name, client in config.clients.items()}
    return config.model_copy(update={"clients": clients})
