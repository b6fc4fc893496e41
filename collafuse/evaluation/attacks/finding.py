"""What an attack found, how sure it is, and when that is an alarm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHOWN_Z = 1.96
"""Intervals that are shown hold 95 % of cases."""
ALARM_P = 1e-5
"""An alarm is something that chance does less often than this. An audit asks some tens of questions; with this bound
one in thousands of harmless runs is accused of something."""
ALARM_Z = 4.26
"""The same for a normal deviate, one-sided."""


@dataclass(frozen=True)
class Share:
    """hits of count, such as images that were recognised; chance: the share that guessing gets."""

    hits: int
    count: int
    chance: float

    @property
    def value(self) -> float:
        """The share itself."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson 1927), which holds for 0 and for all of them too."""
        p, n, z = self.value, self.count, SHOWN_Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # The share lies within it, also where rounding says otherwise: of none or all of them it is one of its ends.
        return max(0.0, min(middle - half, p)), min(1.0, max(middle + half, p))

    @property
    def alarm(self) -> bool:
        """Whether guessing gets so many with a probability below ALARM_P."""
        return binomial_tail(self.hits, self.count, self.chance) < ALARM_P

    def shown(self) -> str:
        """As in a table: 94.1% (92.5-95.4)."""
        low, high = self.interval
        return f"{self.value:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def binomial_tail(hits: int, count: int, chance: float) -> float:
    """The probability of at least so many hits of ``count`` independent guesses."""
    if hits <= 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    log_n = math.lgamma(count + 1)
    terms = (
        log_n
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(chance)
        + (count - k) * math.log1p(-chance)
        for k in range(hits, count + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))


def division_error(values: NDArray[np.floating], first: int, groups: NDArray[np.generic] | None = None) -> float:
    """Standard deviation of the sum of the first of values [N], whose mean is 0, had chance chosen so many.

    groups: what each value belongs to [N], where whole groups were chosen, such as patients, whose images are alike:
    then there are as many draws as groups. 0 where there is one draw.
    """
    sums = values if groups is None else np.bincount(np.unique(groups, return_inverse=True)[1], weights=values)
    count, share = len(sums), first / len(values)
    return math.sqrt(share * (1 - share) * count / (count - 1) * float((sums**2).sum())) if count > 1 else 0.0


def normal_tail(z: float) -> float:
    """The probability that a standard normal number is above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


@dataclass(frozen=True)
class Finding:
    """One attack's outcome, for the verdict.

    attack: its kind. subject: whom or what it is about, such as a client. alarm: beyond what chance explains, or a
    promise that does not hold. says: a sentence in plain language, with its figures.
    """

    attack: str
    subject: str
    alarm: bool
    says: str
