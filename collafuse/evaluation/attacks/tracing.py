"""Membership inference from statistics: was this image counted?

Three attackers, each with a candidate image and its label:

- One who has the file and some images of the same kind asks which describes the candidate better, a Gaussian with the
  released mean and covariance or one of the kind (a likelihood ratio). Of few images and many coefficients the
  covariance has directions in which no counted image varies, and any other image does.
- The same one traces it by the released mean alone: (y - mu)^T C^-1 (m - mu), the statistic of Homer et al. (2008) and
  Dwork et al. (2015), with mu and C of the kind.
- One who knows every other counted image takes them off the released sums and asks whether what is left is the
  candidate or noise. That is whom a budget is against. Without noise this one is always right, so it is not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.moments import Basis, noise_deviations, radius, unpacked
from ...core.statistics import Statement, Statistics
from ...data.imageset import ImageSet
from ..accounting import most_auc
from ..measured import in_memory
from .finding import ALARM_Z
from .membership import Membership, told_apart_by_kind
from .statistics import Apart, Counted, names_of, of_label

Array = NDArray[np.float64]

BY_LIKELIHOOD, BY_MEAN, BY_DIFFERENCE = "likelihood ratio", "tracing by the mean", "subtraction"
MOST_MEMBERS = 500
"""Images of a label that are asked about, and as many others."""
FEWEST_KNOWN = 10
"""A label of which the attacker knows fewer images is not asked about."""


@dataclass(frozen=True)
class Traced:
    """One attack on one site's statistics. known: images that the attacker has of their kind; allowed: the largest AUC
    that the budget allows anybody, None without one."""

    attack: str
    membership: Membership
    known: int
    allowed: float | None

    @property
    def broken(self) -> bool:
        """Whether more was found than the budget allows, beyond chance."""
        return self.allowed is not None and self.membership.auc > self.allowed + ALARM_Z * self.membership.error

    @property
    def alarm(self) -> bool:
        """Whether somebody who has not got the other images already finds out who was counted, or anybody more than the
        budget allows."""
        return self.broken or (self.attack != BY_DIFFERENCE and self.membership.alarm)


@dataclass(frozen=True, eq=False)
class Asked:
    """What one label's attack is about: the coefficients of counted images [M, D], of others [N, D], and of those that
    the attacker knows [K, D]; groups: of the first two [M + N], None where images belong to nothing."""

    members: Array
    others: Array
    known: Array
    groups: NDArray[np.str_] | None


def trace(
    site: Counted, others: ImageSet, known: Mapping[str, ImageSet], found: Apart | None, seed: int
) -> list[Traced]:
    """Every attack on a site, label by label and put together; none where no label can be asked about.

    others: images that nobody counted and no attacker knows; known: what the attackers know, by label.
    """
    asked = {}
    for name in dict.fromkeys(name for one in site.files for name in names_of(one)):
        members, rest = of_label(site.images, name), of_label(others, name)
        if min(len(members), len(rest)) and len(known[name]) >= FEWEST_KNOWN:
            asked[name] = _asked(members, rest, known[name], site.files[0].about, seed)
    if not asked:
        return []
    rules = {BY_LIKELIHOOD: _of_files(site, likelihood_ratio), BY_MEAN: _of_files(site, traced_by_mean)}
    if found is not None and found.deviations is not None and len(site.files) == 1:
        rng = np.random.default_rng(seed)
        rules[BY_DIFFERENCE] = lambda name, one: left_over(found, found.labels.index(name), one, rng)
    allowed = None if site.mu is None else most_auc(site.mu)
    several = sum(len(one.known) for one in asked.values())
    return [
        Traced(attack, _told_apart({name: rule(name, one) for name, one in asked.items()}, asked), several, allowed)
        for attack, rule in rules.items()
    ]


def _told_apart(scores: Mapping[str, Array], asked: Mapping[str, Asked]) -> Membership:
    """By the scores of each label's candidates, the members' first."""
    counted = [scores[name][: len(one.members)] for name, one in asked.items()]
    rest = [scores[name][len(one.members) :] for name, one in asked.items()]
    groups = [one.groups for one in asked.values() if one.groups is not None]
    return told_apart_by_kind(counted, rest, groups if len(groups) == len(asked) else None)


def _asked(members: ImageSet, others: ImageSet, known: ImageSet, about: Statement, seed: int) -> Asked:
    members, others = (in_memory(part, MOST_MEMBERS, seed) for part in (members, others))
    groups = None
    if members.groups is not None and others.groups is not None:
        groups = np.concatenate([members.groups, others.groups])
    return Asked(coefficients(members, about), coefficients(others, about), coefficients(known, about), groups)


def coefficients(images: ImageSet, about: Statement) -> Array:
    """[N, D] as a file counts them, scaled down where it clips."""
    y, limit = Basis(about.image_shape, about.coefficients).coefficients(images.x0()), radius(about)
    if limit is not None:
        y *= np.minimum(1, limit / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-300))
    return y


Rule = Callable[[Statistics, int, Array, Array], Array]
"""A file, a row of it, candidates [N, D] and what the attacker knows [K, D] -> scores [N]."""


def _of_files(site: Counted, rule: Rule) -> Callable[[str, Asked], Array]:
    """The score by whichever of a site's files speaks most for an image: one of them may count it."""

    def scores(name: str, one: Asked) -> Array:
        candidates = np.concatenate([one.members, one.others])
        files = [(file, names_of(file).index(name)) for file in site.files if name in names_of(file)]
        return np.stack([rule(file, row, candidates, one.known) for file, row in files]).max(axis=0)

    return scores


def likelihood_ratio(file: Statistics, row: int, y: Array, known: Array) -> Array:
    """How much more likely candidates are as draws from the released Gaussian than from one of the kind.

    That one has half of its moments from the known images, shrunk where they are few (Ledoit and Wolf 2004), and half
    from the file, which describes the kind too. No variance is below what noise or rounding alone make.
    """
    mean, covariance, floor = _released(file, row)
    middle, kind = _kind(known)
    apart = mean - middle
    both = (covariance + kind) / 2 + np.outer(apart, apart) / 4
    return _log_density(y, mean, covariance, floor) - _log_density(y, (mean + middle) / 2, both, floor)


def traced_by_mean(file: Statistics, row: int, y: Array, known: Array) -> Array:
    """How far candidates lie in the direction in which the released mean lies from that of the kind."""
    mean, _, floor = _released(file, row)
    middle, kind = _kind(known)
    values, vectors = np.linalg.eigh(kind)
    direction = vectors @ ((vectors.T @ (mean - middle)) / np.maximum(values, floor))
    found: Array = (y - middle) @ direction
    return found


def left_over(found: Apart, row: int, one: Asked, rng: np.random.Generator) -> Array:
    """How much likelier it is that candidates, and not an average image, are what is left of the released sums when all
    counted images but one are taken off: the candidate itself for a member, for others one drawn at random.

    In units of the noise an image adds the vector (u sqrt(2a), u u^T), and two of them have the product
    y . y' / s1^2 + (y . y')^2 / s2^2, with the noise s1 on a sum and s2 on a sum of squares.
    """
    assert found.deviations is not None
    of_sums, of_products = found.deviations[1] ** 2, found.deviations[2] ** 2
    many = max(float(found.images.counts[row]), 1.0)
    mean, second = found.images.sums[row] / many, found.images.products[row] / many

    def along(y: Array, sums: Array, products: Array) -> Array:
        return y @ sums / of_sums + ((y @ products) * y).sum(axis=1) / of_products

    candidates, members = np.concatenate([one.members, one.others]), len(one.members)
    squared = (candidates**2).sum(axis=1)
    averages = along(candidates, mean, second)
    average = float(mean @ mean / of_sums + (second**2).sum() / of_products)
    lengths = squared / of_sums + squared**2 / of_products - 2 * averages + average
    sums, products = found.off.sums[row], found.off.products[row]
    noise = along(candidates, sums, products) - float(mean @ sums / of_sums + (second * products).sum() / of_products)
    drawn = rng.integers(members, size=len(one.others))
    inner = (one.others * one.members[drawn]).sum(axis=1)
    shared = inner / of_sums + inner**2 / of_products - averages[members:] - averages[drawn] + average
    return noise + np.concatenate([lengths[:members], shared]) - lengths / 2


def _released(file: Statistics, row: int) -> tuple[Array, Array, float]:
    """A row's mean [D] and covariance [D, D], and the variance that noise on it, or rounding, alone may make: the edge
    of the semicircle law."""
    size = file.about.dimension
    covariance = unpacked(file.covariances[row : row + 1], size)[0]
    # Rounding to single precision is off by up to half its spacing, evenly.
    entry = float(np.finfo(np.float32).eps) / math.sqrt(12) * max(math.sqrt(float((covariance**2).mean())), 1e-30)
    if file.about.budget is not None:
        entry = max(entry, noise_deviations(file.about)[2] / math.sqrt(2) / float(file.counts[row]))
    return file.means[row].astype(np.float64), covariance, 2 * entry * math.sqrt(size)


def _kind(known: Array) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of a kind of images, by those that the attacker knows."""
    from sklearn.covariance import ledoit_wolf

    return known.mean(axis=0), ledoit_wolf(known)[0]


def _log_density(y: Array, mean: Array, covariance: Array, floor: float) -> Array:
    """Up to a constant."""
    values, vectors = np.linalg.eigh(covariance)
    along = (y - mean) @ vectors
    found: Array = -0.5 * (along**2 / np.maximum(values, floor)).sum(axis=1)
    return found
