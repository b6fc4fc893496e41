"""Raw networks F: a U-Net whose size is configured apart for server and client.

How its parts fit together is here; what they are, a design says: ``blocks`` the conventional one, ``magnitude`` the
one that keeps magnitudes, ``plain`` the one without norms. Shapes: B batch, C image channels, H x W pixels,
E embedding, W numbers of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..config import NetworkSettings
from .blocks import Conventional
from .magnitude import MagnitudePreserving
from .parts import Parts
from .plain import Plain

DESIGNS: dict[str, Callable[[NetworkSettings], Parts]] = {
    "group": Conventional,
    "magnitude": MagnitudePreserving,
    "none": Plain,
}
"""The design that each ``norm`` of the settings stands for."""
NO_TEXT = slice(0, 0)


class UNet(nn.Module):
    """F(x_in [B, C, H, W], c_noise [B], conditions [B, W]) -> [B, C, H, W].

    With ``recompute`` a block keeps only its input while training and is computed again on the way back: a third more
    work for a fraction of the memory. Raises ConfigError when the image side cannot be halved as often as there are
    levels.
    """

    def __init__(
        self, settings: NetworkSettings, image_shape: tuple[int, int, int], condition_width: int, text: slice = NO_TEXT
    ) -> None:
        """``text``: the numbers of a condition that are those of a text."""
        super().__init__()
        self.recompute = False
        image_channels, side, _ = image_shape
        settings.check_side(side)
        embedding = 4 * settings.channels
        widths = [settings.channels * m for m in settings.multipliers]
        sides = [side // 2**level for level in range(len(widths))]
        parts = DESIGNS[settings.norm](settings)

        def block(channels_in: int, level: int) -> nn.Module:
            return parts.block(channels_in, widths[level], embedding, sides[level] in settings.attention)

        self.noise_embedding = parts.noise_embedding(embedding)
        self.label_embedding = parts.label_embedding(condition_width, embedding, text)
        self.first = parts.first(image_channels, widths[0], embedding)
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
        self.last_norm = parts.before_last(width)
        self.last = parts.last(width, image_channels)

    def forward(self, x: Tensor, c_noise: Tensor, conditions: Tensor) -> Tensor:
        embedding = functional.silu(self.noise_embedding(c_noise) + self.label_embedding(conditions))
        h = self.first(x, embedding)
        skips = [h]
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = functional.avg_pool2d(h, 2)
                skips.append(h)
            for block in blocks.children():
                h = self._through(block, h, embedding)
                skips.append(h)
        h = self._through(self.middle, h, embedding)
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
            for block in blocks.children():
                h = self._through(block, torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(self.last_norm(h))

    def all_blocks(self) -> Iterator[nn.Module]:
        """The blocks, in which most weights are."""
        for blocks in (*self.down, *self.up):
            yield from blocks.children()
        yield self.middle

    def _through(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.recompute and self.training:
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)


def num_parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())
