"""What the service's tests share: small servers, a gate before the network, files delivered beside it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from collafuse.core.noise import SIGMA_MAX
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.server import Server
from collafuse.nodes.sites import Site
from tests.nodes.sites import config
from tests.tiny import CPU, denoiser

SECONDS = 60
"""Longer than anything here takes, on a machine that is busy with something else."""
SITES = {"a": Site(0.5, ("x", "y")), "b": Site(1.0, ("z",)), "c": Site(2.0, None), "all": Site(SIGMA_MAX, ("x",))}
CLIENTS = {name: {"cut": {"sigma": site.sigma_cut}} for name, site in SITES.items()} | {
    "c": {"cut": {"sigma": 2.0}, "handover": 1.2}  # above what it released, so that heun may end there
}


def server(model: Denoiser | None = None, **settings: Any) -> Server:
    """A server of four sites with four cuts; one keeps its labels, one does everything itself."""
    made = TrainedModel(model or denoiser(label_names=("x", "y", "z")), "server", 0.5, SIGMA_MAX, 0, "tiny")
    return Server(config(CLIENTS, settings), made, SITES, CPU)


class Gated(Denoiser):
    """A denoiser that waits for permission before each evaluation, so that a test decides when a step is made."""

    def __init__(self, inner: Denoiser) -> None:
        nn.Module.__init__(self)
        self.inner, self.image_shape, self.space = inner, inner.image_shape, inner.space
        self.permits, self.asked = threading.Semaphore(0), threading.Semaphore(0)
        self.evaluations = 0

    def forward(self, x: torch.Tensor, sigma: Any, conditions: torch.Tensor) -> torch.Tensor:
        self.asked.release()
        assert self.permits.acquire(timeout=SECONDS)
        self.evaluations += 1
        return self.inner(x, sigma, conditions)

    def let(self, evaluations: int) -> None:
        """Permit so many evaluations and return when the next one is asked for, or at the end."""
        for _ in range(evaluations):
            assert self.asked.acquire(timeout=SECONDS)
            self.permits.release()

    def open(self) -> None:
        """Permit everything from now on."""
        self.permits.release(100_000)
