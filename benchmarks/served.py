"""A served run to measure: a given one, or one with an untrained network of a stated size, and its processes.

What sampling costs does not depend on what was learned, so an untrained server measures a service as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import configs
from collafuse.config import load
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.noise import SIGMA_MAX
from collafuse.learning import weights
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.device import choose_device
from collafuse.nodes.runfolder import REGISTRY, RunFolder
from collafuse.nodes.server import Server
from collafuse.nodes.sites import Site, write_sites
from collafuse.serving.registry import Registry

from .asking import Asker

CONFIG = Path(configs.__file__).with_name("cifar10-small.yaml")
"""Whose server stands in where no run is given: 16x16 pixels, 18 steps."""
SMALL_CONFIG = CONFIG.with_name("digits.yaml")
"""Where many requests are needed in a short time: 8x8 pixels, 16 steps."""
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Served:
    """A copy of a server's folder that a measurement may write to, and who asks it for what."""

    path: Path
    server: Server
    client: str
    token: str

    @classmethod
    def make(cls, run: Path | None, path: Path, config: Path = CONFIG) -> Served:
        """Copy the server of ``run`` to ``path``, or make an untrained one of this configuration."""
        folder = RunFolder(path).server
        if run is None:
            _untrained(RunFolder(path), config)
        else:
            shutil.copytree(run / "server", folder.path)
        server = Server.load(folder, choose_device("auto"))
        client = next(iter(server.sites))
        token, _ = Registry(folder.path / REGISTRY).add_token(client, ["sample", "release"])
        return cls(path, server, client, token)

    @contextmanager
    def process(self, *options: str | int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """A ``collafuse serve`` process with these options; its URL and the process, which is ended after."""
        always = ["--port", "0", "--accept-simulated", "--rate", "1000000"]
        command = [sys.executable, "-m", "cli", "serve", str(self.path), *always, *map(str, options)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                line = process.stderr.readline() if process.stderr else ""
                found = re.search(r"Serving at (\S+):", line)
                if found is None:
                    raise SystemExit(f"the service did not start: {line}")
                yield found.group(1), process
            finally:
                process.terminate()
                process.communicate()

    def asker(self, url: str) -> Asker:
        """A client of a process."""
        return Asker(url, self.token, self.client)


def _untrained(folder: RunFolder, path: Path) -> None:
    config = load(path)
    names = ("0", "1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(config.server.network, config.data.image_shape, ConditionSpace(names), SIGMA_DATA)
    sites = {name: Site(client.cut.resolve().sigma, names) for name, client in config.clients.items()}
    lowest = min(site.sigma_cut for site in sites.values())
    folder.server.write_config(config.for_server())
    write_sites(folder.server.sites, sites)
    weights.save(folder.server.weights, weights.TrainedModel(denoiser, "server", lowest, SIGMA_MAX, 0))
