"""What a node learns from, and in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.rows import Rows
from . import checkpoint
from .seeds import keyed_seed

SUMMED_VALUES = 1 << 20
"""Pixel values summed at a time in float64: some 20 MB of memory."""
SIGMA_DATA_DIGITS = 10
"""Fewer than the order of sums changes, and more than float32 has, in which a training computes."""


@dataclass(frozen=True)
class TrainingData:
    """What a node learns from, in memory; images larger than that as rows of their file.

    images: [N, C, H, W], uint8 for clean ones (grey levels) or float16 for releases. conditions: [N, W].
    sigma_floor: [N], the level each image already has. sigma_high: the highest level to train at. groups: [N], equal
    numbers for images that belong together, such as a patient's, and are kept back together; None: each is its own.
    """

    images: Tensor | Rows
    conditions: Tensor
    sigma_floor: Tensor
    sigma_high: float
    horizontal_flip: bool = False
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> TrainingData:
        """The same data on a device; what lies in a file stays there."""
        images = self.images.to(device) if isinstance(self.images, Tensor) else self.images
        return replace(
            self, images=images, conditions=self.conditions.to(device), sigma_floor=self.sigma_floor.to(device)
        )

    def take(self, rows: Tensor) -> Tensor:
        """The images of these rows."""
        return self.images[rows] if isinstance(self.images, Tensor) else torch.from_numpy(self.images[rows.numpy()])

    def digest(self) -> str:
        """Identifies the data, for resuming."""
        levels = torch.tensor([self.sigma_high, float(self.horizontal_flip)], dtype=torch.float64)
        return checkpoint.digest_of_tensors(self.images, self.conditions, self.sigma_floor, levels)


def to_float(images: Tensor) -> Tensor:
    """float32 images: grey levels become [-1, 1], noisy ones stay as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def _to_double(images: Tensor) -> Tensor:
    return to_float(images).double()


def estimate_sigma_data(data: TrainingData) -> float:
    """Standard deviation of the clean images behind the data: sqrt(var z - sigma_floor^2).

    Images with the least noise say the most, so only those at the lowest floor are used. Where noise hides it,
    which shows in a value that images in [-1, 1] cannot have, it is EDM's 0.5. To SIGMA_DATA_DIGITS digits: the last
    ones depend on the order of sums, which is another on other processors and numbers of threads, and a training is
    resumed with the same value alone.
    """
    quietest = torch.nonzero(data.sigma_floor == data.sigma_floor.min())[:, 0]
    # In parts: in float64 all at once, a set of grey levels would take eight times its memory.
    values = math.prod(data.images.shape[1:])
    parts = map(_to_double, map(data.take, quietest.split(min(1024, max(1, SUMMED_VALUES // values)))))
    sums = [(part.sum().item(), part.square().sum().item()) for part in parts]
    mean, square = (math.fsum(column) / (len(quietest) * values) for column in zip(*sums, strict=True))
    variance = square - mean**2 - float(data.sigma_floor.min()) ** 2
    return float(f"{math.sqrt(variance):.{SIGMA_DATA_DIGITS}g}") if 0.01 < variance <= 1 else 0.5


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(keyed_seed(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Rows [batch_size] of the step's batch: each epoch visits every image once, in a new order."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    rows = torch.empty_like(positions)
    for epoch in (positions // count).unique().tolist():
        here = positions // count == epoch
        rows[here] = _shuffled(count, seed, epoch)[positions[here] % count]
    return rows


class Batch(NamedTuple):
    """A step's images, or a part of them: z [B, C, H, W] at levels sigma_floor [B], to train at sigma [B]."""

    z: Tensor
    conditions: Tensor
    sigma_floor: Tensor
    sigma: Tensor
    noise: Tensor

    def take(self, rows: slice) -> Batch:
        return Batch(*(tensor[rows] for tensor in self))


def parts_of(count: int, accumulate: int) -> list[slice]:
    """A rank's images in as many parts. Raises ConfigError when they do not divide evenly."""
    if count % accumulate:
        raise ConfigError(
            f"training.accumulate={accumulate} does not divide the {count} images of a step in each process; "
            "use a divisor of it, or another batch_size."
        )
    each = count // accumulate
    return [slice(start, start + each) for start in range(0, count, each)]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on the device, without waiting for what the device still has to do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
