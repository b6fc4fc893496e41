"""The Gaussian mechanism: how much noise makes a sum of bounded vectors private for a budget.

Notation (Balle and Wang 2018; Dong et al. 2022): noise N(0, s^2 I) on something that one image changes by at most
Delta is mu-GDP with mu = Delta / s, and (epsilon, delta)-private for every delta that :func:`delta_of` gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ConfigError

MAX_EPSILON = 100.0
"""A larger one promises nothing that a person could use, and its delta cannot be told from 0 in floating point."""
MIN_DELTA = 1e-12
BISECTIONS = 100


@dataclass(frozen=True)
class Budget:
    """What a release may tell of one image: (epsilon, delta)-privacy. Raises ConfigError outside (0, MAX_EPSILON] and
    [MIN_DELTA, 0.1]."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= MAX_EPSILON or not MIN_DELTA <= self.delta <= 0.1:
            raise ConfigError(
                f"a budget of epsilon={self.epsilon:g}, delta={self.delta:g}; expected an epsilon above 0 and at most "
                f"{MAX_EPSILON:g}, and a delta from {MIN_DELTA:g} to 0.1, well below one over the number of images."
            )

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the sensitivity: the smallest that keeps the budget, by bisection."""
        low, high = 0.0, 1.0  # of mu, of which delta is an increasing function
        while delta_of(high, self.epsilon) <= self.delta:
            low, high = high, 2 * high
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if delta_of(middle, self.epsilon) <= self.delta else (low, middle)
        return 1 / low

    def describe(self) -> str:
        """For people."""
        return f"epsilon {self.epsilon:g}, delta {self.delta:g}"


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta at which mu-GDP is (epsilon, delta)-private (Balle and Wang 2018, theorem 8).

    Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), for mu > 0 and 0 < epsilon <= MAX_EPSILON.
    """
    return _normal_cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * _normal_cdf(-mu / 2 - epsilon / mu)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
