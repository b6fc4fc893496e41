"""Re-identification: which image of a gallery is this release of?

The matched filter picks the gallery image g that maximises <z, g> - |g|^2 / 2, which is the one nearest to z. The noise
of a release is white, so this is the most likely image, and where the released image is in the gallery no other rule is
right more often. (Whitening by the data's covariance, the optimal linear filter against *coloured* noise, is worse
here.) The attacker is one who holds candidates and asks which of them was sent: an insider, a hospital's other
archive, a scraped album.

k fresh copies of an image are worth exactly one copy at sigma / sqrt(k): their mean is a sufficient statistic.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .finding import Share

GALLERY = 1_000
"""Images in the gallery where the data has so many, so that figures can be compared."""
COPIES = (1, 10, 450)
"""How many copies of each image: one, as here; ten; and about as many as the reference's default run sends."""
CHUNK = 512


def matched_filter(z: NDArray[np.floating], gallery: NDArray[np.floating]) -> NDArray[np.int64]:
    """The row of the gallery [N, ...] that each release z [M, ...] fits best, [M]."""
    flat = gallery.reshape(len(gallery), -1).astype(np.float32)
    half_norms = 0.5 * (flat.astype(np.float64) ** 2).sum(axis=1)
    rows = [
        (part.reshape(len(part), -1).astype(np.float32) @ flat.T - half_norms).argmax(axis=1)
        for part in np.array_split(z, math.ceil(len(z) / CHUNK))
    ]
    return np.concatenate(rows)


def reidentified(z: NDArray[np.floating], truth: NDArray[np.int64], gallery: NDArray[np.floating]) -> Share:
    """How many releases are matched with their own image, whose row in the gallery is ``truth`` [M].

    Where several gallery images are equal, any of them counts: they are one image.
    """
    found = matched_filter(z, gallery)
    flat = gallery.reshape(len(gallery), -1)
    hits = (found == truth) | (flat[found] == flat[truth]).all(axis=1)
    return Share(int(hits.sum()), len(z), 1 / len(gallery))


def reidentified_at(
    gallery: NDArray[np.floating], attacked: int, sigma: float, rng: np.random.Generator, copies: int = 1
) -> Share:
    """The same for releases of the gallery's first images, simulated at sigma, with so many copies of each."""
    x0 = gallery[:attacked]
    z = x0 + sigma / math.sqrt(copies) * rng.standard_normal(x0.shape, dtype=np.float32)
    return reidentified(z, np.arange(attacked), gallery)
