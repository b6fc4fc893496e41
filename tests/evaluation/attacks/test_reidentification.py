"""Re-identification: certain without noise, chance under pure noise, and copies are worth less noise."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.evaluation.attacks.reidentification import matched_filter, reidentified, reidentified_at
from tests.evaluation.attacks.worlds import blobs, exposure, pure_noise


def test_a_release_with_too_little_noise_is_recognised():
    site = exposure(0.1)
    found = reidentified(site.z, np.arange(300), site.images.x0())
    assert found.value > 0.95 and found.alarm


@pytest.mark.parametrize("seed", range(5))
def test_pure_noise_is_not_recognised(seed):
    gallery = blobs(1000).x0()
    z = 2.0 * np.random.default_rng(seed).standard_normal(gallery.shape)
    assert not reidentified(z, np.arange(1000), gallery).alarm
    assert not reidentified(pure_noise(80.0).z, np.arange(300), exposure().images.x0()).alarm


def test_two_images_are_told_apart_as_often_as_theory_says():
    # Two images at a distance of 2 sigma: the nearer one is right with probability Phi(1) = 0.8413.
    gallery = np.zeros((2, 1, 2, 2), np.float32)
    gallery[1] = 1.0
    z = gallery[np.zeros(20_000, int)] + np.random.default_rng(0).standard_normal((20_000, 1, 2, 2))
    assert (matched_filter(z, gallery) == 0).mean() == pytest.approx(0.8413, abs=0.01)


def test_fresh_copies_are_worth_less_noise():
    gallery, rng = blobs(300).x0(), np.random.default_rng(0)
    one, many, quiet = (
        reidentified_at(gallery, 300, sigma, rng, copies).value for sigma, copies in ((3, 1), (3, 100), (0.3, 1))
    )
    assert many == pytest.approx(quiet, abs=0.06) and many > one + 0.3


def test_the_mean_of_copies_recognises_as_its_shortcut_says():
    gallery, rng = blobs(300).x0(), np.random.default_rng(1)
    mean = np.mean([gallery + 2.0 * rng.standard_normal(gallery.shape) for _ in range(16)], axis=0)
    taken = reidentified(mean, np.arange(300), gallery).value
    assert taken == pytest.approx(reidentified_at(gallery, 300, 2.0, rng, 16).value, abs=0.1)


def test_equal_images_are_one_image():
    gallery = np.repeat(blobs(20).x0(), 2, axis=0)
    assert reidentified(gallery, np.arange(40), gallery).value == 1.0
