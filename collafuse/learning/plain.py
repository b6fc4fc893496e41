"""The parts of a U-Net without norms, as in networks for image restoration (Zhang et al. 2021, "DRUNet").

Features are never measured: ReLU takes the place of norm and SiLU, and a runtime folds it, like the sum of a residual
block, into the convolution in front. Noise level and labels enter as planes beside the image, and scale and shift the
features between the two convolutions of a block, the one thing besides that a device does to every pixel. The weights
of the inner convolutions are normalised instead (Salimans and Kingma 2016, "weight norm"), so that they learn as fast
as those of a network with norms at the same rate; a device gets them as they multiply. Shapes: B batch, C image
channels, H x W pixels, E embedding, W numbers of a condition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import NetworkSettings
from .blocks import Conventional, SelfAttention, zeroed
from .parts import unit

CHANNELS_IN = 8
"""Image and planes together. onnxruntime's convolutions take channels by eights (sixteens with AVX-512) and leave
their layout where a number is neither smaller nor a multiple."""
RELU = math.sqrt(2)
"""Undoes what ReLU takes from the magnitude of standard normal features (He et al. 2015)."""
START = 0.1
"""Length at which weights start, before they are normalised. The shorter, the further a step turns them, and then they
grow; at 1, rates that suit the rest of a network turn them too slowly (decision 12)."""


class Plain(Conventional):
    """The conventional layers but those that normalise."""

    def first(self, image_channels: int, width: int, embedding: int) -> nn.Module:
        return FirstConvolution(image_channels, width, embedding)

    def block(self, channels_in: int, channels_out: int, embedding: int, attends: bool) -> nn.Module:
        return ResidualBlock(channels_in, channels_out, embedding, self.settings, attends)

    def before_last(self, width: int) -> nn.Module:
        return nn.Identity()


class FirstConvolution(nn.Conv2d):
    """Of an image [B, C, H, W] and the embedding [B, E], the same at every pixel."""

    def __init__(self, image_channels: int, width: int, embedding: int) -> None:
        super().__init__(CHANNELS_IN, width, 3, padding=1)
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.weight[0].numel()))
        self.planes = nn.Linear(embedding, CHANNELS_IN - image_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        planes = self.planes(embedding)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return super().forward(torch.cat([x, planes], dim=1))


class Convolution(nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H, W], with weights of a learned size per output channel.

    ``size`` is their root mean square and not their length: in steps of the learning rate a length would take
    hundreds of steps to where a plain convolution's is at once.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, gain: float) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)
        self.root = math.sqrt(self.weight[0].numel())  # a channel's length over its root mean square
        nn.init.normal_(self.weight, std=START / self.root)
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.size: nn.Parameter | None = nn.Parameter(torch.full((channels_out, 1, 1, 1), gain / self.root))

    def used(self) -> Tensor:
        """The weights as they multiply."""
        if self.size is None:
            return self.weight
        return self.size * self.root * unit(self.weight, (1, 2, 3))

    @torch.no_grad()
    def fold(self) -> None:
        """Keep the weights as they are used, for good."""
        self.weight, self.size = nn.Parameter(self.used(), requires_grad=False), None

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.used(), self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts in between. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(
        self, channels_in: int, channels_out: int, embedding: int, settings: NetworkSettings, attends: bool
    ) -> None:
        super().__init__()
        self.conv1 = Convolution(channels_in, channels_out, 3, gain=RELU)
        self.modulation = zeroed(nn.Linear(embedding, 2 * channels_out))
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = Convolution(channels_out, channels_out, 3, gain=0.0)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else Convolution(channels_in, channels_out, 1, gain=1.0)
        self.attention = SelfAttention(channels_out, nn.Identity()) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = functional.relu(self.conv1(x) * (1 + scale) + shift)
        return self.attention(self.skip(x) + self.conv2(self.dropout(h)))
