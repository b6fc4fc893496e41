"""Denoisers in closed form, on NumPy arrays and torch tensors alike: what a perfect network would answer.

Both compute in float64 and answer in x's own type, so that what differs between two runs is the sampler.
sigma is a float or one level per image [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def _double(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double()


def _as_type_of(x: Any, value: Any) -> Any:
    return value.astype(x.dtype) if isinstance(x, np.ndarray) else value.to(x.dtype)


def _constant(x: Any, value: np.ndarray) -> Any:
    """value as float64 in x's kind of array."""
    return value if isinstance(x, np.ndarray) else x.new_tensor(value, dtype=_double(x).dtype)


def _per_image(sigma: Any) -> Any:
    """sigma as something that multiplies [N, d]."""
    return _double(sigma).reshape(-1, 1) if getattr(sigma, "ndim", 0) else float(sigma)


def _softmax(logits: Any) -> Any:
    """Over the last of two axes."""
    highest = (logits.max(-1) if isinstance(logits, np.ndarray) else logits.amax(-1)).reshape(-1, 1)
    weights = np.exp(logits - highest) if isinstance(logits, np.ndarray) else (logits - highest).exp()
    return weights / weights.sum(-1).reshape(-1, 1)


@dataclass(frozen=True)
class GaussianMixture:
    """x0 ~ sum_k weights[k] N(means[k], std^2 I), with means [K, *image shape]."""

    means: np.ndarray
    weights: Sequence[float]
    std: float

    def __call__(self, x: Any, sigma: Any) -> Any:
        """E[x0 | x]: each component's own estimate, weighted by how likely it made x."""
        level = _per_image(sigma)
        variance = self.std**2 + level * level  # of x around a component's mean
        means = _constant(x, self.means.reshape(len(self.means), -1))  # [K, d]
        apart = _double(x).reshape(len(x), 1, -1) - means  # [N, K, d]
        logits = -0.5 * (apart * apart).sum(-1) / variance + _constant(x, np.log(np.asarray(self.weights)))
        share = _softmax(logits).reshape(len(x), -1, 1)
        x0_hat = (share * means).sum(1) + self.std**2 / variance * (share * apart).sum(1)
        return _as_type_of(x, x0_hat.reshape(x.shape))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Clean images [count, *image shape], float64."""
        component = rng.choice(len(self.means), size=count, p=np.asarray(self.weights))
        return self.means[component] + self.std * rng.standard_normal((count, *self.means.shape[1:]))


@dataclass(frozen=True)
class LinearGaussian:
    """x0 ~ N(mean, variance), each entry on its own: the case in which every sampler has an exact answer."""

    mean: float
    variance: float

    def __call__(self, x: Any, sigma: Any) -> Any:
        level = _per_image(sigma)
        flat = _double(x).reshape(len(x), -1)
        x0_hat = self.mean + self.variance / (self.variance + level * level) * (flat - self.mean)
        return _as_type_of(x, x0_hat.reshape(x.shape))

    def flow(self, x: Any, sigma: float, sigma_next: float) -> Any:
        """Where the probability flow takes x from sigma to sigma_next (Karras et al. 2022, eq. 1), exactly."""
        return self.mean + (x - self.mean) * ((self.variance + sigma_next**2) / (self.variance + sigma**2)) ** 0.5


def four_digits(side: int = 4) -> GaussianMixture:
    """A mixture of four images [1, side, side] with unequal weights, narrow beside their distances."""
    means = np.random.default_rng(2024).uniform(-0.9, 0.9, size=(4, 1, side, side))
    return GaussianMixture(means, (0.4, 0.3, 0.2, 0.1), std=0.1)
