"""What any release says of itself, whether it holds images or statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import release, statistics, tensorfile


@dataclass(frozen=True)
class Received:
    """images: how many it is of (with the noise of a budget on the number). sigma_cut: the level of its images, 0 for
    statistics, which stand at none."""

    image_shape: tuple[int, int, int]
    images: int
    sigma_cut: float
    simulated: bool


def read(path: Path) -> Received:
    """Read and check a release of either kind. Raises FileFormatError."""
    if tensorfile.peek_kind(path) == statistics.KIND:
        told = statistics.read(path)
        return Received(told.image_shape, round(float(told.counts.sum())), 0.0, told.simulated)
    made = release.read(path)
    return Received(made.image_shape, len(made.z), made.sigma_cut, made.simulated)
