"""What a server was told of one site by statistics, beside the images that were counted: an auditor's view.

Also whether the numbers keep their promises: without a budget they are those of the site's images, with one they carry
as much noise as it demands, of its own for each label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.moments import Moments, moments_of, noise_deviations, packed_triangle, unpacked
from ...core.statistics import Statement, Statistics
from ...data.imageset import ImageSet
from ...nodes.summary import blocks
from .exposure import NOISE_SLACK, NOT_ASKED
from .finding import ALARM_P, ALARM_Z, Finding, normal_tail

Array = NDArray[np.float64]

ALL = "all images"
"""The one row of a site that keeps its labels."""
ROUNDING = 8 * float(np.finfo(np.float32).eps)
"""What single precision may change of a number in a file, as a share of the largest."""
TOO_FAR = 1.02
"""Variance this much above what the noise has, beyond chance, is no noise."""
MOST_LINKED = 128
"""Rows of all files whose noise is compared with each other's."""


@dataclass(frozen=True, eq=False)
class Counted:
    """One site as an auditor sees it. images: its training images, each different one once; held_out: others, that
    nobody counted, each once; files: what the server received."""

    name: str
    images: ImageSet
    held_out: ImageSet
    files: tuple[Statistics, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the rows that every file has."""
        each = [names_of(one) for one in self.files]
        return tuple(name for name in each[0] if all(name in names for names in each[1:]))

    @property
    def exact(self) -> bool:
        """Whether a file carries no noise."""
        return any(one.about.budget is None for one in self.files)

    @property
    def mu(self) -> float | None:
        """The files are mu-GDP for an image that one of them counts, by the weakest; None where one is exact."""
        found = [one.about.budget for one in self.files]
        if self.exact:
            return None
        return max(1 / budget.noise_multiplier for budget in found if budget is not None)


def counted(name: str, train: ImageSet, held_out: ImageSet, files: Sequence[Statistics]) -> Counted:
    """A site by its images and the statistics that the server has of it."""
    images, others = (
        part.take(np.sort(np.unique(part.digests, axis=0, return_index=True)[1])) for part in (train, held_out)
    )
    ours = {one.tobytes() for one in images.digests}
    apart = [row for row, one in enumerate(others.digests) if one.tobytes() not in ours]
    return Counted(name, images, others.take(np.array(apart, dtype=np.int64)), tuple(files))


def names_of(file: Statistics) -> tuple[str, ...]:
    """What the rows of a file are of."""
    return (ALL,) if file.label_names is None else file.label_names


def rows_of(images: ImageSet, names: Sequence[str]) -> NDArray[np.int64]:
    """In which of these rows each image counts [N]; -1 for none."""
    if tuple(names) == (ALL,):
        return np.zeros(len(images), dtype=np.int64)
    rows = np.full(len(images), -1, dtype=np.int64)
    for row, name in enumerate(names):
        rows[images.rows_with(name)] = row
    return rows


def received(file: Statistics, rows: Sequence[int]) -> Moments:
    """The counts and sums of some rows that a file's means and covariances are of."""
    chosen = list(rows)
    counts, means = file.counts[chosen], file.means[chosen].astype(np.float64)
    second = unpacked(file.covariances[chosen], file.about.dimension) + means[:, :, None] * means[:, None, :]
    return Moments(counts, counts[:, None] * means, counts[:, None, None] * second)


@dataclass(frozen=True, eq=False)
class Apart:
    """How far a site's numbers, added up over its files, lie from those of its images. labels: of the rows; images: the
    images' own moments; off: what the files say above them; deviations: of the noise on a count, a sum and a sum of
    squares, None where there is none."""

    about: Statement
    labels: tuple[str, ...]
    images: Moments
    off: Moments
    deviations: tuple[float, float, float] | None

    def deviates(self) -> dict[str, Array]:
        """What of them are standard normal numbers if the noise is as stated, [L, ...] by their kind."""
        assert self.deviations is not None
        counts, sums, products = self.deviations
        across = math.sqrt(2) * np.ones((self.about.dimension,) * 2)
        np.fill_diagonal(across, 1.0)
        return {
            "counts": self.off.counts[:, None] / counts,
            "means": self.off.sums / sums,
            "covariances": packed_triangle(self.off.products * across) / products,
        }

    def measured_noise(self) -> tuple[float, float]:
        """The noise as a multiple of what the budget demands, and its standard error."""
        squares = [(part**2).sum() for part in self.deviates().values()]
        size = sum(part.size for part in self.deviates().values())
        return math.sqrt(float(sum(squares)) / size), 1 / math.sqrt(2 * size)


def apart(site: Counted) -> Apart | None:
    """What lies between a site's files and its images; None where its files clip differently or only some have a
    budget, so that it is not known what each image counted for, or where they have no label in common."""
    first = site.files[0].about
    if len({(one.about.clip, one.about.budget is None) for one in site.files}) > 1 or not site.labels:
        return None
    labels, rows = site.labels, rows_of(site.images, site.labels)
    inside = np.flatnonzero(rows >= 0)
    own = moments_of(blocks(site.images.take(inside), rows[inside]), first, len(labels))
    parts = [received(one, [names_of(one).index(name) for name in labels]) for one in site.files]
    counts, sums, products = (sum(getattr(p, kind) for p in parts) for kind in ("counts", "sums", "products"))
    off = Moments(counts - own.counts, sums - own.sums, products - own.products)
    if first.budget is None:
        return Apart(first, labels, own, off, None)
    each = np.array([noise_deviations(one.about) for one in site.files])
    of_counts, of_sums, of_products = np.sqrt((each**2).sum(axis=0)).tolist()
    return Apart(first, labels, own, off, (of_counts, of_sums, of_products))


def broken_promises(site: Counted, found: Apart | None) -> list[Finding]:
    """Findings about the numbers themselves: whether they are of these images, and carry the noise that they state."""
    if found is None:
        says = "what the numbers are of was not asked: its files were made with different settings or of other labels."
        return [Finding(NOT_ASKED, site.name, False, says)]
    if found.deviations is None:
        return [exact_numbers(site, found)]
    return [too_little_noise(site, found), other_images(site, found)]


def exact_numbers(site: Counted, found: Apart) -> Finding:
    """Whether numbers without noise are those of the site's images."""
    many, own = float((found.images.counts + found.off.counts).sum()), int(found.images.counts.sum())
    scale = np.maximum(np.abs(found.images.products).max(axis=(1, 2)), 1e-30)  # n times the largest square
    sums = np.abs(found.off.sums).max(axis=1) / np.sqrt(scale * np.maximum(found.images.counts, 1))
    products = np.abs(found.off.products).max(axis=(1, 2)) / scale
    alarm = bool(found.off.counts.any() or max(sums.max(), products.max()) > ROUNDING)
    if many > own:
        says = f"it counts {many:g} images where the site has {own} different ones: some were counted more than once."
    elif alarm:
        says = (
            f"the numbers are not those of its images: {many:g} were counted, the site has {own}, and means or "
            "covariances differ. Images were exchanged since, or the file is of others; then the figures below are "
            "about other images than were counted."
        )
    else:
        says = f"the numbers are exactly those of its {own} images."
    return Finding("numbers", site.name, alarm, says)


def too_little_noise(site: Counted, found: Apart) -> Finding:
    """Whether counts, means and covariances each carry the noise that the budget demands, of every label and over all.

    Their squares over its variance are chi-squared. That a label with a small noised count is left out of a file hides
    counts with much noise downwards; of such a label the others are the larger, and no alarm is more likely for it.
    """
    worst, of_what, share = 0.0, "", 1.0
    for kind, deviates in found.deviates().items():
        squares = (deviates**2).sum(axis=1)
        sizes = np.full(len(squares), deviates.shape[1])
        where = [*found.labels, "all labels"]
        totals, sizes = np.append(squares, squares.sum()), np.append(sizes, sizes.sum())
        for label, total, size in zip(where, totals.tolist(), sizes.tolist(), strict=True):
            log_p = _log_tail(total, size) + math.log(len(where)) if total < (1 - NOISE_SLACK) ** 2 * size else 0.0
            if log_p < worst:
                worst, of_what, share = log_p, f"the {kind} of {label}", math.sqrt(total / size)
    if worst < math.log(ALARM_P):
        says = (
            f"there is too little noise on {of_what}: {share:.2g} times what the stated budget demands, so it "
            "does not hold."
        )
        return Finding("noise", site.name, True, says)
    ratio, error = found.measured_noise()
    says = f"the numbers have the noise that their budget demands: {ratio:.3g} times it (standard error {error:.2g})."
    return Finding("noise", site.name, False, says)


def other_images(site: Counted, found: Apart) -> Finding:
    """Whether the numbers lie further from those of the site's images than their noise explains."""
    deviates = found.deviates()
    far = {
        kind: math.sqrt(float((deviates[kind] ** 2).mean()))
        for kind in ("means", "covariances")
        if (deviates[kind] ** 2).mean() > TOO_FAR
        and _log_tail(float((deviates[kind] ** 2).sum()), deviates[kind].size) < math.log(ALARM_P)
    }
    if not far:
        return Finding("numbers", site.name, False, "the numbers are those of its images, and noise.")
    kind, times = max(far.items(), key=lambda one: one[1])
    own, many = found.images.counts.sum(), (found.images.counts + found.off.counts).sum()
    says = (
        f"the {kind} lie {times:.3g} times as far from those of its images as the stated noise (and {many:.0f} images "
        f"were counted, where it has {own:.0f}): images were exchanged since or counted more than once, or the file is "
        "of others. The figures below are about other images than were counted."
    )
    return Finding("numbers", site.name, True, says)


@dataclass(frozen=True, eq=False)
class NoiseRow:
    """The noise on one label's means and covariances, in deviations [D + D (D + 1)/2]."""

    client: str
    label: str
    noise: NDArray[np.float32]


def noise_rows(name: str, found: Apart | None) -> list[NoiseRow]:
    """Of every label of a site; none where no noise is stated."""
    if found is None or found.deviations is None:
        return []
    of_kind = found.deviates()
    both = [np.concatenate([of_kind["means"][i], of_kind["covariances"][i]]) for i in range(len(found.labels))]
    return [NoiseRow(name, label, one.astype(np.float32)) for label, one in zip(found.labels, both, strict=True)]


def shared_noise(rows: Sequence[NoiseRow]) -> list[Finding]:
    """Whether labels, of one site or of several, share their noise, as where a seed starts again: the difference of two
    such rows has none. Of rows with noise of their own the correlation times sqrt(numbers) is standard normal."""
    if len(rows) < 2:
        return []
    noise = np.stack([row.noise for row in rows])
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-30)
    deviates = np.triu(np.abs(noise @ noise.T), k=1) * math.sqrt(noise.shape[1])
    pairs = len(rows) * (len(rows) - 1)  # each with either sign
    alike: dict[str, list[str]] = {}
    for i, j in np.argwhere(deviates > ALARM_Z).tolist():
        if normal_tail(float(deviates[i, j])) * pairs < ALARM_P:
            (one, a), (other, b) = ((row.client, row.label) for row in (rows[i], rows[j]))
            alike.setdefault(one, []).append(f"{a} and {b}" if one == other else f"{a} and {b} of {other}")
            if one != other:
                alike.setdefault(other, []).append(f"{b} and {a} of {one}")
    found = []
    for name, which in alike.items():
        more = f" and {len(which) - 1} more pairs" if len(which) > 1 else ""
        says = f"its {which[0]}{more} share their noise: it cancels in a difference, and the budget does not hold."
        found.append(Finding("shared noise", name, True, says))
    return found


def of_label(images: ImageSet, name: str) -> ImageSet:
    """The images that count in a row of this name."""
    return images if name == ALL else images.take(images.rows_with(name))


def _log_tail(total: float, freedom: int) -> float:
    """An upper bound of ln of the probability that a chi-squared number lies as far out as ``total``, on its side of
    the mean (Chernoff): (z e^(1 - z))^(freedom / 2) with z = total / freedom."""
    z = total / freedom
    return -math.inf if z <= 0 else freedom / 2 * (math.log(z) + 1 - z)
