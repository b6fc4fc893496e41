"""A small world to attack: blobs that differ, released as a site releases, and what a careless one would send."""

from __future__ import annotations

import numpy as np

from collafuse.data.imageset import ImageSet, digests_of
from collafuse.evaluation.attacks.exposure import Exposure

SIDE = 8


def blobs(count: int, seed: int = 0, labels: int = 2) -> ImageSet:
    """Smooth grey images [count, 1, 8, 8], each different: a bright blob somewhere, in the upper half for label 0."""
    rng = np.random.default_rng(seed)
    kind = np.arange(count) % labels
    y, x = np.mgrid[:SIDE, :SIDE]
    row = (kind + rng.uniform(0.1, 0.9, count)) * SIDE / labels
    column, width = rng.uniform(0, SIDE, count), rng.uniform(1.0, 2.5, count)
    apart = (y - row[:, None, None]) ** 2 + (x - column[:, None, None]) ** 2
    pixels = np.rint(255 * np.exp(-apart / width[:, None, None] ** 2)).astype(np.uint8)[:, None]
    pixels[:, 0, 0, 0] = rng.integers(0, 256, count)
    return ImageSet(pixels, np.eye(labels, dtype=np.uint8)[kind], tuple("ab")[:labels], digests_of(pixels))


def noised(images: ImageSet, sigma: float, seed: int = 1) -> np.ndarray:
    """One release of each image, in half precision."""
    noise = np.random.default_rng(seed).standard_normal(images.pixels.shape)
    return (images.x0() + sigma * noise).astype(np.float16).astype(np.float32)


def exposure(sigma: float = 1.0, count: int = 300, z: np.ndarray | None = None) -> Exposure:
    """A site of blobs that released each once at sigma, or sent ``z`` and says that it is at sigma."""
    images, held_out = blobs(count), blobs(100, seed=9)
    return Exposure("north", images, held_out, noised(images, sigma) if z is None else z, sigma, True)


def pure_noise(sigma: float = 1.0, count: int = 300) -> Exposure:
    """A site whose release tells nothing: images of nothing but grey, sent as noise."""
    return exposure(sigma, count, z=noised(blobs(count, seed=77), sigma, seed=5))
