"""The one objective of every node: learn an ordinary denoiser from data that is noisy already.

Training data z carries the level it already has, ``sigma_floor`` (0 for clean images, sigma_cut for a
release). To train at sigma above it the missing noise is added, x = z + sqrt(sigma^2 - sigma_floor^2) n'. By
Tweedie's formula on both levels,

    E[z | x] = (1 - k) E[x0 | x] + k x        with k = (sigma_floor / sigma)^2

so minimising  weight || (1 - k) D(x, sigma) + k x - z ||^2  over D gives D = E[x0 | x]: the denoiser of the clean
images, learned without any. With sigma_floor = 0 it is the loss of Karras et al. 2022. Related: Daras et al. 2024
(arXiv 2404.10177, "exact ambient diffusion"); Patel et al. 2025 (PFDM, arXiv 2504.00952).

The weight is 1 / (c_out^2 (1 - k)). Even the best D leaves a residual: given x, z scatters by

    Var[z | x] = (1 - k) sigma_floor^2 + (1 - k)^2 Var[x0 | x]        with Var[x0 | x] = c_out^2 for Gaussian images
               = c_out^2 (1 - k) (1 + (sigma_floor / sigma_data)^2)

so up to a factor that no level changes, each level counts by one over the variance of what it has to learn from. That
factor is left out: with it, sites of a low cut would count more than others wherever both are learned from. D itself
weighs in with (1 - k) / c_out^2, which falls to 0 at sigma = sigma_floor, where nothing is learned (k = 1); levels are
drawn above it, see :func:`lowest_level`. ``docs/results.md`` shows what this is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.noise import LOWEST_TRAINED_ABOVE_CUT, SIGMA_MIN
from .denoiser import loss_weight

OBJECTIVE = "1 / (c_out^2 (1 - k))"
"""Changes whenever the loss does: part of what a training must have in common with a checkpoint to go on from it."""


def lowest_level(sigma_floor: Tensor) -> Tensor:
    """The lowest level trained for data at these floors [B]: 1.05 times the floor, SIGMA_MIN for clean data.

    1 - k, the share of a clean image's weight that D has in the loss, is then at least 0.092.
    """
    return (sigma_floor * LOWEST_TRAINED_ABOVE_CUT).clamp(min=SIGMA_MIN)


def draw_levels(uniform: Tensor, low: Tensor, high: float, log_mean: float, log_std: float) -> Tensor:
    """Noise levels [B] from uniform numbers [B] in [0, 1): ln sigma normal, cut off at low [B] and high."""
    device = uniform.device
    if device.type == "mps":  # which has no float64, and the tails need it
        low, uniform = low.cpu(), uniform.cpu()
    low, uniform = low.double(), uniform.double()
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    position_low = normal.cdf((low.log() - log_mean) / log_std)
    position_high = normal.cdf(torch.tensor((math.log(high) - log_mean) / log_std, dtype=torch.float64))
    position = position_low + uniform * (position_high - position_low)
    log_sigma = log_mean + log_std * normal.icdf(position)
    # Far in a tail the positions coincide in float64; the range still holds.
    return log_sigma.exp().nan_to_num(nan=high, posinf=high).clamp(max=high).maximum(low).float().to(device)


def denoising_loss(
    denoise: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    sigma_floor: Tensor,
    sigma: Tensor,
    noise: Tensor,
    sigma_data: float,
) -> Tensor:
    """The objective per image [B], averaged over pixels.

    z: [B, C, H, W] at levels sigma_floor [B]. sigma: [B], above sigma_floor. noise: standard normal like z.
    For Gaussian images the best denoiser has 1 + (sigma_floor / sigma_data)^2 at every level, the noise in z included.
    """
    axes = (-1,) + (1,) * (z.ndim - 1)
    added = (sigma.square() - sigma_floor.square()).sqrt().reshape(axes)
    x = z + added * noise
    k = (sigma_floor / sigma).square()
    share = (1 - k).reshape(axes)
    residual = share * denoise(x, sigma) + k.reshape(axes) * x - z
    return loss_weight(sigma, sigma_data) / (1 - k) * residual.square().flatten(1).mean(dim=1)


def least_loss(sigma_floor: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """What the noise in z leaves of the objective per image [B], in the mean over that noise, to any D that has not
    learned the noise itself: all but Var[x0 | x] of the residual above. 0 for clean images."""
    return sigma_floor.square() * loss_weight(sigma, sigma_data)
