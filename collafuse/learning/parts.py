"""What a U-Net is put together from: the parts that every design has to offer, and what designs have in common.

Shapes: B batch, C channels, H x W pixels, E embedding, W numbers of a condition.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

AnyModule = TypeVar("AnyModule", bound=nn.Module)
HEAD_CHANNELS = 64
NOISE_FEATURES = 64
TINY = 1e-4
"""Keeps lengths that are divided by from zero."""
FREQUENCIES = (0.25, 16.0)
"""Lowest and highest frequency at which c_noise is embedded; c_noise spans about -1.6 to 1.1."""


class Parts(Protocol):
    """The parts of one design. A U-Net says how they fit together, a design what they are."""

    def noise_embedding(self, size: int) -> nn.Module:
        """c_noise [B] -> [B, E]."""

    def label_embedding(self, condition_width: int, size: int, text: slice) -> nn.Module:
        """conditions [B, W] -> [B, E]. Holds a ``weight`` [E, W], one column a number of the condition; ``text`` says
        which of them are a text's, each about 1. The sum of both embeddings goes through a SiLU on its way to the
        blocks."""

    def first(self, image_channels: int, width: int, embedding: int) -> nn.Module:
        """x [B, C, H, W], embedding [B, E] -> features [B, width, H, W]. Holds a ``weight``."""

    def block(self, channels_in: int, channels_out: int, embedding: int, attends: bool) -> nn.Module:
        """x [B, C_in, H, W], embedding [B, E] -> [B, C_out, H, W], with self-attention behind it where it attends."""

    def before_last(self, width: int) -> nn.Module:
        """Between the last block and the last convolution."""

    def last(self, width: int, image_channels: int) -> nn.Module:
        """Features into the output; gives zero before it is trained."""


class NoiseFeatures(nn.Module):
    """c_noise [B] -> [B, E]: sines and cosines at geometrically spaced frequencies, then a design's own layers."""

    frequencies: Tensor

    def __init__(self, layers: nn.Sequential) -> None:
        """layers: [B, NOISE_FEATURES] -> [B, E]."""
        super().__init__()
        low, high = (math.log(f) for f in FREQUENCIES)
        frequencies = torch.exp(torch.linspace(low, high, NOISE_FEATURES // 2)) * math.pi
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = layers

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))


def heads_of(channels: int) -> int:
    """How many attention heads features of this width are split into."""
    return max(1, channels // HEAD_CHANNELS)


def attend(qkv: Tensor, heads: int, prepare: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
    """Queries, keys and values [B, 3 C, H, W], one after the other -> what they mix to, [B, C, H, W].

    ``prepare`` is given all three, [B, 3, heads, H W, C / heads], before they meet.
    """
    height, width = qkv.shape[2:]
    split = qkv.unflatten(1, (3, heads, qkv.shape[1] // 3 // heads)).flatten(4).transpose(-1, -2)
    q, k, v = prepare(split).unbind(1)
    mixed = functional.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, C / heads]
    return mixed.transpose(-1, -2).flatten(1, 2).unflatten(2, (height, width))


def unit(weight: Tensor, over: tuple[int, ...]) -> Tensor:
    """Weights at length 1 over these dimensions."""
    return weight / weight.square().sum(over, keepdim=True).sqrt().clamp_min(TINY)


@runtime_checkable
class Foldable(Protocol):
    """A layer that makes the weights that it multiplies with of others."""

    def fold(self) -> None:
        """Keep the weights as they are used, for good."""


def folded(network: AnyModule) -> AnyModule:
    """A copy whose weights are kept as they are used: plain convolutions, which learn no more."""
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, Foldable):
            layer.fold()
    return plain
