"""Memorisation: repeated images and repeated noise are found, what is merely alike is not."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.evaluation.attacks.memorisation import nearest_images, repeated_noise
from tests.evaluation.attacks.worlds import blobs, noised

TRAIN, HELD_OUT = blobs(200), blobs(150, seed=9)


def test_a_model_that_repeats_training_images_is_found():
    generated = TRAIN.x0()[np.arange(300) % 200] + 0.02 * np.random.default_rng(0).standard_normal((300, 1, 8, 8))
    found = nearest_images(generated, TRAIN.x0(), HELD_OUT.x0())
    assert found.alarm and found.share > 0.99 and found.copies > 0.5


@pytest.mark.parametrize("seed", range(20, 25))
def test_new_images_of_the_same_kind_raise_no_alarm(seed):
    found = nearest_images(blobs(300, seed=seed).x0(), TRAIN.x0(), HELD_OUT.x0())
    assert not found.alarm and found.share == pytest.approx(200 / 350, abs=0.15)


def test_patients_whose_images_are_alike_are_as_many_draws_as_patients():
    groups, deviates = np.repeat(np.arange(60), 10), []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        several = [np.repeat(rng.standard_normal((n, 1, 8, 2)), k, axis=0) for n, k in ((60, 10), (40, 6))]
        images, generated = (one + 0.3 * rng.standard_normal(one.shape) for one in several)
        deviates.append(nearest_images(generated, images[:450], images[450:], groups).deviate)
    assert np.std(deviates) == pytest.approx(1, abs=0.25)


def _discs(count, seed):
    """Images [count, 1, 8, 8] of one disc each: two dimensions, so that some lie three times nearer than the next."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8]
    row, column = rng.uniform(1, 7, (2, count, 1, 1))
    return (2 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2.25) - 1)[:, None]


def test_simple_images_that_come_near_by_chance_raise_no_alarm_and_copies_of_them_do():
    for seed in range(0, 120, 3):
        found = nearest_images(_discs(256, seed), _discs(400, seed + 1), _discs(100, seed + 2))
        assert not found.alarm and found.copies > 0.05
    train = _discs(400, 1)
    repeating = np.concatenate([_discs(128, 0), train[:128]])
    assert nearest_images(repeating, train, _discs(100, 2)).copies_deviate > 5


@pytest.mark.parametrize(("copied", "alarm"), [(3, False), (26, True)])
def test_a_tenth_of_copies_is_found_where_images_never_come_near_by_chance(copied, alarm):
    rng = np.random.default_rng(0)
    generated, train, held_out = (rng.standard_normal((n, 1, 8, 8)) for n in (256, 300, 200))
    generated[:copied] = train[:copied]
    found = nearest_images(generated, train, held_out)
    assert found.copies == copied / 256 and found.copies_of_held_out == 0 and found.alarm == alarm


def test_one_collapsed_image_is_no_evidence_of_many():
    # All generated images are one and the same: whichever image is nearest, it is one draw, not 300.
    found = nearest_images(np.zeros((300, 1, 8, 8)), TRAIN.x0(), HELD_OUT.x0())
    assert abs(found.deviate) < 2


@pytest.mark.parametrize("sigma", [0.5, 5.0])
def test_a_server_that_repeats_one_stored_release_is_found(sigma):
    z = noised(TRAIN, sigma)
    delivered = noised(blobs(100, seed=4), sigma, seed=8)
    assert not repeated_noise(delivered, z, TRAIN.x0()).alarm
    delivered[3] = z[77]
    found = repeated_noise(delivered, z, TRAIN.x0())
    assert found.alarm and found.correlation > 0.75


@pytest.mark.parametrize("times", [1.05, 1.1])
def test_a_repeated_release_is_found_at_a_handover_above_it(times):
    z, more = noised(TRAIN, 0.5), 0.5 * np.sqrt(times**2 - 1)
    delivered = noised(blobs(100, seed=4), 0.5 * times, seed=8)
    assert not repeated_noise(delivered, z, TRAIN.x0()).alarm
    delivered[3] = z[77] + more * np.random.default_rng(6).standard_normal(z[77].shape)
    assert repeated_noise(delivered, z, TRAIN.x0()).alarm


@pytest.mark.parametrize("seed", range(3))
def test_the_same_images_under_other_noise_are_no_repetition(seed):
    z = noised(TRAIN, 0.5)
    assert not repeated_noise(noised(TRAIN, 0.5, seed=seed + 50), z, TRAIN.x0()).alarm


def test_where_a_training_mirrors_its_images_a_mirror_image_is_a_repetition():
    z = noised(TRAIN, 0.5)
    delivered = noised(blobs(100, seed=4), 0.5, seed=8)
    assert not repeated_noise(delivered, z, TRAIN.x0(), mirrored=True).alarm
    delivered[3] = z[77][..., ::-1]
    assert not repeated_noise(delivered, z, TRAIN.x0()).alarm
    found = repeated_noise(delivered, z, TRAIN.x0(), mirrored=True)
    assert found.alarm and found.correlation > 0.75 and found.delivered == 100

    generated = TRAIN.x0()[np.arange(300) % 200] + 0.02 * np.random.default_rng(0).standard_normal((300, 1, 8, 8))
    as_they_lie = nearest_images(generated, TRAIN.x0(), HELD_OUT.x0())
    assert nearest_images(generated[..., ::-1], TRAIN.x0(), HELD_OUT.x0(), mirrored=True) == as_they_lie
    assert nearest_images(generated[..., ::-1], TRAIN.x0(), HELD_OUT.x0()).copies < 0.5 * as_they_lie.copies


@pytest.mark.parametrize("seed", range(20, 25))
def test_new_images_raise_no_alarm_beside_mirror_images(seed):
    assert not nearest_images(blobs(300, seed=seed).x0(), TRAIN.x0(), HELD_OUT.x0(), mirrored=True).alarm
