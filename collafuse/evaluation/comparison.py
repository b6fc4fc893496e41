"""Generated images against real ones: every figure with its spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifolds import coverage, density, distances, precision, recall
from .quality import Features, Strata, cubic_kernel, frechet_distance, kernel_distance

RESAMPLES = 20
MOST_PAIRED = 2_000
"""Figures that look at all pairs use the first so many images of each side."""

FEWEST_IN_STRATUM = 6
SAME_SHARE = 0.02
"""Shares of a label that differ by less are one mix: images are whole."""

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
    statistic: Callable[[Rows, Rows], NDArray[np.float64]], strata: tuple[Strata, Strata], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Standard deviation of statistics of two samples, each computed again and again on half of both.

    Halves are drawn without replacement, since an image that occurs twice has a neighbour at distance 0 and pulls
    every figure here. For a mean over n images, half-samples vary by s^2 / (n/2) - s^2 / n = s^2 / n, which is the
    variance of the whole sample's mean (McCarthy 1969); so the spread needs no correction. A distance between samples
    that are nearly alike is no mean: chance in it falls with n and not with its root, so halves vary by more than their
    share and the spread comes out too large. Half of every stratum is
    drawn: where both sides were made with one mix of labels, how the mix might have fallen is no part of the spread.
    """
    halves = [statistic(*(half_of(side, rng) for side in strata)) for _ in range(RESAMPLES)]
    return np.std(halves, axis=0, ddof=1)


def half_of(strata: Strata, rng: np.random.Generator) -> Rows:
    """Half of the rows of a sample, and half of each stratum as nearly as it goes."""
    by_stratum = np.lexsort((rng.random(len(strata)), strata))
    return np.sort(by_stratum[rng.integers(2) :: 2])


def compare(
    generated: Features, real: Features, strata: tuple[Strata, Strata], rng: np.random.Generator
) -> dict[str, Figure]:
    """Fréchet and kernel distance, precision, recall, density and coverage of features [N, F] against [M, F].

    strata: [N] and [M], a number for the label of each image; heeded where both sides have one mix of them.
    """
    strata = strata if one_mix(*strata) else (np.zeros_like(strata[0]), np.zeros_like(strata[1]))
    paired_g, paired_r = generated[:MOST_PAIRED], real[:MOST_PAIRED]
    pairs = ((paired_g, paired_g), (paired_r, paired_r), (paired_g, paired_r))
    kernels, apart = ([function(a, b) for a, b in pairs] for function in (cubic_kernel, distances))

    def from_pairs(g: Rows, r: Rows) -> NDArray[np.float64]:
        of = ((g, g), (r, r), (g, r))
        gg, rr, gr = (matrix[np.ix_(*rows)] for matrix, rows in zip(apart, of, strict=True))
        within_g, within_r, across = (matrix[np.ix_(*rows)] for matrix, rows in zip(kernels, of, strict=True))
        mmd = kernel_distance(within_g, within_r, across, (strata[0][g], strata[1][r]))
        return np.array([mmd, precision(rr, gr), recall(gg, gr), density(rr, gr), coverage(rr, gr)])

    def from_all(g: Rows, r: Rows) -> NDArray[np.float64]:
        return np.array([frechet_distance(generated[g], real[r])])

    figures: dict[str, Figure] = {}
    paired = (strata[0][:MOST_PAIRED], strata[1][:MOST_PAIRED])
    for names, statistic, of in (
        (("frechet",), from_all, strata),
        (("kernel", "precision", "recall", "density", "coverage"), from_pairs, paired),
    ):
        values = statistic(*(np.arange(len(side)) for side in of))
        spreads = half_sample_spread(statistic, of, rng)
        figures |= {n: Figure(float(v), float(s)) for n, v, s in zip(names, values, spreads, strict=True)}
    return figures


def one_mix(a: Strata, b: Strata) -> bool:
    """Whether both samples hold the same strata in the same shares, with enough of each that a half has two."""
    (in_a, of_a), (in_b, of_b) = (np.unique(side[:MOST_PAIRED], return_counts=True) for side in (a, b))
    if not np.array_equal(in_a, in_b) or min(of_a.min(), of_b.min()) < FEWEST_IN_STRATUM:
        return False
    return bool(np.allclose(of_a / of_a.sum(), of_b / of_b.sum(), atol=SAME_SHARE))


def share(hits: NDArray[np.bool_]) -> Figure:
    """A share of images with its standard error (Agresti and Coull 1998, so that 0 of n is not certain)."""
    p = (hits.sum() + 2) / (len(hits) + 4)
    return Figure(float(hits.mean()), float(np.sqrt(p * (1 - p) / (len(hits) + 4))))
