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

    Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), for mu > 0.
    """
    return math.exp(log_delta_of(mu, epsilon))


def log_delta_of(mu: float, epsilon: float) -> float:
    """ln of :func:`delta_of`, also where both of its terms overflow or vanish; -inf for a delta of 0."""
    first, second = _log_normal_cdf(mu / 2 - epsilon / mu), epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu)
    return first + math.log1p(-math.exp(second - first)) if second < first else -math.inf


def _log_normal_cdf(x: float) -> float:
    if x > -10:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    # Phi(x) = phi(x) / |x| (1 - 1/x^2 + 3/x^4 - 15/x^6 + 105/x^8 - ...); what is left out is below 1e-7 here.
    inverse = 1 / (x * x)
    series = -inverse * (1 - 3 * inverse * (1 - 5 * inverse * (1 - 7 * inverse)))
    return -x * x / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(series)
