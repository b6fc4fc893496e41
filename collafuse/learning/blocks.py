"""The conventional parts of a U-Net: residual blocks as in "DDPM++", with group norm.

Shapes: B batch, C image channels, H x W pixels, E embedding, W numbers of a condition. The residual block follows the
"DDPM++" family (Ho et al. 2020; Song et al. 2021; Dhariwal and Nichol 2021: scale and shift from the
embedding), kept to operators that export to ONNX opset 18 without loops.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ..config import NetworkSettings
from .parts import NOISE_FEATURES, AnyModule, NoiseFeatures, attend, heads_of


class Conventional:
    """Layers with biases that start as torch starts them; what closes a branch starts at zero."""

    def __init__(self, settings: NetworkSettings) -> None:
        self.settings = settings

    def noise_embedding(self, size: int) -> nn.Module:
        return NoiseFeatures(nn.Sequential(nn.Linear(NOISE_FEATURES, size), nn.SiLU(), nn.Linear(size, size)))

    def label_embedding(self, condition_width: int, size: int, text: slice) -> nn.Module:
        return nn.Linear(condition_width, size)

    def first(self, image_channels: int, width: int, embedding: int) -> nn.Module:
        return FirstConvolution(image_channels, width, 3, padding=1)

    def block(self, channels_in: int, channels_out: int, embedding: int, attends: bool) -> nn.Module:
        return ResidualBlock(channels_in, channels_out, embedding, self.settings, attends)

    def before_last(self, width: int) -> nn.Module:
        return NormSiLU(_groups(width), width)

    def last(self, width: int, image_channels: int) -> nn.Module:
        return zeroed(nn.Conv2d(width, image_channels, 3, padding=1))


class FirstConvolution(nn.Conv2d):
    """Of the image alone; the embedding enters in every block."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class NormSiLU(nn.GroupNorm):
    """Group norm, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(super().forward(x))


def _groups(channels: int) -> int:
    return next(g for g in range(min(32, channels // 4), 0, -1) if channels % g == 0)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_groups(channels), channels)


def zeroed(module: AnyModule) -> AnyModule:
    """Start at zero, so that a block begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts in between. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(
        self, channels_in: int, channels_out: int, embedding: int, settings: NetworkSettings, attends: bool
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = _norm(channels_out)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attention = SelfAttention(channels_out, _norm(channels_out)) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        return self.attention(self.skip(x) + self.conv2(self.dropout(h)))


class SelfAttention(nn.Module):
    """Attention among all pixels of an image. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, norm: nn.Module) -> None:
        super().__init__()
        self.heads = heads_of(channels)
        self.norm = norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(attend(self.qkv(self.norm(x)), self.heads))
