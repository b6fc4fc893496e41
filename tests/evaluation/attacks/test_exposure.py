"""A release that keeps its promises raises no alarm; each way to break one is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.evaluation.attacks.exposure import (
    a_quiet_image,
    broken_promises,
    measured_sigma,
    sent_again,
    too_little_noise,
)
from tests.evaluation.attacks.worlds import exposure, noised

RNG = np.random.default_rng


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0, 10.0, 80.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_honest_release_raises_no_alarm(sigma, seed):
    honest = exposure(sigma)
    honest = replace(honest, z=noised(honest.images, sigma, seed=seed))
    assert honest.aligned
    assert [f.says for f in broken_promises(honest, RNG(seed)) if f.alarm] == []


def test_a_part_of_a_sites_images_released_once_raises_no_alarm():
    honest = exposure(0.5)
    part = replace(honest, z=honest.z[:120])
    assert not part.aligned
    assert [f.says for f in broken_promises(part, RNG(0)) if f.alarm] == []


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_too_little_noise_is_found_and_measured(sigma):
    careless = exposure(sigma, z=noised(exposure().images, 0.9 * sigma))
    assert too_little_noise(careless).alarm
    assert measured_sigma(careless)[0] == pytest.approx(0.9 * sigma, rel=0.03)


def test_one_image_with_too_little_noise_among_many_is_found():
    careless = exposure(1.0)
    z = careless.z.copy()
    z[17] = careless.images.x0()[17] + 0.05 * noised(careless.images, 1.0)[17]
    assert not too_little_noise(careless).alarm and not a_quiet_image(careless).alarm
    assert a_quiet_image(replace(careless, z=z)).alarm


def test_more_releases_than_images_are_fresh_copies():
    honest = exposure(1.0)
    again = replace(honest, z=np.concatenate([honest.z, noised(honest.images, 1.0, seed=2)[:10]]))
    finding = sent_again(again, RNG(0))
    assert finding.alarm and "310 releases of 300" in finding.says


def test_fresh_copies_of_some_images_in_place_of_others_are_found():
    honest = exposure(0.5)
    half = honest.z[:150]
    again = replace(honest, z=np.concatenate([half, noised(honest.images, 0.5, seed=2)[:150]]))
    assert sent_again(again, RNG(0)).alarm


def test_a_release_in_another_order_is_not_taken_for_aligned():
    honest = exposure(0.5)
    assert not replace(honest, z=honest.z[::-1].copy()).aligned
