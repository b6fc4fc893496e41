"""Precision, recall, density and coverage: how much of what was generated looks real, how much of the real is reached.

Each is a count over balls that reach from an image to its k-th nearest neighbour of the same set, given the distances
between all pairs: generated [N, N], real [M, M], across [N, M].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .quality import Features

PRECISION_NEIGHBOURS = 3
"""As in Kynkäänniemi et al. 2019."""
DENSITY_NEIGHBOURS = 5
"""As in Naeem et al. 2020."""


def distances(a: Features, b: Features) -> Features:
    """Euclidean distances [N, M] between features a [N, F] and b [M, F]."""
    squared = (a**2).sum(axis=1, keepdims=True) + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(squared.clip(min=0))


def radii(within: Features, neighbours: int) -> NDArray[np.float64]:
    """Distance [N] of each image to its k-th nearest neighbour in its own set; the largest there is in a small set."""
    k = min(neighbours, len(within) - 1)
    return np.partition(within, k, axis=1)[:, k]  # the nearest of all, at 0, is the image itself


def precision(real: Features, across: Features) -> float:
    """Share of generated images inside some real image's ball (Kynkäänniemi et al. 2019, eq. 2)."""
    return float((across <= radii(real, PRECISION_NEIGHBOURS)).any(axis=1).mean())


def recall(generated: Features, across: Features) -> float:
    """Share of real images inside some generated image's ball (Kynkäänniemi et al. 2019, eq. 2)."""
    return precision(generated, across.T)


def density(real: Features, across: Features) -> float:
    """Real balls that a generated image lies in, on average over k (Naeem et al. 2020, eq. 4): 1 where both sets are
    drawn alike; an outlier among the real images raises it less than precision."""
    inside = across <= radii(real, DENSITY_NEIGHBOURS)
    return float(inside.sum(axis=1).mean() / DENSITY_NEIGHBOURS)


def coverage(real: Features, across: Features) -> float:
    """Share of real images whose ball holds a generated one (Naeem et al. 2020, eq. 4)."""
    return float((across.min(axis=0) <= radii(real, DENSITY_NEIGHBOURS)).mean())
