"""The losses of a training as they are logged: per noise level, over all ranks, since the last log."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .distributed import Ranks

BUCKET_EDGES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Noise levels between the buckets in which the loss is logged."""
BUCKET_NAMES = tuple(f"{low:g}-{high:g}" for low, high in zip((0, *BUCKET_EDGES), (*BUCKET_EDGES, 80), strict=True))


BY_HEART = 0.05
"""As much of the least loss: any fit takes a little of the noise with it, about its parameters over the values."""
SURE = 5.0
"""Standard deviations of the noise's own mean square, which differs from its expectation by chance."""


@dataclass(frozen=True)
class Losses:
    """Losses of some steps by noise bucket: their sums and counts, the sums of the least that data that are noisy
    already allow, of how many values of noise that is the mean, and the time they took."""

    sums: Sequence[float]
    counts: Sequence[float]
    least_sums: Sequence[float]
    noise_values: int
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.sums) / max(1.0, sum(self.counts))

    @property
    def least(self) -> float:
        """The mean of :func:`.objective.least_loss` over the same images and levels."""
        return sum(self.least_sums) / max(1.0, sum(self.counts))

    @property
    def by_heart(self) -> bool:
        """Whether they lie below what anybody reaches who has not learned the very noise of the data."""
        chance = SURE * math.sqrt(2 / max(1, self.noise_values))
        return self.mean < self.least * (1 - max(BY_HEART, chance))

    def record(self) -> dict[str, Any]:
        """As it is logged."""
        buckets = zip(BUCKET_NAMES, self.sums, self.counts, strict=True)
        return {
            "loss": self.mean,
            **({"least_loss": self.least} if self.least else {}),
            "loss_per_sigma": {name: total / count for name, total, count in buckets if count},
            "images_per_second": sum(self.counts) / max(self.seconds, 1e-9),
        }


def by_heart(step: int, losses: Losses, chooses: bool) -> str:
    """What to say of such losses. chooses: whether the training keeps the step that knew most of others."""
    remedy = (
        "Kept are the weights of the step that knew most of what was kept back; the later ones are likely worth nothing"
        if chooses
        else "Train it fewer steps, on more images, with network.dropout, or with training.validation, which keeps the "
        "best step"
    )
    return (
        f"at step {step} the loss, {losses.mean:.4g}, is below {losses.least:.4g}, which the noise of the releases "
        "leaves to whoever does not know it by heart. This server has learned that noise, rather than what such images "
        f"look like, and may deliver some that come near the releases (collafuse audit). {remedy}."
    )


class LossWindow:
    """Losses since the last log, per noise bucket, summed on the device so that nothing waits for the host."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, ranks: Ranks, sigma_floor: Tensor, pixels: int
    ) -> None:
        """sigma_floor: [N], of all the data. pixels: values of an image."""
        self._ranks, self._pixels = ranks, pixels
        # Those with the most noise decide the mean.
        self._noisiest = int((sigma_floor == sigma_floor.max()).sum())
        self._edges = torch.tensor(BUCKET_EDGES, device=device)
        self._sums = torch.zeros(3, len(BUCKET_NAMES), device=device, dtype=dtype)
        self._since = time.monotonic()

    def add(self, sigma: Tensor, losses: Tensor, least: Tensor) -> None:
        bucket = torch.bucketize(sigma, self._edges)
        for row, values in zip(self._sums, (losses, torch.ones_like(losses), least), strict=True):
            row.index_add_(0, bucket, values.to(row.dtype))

    def all(self) -> Losses:
        """Those of all ranks since the last log; here the host waits for the device, and the ranks for each other."""
        sums, counts, least = self._ranks.total(self._sums).tolist()
        noise_values = self._pixels * min(round(sum(counts)), self._noisiest)
        return Losses(sums, counts, least, noise_values, time.monotonic() - self._since)

    def restart(self) -> None:
        """The next log starts here."""
        self._sums.zero_()
        self._since = time.monotonic()
