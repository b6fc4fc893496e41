"""The parts of a U-Net that keeps the magnitude of its features without norms (Karras et al. 2024, "EDM2").

Every weight is of unit magnitude by construction and every operation leaves a root mean square of 1 where it finds
one, so nothing has to be measured and divided by while the network runs: a device sees convolutions, SiLU, sums and
joins alone. All constants of the design (SiLU's, those of the sums) are multiplied into the weights of the convolution
before or behind, which costs nothing per pixel; equation numbers are the paper's (arXiv 2312.02696).

Of the paper's network (its configuration G) this leaves out what a device would have to carry out for every pixel: the
norm over channels in the encoder, so pooling, which takes from features that differ between neighbours, is the one
place where magnitudes may fall; and the factors of a join (eq. 103), so its sides count by their channels, as a plain
join keeps their magnitude too. Shapes: B batch, C channels, H x W pixels, E embedding, W numbers of a condition.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import NetworkSettings
from .parts import NOISE_FEATURES, TINY, NoiseFeatures, attend, heads_of, unit

SILU = 1 / 0.596
"""Undoes what SiLU takes from the magnitude of standard normal features (eq. 81)."""
BALANCE = 0.3
"""Weight of a block's branch against its input in their sum (section 2.5)."""
STREAM, BRANCH = ((1 - BALANCE) / math.hypot(1 - BALANCE, BALANCE), BALANCE / math.hypot(1 - BALANCE, BALANCE))
"""What each side of such a sum is multiplied by (eq. 88)."""


class MagnitudePreserving:
    """Layers without biases, of unit magnitude; a learned gain that starts at zero closes the network."""

    def __init__(self, settings: NetworkSettings) -> None:
        self.settings = settings

    def noise_embedding(self, size: int) -> nn.Module:
        return NoiseEmbedding(size)

    def label_embedding(self, condition_width: int, size: int, text: slice) -> nn.Module:
        return LabelEmbedding(condition_width, size, text)

    def first(self, image_channels: int, width: int, embedding: int) -> nn.Module:
        return FirstConvolution(image_channels, width)

    def block(self, channels_in: int, channels_out: int, embedding: int, attends: bool) -> nn.Module:
        return ResidualBlock(channels_in, channels_out, embedding, self.settings.dropout, attends)

    def before_last(self, width: int) -> nn.Module:
        return nn.Identity()

    def last(self, width: int, image_channels: int) -> nn.Module:
        return Convolution(width, image_channels, 3, learned_gain=True)


class UnitWeight(nn.Module):
    """Weights [C_out, C_in, ...] that are used at unit magnitude (eq. 47), times a gain.

    The raw weights are kept at length 1 (see ``force_magnitudes``); the paper's, at length sqrt(fan_in), want learning
    rates that much higher, these about those of other designs. What is averaged and saved are the raw ones; averaging
    shortens them, using them undoes it.
    """

    def __init__(
        self, shape: tuple[int, ...], scale: float, *, over: tuple[int, ...], learned_gain: bool = False
    ) -> None:
        """scale: times the weights at length 1. over: the dimensions of that length. A learned gain starts at zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.gain = nn.Parameter(torch.zeros(1)) if learned_gain else None
        self.folded = False
        self._over = over
        self._scale = scale
        self.force()

    def used(self) -> Tensor:
        """The weights as they multiply."""
        if self.folded:
            return self.weight
        weight = self._scale * self._unit()
        return weight if self.gain is None else self.gain * weight

    def _unit(self) -> Tensor:
        return unit(self.weight, self._over)

    @torch.no_grad()
    def force(self) -> None:
        """Bring the raw weights back to length 1."""
        self.weight.copy_(self._unit())

    @torch.no_grad()
    def fold(self) -> None:
        """Keep the weights as they are used, for good."""
        self.weight, self.gain, self.folded = nn.Parameter(self.used(), requires_grad=False), None, True


def _scale(gain: float, fan_in: int, learned_gain: bool) -> float:
    """Of a layer that gives sums as large as the gain; a learned gain is in the unit of a single weight instead: it
    grows by a learning rate a step, and would need hundreds of steps to let a whole sum through."""
    return gain * math.sqrt(fan_in) if learned_gain else gain


class Convolution(UnitWeight):
    """[B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(
        self, channels_in: int, channels_out: int, size: int, gain: float = 1.0, *, learned_gain: bool = False
    ) -> None:
        fan_in = channels_in * size**2
        shape = (channels_out, channels_in, size, size)
        super().__init__(shape, _scale(gain, fan_in, learned_gain), over=(1, 2, 3), learned_gain=learned_gain)
        self._padding = size // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.used(), padding=self._padding)


class FirstConvolution(Convolution):
    """Of an image and a channel of ones, which takes the place of all biases; the embedding enters in every block."""

    def __init__(self, image_channels: int, width: int) -> None:
        super().__init__(image_channels + 1, width, 3)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))


class Linear(UnitWeight):
    """[B, C_in] -> [B, C_out]."""

    def __init__(self, channels_in: int, channels_out: int, gain: float = 1.0, *, learned_gain: bool = False) -> None:
        scale = _scale(gain, channels_in, learned_gain)
        super().__init__((channels_out, channels_in), scale, over=(1,), learned_gain=learned_gain)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.used())


class NoiseEmbedding(NoiseFeatures):
    """c_noise [B] -> [B, E], half of the sum with the labels."""

    def __init__(self, size: int) -> None:
        # The mean square of a sine and its cosine is 1/2, and half of the sum with the labels is the noise's.
        first = Linear(NOISE_FEATURES, size, gain=math.sqrt(2))
        super().__init__(nn.Sequential(first, nn.SiLU(), Linear(size, size, gain=SILU * math.sqrt(0.5))))


class LabelEmbedding(UnitWeight):
    """conditions [B, W] -> [B, E], half of the sum with the noise.

    Normalised per label and not per output as all else: an image with one label has an embedding of unit magnitude
    whichever it is, and a warm start that takes some of the columns takes them as they were. The numbers of a text,
    each about 1, count as one label together.
    """

    shares: Tensor

    def __init__(self, condition_width: int, size: int, text: slice = slice(0, 0)) -> None:
        super().__init__((size, condition_width), math.sqrt(0.5 * size), over=(0,))
        shares = torch.ones(condition_width)
        shares[text] = 1 / math.sqrt(max(1, text.stop - text.start))
        self.register_buffer("shares", shares, persistent=False)

    def used(self) -> Tensor:
        return super().used() if self.folded else super().used() * self.shares

    def forward(self, conditions: Tensor) -> Tensor:
        return functional.linear(conditions, self.used())


class Scaled(nn.Module):
    """Features times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self._factor * x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales in between. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float, attends: bool) -> None:
        super().__init__()
        self.conv1 = Convolution(channels_in, channels_out, 3, gain=SILU)
        self.modulation = Linear(embedding, channels_out, gain=SILU, learned_gain=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Convolution(channels_out, channels_out, 3, gain=SILU * BRANCH)
        same = channels_in == channels_out
        self.skip = Scaled(STREAM) if same else Convolution(channels_in, channels_out, 1, gain=STREAM)
        self.attention = CosineAttention(channels_out) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale = 1 + self.modulation(embedding)[:, :, None, None]
        h = functional.silu(scale * self.conv1(functional.silu(x)))
        return self.attention(self.skip(x) + self.conv2(self.dropout(h)))


class CosineAttention(nn.Module):
    """Attention among all pixels of an image, by the angle between queries and keys. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = heads_of(channels)
        self.qkv = Convolution(channels, 3 * channels, 1)
        self.out = Convolution(channels, channels, 1, gain=BRANCH)

    def forward(self, x: Tensor) -> Tensor:
        return STREAM * x + self.out(attend(self.qkv(x), self.heads, prepare=_unit_vectors))


def _unit_vectors(x: Tensor) -> Tensor:
    """Vectors along the last dimension, at a root mean square of 1."""
    return x / (x.square().mean(-1, keepdim=True).sqrt() + TINY)


def force_magnitudes(network: nn.Module) -> None:
    """Bring the raw weights of every layer here back to length 1; nothing to do in other designs.

    For after each step of an optimiser: gradients are at right angles to weights that are normalised at use, so steps
    make them longer and every later step would count less (section 2.3; eq. 66).
    """
    for layer in network.modules():
        if isinstance(layer, UnitWeight):
            layer.force()
