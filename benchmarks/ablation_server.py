"""The server behind which the client ablation can also finish: trained on one release of the same site's images."""

from __future__ import annotations

from typing import Any

import torch

from cli.console import reporting
from collafuse.config import Config, from_mapping
from collafuse.core.intermediate import Intermediate
from collafuse.data.dealing import SiteData
from collafuse.nodes.client import Client
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import SUFFIX, read_releases

NETWORK: dict[str, Any] = {"channels": 48, "multipliers": [1, 2], "blocks": 1}
"""As large as that of bench-edge, and as the variant width-48."""
EVALUATIONS = 18
SEED = 0


def delivered(config: Config, site: SiteData, run: RunFolder, steps: int, count: int) -> Intermediate:
    """So many intermediates of a server that trains with the clients' settings, for ``steps``; what is done is kept."""
    (name,) = config.clients
    config = _with_server(config, name, steps)
    path = run.server.releases / f"{name}{SUFFIX}"
    if not path.exists():
        Client(config, name, site).release(path, Ledger(run.client(name).ledger), simulated=True)
    found = read_releases(run.server.releases, accept_simulated=True)
    with reporting() as reporter:
        server = train_server(config, found, run.server, torch.device("cpu"), reporter.observer("server"), resume=True)
    return server.deliver(name, count, seed=SEED)


def _with_server(config: Config, name: str, steps: int) -> Config:
    values = config.model_dump(mode="json", exclude_unset=True)
    training = values["clients"][name]["training"] | {"steps": steps}
    sampler = {"name": "dpmpp_2m", "steps": EVALUATIONS}
    return from_mapping(values | {"server": {"network": NETWORK, "training": training, "sampler": sampler}})
