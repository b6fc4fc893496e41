"""Memorisation: does what is generated, or delivered, repeat what was trained on?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .finding import ALARM_P, ALARM_Z, division_error, normal_tail

Floats = NDArray[np.floating]
COPY_RATIO = 1 / 3
"""A generated image this much nearer to its nearest image than to the second is a copy (Yoon et al. 2023)."""


@dataclass(frozen=True)
class Nearest:
    """Whether generated images lie nearer to training images than to held-out ones of the same kind.

    share: of generated images whose nearest image is a training image; expected: what it is if the model does not know
    which images those were, since that division was drawn at random; deviate: how far above, in standard deviations.
    copies: the share of generated images that are copies of one training image; copies_deviate: how far above the share
    of copies of a held-out image, in standard deviations, since images of few dimensions, such as discs, are copies by
    chance.
    """

    generated: int
    share: float
    expected: float
    deviate: float
    copies: float
    copies_of_held_out: float
    copies_deviate: float

    @property
    def alarm(self) -> bool:
        """Whether the model repeats training images, beyond chance."""
        return self.deviate > ALARM_Z or self.copies_deviate > ALARM_Z


def nearest_images(
    generated: Floats,
    train: Floats,
    held_out: Floats,
    groups: NDArray[np.generic] | None = None,
    mirrored: bool = False,
) -> Nearest:
    """Compare generated images [G, ..., W] with training [M, ..., W] and held-out images [N, ..., W] in pixels.

    groups: what each of them belongs to [M + N], such as a patient, where whole groups were held out. mirrored: whether
    the training mirrored its images, so that a mirror image repeats one too.
    """
    both = np.concatenate([train, held_out])
    rows, _ = _nearest_two(generated, both, mirrored)
    of_training = rows < len(train)
    # Under the null the two parts are a random division of all images, so the share is a sum without replacement.
    weights = np.bincount(rows, minlength=len(both)) / len(generated)
    expected, share = len(train) / len(both), float(of_training.mean())
    error = division_error(weights - 1 / len(both), len(train), groups)
    deviate = (share - expected) / error if error > 0 else 0.0
    of_one, of_held_out = (_copies(generated, part, mirrored) for part in (train, held_out))
    # Under the null either is as likely. Copies of one image fall together, so each image counts by its copies squared.
    apart = of_one.sum() - of_held_out.sum()
    copies_deviate = float(apart / math.sqrt(max(1, (of_one**2).sum() + (of_held_out**2).sum())))
    copies, copies_of_held_out = (float(found.sum() / len(generated)) for found in (of_one, of_held_out))
    return Nearest(len(generated), share, expected, deviate, copies, copies_of_held_out, copies_deviate)


def _copies(generated: Floats, others: Floats, mirrored: bool) -> NDArray[np.int64]:
    """How many of the generated images are copies of each of the others [N]."""
    rows, ratios = _nearest_two(generated, others, mirrored)
    return np.bincount(rows[ratios < COPY_RATIO], minlength=len(others))


def _nearest_two(images: Floats, others: Floats, mirrored: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest row of others for each image [G], and its distance over that of the second nearest; ``mirrored``:
    where the image or its mirror image is nearer."""
    squared = _squared_distances(images, others)
    if mirrored:
        squared = np.minimum(squared, _squared_distances(images[..., ::-1], others))
    rows = squared.argmin(axis=1)
    two = np.sqrt(np.partition(squared, 1, axis=1)[:, :2].clip(min=0))
    return rows, two[:, 0] / np.maximum(two[:, 1], 1e-9)


def _squared_distances(images: Floats, others: Floats) -> NDArray[np.float64]:
    a, b = (i.reshape(len(i), -1).astype(np.float64) for i in (images, others))
    return (a**2).sum(axis=1, keepdims=True) + (b**2).sum(axis=1) - 2 * a @ b.T


@dataclass(frozen=True)
class Repeated:
    """The noise of stored releases in delivered intermediates.

    correlation: the highest found; explained: how often chance alone gives one so high among all pairs.
    """

    delivered: int
    correlation: float
    explained: float

    @property
    def alarm(self) -> bool:
        """Whether an intermediate repeats a stored release's own noise."""
        return self.explained < ALARM_P


def repeated_noise(delivered: Floats, z: Floats, x0: Floats, mirrored: bool = False) -> Repeated:
    """Look for the noise of each release z [N, ..., W] of x0 in each delivered intermediate [M, ..., W].

    mirrored: in its mirror image too, since the server mirrored what it learned from.

    A release's noise is like no other. (x - x0_j) . n_j / |x - x0_j| is standard normal for an intermediate x that was
    made without knowing n_j, at whatever level, and |n_j|, about sqrt(d), for one that is the release; divided by that,
    a correlation.
    """
    seen = np.concatenate([delivered, delivered[..., ::-1]]) if mirrored else delivered
    x, clean = seen.reshape(len(seen), -1).astype(np.float64), x0.reshape(len(x0), -1).astype(np.float64)
    noise = z.reshape(len(z), -1) - clean
    noise /= noise.std()
    apart = (x**2).sum(axis=1, keepdims=True) + (clean**2).sum(axis=1) - 2 * x @ clean.T
    products = x @ noise.T - (clean * noise).sum(axis=1)
    deviates = products / np.sqrt(apart.clip(min=1e-12))
    highest = float(deviates.max())
    return Repeated(len(delivered), highest / math.sqrt(x.shape[1]), min(1.0, deviates.size * normal_tail(highest)))
