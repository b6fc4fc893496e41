"""Autoguidance: a denoiser guided by an earlier version of itself (Karras et al. 2024, arXiv 2406.02507).

A network that has learned only so much errs in the same direction as it did when it had learned less, only not as far.
So going on from the early estimate through the trained one leads away from what both get wrong:

    D(x, sigma, conditions) = D_early + w (D_trained - D_early),    w = 1: D_trained

Unlike guidance by "no condition" (classifier-free) it needs no labels, and images keep their variety.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from ..config import MixedPrecision
from ..core.conditioning import ConditionSpace
from .denoiser import Denoiser

EARLY_SHARE = 0.25
"""The early version is that of the averaged weights after this share of a training's steps."""


class Early(NamedTuple):
    """An earlier version of a denoiser: its averaged weights after so many steps. id: of its file, once it is read."""

    denoiser: Denoiser
    steps: int
    id: str = ""


class AutoGuided(nn.Module):
    """Two denoisers as one, to sample with like a :class:`Denoiser`; each evaluation is one of both networks.

    early_steps: the training's steps that the early one has seen.
    """

    def __init__(self, trained: Denoiser, early: Early, weight: float) -> None:
        super().__init__()
        self.trained, self.early, self.weight = trained, early.denoiser, weight
        self.early_steps = early.steps

    @property
    def said(self) -> str:
        """How it is guided, in few words."""
        return f"{self.weight:g}, by itself after {self.early_steps} steps"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.trained.image_shape

    @property
    def space(self) -> ConditionSpace:
        """What its conditions mean."""
        return self.trained.space

    @property
    def condition_width(self) -> int:
        """Numbers in a condition."""
        return self.trained.condition_width

    @property
    def mixed_precision(self) -> MixedPrecision:
        """Whether the networks run in bfloat16, as of a Denoiser."""
        return self.trained.mixed_precision

    @mixed_precision.setter
    def mixed_precision(self, wanted: MixedPrecision) -> None:
        self.trained.mixed_precision = self.early.mixed_precision = wanted

    def forward(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor:
        early = self.early(x, sigma, conditions)
        return early + self.weight * (self.trained(x, sigma, conditions) - early)
