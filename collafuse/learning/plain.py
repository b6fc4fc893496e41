"""The parts of a U-Net without norms, as in networks for image restoration (Zhang et al. 2021, "DRUNet").

Noise level and labels enter once, as planes beside the image, and everything behind is convolutions with ReLU. A
runtime folds ReLU and the sum of a residual block into the convolution in front of it, and keeps features in the layout
that its convolutions want from the first to the last, so that a device spends its time on multiplying alone. Shapes:
B batch, C image channels, H x W pixels, E embedding, W numbers of a condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import NetworkSettings
from .blocks import Conventional, SelfAttention, zeroed

CHANNELS_IN = 8
"""Image and planes together. onnxruntime's convolutions take channels by eights (sixteens with AVX-512) and leave
their layout where a number is neither smaller nor a multiple."""


class Plain(Conventional):
    """The conventional layers but those in which the embedding enters and those that normalise."""

    def first(self, image_channels: int, width: int, embedding: int) -> nn.Module:
        return FirstConvolution(image_channels, width, embedding)

    def block(self, channels_in: int, channels_out: int, embedding: int, attends: bool) -> nn.Module:
        return ResidualBlock(channels_in, channels_out, self.settings, attends)

    def before_last(self, width: int) -> nn.Module:
        return nn.Identity()


class FirstConvolution(nn.Conv2d):
    """Of an image [B, C, H, W] and the embedding [B, E], the same at every pixel."""

    def __init__(self, image_channels: int, width: int, embedding: int) -> None:
        super().__init__(CHANNELS_IN, width, 3, padding=1)
        self.planes = nn.Linear(embedding, CHANNELS_IN - image_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        planes = self.planes(embedding)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return super().forward(torch.cat([x, planes], dim=1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU in between. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, settings: NetworkSettings, attends: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attention = SelfAttention(channels_out, nn.Identity()) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv2(self.dropout(functional.relu(self.conv1(x))))
        return self.attention(self.skip(x) + h)
