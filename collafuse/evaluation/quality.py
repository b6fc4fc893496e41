"""Figures of quality: Fréchet distance and nearest neighbours, on features or pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Squared Fréchet distance between Gaussians fitted to features a [N, F] and b [M, F] (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64. It falls with more samples, so compare only
    figures with the same N and M, and beside the distance of real images to real ones.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real and at least 0.
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum())


def nearest_distances(images: NDArray[np.uint8], others: NDArray[np.uint8], chunk: int = 256) -> NDArray[np.float64]:
    """Euclidean distance [N] of each image's pixels to the nearest of the others, in grey levels."""
    b = others.reshape(len(others), -1).astype(np.float64)
    squares = (b**2).sum(axis=1)
    parts = []
    for start in range(0, len(images), chunk):
        a = images[start : start + chunk].reshape(len(images[start : start + chunk]), -1).astype(np.float64)
        squared = (a**2).sum(axis=1, keepdims=True) + squares - 2 * a @ b.T
        parts.append(np.sqrt(squared.min(axis=1).clip(min=0)))
    return np.concatenate(parts)
