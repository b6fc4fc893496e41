"""Reconstruction: what does the image behind a release look like?

From x0_hat = E[x0 | z], the estimate with the least squared error, under two priors: a Gaussian with the data's own
mean and covariance (the Wiener filter, per label where labels are shared), and the denoisers that the run trained, each
of which is such an estimate by construction. A denoiser is asked once, at the release's level or the lowest it knows;
sampling instead gives sharper pictures that are further from the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .finding import ALARM_Z

Floats = NDArray[np.floating]
PEAK = 2.0
"""The range of pixels in [-1, 1]."""
SSIM_SIDE, SSIM_STD, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
LEAST_OF_A_LABEL = 20
"""A label with fewer images shares the covariance of all."""


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """mean [d], principal directions [r, d] and the variance along each [r]; none along the others."""

    mean: Floats
    directions: Floats
    variances: Floats

    @classmethod
    def fit(cls, x0: Floats) -> GaussianPrior:
        """The mean and covariance of images [N, ...], in float64."""
        flat = x0.reshape(len(x0), -1).astype(np.float64)
        mean = flat.mean(axis=0)
        centred = flat - mean
        if len(flat) > flat.shape[1]:
            variances, directions = np.linalg.eigh(centred.T @ centred / len(flat))
            return cls(mean, directions.T, variances.clip(min=0))
        # With fewer images than values, from the products of images, which has the same variances above 0.
        variances, weights = np.linalg.eigh(centred @ centred.T / len(flat))
        kept = variances > 1e-9 * variances.max()
        directions = (weights[:, kept] / np.sqrt(variances[kept] * len(flat))).T @ centred
        return cls(mean, directions, variances[kept])

    def denoise(self, x: Floats, sigma: float) -> NDArray[np.float32]:
        """E[x0 | x] for x [N, ...] at sigma: mu + C (C + sigma^2 I)^-1 (x - mu)."""
        along = (x.reshape(len(x), -1) - self.mean) @ self.directions.T
        kept = along * (self.variances / (self.variances + sigma**2))
        return (self.mean + kept @ self.directions).reshape(x.shape).astype(np.float32)

    def draw(self, noise: Floats, sigma: float) -> NDArray[np.float32]:
        """Draws from N(mu, C + sigma^2 I), made of standard normal noise [N, ...]: where the same noise ends up that a
        sampler of this prior starts from."""
        along = noise.reshape(len(noise), -1) @ self.directions.T
        grown = along * (np.sqrt(self.variances + sigma**2) - sigma)
        added = (self.mean + grown @ self.directions).reshape(noise.shape)
        return (sigma * noise + added).astype(np.float32)


def wiener(
    z: Floats, sigma: float, known: Floats, known_groups: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Wiener estimates of releases z [M, ...], and the means that they fall back on, both [M, ...].

    known: images [N, ...] that the attacker has of the same kind, with a group each [N], such as its label; groups:
    that of each release [M].
    """
    whole = GaussianPrior.fit(known)
    estimates, means = np.empty(z.shape, np.float32), np.empty(z.shape, np.float32)
    for group in np.unique(groups):
        rows, members = groups == group, known_groups == group
        prior = GaussianPrior.fit(known[members]) if members.sum() >= LEAST_OF_A_LABEL else whole
        estimates[rows] = prior.denoise(z[rows], sigma)
        means[rows] = prior.mean.reshape(z.shape[1:])
    return estimates, means


@dataclass(frozen=True)
class Reconstruction:
    """How near estimates come to the images, as means over images.

    psnr_db, ssim: of the pixels. similarity: cosine of features, None without a feature extractor. gain_db: PSNR above
    that of guessing, see :func:`compare`, with gain_error as its standard error.
    """

    name: str
    psnr_db: float
    ssim: float
    similarity: float | None
    gain_db: float
    gain_error: float

    @property
    def alarm(self) -> bool:
        """Whether the estimates are nearer than guessing, beyond chance."""
        return self.gain_db > ALARM_Z * self.gain_error


Features = Callable[[Floats], Floats]
"""Features [N, F] of images [N, C, H, W] in [-1, 1]."""


def compare(
    x0: Floats,
    estimates: Mapping[str, Floats],
    mean: Floats,
    features: Features | None,
    blind: Mapping[str, Floats] | None = None,
) -> list[Reconstruction]:
    """How near each of the estimates [N, C, H, W] comes to x0, and how much nearer than guessing.

    Guessing is the mean image of each [N, C, H, W]. An estimator that is told more of an image than the mean is, such
    as its text, could beat that without the release; so ``blind`` holds what it makes of another image's release, told
    of this one, and the smaller gain counts.
    """
    blind = blind or {}
    compared = []
    for name, estimate in estimates.items():
        clipped = estimate.clip(-1, 1)
        values = psnr(x0, clipped)
        guesses = [mean, *([blind[name].clip(-1, 1)] if name in blind else [])]
        gains = min((values - psnr(x0, guess) for guess in guesses), key=lambda g: float(g.mean()))
        compared.append(
            Reconstruction(
                name,
                float(values.mean()),
                float(ssim(x0, clipped).mean()),
                None if features is None else float(cosines(features(x0), features(clipped)).mean()),
                float(gains.mean()),
                float(gains.std(ddof=1) / math.sqrt(len(gains))),
            )
        )
    return compared


def psnr(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each pair of images in [-1, 1], [N]."""
    errors = ((a.astype(np.float64) - b) ** 2).reshape(len(a), -1).mean(axis=1)
    return 10 * np.log10(PEAK**2 / np.maximum(errors, 1e-12))


def ssim(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Structural similarity of each pair of images [N, C, H, W] in [-1, 1], the mean over channels, [N].

    Wang et al. 2004 with their Gaussian window (11 wide, standard deviation 1.5) where it lies inside the image; in
    smaller images the window is as wide as the image allows.
    """
    n, channels, height, width = a.shape
    side = min(SSIM_SIDE, *(s - 1 + s % 2 for s in (height, width)))
    steps = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(steps**2) / (2 * SSIM_STD**2))
    window = torch.outer(line / line.sum(), line / line.sum())[None, None]
    x, y = (torch.from_numpy(i.astype(np.float64)).reshape(n * channels, 1, height, width) for i in (a, b))
    mean_x, mean_y, xx, yy, xy = (functional.conv2d(i, window) for i in (x, y, x * x, y * y, x * y))
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    values = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return values.reshape(n, -1).mean(dim=1).numpy()


def cosines(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Cosine of the angle between each pair of features [N, F]; 0 where one of them is 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
