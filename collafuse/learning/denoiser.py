"""Preconditioning: a raw network F becomes a denoiser D(x, sigma, conditions) -> x0_hat.

Notation as in Karras et al. 2022, table 1 and eq. 7:
    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)
    c_skip = sd^2 / (sigma^2 + sd^2)      c_out = sigma sd / sqrt(sigma^2 + sd^2)
    c_in   = 1 / sqrt(sigma^2 + sd^2)     c_noise = ln(sigma) / 4
with sd = sigma_data, the standard deviation of clean images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MixedPrecision, NetworkSettings
from ..core.conditioning import ConditionSpace, guided, unconditional
from .networks import UNet


class Denoiser(nn.Module):
    """D(x [B, C, H, W], sigma [B] or a float, conditions [B, W]) -> x0_hat [B, C, H, W], in the weights' precision.

    ``space`` says what the W numbers of a condition are. The precision is float32 everywhere but in tests that compare
    in float64. Preconditioning is computed in it always; with ``mixed_precision`` the network runs in bfloat16 on CUDA,
    and with "cpu" on a CPU too.
    """

    def __init__(
        self,
        network: NetworkSettings,
        image_shape: tuple[int, int, int],
        space: ConditionSpace,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.network_settings = network
        self.image_shape = image_shape
        self.space = space
        self.sigma_data = float(sigma_data)
        self.mixed_precision: MixedPrecision = False
        self.network = UNet(network, image_shape, space.width, space.text_columns)

    @property
    def condition_width(self) -> int:
        """Numbers in a condition."""
        return self.space.width

    @property
    def dtype(self) -> torch.dtype:
        """The weights' precision."""
        return next(self.network.parameters()).dtype

    def forward(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor:
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        sigma_B111 = levels.reshape(-1, 1, 1, 1)
        total = (sigma_B111.square() + self.sigma_data**2).sqrt()
        c_skip = (self.sigma_data / total).square()
        c_out = sigma_B111 * self.sigma_data / total
        with self._autocast(x):
            raw = self.network(x / total, levels.log() / 4, conditions)
        return c_skip * x + c_out * raw.to(x.dtype)

    def _autocast(self, x: Tensor) -> Any:
        device = x.device.type
        if (self.mixed_precision and device == "cuda") or (self.mixed_precision == "cpu" and device == "cpu"):
            return torch.autocast(device, dtype=torch.bfloat16)
        return nullcontext()


TOGETHER_ON_CPU = 8
"""On a CPU so many images or fewer are guided in one evaluation; more fill it as they are (docs/performance.md)."""


def guided_together(
    denoiser: Callable[[Tensor, Any, Tensor], Tensor], conditions: Tensor, guidance: float
) -> Callable[[Tensor, Any], Tensor]:
    """``denoise(x, sigma)`` like ``core.conditioning.guided``, both of whose estimates come from one evaluation of
    twice the batch, where that is faster. sigma is a number or one per image [B]."""
    together = conditions.device.type != "cpu" or len(conditions) <= TOGETHER_ON_CPU
    if guidance == 1.0 or not together:
        return guided(denoiser, conditions, guidance)
    both = torch.cat([unconditional(conditions), conditions])

    def denoise(x: Tensor, sigma: Any) -> Tensor:
        levels = torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) and sigma.ndim else sigma
        without, estimate = denoiser(torch.cat([x, x]), levels, both).chunk(2)
        return without + guidance * (estimate - without)

    return denoise


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """1 / c_out^2, which makes the network's task equally hard at every level (Karras et al. 2022, table 1)."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
