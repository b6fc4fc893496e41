"""Membership inference: was this image among those that a model was trained on?

A denoiser errs less on images that it was trained on. The score of an image is minus its denoising error, averaged over
noise levels and draws, with the same noise for every image (Carlini et al. 2023, section 5, and Matsumoto et al. 2023);
each level is divided by its mean error, so that no level outweighs the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...core.conditioning import Conditions
from .finding import ALARM_Z, SHOWN_Z, division_error

Floats = NDArray[np.floating]
Denoise = Callable[[NDArray[np.float32], float, Conditions], Floats]
"""x [N, C, H, W] at sigma with conditions [N, K + 1] -> x0_hat."""

LEVELS = 5
DRAWS = 3
BATCH = 256
FALSE_ALARMS = 0.01


def levels_between(low: float, high: float) -> list[float]:
    """Noise levels to ask about, evenly spaced in log sigma."""
    return [float(s) for s in np.geomspace(low, high, LEVELS)]


def scores(
    denoise: Denoise, x0: Floats, conditions: Conditions, sigmas: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Minus the relative denoising error of each image [N]: higher is more like a member."""
    total = np.zeros(len(x0))
    for sigma in sigmas:
        errors = np.zeros(len(x0))
        for _ in range(DRAWS):
            noise = rng.standard_normal(x0.shape[1:], dtype=np.float32)
            for start in range(0, len(x0), BATCH):
                rows = slice(start, start + BATCH)
                x = (x0[rows] + sigma * noise).astype(np.float32)
                apart = denoise(x, sigma, conditions[rows]) - x0[rows]
                errors[rows] += (apart.astype(np.float64) ** 2).reshape(len(x), -1).mean(axis=1)
        total -= errors / errors.mean()
    return total / len(sigmas)


@dataclass(frozen=True)
class Membership:
    """How well scores tell members from others.

    auc: the probability that a member scores above another image; error: its standard error if they were alike.
    true_positives: the share of members found where 1 % of the others are accused.
    """

    members: int
    others: int
    auc: float
    error: float
    true_positives: float

    @property
    def alarm(self) -> bool:
        """Whether the model gives members away, beyond chance."""
        return self.auc > 0.5 + ALARM_Z * self.error

    def shown(self) -> str:
        """As in a table."""
        return f"{self.auc:.3f} ± {SHOWN_Z * self.error:.3f}"


def told_apart(members: Floats, others: Floats, groups: NDArray[np.generic] | None = None) -> Membership:
    """The attack's success by the scores of members [M] and of others [N].

    groups: what each of them belongs to [M + N], such as a patient, where whole groups were held out.
    """
    m, n = len(members), len(others)
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left")
    ties = np.searchsorted(ordered, members, "right") - below
    auc = float((below + 0.5 * ties).sum() / (m * n))
    # The threshold accuses at most 1 % of the others: none of them where there are fewer than 100.
    threshold = ordered[n - 1 - math.floor(FALSE_ALARMS * n)]
    # Of the rank sum of Mann and Whitney (1947) under the null; its square is (m + n + 1) / (12 m n) without groups.
    error = division_error(_ranks(members, others), m, groups) / (m * n)
    return Membership(m, n, auc, error, float((members > threshold).mean()))


def _ranks(members: Floats, others: Floats) -> NDArray[np.float64]:
    """Of all scores, the members' first [M + N]; their mean is 0."""
    both = np.concatenate([members, others])
    lower, upper = (np.searchsorted(np.sort(both), both, side) for side in ("left", "right"))
    return (lower + upper - len(both)) / 2


def told_apart_by_kind(
    members: Sequence[Floats], others: Sequence[Floats], groups: Sequence[NDArray[np.generic]] | None = None
) -> Membership:
    """As :func:`told_apart`, but each is compared with others of its own kind alone, such as its label, one entry each.

    groups: of each kind, its members first; a group may have images of several kinds.
    """
    found = together([told_apart(*pair) for pair in zip(members, others, strict=True)])
    if groups is None:
        return found
    ranks = [_ranks(*pair) for pair in zip(members, others, strict=True)]
    pairs = sum(len(one) * len(other) for one, other in zip(members, others, strict=True))
    error = division_error(np.concatenate(ranks), found.members, np.concatenate(list(groups))) / pairs
    return replace(found, error=error)


def together(sites: Sequence[Membership]) -> Membership:
    """One model's attack on several sites: members are compared with others of their own site alone.

    Scores of all sites in one heap would tell sites apart, too, wherever one holds out a smaller share than another.
    A site counts by its pairs of a member and another image in ``auc``, by its members in ``true_positives``.
    """
    members, others = sum(one.members for one in sites), sum(one.others for one in sites)
    pairs = [one.members * one.others for one in sites]
    weights = [count / sum(pairs) for count in pairs]
    return Membership(
        members,
        others,
        sum(weight * one.auc for weight, one in zip(weights, sites, strict=True)),
        math.hypot(*(weight * one.error for weight, one in zip(weights, sites, strict=True))),
        sum(one.members * one.true_positives for one in sites) / members,
    )
