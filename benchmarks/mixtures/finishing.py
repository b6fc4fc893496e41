"""Pictures that one client makes of what different servers begin, at cuts far down.

The client is the study's centralised model, which knows all levels: no client has to be trained for each cut, and the
same network from pure noise is one of the servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from collafuse.config import Config
from collafuse.core.conditioning import guided
from collafuse.core.noise import SIGMA_MAX, server_sigmas
from collafuse.core.samplers import STEPS, run
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.generated import Generated
from collafuse.learning.denoiser import Denoiser
from collafuse.nodes.client import finish_all

from ..study.measure import Judge
from .fit import SEED
from .model import MixtureDenoiser

CUTS = (1.0, 0.34)
BATCH = 250
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Finishing:
    """A client, and what its pictures are compared with. like: real images; those asked for show the same labels."""

    client: Denoiser
    config: Config
    judge: Judge
    reference: ImageSet
    like: ImageSet

    def table(self, servers: Mapping[str, MixtureDenoiser]) -> str:
        """A row for each cut: Fréchet distance and the share that is read as asked for, by who began."""
        names = [*servers, "network", "real images, noised"]
        lines = [f"| cut | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        shape = (len(self.like), *self.like.image_shape)
        noise = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
        conditions = self.like.conditions()
        for cut in CUTS:
            begun = [server.draw(noise, cut, conditions) for server in servers.values()]
            begun += [self.from_noise(noise, cut), self.like.x0() + cut * noise]
            lines.append(f"| {cut:g} | {' | '.join(self.figures(x, cut) for x in begun)} |")
        return "\n".join(lines)

    @torch.inference_mode()
    def from_noise(self, noise: NDArray[np.float32], cut: float) -> NDArray[np.float32]:
        """Where the client's network comes from the highest level, as a server."""
        sampler, conditions, parts = self.config.server.sampler, torch.from_numpy(self.like.conditions()), []
        for start in range(0, len(noise), BATCH):
            rows = slice(start, start + BATCH)
            x = torch.from_numpy(noise[rows]) * SIGMA_MAX
            levels = server_sigmas(cut, sampler.steps)
            parts.append(run(STEPS[sampler.name], guided(self.client, conditions[rows], 1.0), x, levels)[0].numpy())
        return np.concatenate(parts)

    def figures(self, x: NDArray[np.float32], cut: float) -> str:
        """Of what the client makes of images [N, C, H, W] at the cut."""
        (settings,) = self.config.clients.values()
        pixels = finish_all(self.client, x, cut, self.like.conditions(), settings, CPU)
        made = self.judge.figures(Generated(pixels, self.like.labels, self.like.label_names), self.reference)
        distance, spread = made["frechet"]
        return f"{distance:.1f} ± {spread:.1f} ({made['read_as_asked'][0]:.0%})"
