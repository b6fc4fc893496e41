"""The losses of a training as they are logged: per noise level, over all ranks, since the last log."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Losses:
    """Losses of some steps by noise bucket: their sums and counts, and the time they took."""

    sums: Sequence[float]
    counts: Sequence[float]
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.sums) / max(1.0, sum(self.counts))

    def record(self) -> dict[str, Any]:
        """As it is logged."""
        buckets = zip(BUCKET_NAMES, self.sums, self.counts, strict=True)
        return {
            "loss": self.mean,
            "loss_per_sigma": {name: total / count for name, total, count in buckets if count},
            "images_per_second": sum(self.counts) / max(self.seconds, 1e-9),
        }


class LossWindow:
    """Losses since the last log, per noise bucket, summed on the device so that nothing waits for the host."""

    def __init__(self, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> None:
        self._ranks = ranks
        self._edges = torch.tensor(BUCKET_EDGES, device=device)
        self._sums = torch.zeros(2, len(BUCKET_NAMES), device=device, dtype=dtype)
        self._since = time.monotonic()

    def add(self, sigma: Tensor, losses: Tensor) -> None:
        bucket = torch.bucketize(sigma, self._edges)
        self._sums[0].index_add_(0, bucket, losses.to(self._sums.dtype))
        self._sums[1].index_add_(0, bucket, torch.ones_like(losses, dtype=self._sums.dtype))

    def all(self) -> Losses:
        """Those of all ranks since the last log; here the host waits for the device, and the ranks for each other."""
        sums, counts = self._ranks.total(self._sums).tolist()
        return Losses(sums, counts, time.monotonic() - self._since)

    def restart(self) -> None:
        """The next log starts here."""
        self._sums.zero_()
        self._since = time.monotonic()
