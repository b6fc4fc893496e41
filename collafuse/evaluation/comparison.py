"""Generated images against real ones: every figure with its spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifolds import coverage, density, distances, precision, recall
from .quality import Features, cubic_kernel, frechet_distance, kernel_distance

RESAMPLES = 20
MOST_PAIRED = 2_000
"""Figures that look at all pairs use the first so many images of each side."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """A value and its spread: one standard deviation, over what else could have been drawn."""

    value: float
    spread: float

    def shown(self, digits: int = 3) -> str:
        """As in a table."""
        return f"{self.value:.{digits}g} ± {self.spread:.2g}"


def half_sample_spread(
    statistic: Callable[[Rows, Rows], NDArray[np.float64]], sizes: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Standard deviation of statistics of two samples, each computed again and again on half of both.

    Halves are drawn without replacement, since an image that occurs twice has a neighbour at distance 0 and pulls
    every figure here. For a mean over n images, half-samples vary by s^2 / (n/2) - s^2 / n = s^2 / n, which is the
    variance of the whole sample's mean (McCarthy 1969); so the spread needs no correction.
    """
    halves = [
        statistic(*(np.sort(rng.choice(n, max(2, n // 2), replace=False)) for n in sizes)) for _ in range(RESAMPLES)
    ]
    return np.std(halves, axis=0, ddof=1)


def compare(generated: Features, real: Features, rng: np.random.Generator) -> dict[str, Figure]:
    """Fréchet and kernel distance, precision, recall, density and coverage of features [N, F] against [M, F]."""
    paired_g, paired_r = generated[:MOST_PAIRED], real[:MOST_PAIRED]
    pairs = ((paired_g, paired_g), (paired_r, paired_r), (paired_g, paired_r))
    kernels, apart = ([function(a, b) for a, b in pairs] for function in (cubic_kernel, distances))

    def from_pairs(g: Rows, r: Rows) -> NDArray[np.float64]:
        of = ((g, g), (r, r), (g, r))
        gg, rr, gr = (matrix[np.ix_(*rows)] for matrix, rows in zip(apart, of, strict=True))
        mmd = kernel_distance(*(matrix[np.ix_(*rows)] for matrix, rows in zip(kernels, of, strict=True)))
        return np.array([mmd, precision(rr, gr), recall(gg, gr), density(rr, gr), coverage(rr, gr)])

    def from_all(g: Rows, r: Rows) -> NDArray[np.float64]:
        return np.array([frechet_distance(generated[g], real[r])])

    figures = {}
    for names, statistic, sides in (
        (("frechet",), from_all, (generated, real)),
        (("kernel", "precision", "recall", "density", "coverage"), from_pairs, (paired_g, paired_r)),
    ):
        sizes = (len(sides[0]), len(sides[1]))
        values = statistic(*(np.arange(size) for size in sizes))
        spreads = half_sample_spread(statistic, sizes, rng)
        figures |= {n: Figure(float(v), float(s)) for n, v, s in zip(names, values, spreads, strict=True)}
    return figures


def share(hits: NDArray[np.bool_]) -> Figure:
    """A share of images with its standard error (Agresti and Coull 1998, so that 0 of n is not certain)."""
    p = (hits.sum() + 2) / (len(hits) + 4)
    return Figure(float(hits.mean()), float(np.sqrt(p * (1 - p) / (len(hits) + 4))))
