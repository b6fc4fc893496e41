"""The averaged weights of a quarter of a training, kept for autoguidance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .autoguidance import Early
from .denoiser import Denoiser

SAVED = "early."
"""Before the names of the early weights in a checkpoint."""


class EarlyWeights:
    """What a training keeps of itself on its way, on the host of the first rank."""

    def __init__(self, step: int) -> None:
        """step: whose averages to keep; 0 keeps none."""
        self.step = step
        self._weights: Mapping[str, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether the averages of this step are the ones to keep."""
        return step == self.step

    def take(self, averaged: Denoiser) -> None:
        """Keep them."""
        self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in averaged.state_dict().items()}

    def check(self, start: int, autoguidance: float) -> None:
        """Raise ConfigError where a training that goes on from ``start`` has none and will have none, to sample with
        this ``autoguidance``; on the first rank, once a resume has been accepted."""
        if autoguidance == 1.0 or self._weights is not None or start < self.step:
            return
        why = f"is at step {start} already and kept none" if start else "has too few steps"
        raise ConfigError(
            f"sampler.autoguidance={autoguidance:g} needs the weights of a quarter of the training, which {why}; set "
            "it to 1, or train from the start, three steps or more."
        )

    def before(self, step: int, like: Denoiser) -> Early | None:
        """The early version of ``like``, of which the weights of this step are kept; None where there is none, since
        that step came no later or the training began before there were early weights."""
        if self._weights is None or self.step >= step:
            return None
        # Made on the host: at the end of a training a GPU may have no room for another network.
        with torch.random.fork_rng(devices=[]):  # the weights that it begins with are nobody's
            denoiser = Denoiser(like.network_settings, like.image_shape, like.space, like.sigma_data)
        denoiser.load_state_dict(self._weights)
        return Early(denoiser.eval().requires_grad_(False), self.step)

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {f"{SAVED}{name}": tensor for name, tensor in (self._weights or {}).items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors."""
        kept = {name.removeprefix(SAVED): tensor for name, tensor in tensors.items() if name.startswith(SAVED)}
        self._weights = kept or None
