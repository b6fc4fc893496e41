"""What a release guarantees formally: the Gaussian mechanism's figures.

Notation (Dong et al. 2022, "Gaussian differential privacy"): one release of x0 at noise level sigma is a Gaussian
mechanism. Two images in [-1, 1]^d differ by at most Delta = 2 sqrt(d), so it is mu-GDP with mu = Delta / sigma: telling
whether this image or another one was released is at least as hard as telling N(0, 1) from N(mu, 1). k releases of one
image are mu sqrt(k)-GDP. The neighbour relation is "one image replaced".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from ..core.errors import UsageError
from ..core.mechanism import log_delta_of

DELTA = 1e-5
"""The delta at which epsilon is shown."""
BISECTIONS = 200
NORMAL = NormalDist()


def pixel_sensitivity(image_shape: tuple[int, ...]) -> float:
    """2 sqrt(d): the largest Euclidean distance of two images of this shape with values in [-1, 1]."""
    return 2.0 * math.sqrt(math.prod(image_shape))


def gaussian_mu(sensitivity: float, sigma: float, releases: int = 1) -> float:
    """mu of ``releases`` noisy copies at sigma of something with this sensitivity. Raises UsageError."""
    if not sensitivity > 0 or not sigma > 0 or releases < 1:
        raise UsageError(
            f"sensitivity={sensitivity}, sigma={sigma}, releases={releases}; expected positive numbers and at least "
            "one release."
        )
    return sensitivity / sigma * math.sqrt(releases)


def gaussian_epsilon(mu: float, delta: float = DELTA) -> float:
    """The smallest epsilon at which mu-GDP is (epsilon, delta)-private: the tight one, found by bisection.

    Raises UsageError unless mu > 0 and 0 < delta < 1.
    """
    if not (mu > 0 and math.isfinite(mu)) or not 0 < delta < 1:
        raise UsageError(f"mu={mu}, delta={delta}; expected a positive mu and a delta between 0 and 1.")
    goal = math.log(delta)
    # By Chernoff's bound on the privacy loss N(mu^2 / 2, mu^2) epsilon is at most this.
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * goal)
    if log_delta_of(mu, low) <= goal:
        return 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if log_delta_of(mu, middle) > goal:
            low = middle
        else:
            high = middle
    return high


def gaussian_renyi(mu: float, order: float) -> float:
    """Rényi divergence of this order (above 1) of N(0, 1) and N(mu, 1): order mu^2 / 2 (Mironov 2017, table II)."""
    if not order > 1:
        raise UsageError(f"order={order}; a Rényi guarantee has an order above 1.")
    return order * mu * mu / 2


@dataclass(frozen=True)
class Guarantee:
    """One release at sigma, formally. epsilon: tight, at delta; rho: of zero-concentrated privacy, Rényi(a) = a rho."""

    sigma: float
    sensitivity: float
    mu: float
    epsilon: float
    delta: float
    rho: float


def release_guarantee(image_shape: tuple[int, ...], sigma: float, releases: int = 1, delta: float = DELTA) -> Guarantee:
    """What ``releases`` copies of one image [C, H, W] in [-1, 1], noised to sigma, guarantee about that image."""
    sensitivity = pixel_sensitivity(image_shape)
    mu = gaussian_mu(sensitivity, sigma, releases)
    return Guarantee(sigma, sensitivity, mu, gaussian_epsilon(mu, delta), delta, mu * mu / 2)


def most_found(mu: float, false_alarms: float) -> float:
    """The largest share of members that any attack on something mu-GDP finds where it accuses this share of others:
    Phi(Phi^-1(false_alarms) + mu), its trade-off function (Dong et al. 2022, section 2)."""
    return NORMAL.cdf(NORMAL.inv_cdf(false_alarms) + mu)


def most_auc(mu: float) -> float:
    """The largest AUC of any attack on something mu-GDP: Phi(mu / sqrt(2)), the area below that function."""
    return NORMAL.cdf(mu / math.sqrt(2))
