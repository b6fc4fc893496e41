"""Trainings of a server to which sites send a fresh noisy copy of an image at every step.

Their data are clean images (a simulation holds them) whose ``sigma_floor`` is the level at which the sites would noise
them. The noise of a step is keyed by it, so that a resumed training sees the same copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...learning.objective import lowest_level
from ...learning.seeds import keyed_seed
from ...learning.training import Trainer


class FreshReleases(Trainer):
    """Our objective on fresh copies z = x0 + sigma_cut n, where a release is drawn once."""

    def examples(self, images: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        floor = self.data.sigma_floor[rows]
        return self.copies(images, floor, step), floor, lowest_level(floor)

    def copies(self, x0: Tensor, floor: Tensor, step: int) -> Tensor:
        """This step's noisy copies of the images [B, C, H, W], at levels floor [B]."""
        generator = torch.Generator(self.device).manual_seed(keyed_seed(self.settings.seed, "copies", step))
        return x0 + floor.reshape(-1, 1, 1, 1) * torch.randn(x0.shape, generator=generator, device=self.device)


class DoubleNoising(FreshReleases):
    """The reference's objective: fresh copies are taken for clean images and noised again, at levels from the cut up.

    A copy arrives as its variance-preserving schedule scales it, sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) n.
    """

    def examples(self, images: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        floor = self.data.sigma_floor[rows]
        scale = (1 + floor.square()).rsqrt().reshape(-1, 1, 1, 1)
        return scale * self.copies(images, floor, step), torch.zeros_like(floor), floor
