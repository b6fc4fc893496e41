"""The trained run that bench-edge measures: a given one, or one trained first, within ten minutes, on given images.

Beside the run's client stands its *twin*: the same site's client with a network of the server's size.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cli.console import reporting
from collafuse.config import Config, TrainingSettings, load
from collafuse.data.dealing import SiteData, load_site
from collafuse.learning import weights
from collafuse.nodes.client import Client, load_client
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.server import Server

CONFIG = Path(__file__).with_name("edge.yaml")
BUDGET_SECONDS = 600.0
SERVER_SHARE = 0.5
PROBE_STEPS = 3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class EdgeRun:
    """A trained server, one client of it, the client's twin, and what the site holds."""

    folder: RunFolder
    name: str
    config: Config
    site: SiteData
    server: Server
    device: weights.TrainedModel
    twin: weights.TrainedModel


def open_run(path: Path, client: str | None) -> EdgeRun:
    """A run of ``train``; its twin is trained when it is not there yet. ``client`` is the first one by default."""
    folder = RunFolder(path)
    config = folder.read_config()
    name = client or next(iter(config.clients))
    site = load_site(config, name)
    device = load_client(folder.trained_client(name), config.client(name))
    return EdgeRun(
        folder, name, config, site, Server.load(folder.server, CPU), device, _twin(folder, config, name, site)
    )


def train_run(data: Path, path: Path) -> EdgeRun:
    """Train a server, a client and its twin on the images in ``data``, within the budget."""
    config = load(CONFIG, [f"data.path={data}"])
    name = next(iter(config.clients))
    site = load_site(config, name)
    config = _fitted(config, name, site)
    folder = RunFolder(path)
    with reporting() as reporter:
        run_experiment(config, folder, CPU, reporter.observer)
    return open_run(path, name)


def _twin(folder: RunFolder, config: Config, name: str, site: SiteData) -> weights.TrainedModel:
    """The client with the server's network, trained as the client was; kept beside the run."""
    node = RunFolder(folder.path.with_name(f"{folder.path.name}-twin")).client(name)
    if not node.weights.exists():
        settings = _with_network(config, name)
        with reporting() as reporter:
            Client(settings, name, site).train(node, CPU, reporter.observer("twin"), resume=True)
    return load_client(node, config.client(name))


def _with_network(config: Config, name: str) -> Config:
    client = config.client(name).model_copy(update={"network": config.server.network})
    return config.model_copy(update={"clients": {**config.clients, name: client}})


def _fitted(config: Config, name: str, site: SiteData) -> Config:
    """The configuration with as many steps as fit into the budget; client and twin get equally many."""
    per_step = {
        "device": _seconds_per_step(config, name, site),
        "twin": _seconds_per_step(_with_network(config, name), name, site),
    }
    # The twin's network is the server's, so a step of the server costs as much.
    server_steps = int(BUDGET_SECONDS * SERVER_SHARE / per_step["twin"])
    client_steps = int(BUDGET_SECONDS * (1 - SERVER_SHARE) / sum(per_step.values()))
    client = _trained_for(config.client(name), client_steps)
    return config.model_copy(update={"server": _trained_for(config.server, server_steps), "clients": {name: client}})


def _trained_for(node: Any, steps: int) -> Any:
    training: TrainingSettings = node.training
    return node.model_copy(update={"training": training.model_copy(update={"steps": max(1, steps)})})


def _seconds_per_step(config: Config, name: str, site: SiteData) -> float:
    client = _trained_for(config.client(name), PROBE_STEPS + 1)
    probe = config.model_copy(update={"clients": {name: client}})
    times: list[float] = []

    class Clock:
        def started(self, step: int, total: int) -> None:
            times.append(time.monotonic())

        def note(self, text: str) -> None:
            pass

        def logged(self, record: dict[str, Any]) -> None:
            times.append(time.monotonic())

        def sampled(self, step: int, denoiser: object) -> None:
            pass

    with tempfile.TemporaryDirectory() as scratch:
        Client(probe, name, site).train(RunFolder(Path(scratch)).client(name), CPU, Clock())
    return (times[-1] - times[0]) / (PROBE_STEPS + 1)
