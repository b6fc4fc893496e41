"""Moments of images: counts, sums and second moments in a public basis, with noise for a budget; pooled over sites.

The basis is the orthonormal two-dimensional cosine transform (DCT-II) of each channel, its lowest frequencies first. It
is known beforehand, so choosing it tells nothing about anyone's images, unlike principal components.

Privacy. An image's coefficients y, scaled down to a norm of at most R = clip * sqrt(C H W), give u = y / R, and the
image adds the vector (a, sqrt(2 a) u, u u^T), of norm at most 1 + a, to the sums of its one label. Two such vectors of
one label have the inner product (a + u . u')^2, of two labels 0: never negative. So putting another image, with
whatever label, in the place of one changes all sums together by at most sqrt(2) (1 + a) in Euclidean norm, and one
Gaussian mechanism covers them all. Which labels there are must not depend on the images: noise hides a label's count,
not that the label has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .mechanism import Budget
from .noise import Noise
from .statistics import Statement, Statistics, most_coefficients

COUNT_WEIGHT = 0.25
"""a above. At 1/4 a count carries four times the noise of a second moment's diagonal, which thousands of images can
afford, and second moments, which are many, carry 5/8 of what they would with a = 1."""
FULL_UP_TO = 768
"""Images of up to so many values (16x16 in colour) are described in full unless told otherwise."""

Array = NDArray[np.float64]


def default_coefficients(image_shape: Sequence[int]) -> int:
    """Coefficients per channel for images [C, H, W]: all up to FULL_UP_TO values, else as many as that allows."""
    channels, height, width = image_shape
    return min(height * width, FULL_UP_TO // channels)


def sensitivity() -> float:
    """How much one image changes all weighted sums together, in Euclidean norm."""
    return math.sqrt(2) * (1 + COUNT_WEIGHT)


class Basis:
    """The ``coefficients`` lowest frequencies of each channel of images [C, H, W]. Raises ConfigError for too many."""

    def __init__(self, image_shape: Sequence[int], coefficients: int) -> None:
        channels, height, width = image_shape
        most = most_coefficients(image_shape)
        if not 1 <= coefficients <= most:
            raise ConfigError(
                f"coefficients={coefficients}; images of shape {list(image_shape)} are described by 1 to {most} of "
                "each channel."
            )
        self.image_shape = (channels, height, width)
        self.dimension = channels * coefficients
        frequency = (np.arange(height)[:, None] / height) ** 2 + (np.arange(width) / width) ** 2
        v, h = np.unravel_index(np.argsort(frequency, axis=None, kind="stable")[:coefficients], frequency.shape)
        waves = _cosines(height)[v][:, :, None] * _cosines(width)[h][:, None, :]
        self.matrix: Array = waves.reshape(coefficients, height * width)
        """[coefficients, H * W], orthonormal rows."""

    def coefficients(self, x: NDArray[np.floating]) -> Array:
        """[N, D] of images [N, C, H, W]."""
        planes = x.reshape(len(x), self.image_shape[0], -1).astype(np.float64)
        y: Array = (planes @ self.matrix.T).reshape(len(x), self.dimension)
        return y

    def images(self, y: Array) -> Array:
        """Images [N, C, H, W] of coefficients [N, D]; higher frequencies are 0."""
        return (y.reshape(len(y), self.image_shape[0], -1) @ self.matrix).reshape(len(y), *self.image_shape)


def _cosines(size: int) -> Array:
    """The orthonormal DCT-II [frequency, position]."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None]
    waves = np.cos(math.pi * (position + 0.5) * frequency / size) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


@dataclass(frozen=True, eq=False)
class Moments:
    """Per label: counts [L], sums of coefficients [L, D], sums of their products [L, D, D]."""

    counts: Array
    sums: Array
    products: Array


def radius(about: Statement) -> float | None:
    """R, the largest norm of an image's coefficients that counts in full; None where nothing is clipped."""
    return None if about.clip is None else about.clip * math.sqrt(math.prod(about.image_shape))


def moments_of(
    blocks: Iterable[tuple[NDArray[np.floating], NDArray[np.integer]]], about: Statement, num_labels: int
) -> Moments:
    """The exact moments of images: blocks of x0 [n, C, H, W] in [-1, 1] with the row of each one's label [n].

    With a clip, images whose coefficients are longer than R are scaled down to it.
    """
    basis, limit = Basis(about.image_shape, about.coefficients), radius(about)
    size = basis.dimension
    total = Moments(np.zeros(num_labels), np.zeros((num_labels, size)), np.zeros((num_labels, size, size)))
    for x0, labels in blocks:
        y = basis.coefficients(x0)
        if limit is not None:
            y *= np.minimum(1, limit / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-300))
        for label in np.unique(labels):
            mine = y[labels == label]
            total.counts[label] += len(mine)
            total.sums[label] += mine.sum(axis=0)
            total.products[label] += mine.T @ mine
    return total


def noised(moments: Moments, about: Statement, noise: Noise) -> Moments:
    """Moments that keep the budget of ``about``: one Gaussian mechanism over all of them; see the module's text.

    ``noise`` draws it; a site passes :func:`collafuse.core.noise.system_noise`.
    """
    of_counts, of_sums, of_products = noise_deviations(about)
    labels, size = moments.sums.shape
    triangle = np.asarray(noise((labels, size * (size + 1) // 2)), dtype=np.float64)
    # A product off the diagonal stands twice in the norm of u u^T, so it needs less noise by the root of 2.
    products = unpacked(triangle, size) / math.sqrt(2)
    products[:, np.arange(size), np.arange(size)] *= math.sqrt(2)
    return Moments(
        moments.counts + of_counts * noise((labels,)),
        moments.sums + of_sums * noise((labels, size)),
        moments.products + of_products * products,
    )


def noise_deviations(about: Statement) -> tuple[float, float, float]:
    """Standard deviations of the noise that the budget of ``about`` puts on a count, on a sum of coefficients and on a
    sum of their squares; a sum of products of two of them carries 1 / sqrt(2) of the last."""
    limit = radius(about)
    assert about.budget is not None and limit is not None
    scale, weight = _noise_scale(about.budget), COUNT_WEIGHT
    return scale / weight, limit * scale / math.sqrt(2 * weight), limit**2 * scale


def _noise_scale(budget: Budget) -> float:
    return budget.noise_multiplier * sensitivity()


def statistics_of(
    moments: Moments, about: Statement, label_names: tuple[str, ...] | None, *, simulated: bool
) -> Statistics:
    """Counts, means and covariances as they travel. Every count must be above 0."""
    counts = moments.counts[:, None]
    means = moments.sums / counts
    covariances = moments.products / counts[..., None] - means[:, :, None] * means[:, None, :]
    packed = packed_triangle(covariances).astype(np.float32)
    return Statistics(about, moments.counts, means.astype(np.float32), packed, label_names, simulated)


def packed_triangle(matrices: Array) -> Array:
    """The upper triangles [L, D (D + 1)/2] of symmetric matrices [L, D, D], row by row."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[:, rows, columns]


def unpacked(triangles: NDArray[np.floating], size: int) -> Array:
    """The symmetric matrices [L, D, D] of :func:`packed_triangle`."""
    rows, columns = np.triu_indices(size)
    matrices = np.empty((len(triangles), size, size))
    matrices[:, rows, columns] = triangles
    matrices[:, columns, rows] = triangles
    return matrices


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution of coefficients: how many images it was fitted to, mean [D], and covariance as eigenvalues
    [D], none below 0, with eigenvectors in the columns of [D, D]."""

    count: float
    mean: Array
    eigenvalues: Array
    eigenvectors: Array


def pool(parts: Sequence[tuple[Statistics, int]]) -> Gaussian:
    """The Gaussian with the moments of all images of some rows of some files: the union's, exactly, without noise.

    With noise, eigenvalues that the noise alone could have made are taken as 0: below 2 t sqrt(D), where t is the
    standard deviation of the noise on a covariance's entry (the edge of the semicircle law); and those below 0 always.
    """
    size = parts[0][0].about.dimension
    total = sum(float(file.counts[row]) for file, row in parts)
    mean, second, variance = np.zeros(size), np.zeros((size, size)), 0.0
    for file, row in parts:
        share, own = float(file.counts[row]) / total, file.means[row].astype(np.float64)
        mean += share * own
        second += share * (unpacked(file.covariances[row : row + 1], size)[0] + np.outer(own, own))
        if file.about.budget is not None:
            variance += (noise_deviations(file.about)[2] / math.sqrt(2) / total) ** 2
    eigenvalues, eigenvectors = np.linalg.eigh(second - np.outer(mean, mean))
    edge = 2 * math.sqrt(variance * size)
    return Gaussian(total, mean, np.where(eigenvalues > edge, eigenvalues, 0.0).clip(min=0.0), eigenvectors)
