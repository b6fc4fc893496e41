"""Figures of quality: Fréchet and kernel distance and nearest neighbours, on features or pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..core.rows import FileRows

Features = NDArray[np.float64]
"""Features of images [N, F]."""
Strata = NDArray[np.int64]
"""A number for the label of each image [N]."""


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Squared Fréchet distance between Gaussians fitted to features a [N, F] and b [M, F] (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64. It falls with more samples, so compare only
    figures with the same N and M, and beside the distance of real images to real ones.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    # C_a C_b has the eigenvalues of R C_b R with R the root of C_a, which is symmetric: faster, and real for certain.
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum())


def cubic_kernel(a: Features, b: Features) -> Features:
    """(x . y / F + 1)^3 [N, M] for features a [N, F] and b [M, F], the kernel of KID."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(
    within_a: Features, within_b: Features, across: Features, strata: tuple[Strata, Strata] | None = None
) -> float:
    """Squared maximum mean discrepancy, the unbiased estimate (Gretton et al. 2012, eq. 3), from kernels between all
    pairs: within_a [N, N], within_b [M, M], across [N, M]. With :func:`cubic_kernel` on Inception features it is KID
    (Binkowski et al. 2018). It may be negative; its mean does not depend on N and M.

    strata: [N] and [M], where both sides were drawn with one mix of strata and at least two of each.
    """
    of_a, of_b = strata or (np.zeros(len(within_a), dtype=np.int64), np.zeros(len(within_b), dtype=np.int64))
    return float(_mean_of_pairs(within_a, of_a) + _mean_of_pairs(within_b, of_b) - 2 * across.mean())


def _mean_of_pairs(kernel: Features, strata: Strata) -> float:
    """Mean over pairs of different images. An image is left out of its own stratum alone, so each two strata weigh as
    their shares do: otherwise a mix that is fixed, not drawn, would look as if the sides came nearer."""
    member = np.equal.outer(np.unique(strata), strata).astype(np.float64)
    counts = member.sum(axis=1)
    sums = member @ kernel @ member.T - np.diag(member @ np.diag(kernel))
    shares = counts / counts.sum()
    return float(shares @ (sums / (np.outer(counts, counts) - np.diag(counts))) @ shares)


def nearest_distances(
    images: NDArray[np.uint8] | FileRows, others: NDArray[np.uint8] | FileRows
) -> NDArray[np.float64]:
    """Euclidean distance [N] of each image's pixels to the nearest of the others, in grey levels."""
    return nearest(images, others)[1]


def nearest(
    images: NDArray[np.uint8] | FileRows, others: NDArray[np.uint8] | FileRows, chunk: int = 1024
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The row of the other that is nearest to each image [N], and how far its pixels are [N], in grey levels.

    The others are read ``chunk`` at a time: they may be more than memory holds.
    """
    a = _flat(images[:])
    own = (a**2).sum(axis=1)
    rows, nearest_yet = np.zeros(len(a), dtype=np.int64), np.full(len(a), np.inf)
    for start in range(0, len(others), chunk):
        b = _flat(others[start : start + chunk])
        squared = own[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        row = squared.argmin(axis=1)
        distance = squared[np.arange(len(a)), row]
        nearer = distance < nearest_yet
        rows[nearer], nearest_yet[nearer] = start + row[nearer], distance[nearer]
    return rows, np.sqrt(nearest_yet.clip(min=0))


def _flat(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1).astype(np.float64)
