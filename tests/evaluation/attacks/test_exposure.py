"""A release that keeps its promises raises no alarm; each way to break one is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.core.release import Release
from collafuse.data.imageset import ImageSet, digests_of
from collafuse.evaluation.attacks import exposure as exposures
from collafuse.evaluation.attacks.exposure import (
    a_quiet_image,
    broken_promises,
    coloured_noise,
    expose,
    measured_sigma,
    sent_again,
    too_little_noise,
)
from tests.evaluation.attacks.worlds import blobs, exposure, noised

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


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2, 10.0])
def test_a_little_too_little_noise_is_found_at_low_cuts_too(sigma):
    careless = exposure(sigma, z=noised(exposure().images, 0.95 * sigma))
    assert too_little_noise(careless).alarm
    assert measured_sigma(careless)[0] == pytest.approx(0.95 * sigma, rel=0.02)
    assert not too_little_noise(exposure(sigma)).alarm


def test_without_an_order_much_too_little_noise_is_still_found():
    careless = exposure(0.5, z=noised(exposure().images, 0.4)[::-1].copy())
    assert not careless.aligned and too_little_noise(careless).alarm


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


@pytest.mark.parametrize("sigma", [0.05, 0.5, 10.0])
@pytest.mark.parametrize("again_after", [1, 64, 299])
def test_noise_that_is_used_again_is_found(sigma, again_after):
    """As much noise as stated, on each image, and one copy of each: but x - y of two such releases is x0 - y0."""
    honest = exposure(sigma)
    noise = np.random.default_rng(3).standard_normal(honest.z.shape)[np.arange(300) % again_after]
    repeated = replace(honest, z=(honest.images.x0() + sigma * noise).astype(np.float16).astype(np.float32))
    found = [f for f in broken_promises(repeated, RNG(0)) if f.alarm and f.attack == "shared noise"]
    assert len(found) == 1 and "pairs of releases share their noise" in found[0].says


@pytest.mark.parametrize("sigma", [0.05, 0.5, 10.0])
@pytest.mark.parametrize("pattern", ["neighbours", "blocks", "tiles", "grey"])
def test_noise_that_values_of_an_image_share_is_found(sigma, pattern):
    """As much noise as stated, of its own for each image; and yet it cancels between values."""
    honest, rng = exposure(sigma), RNG(3)
    noise = {
        "neighbours": rng.standard_normal((300, 1, 8, 4)).repeat(2, axis=3),
        "blocks": rng.standard_normal((300, 1, 4, 4)).repeat(2, axis=2).repeat(2, axis=3),
        "tiles": np.tile(rng.standard_normal((300, 1, 4, 4)), (1, 1, 2, 2)),
        "grey": rng.standard_normal((300, 1, 1, 1)) * np.ones((1, 1, 8, 8)),
    }[pattern]
    coloured = replace(honest, z=(honest.images.x0() + sigma * noise).astype(np.float16).astype(np.float32))
    found = [f for f in broken_promises(coloured, RNG(0)) if f.alarm and f.attack == "coloured noise"]
    assert len(found) == 1 and "is not white" in found[0].says


def test_noise_that_channels_share_is_found():
    rng = RNG(4)
    pixels = rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    images = ImageSet(pixels, np.ones((60, 1), np.uint8), ("a",), digests_of(pixels))
    own = exposure(1.0)
    honest = replace(own, images=images, held_out=images, z=noised(images, 1.0))
    shared = images.x0() + rng.standard_normal((60, 1, 8, 8)).astype(np.float32)
    assert coloured_noise(replace(honest, z=shared)).alarm and not coloured_noise(honest).alarm


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("exchanged", [1, 10, 50])
def test_images_that_were_exchanged_since_do_not_colour_the_noise(sigma, exchanged):
    honest = exposure(sigma)
    z = honest.z.copy()
    z[:exchanged] = noised(blobs(exchanged, seed=31), sigma, seed=2)
    assert honest.aligned and not coloured_noise(replace(honest, z=z)).alarm


@pytest.mark.parametrize("sigma", [0.01, 0.03])
def test_a_single_image_that_was_sent_again_in_place_of_another_is_found(sigma):
    """Three hundred releases of three hundred images, and yet one noisy copy too many."""
    honest = exposure(sigma)
    z = honest.z.copy()
    z[5] = noised(honest.images, sigma, seed=2)[7]
    finding = sent_again(replace(honest, z=z), RNG(0))
    assert finding.alarm and "1 of 300 releases" in finding.says


def test_a_release_of_an_image_that_the_site_no_longer_has_is_no_second_one():
    honest = exposure(0.05)
    z = honest.z.copy()
    z[:50] = noised(blobs(50, seed=31), 0.05, seed=2)
    assert not sent_again(replace(honest, z=z), RNG(0)).alarm


# --- a site of which a part is attacked ---------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """What the server has of a site with 300 images, of which 100 are attacked; ``order`` of its release."""
    for name, value in {"MOST_ATTACKED": 100, "FEWEST_ATTACKED": 100}.items():
        monkeypatch.setattr(exposures, name, value)
    images, held_out = blobs(300), blobs(150, seed=9)

    def exposed(seed=1, sigma=0.5, stated=0.5, order=slice(None), copies=1):
        found = [_release(noised(images, sigma, seed=seed + i)[order], stated) for i in range(copies)]
        return expose("north", images, held_out, found)

    return exposed


def _release(z, sigma):
    return Release(z.astype(np.float16), sigma, np.zeros((len(z), 16), np.uint8), None, (), simulated=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_part_is_images_with_their_own_releases_and_raises_no_alarm(large, seed):
    part = large(seed)
    assert (len(part.z), len(part.images), len(part.held_out)) == (100, 100, 100)
    assert (part.releases, part.different, part.aligned, part.apart) == (300, 300, True, False)
    assert [f.says for f in broken_promises(part, RNG(seed)) if f.alarm] == []


def test_what_is_wrong_with_all_of_them_shows_in_a_part(large):
    assert too_little_noise(large(sigma=0.4)).alarm
    again = sent_again(large(copies=2), RNG(0))
    assert again.alarm and "600 releases of 300 different images" in again.says


@pytest.mark.parametrize("seed", range(3))
def test_parts_that_do_not_belong_together_raise_no_alarm_and_say_what_was_not_asked(large, seed):
    part = large(seed, order=slice(None, None, -1))
    assert part.apart
    findings = broken_promises(part, RNG(seed))
    assert [f.says for f in findings if f.alarm] == []
    assert [f.says for f in findings if f.attack == exposures.NOT_ASKED] == [f.says for f in findings[2:]]
    assert "both are too many" in findings[2].says and "which release is of which image" in findings[3].says
    assert len(findings) == 5 and "values share their noise" in findings[4].says


def test_of_large_images_fewer_are_attacked(large, monkeypatch):
    monkeypatch.setattr(exposures, "FEWEST_ATTACKED", 10)
    monkeypatch.setattr(exposures, "MOST_VALUES", 40 * 64)
    assert len(large().z) == len(large().images) == 40


def test_a_release_in_another_order_is_not_taken_for_aligned():
    honest = exposure(0.5)
    assert not replace(honest, z=honest.z[::-1].copy()).aligned
