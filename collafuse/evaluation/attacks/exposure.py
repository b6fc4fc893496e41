"""What a server received of one site, beside the images it was made of: an auditor's view, which no server has.

Also whether the release keeps its promises: as much noise as it says, of its own for each image, once per image. Where
the order of a release is known, the tests of its noise use it, and so does what is then attacked with the stored one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...core.release import Release
from ...core.rows import JoinedRows
from ...data.imageset import ImageSet
from ...learning.seeds import keyed_seed
from ..measured import in_memory, some
from .finding import ALARM_P, ALARM_Z, Finding, normal_tail

Floats = NDArray[np.floating]

NOISE_SLACK = 0.005
"""A release is stored in half precision; less than this share of noise too little is no finding."""
MOST_ATTACKED, MOST_VALUES, FEWEST_ATTACKED = 5_000, 1 << 26, 1_000
"""Of a larger site so many images and their releases are attacked, of large images fewer: tests look at all pairs."""
MOST_LINKED = 1_500
"""Tests that look at all pairs of releases use so many of them."""
SIMULATIONS = 20
CERTAIN = math.log(1e9)
"""How much likelier than all others together an image must be that a release is said to be of. Of MOST_LINKED releases
one is then said to be of a wrong image with a probability below ALARM_P."""
NOT_ASKED = "not asked"
"""The kind of a finding that says why there is none."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One site as an auditor sees it.

    images: its training images, each different one once, in the order of a first release. held_out: images that nobody
    trained on. z: what the server received, float32 [M, C, H, W], at the level that it states. labels_shared,
    text_shared: whether the release says what each image shows. whole: how many releases there are and of how many
    different images, where those here are a part of them.
    """

    name: str
    images: ImageSet
    held_out: ImageSet
    z: Floats
    sigma: float
    labels_shared: bool
    text_shared: bool = False
    whole: tuple[int, int] | None = None

    @property
    def releases(self) -> int:
        """How many the server received."""
        return len(self.z) if self.whole is None else self.whole[0]

    @property
    def different(self) -> int:
        """How many different images the site trains on."""
        return len(self.images) if self.whole is None else self.whole[1]

    @property
    def apart(self) -> bool:
        """Whether the images here and the releases here are parts of which nobody knows how far they overlap."""
        return self.whole is not None and not self.aligned

    @property
    def dimensions(self) -> int:
        """Values per image."""
        return math.prod(self.z.shape[1:])

    @cached_property
    def aligned(self) -> bool:
        """Whether row i of the release is of image i: then the release itself is attacked, otherwise a simulated one.

        Under noise so high that no test could tell, it is believed; no attack could tell either.
        """
        x0 = self.images.x0()
        if len(self.z) != len(x0):
            return False
        centred = x0 - x0.mean(axis=0)
        # Under another order <z - mean, x0 - mean> has the mean 0; the noise gives it this standard deviation.
        agreement, energy = float((self.z * centred).sum()), float((centred**2).sum())
        return agreement > energy - ALARM_Z * max(self.sigma, 1e-3) * math.sqrt(energy)


def expose(name: str, train: ImageSet, held_out: ImageSet, found: Sequence[Release]) -> Exposure:
    """A site's exposure by its images and the releases that the server has of it.

    Of a large site at most MOST_ATTACKED of either, drawn by its name alone; nothing else of them is read.
    """
    _, first = np.unique(train.digests, axis=0, return_index=True)
    images, received = train.take(np.sort(first)), JoinedRows([release.z for release in found])
    most = most_attacked(received.shape[1:])
    seed = keyed_seed(0, "attacked", name)
    # As many releases as images stand in their order, if the site released as it should: then the same are drawn.
    rows = some(len(received), most, np.random.default_rng(seed))
    return Exposure(
        name=name,
        images=in_memory(images, most, seed),
        held_out=in_memory(held_out, most, seed),
        z=received[rows].astype(np.float32),
        sigma=found[0].sigma_cut,
        labels_shared=all(release.labels is not None for release in found),
        text_shared=all(release.text is not None for release in found),
        whole=(len(received), len(images)) if max(len(received), len(images)) > most else None,
    )


def most_attacked(image_shape: tuple[int, ...]) -> int:
    """How many images of this shape are looked at, of a site that has more."""
    return min(MOST_ATTACKED, max(FEWEST_ATTACKED, MOST_VALUES // math.prod(image_shape)))


def broken_promises(exposure: Exposure, rng: np.random.Generator) -> list[Finding]:
    """Findings about the release itself: too little noise overall, too little on one image, an image sent again, the
    noise of one image used for another, or that of one value for others of its image."""
    tests = [too_little_noise(exposure), a_quiet_image(exposure), sent_again(exposure, rng)]
    return [*tests, shared_noise(exposure, rng), coloured_noise(exposure)]


def measured_sigma(exposure: Exposure) -> tuple[float, float]:
    """The noise level that a release really has, and its standard error.

    From z - x0 where it is known which release is of which image. Otherwise E|z|^2 = |x0|^2 + d sigma^2, whatever the
    order, as long as each image was sent as often as any other; that is coarse for noise much weaker than the images.
    """
    x0 = exposure.images.x0().astype(np.float64)
    z = exposure.z.astype(np.float64)
    if exposure.aligned:
        found = float(np.sqrt(np.square(z - x0).mean()))
        return found, max(found, exposure.sigma) / math.sqrt(2 * z.size)
    signal, variance = float((x0**2).mean()), float((z**2).mean())
    sigma = math.sqrt(max(variance - signal, 0.0))
    level = max(sigma, exposure.sigma)
    deviation = math.sqrt((2 * level**4 + 4 * level**2 * signal) / z.size)
    if len(z) != len(x0) or exposure.apart:  # which images are in it is not known, so their energies count too
        share = 1 / min(len(z), len(x0)) + (1 / len(x0) if exposure.apart else 0.0)
        deviation = math.hypot(deviation, float((x0**2).mean(axis=(1, 2, 3)).std()) * math.sqrt(share))
    return sigma, deviation / (2 * level)


def too_little_noise(exposure: Exposure) -> Finding:
    """Whether the release has the noise that it states, over all images."""
    sigma, error = measured_sigma(exposure)
    alarm = sigma < exposure.sigma * (1 - NOISE_SLACK) - ALARM_Z * error
    stated = f"it states sigma {exposure.sigma:.3g}, measured is {sigma:.3g} (standard error {error:.2g})"
    says = (
        f"the release has too little noise: {stated}." if alarm else f"the release has the noise it states: {stated}."
    )
    return Finding("noise", exposure.name, alarm, says)


def a_quiet_image(exposure: Exposure) -> Finding:
    """Whether single images carry far less noise than stated: |z - x0|^2 / sigma^2 is chi-squared for the right image.

    For a wrong one it is larger, so the smallest over the gallery is a test that needs no order.
    """
    gallery = exposure.images.x0().reshape(len(exposure.images), -1).astype(np.float64)
    z, norms = exposure.z.reshape(len(exposure.z), -1), (gallery**2).sum(axis=1)
    parts = (part.astype(np.float64) for part in np.array_split(z, len(z) // 512 + 1))
    smallest = np.concatenate([(p**2).sum(axis=1) + (norms - 2 * p @ gallery.T).min(axis=1) for p in parts])
    deviates = _deviates(smallest / exposure.sigma**2, exposure.dimensions)
    bound = ALARM_P / (len(z) * len(gallery))  # as many pairs were looked at
    count = int(sum(normal_tail(-v) < bound for v in deviates[deviates < -ALARM_Z]))
    says = f"{count} of {len(z)} releases lie far nearer to an image than noise of sigma {exposure.sigma:.3g} allows."
    return Finding("noise", exposure.name, count > 0, says)


def sent_again(exposure: Exposure, rng: np.random.Generator) -> Finding:
    """Whether images were released more than once, which lets the noise average out.

    More releases than images is proof, and so are two releases that can only be of one image. Otherwise the expected
    number of pairs of one image, by Bayes' rule with the gallery, is compared with what releases of different images
    give.
    """
    received, different = exposure.releases, exposure.different
    if received > different:
        says = (
            f"{received} releases of {different} different images: some were sent again with fresh noise, "
            f"{received / different:.3g} copies each on average."
        )
        return Finding("copies", exposure.name, True, says)
    if exposure.apart:
        says = (
            f"whether images were sent again was not asked: the {received} releases stand in another order than the "
            f"{different} images, and both are too many to compare each with each."
        )
        return Finding(NOT_ASKED, exposure.name, False, says)
    rows, images = len(exposure.z), len(exposure.images)
    gallery = exposure.images.x0().reshape(images, -1)
    chosen = np.sort(rng.choice(rows, min(rows, MOST_LINKED), replace=False))
    level = max(exposure.sigma, measured_sigma(exposure)[0])
    z = _of_the_gallery(exposure.z.reshape(rows, -1)[chosen], gallery, level)
    if again := _certainly_again(z, gallery, level):
        says = f"{again} of {len(chosen)} releases can only be of an image of which another is: it was sent again."
        return Finding("copies", exposure.name, True, says)
    pairs = _pairs_of_one_image(_log_likelihoods(z, gallery, exposure.sigma))
    expected = []
    for _ in range(SIMULATIONS):
        sent = gallery[np.sort(rng.choice(images, min(len(z), images), replace=False))]
        noisy = sent + exposure.sigma * rng.standard_normal(sent.shape, dtype=np.float32)
        expected.append(_pairs_of_one_image(_log_likelihoods(noisy, gallery, exposure.sigma)))
    # The spread of few simulations is itself uncertain; the count of pairs spreads at least as its own root.
    spread = max(1.5 * float(np.std(expected, ddof=1)), math.sqrt(max(expected)), 1.0)
    excess = pairs - float(np.mean(expected))
    alarm = excess > ALARM_Z * spread
    says = f"no sign that any image was sent twice: {rows} releases of {images} different images."
    if alarm:
        says = (
            f"among {len(chosen)} releases about {excess:.0f} pairs more are of one image than there should be: images "
            "were sent again with fresh noise."
        )
    return Finding("copies", exposure.name, alarm, says)


def shared_noise(exposure: Exposure, rng: np.random.Generator) -> Finding:
    """Whether images share their noise, as where a seed starts again: the difference of two such releases has none.

    Of two images' own noise the correlation times sqrt(d) is standard normal, or lighter in its tails.
    """
    if not exposure.aligned:
        says = "whether images share their noise was not asked: it is not known which release is of which image."
        return Finding(NOT_ASKED, exposure.name, False, says)
    chosen = np.sort(rng.choice(len(exposure.z), min(len(exposure.z), MOST_LINKED), replace=False))
    noise = (exposure.z[chosen] - exposure.images.take(chosen).x0()).reshape(len(chosen), -1)
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-30)
    deviates = np.triu(noise @ noise.T, k=1) * math.sqrt(exposure.dimensions)
    pairs = len(chosen) * (len(chosen) - 1) // 2
    count = int(sum(normal_tail(v) * pairs < ALARM_P for v in deviates[deviates > ALARM_Z]))
    says = (
        f"{count} of {pairs} pairs of releases share their noise: it cancels in their difference."
        if count
        else f"no noise is used twice among {len(chosen)} releases."
    )
    return Finding("shared noise", exposure.name, count > 0, says)


def coloured_noise(exposure: Exposure) -> Finding:
    """Whether values of an image share their noise, such as neighbouring pixels or channels: it averages out less than
    it seems, and their differences have none.

    The energy of white noise spreads over images as chi-squared; of m values that share theirs it spreads m times as
    much. An image that the site has exchanged since adds energy, which spreads too: of a visible one the release is
    left out, and what hidden ones may add is allowed for by the mean.
    """
    if not exposure.aligned:
        says = "whether values share their noise was not asked: it is not known which release is of which image."
        return Finding(NOT_ASKED, exposure.name, False, says)
    energy = np.square(exposure.z - exposure.images.x0()).sum(axis=(1, 2, 3), dtype=np.float64)
    deviates = _deviates(energy / exposure.sigma**2, exposure.dimensions)
    deviates = deviates[deviates < ALARM_Z]
    freedom = max(1, len(deviates) - 1)
    # Exchanged images of a share p add at most ALARM_Z each here: p ALARM_Z to the mean, p ALARM_Z^2 to the variance.
    allowed = 1 + ALARM_Z * max(0.0, float(deviates.mean())) if len(deviates) else 1.0
    spread = float(((deviates - deviates.mean()) ** 2).sum()) / freedom if len(deviates) > 1 else 0.0
    alarm = normal_tail(float(_deviates(freedom * spread / allowed, freedom))) < ALARM_P
    says = (
        f"noise is not white: between {len(deviates)} images its energy varies {spread:.3g} times what it should. "
        "Values of an image share theirs, such as neighbouring pixels or channels, or images have unequal noise."
        if alarm
        else f"the noise of {len(deviates)} images is as even as white noise."
    )
    return Finding("coloured noise", exposure.name, alarm, says)


def _deviates(chi_squared: NDArray[np.float64] | float, freedom: int) -> NDArray[np.float64]:
    """Chi-squared numbers as nearly standard normal ones (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    found: NDArray[np.float64] = (np.cbrt(np.maximum(chi_squared, 0.0) / freedom) - (1 - part)) / math.sqrt(part)
    return found


def _log_likelihoods(z: Floats, gallery: Floats, sigma: float) -> Floats:
    """How likely releases [M, d] are of each gallery image [N, d], as logarithms up to a constant of each release."""
    found: Floats = (z @ gallery.T - 0.5 * (gallery**2).sum(axis=1)) / sigma**2
    return found - found.max(axis=1, keepdims=True)


def _of_the_gallery(z: Floats, gallery: Floats, sigma: float) -> Floats:
    """Those of releases [M, d] that lie no further from some gallery image [N, d] than noise allows: the others are of
    images that the site no longer has, and would be taken for second copies of those that are most alike."""
    which, d = _log_likelihoods(z, gallery, sigma).argmax(axis=1), z.shape[1]
    distances = ((z - gallery[which]) ** 2).sum(axis=1)
    found: Floats = z[_deviates(distances / sigma**2, d) < ALARM_Z]
    return found


def _certainly_again(z: Floats, gallery: Floats, sigma: float) -> int:
    """How many releases [M, d] can only be of a gallery image [N, d] that an earlier one can only be of."""
    if len(gallery) < 2 or len(z) < 2:
        return 0
    logits = _log_likelihoods(z, gallery, sigma)
    others = np.partition(logits, -2, axis=1)[:, -2] + math.log(len(gallery))
    sure = logits.argmax(axis=1)[others < -CERTAIN]
    return len(sure) - len(np.unique(sure))


def _pairs_of_one_image(logits: Floats) -> float:
    """Expected number of pairs of releases that are of one gallery image, each judged on its own by logits [M, N]."""
    likely = np.exp(logits)
    likely /= likely.sum(axis=1, keepdims=True)
    return 0.5 * float((likely.sum(axis=0) ** 2).sum() - (likely**2).sum())
