"""Distilling a client for one evaluation: a student learns to arrive at once where its teacher takes several steps.

From a noised image a deterministic sampler leads to one end, so the student has a target of its own kind to regress
on (Luhman and Luhman 2021, arXiv 2101.02388), here over the client's low-noise range only, where the path is nearly
straight. Every level of that range is a start, half of them the level where the client takes over; so a student that
is asked for several steps all the same only walks along the same path.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import TrainingSettings
from ..core.conditioning import guided
from ..core.samplers import STEPS, Denoise
from .autoguidance import AutoGuided
from .denoiser import Denoiser, loss_weight
from .early import EarlyWeights
from .examples import Batch, TrainingData
from .observer import Observer
from .training import Trainer

RHO = 7.0
"""Spacing of the teacher's levels, as of a client's own (Karras et al. 2022, eq. 5)."""


@dataclass(frozen=True)
class Teacher:
    """A trained client and how it finishes: sampler, steps, the lowest level it evaluates, weight of guidance."""

    denoiser: Denoiser | AutoGuided
    sampler: str
    steps: int
    sigma_low: float
    guidance: float = 1.0

    @torch.no_grad()
    def finish(self, x: Tensor, sigma: Tensor, conditions: Tensor) -> Tensor:
        """x [B, C, H, W] at levels sigma [B] to images, each image along levels of its own."""
        denoise = guided(self.denoiser, conditions, self.guidance)
        return _walk(STEPS[self.sampler], denoise, x, self._levels(sigma.double()))

    def _levels(self, sigma: Tensor) -> list[Tensor]:
        """As core.noise.client_sigmas, for one start per image."""
        if self.steps == 1:
            return [sigma, torch.zeros_like(sigma)]
        high, low = (level ** (1 / RHO) for level in (sigma, (sigma / 2).clamp(max=self.sigma_low)))
        shares = torch.linspace(0, 1, self.steps, dtype=torch.float64).tolist()
        return [*((high + share * (low - high)) ** RHO for share in shares), torch.zeros_like(sigma)]


def _walk(step: Callable[..., tuple[Tensor, object]], denoise: Denoise, x: Tensor, levels: list[Tensor]) -> Tensor:
    state = None
    for sigma, sigma_next in itertools.pairwise(levels):
        x, state = step(denoise, x, sigma, sigma_next, state)
    return x


class Distiller(Trainer):
    """Trains a student on what its teacher makes of the same noised images."""

    def __init__(
        self,
        student: Denoiser,
        teacher: Teacher,
        data: TrainingData,
        settings: TrainingSettings,
        folder: Path,
        device: torch.device,
        observer: Observer,
        start: str,
    ) -> None:
        """``start`` identifies the teacher, see Trainer. data: a client's own clean images."""
        super().__init__(student, data, settings, folder, device, observer, start)
        self.early_weights = EarlyWeights(0)  # a student samples in one evaluation, guided by nobody
        self.teacher = teacher
        teacher.denoiser.to(device)

    def levels(self, uniform: Tensor, low: Tensor) -> Tensor:
        """Every other one is where the client takes over."""
        sigma = super().levels(uniform, low)
        sigma[::2] = self.data.sigma_high
        return sigma

    def _part_losses(self, denoise: nn.Module, part: Batch) -> Tensor:
        """The distance from where the teacher arrives, for each image of a part."""
        x = part.z + part.sigma.reshape(-1, 1, 1, 1) * part.noise
        target = self.teacher.finish(x, part.sigma, part.conditions)
        squares = (denoise(x, part.sigma, part.conditions) - target).square().flatten(1).mean(dim=1)
        return loss_weight(part.sigma, self.model.sigma_data) * squares
