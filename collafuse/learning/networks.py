"""Raw networks F: a U-Net whose size is configured apart for server and client.

Shapes: B batch, C image channels, H x W pixels, E embedding, W numbers of a condition. The residual block follows the
"DDPM++" family (Ho et al. 2020; Song et al. 2021; Dhariwal and Nichol 2021: scale and shift from the
embedding), kept to operators that export to ONNX opset 18 without loops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..config import NetworkSettings

HEAD_CHANNELS = 64
FREQUENCIES = (0.25, 16.0)
"""Lowest and highest frequency at which c_noise is embedded; c_noise spans about -1.6 to 1.1."""


def _norm(channels: int, settings: NetworkSettings) -> nn.Module:
    if settings.norm == "none":
        return nn.Identity()
    groups = next(g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Start at zero, so that a block begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class NoiseEmbedding(nn.Module):
    """c_noise [B] -> [B, E]: sines and cosines at geometrically spaced frequencies, then two layers."""

    def __init__(self, size: int, features: int = 64) -> None:
        super().__init__()
        low, high = (math.log(f) for f in FREQUENCIES)
        frequencies = torch.exp(torch.linspace(low, high, features // 2)) * math.pi
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(features, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts in between. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(
        self, channels_in: int, channels_out: int, embedding: int, settings: NetworkSettings, attention: bool
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, settings)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = _norm(channels_out, settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = _zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attention = SelfAttention(channels_out, settings) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        return self.attention(self.skip(x) + self.conv2(self.dropout(h)))


class SelfAttention(nn.Module):
    """Attention among all pixels of an image. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_CHANNELS)
        self.norm = _norm(channels, settings)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        split = (3, self.heads, channels // self.heads, height * width)
        q, k, v = self.qkv(self.norm(x)).unflatten(1, split[:3]).flatten(4).transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, C / heads]
        return x + self.out(mixed.transpose(-1, -2).flatten(1, 2).unflatten(2, (height, width)))


class UNet(nn.Module):
    """F(x_in [B, C, H, W], c_noise [B], conditions [B, W]) -> [B, C, H, W].

    With ``recompute`` a block keeps only its input while training and is computed again on the way back: a third more
    work for a fraction of the memory. Raises ConfigError when the image side cannot be halved as often as there are
    levels.
    """

    def __init__(self, settings: NetworkSettings, image_shape: tuple[int, int, int], condition_width: int) -> None:
        super().__init__()
        self.recompute = False
        image_channels, side, _ = image_shape
        settings.check_side(side)
        embedding = 4 * settings.channels
        widths = [settings.channels * m for m in settings.multipliers]
        sides = [side // 2**level for level in range(len(widths))]

        def block(channels_in: int, level: int) -> ResidualBlock:
            attends = sides[level] in settings.attention
            return ResidualBlock(channels_in, widths[level], embedding, settings, attends)

        self.noise_embedding = NoiseEmbedding(embedding)
        self.label_embedding = nn.Linear(condition_width, embedding)
        self.first = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level in range(len(widths)):
            blocks = nn.ModuleList()
            for _ in range(settings.blocks):
                blocks.append(block(width, level))
                width = widths[level]
                skips.append(width)
            self.down.append(blocks)
            if level + 1 < len(widths):
                skips.append(width)
        self.middle = block(width, len(widths) - 1)
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            blocks = nn.ModuleList()
            for _ in range(settings.blocks + 1):
                blocks.append(block(width + skips.pop(), level))
                width = widths[level]
            self.up.append(blocks)
        self.last_norm = _norm(width, settings)
        self.last = _zeroed(nn.Conv2d(width, image_channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, conditions: Tensor) -> Tensor:
        embedding = functional.silu(self.noise_embedding(c_noise) + self.label_embedding(conditions))
        h = self.first(x)
        skips = [h]
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = functional.avg_pool2d(h, 2)
                skips.append(h)
            for block in blocks:
                h = self._through(block, h, embedding)
                skips.append(h)
        h = self._through(self.middle, h, embedding)
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
            for block in blocks:
                h = self._through(block, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(functional.silu(self.last_norm(h)))

    def _through(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)


def num_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())
