"""Fitting a mixture to one site's images: a row of statistics for each group of a label's images.

EM finds the groups: Gaussians of independent numbers along the label's principal axes, of images noised to FOUND_AT.
An image then counts in one group alone, so that a group's row is what the row of a label is. A group has few images for
its D (D + 1) / 2 covariances, so its covariance S is drawn towards W, the mean of all groups' of its label, scaled to
the same total variance:

    C = S + shrinkage * (W tr S / tr W - S)

The label's own mean and covariance stay what they are, and with one group nothing changes. How far: as far as makes
images likeliest that were not fitted to. ``across_labels``: W is the mean over the groups of all labels instead, which
changes one group's covariance too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from torch import Tensor

from collafuse.core.moments import Array, Basis, moments_of, pool, statistics_of, unpacked
from collafuse.core.statistics import Statement, Statistics
from collafuse.data.imageset import ImageSet
from collafuse.nodes.summary import blocks

from .model import MixtureDenoiser

LEVELS = (4.0, 2.0, 1.0, 0.5, 0.34)
"""Where likelihoods are measured."""
FOUND_AT = 0.34
"""Structure that the noise of the lowest level hides makes no groups."""
LEAST = 20
"""Images in a group; smaller ones are dissolved."""
SHRINKAGES = (0.0, 0.5, 0.75, 0.9, 1.0)
SEED = 0

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """Statistics of groups, and the label of each one's row [R]."""

    file: Statistics
    labels: Rows


def mixture(
    images: ImageSet, coefficients: int, components: int, shrinkage: float, *, across_labels: bool = False
) -> MixtureDenoiser:
    """At most so many Gaussians per label, and one of all images."""
    found = drawn_together(grouped(images, coefficients, components), shrinkage, across_labels=across_labels)
    rows = [(found.file, row) for row in range(len(found.labels))]
    of_labels = [[pool([rows[row]]) for row in np.flatnonzero(found.labels == label)] for label in _each(images)]
    return MixtureDenoiser(Basis(images.image_shape, coefficients), [*of_labels, [pool(rows)]])


def best_shrinkage(
    images: ImageSet,
    coefficients: int,
    components: int,
    *,
    levels: Sequence[float] = LEVELS,
    across_labels: bool = False,
) -> float:
    """The one of SHRINKAGES that makes a fifth of the images likeliest, over these levels, of what four fifths give."""
    if components == 1 and not across_labels:
        return 0.0
    order = np.random.default_rng(SEED).permutation(len(images))
    unseen, fitted = images.take(order[: len(order) // 5]), images.take(order[len(order) // 5 :])
    found = grouped(fitted, coefficients, components)
    found_for = {s: drawn_together(found, s, across_labels=across_labels) for s in SHRINKAGES}
    y, labels = Basis(images.image_shape, coefficients).coefficients(unseen.x0()), _label_of(unseen)
    return max(SHRINKAGES, key=lambda s: _score(found_for[s], y, labels, levels))


def grouped(images: ImageSet, coefficients: int, components: int) -> Groups:
    """The exact statistics of each label's groups."""
    about = Statement(images.image_shape, coefficients)
    basis, label_of = Basis(about.image_shape, coefficients), _label_of(images)
    row_of = np.empty(len(images), dtype=np.int64)
    labels: list[int] = []
    for label in _each(images):
        mine = np.flatnonzero(label_of == label)
        own = groups_of(basis.coefficients(images.take(mine).x0()), components)
        row_of[mine] = len(labels) + own
        labels += [label] * (own.max() + 1)
    moments = moments_of(blocks(images, row_of), about, len(labels))
    names = tuple(f"{images.label_names[label]}, row {row}" for row, label in enumerate(labels))
    return Groups(statistics_of(moments, about, names, simulated=True), np.array(labels))


def groups_of(y: Array, components: int) -> Rows:
    """The group [n] of each of a label's images, by coefficients y [n, D]: at most so many, each of LEAST or more."""
    if components == 1:
        return np.zeros(len(y), dtype=np.int64)
    _, axes = np.linalg.eigh(np.cov(y.T, bias=True))
    noisy = y @ axes + FOUND_AT * np.random.default_rng(SEED).standard_normal(y.shape)
    found = GaussianMixture(components, covariance_type="diag", max_iter=500, random_state=SEED).fit(noisy)
    likely = np.stack([_log_joint(found, noisy, k) for k in range(components)], axis=1)
    kept = np.arange(components)
    while True:
        chosen = likely[:, kept].argmax(axis=1)
        sizes = np.bincount(chosen, minlength=len(kept))
        if sizes.min() >= LEAST or len(kept) == 1:
            return chosen
        kept = np.delete(kept, sizes.argmin())


def _log_joint(found: GaussianMixture, y: Array, k: int) -> Array:
    """log(share N(y)) [n] of one of its Gaussians, but for a constant."""
    variances = found.covariances_[k]
    distance = ((y - found.means_[k]) ** 2 / variances).sum(axis=1)
    likely: Array = np.log(found.weights_[k]) - 0.5 * (distance + np.log(variances).sum())
    return likely


def drawn_together(found: Groups, shrinkage: float, *, across_labels: bool = False) -> Groups:
    """The same groups with C in place of S."""
    covariances = found.file.covariances.astype(np.float64)
    size = found.file.about.dimension
    diagonal = np.concatenate([[0], np.arange(size, 1, -1)]).cumsum()  # of triangles, row by row
    sharing = np.zeros_like(found.labels) if across_labels else found.labels
    for label in np.unique(sharing):
        rows = np.flatnonzero(sharing == label)
        shares = found.file.counts[rows] / found.file.counts[rows].sum()
        own = covariances[rows]
        shared = shares @ own
        scale = own[:, diagonal].sum(axis=1) / shared[diagonal].sum()
        covariances[rows] += shrinkage * (scale[:, None] * shared - own)
    return replace(found, file=replace(found.file, covariances=covariances.astype(np.float32)))


def _score(found: Groups, y: Array, label_of: Rows, levels: Sequence[float]) -> float:
    """The log-likelihood of coefficients y [n, D] noised to each of these levels, in all and but for a constant: by
    Cholesky, which is quicker than the eigenvectors that a denoiser needs."""
    noise = np.random.default_rng(SEED).standard_normal(y.shape)
    total = 0.0
    for label in np.unique(label_of):
        rows, mine = np.flatnonzero(found.labels == label), label_of == label
        shares = found.file.counts[rows] / found.file.counts[rows].sum()
        parts = [_log_likelihoods(found.file, row, y[mine], noise[mine], levels) for row in rows]
        total += float((torch.stack(parts) + torch.from_numpy(shares).log()[:, None, None]).logsumexp(dim=0).sum())
    return total


def _log_likelihoods(file: Statistics, row: int, y: Array, noise: Array, levels: Sequence[float]) -> Tensor:
    """[levels, n] of one row's Gaussian."""
    covariance = torch.from_numpy(unpacked(file.covariances[row : row + 1], y.shape[1])[0])
    found = []
    for sigma in levels:
        root = torch.linalg.cholesky(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
        away = torch.from_numpy((y + sigma * noise - file.means[row]).T)
        along = torch.linalg.solve_triangular(root, away, upper=False)
        found.append(-0.5 * along.square().sum(dim=0) - root.diagonal().log().sum())
    return torch.stack(found)


def _label_of(images: ImageSet) -> Rows:
    labels: Rows = images.labels.argmax(axis=1)
    return labels


def _each(images: ImageSet) -> range:
    return range(len(images.label_names))
