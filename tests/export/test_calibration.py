"""export.calibration: which images calibrate and which measure, at which levels, and what a loss is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collafuse.core import bundle as bundles
from collafuse.core import intermediate as intermediates
from collafuse.core.bundle import MAX_PSNR_DB, Loss
from collafuse.core.conditioning import TextSpace
from collafuse.core.errors import FileFormatError, MismatchError
from collafuse.core.noise import client_sigmas
from collafuse.core.pictures import to_uint8
from edge_client import Finisher
from export import calibration
from export.calibration import MIN_IMAGES, calibration_inputs, loss_between, measure_loss
from export.runtime import OnnxStep


@pytest.fixture(scope="module")
def info(tiny_bundle):
    return bundles.read(tiny_bundle).info


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return OnnxStep(tiny_bundle.read_bytes())


def write(path, **changes):
    path.write_bytes(intermediates.to_bytes(dataclasses.replace(intermediates.read(path), **changes)))


# --- which images -------------------------------------------------------------------------------------------


def test_no_image_both_calibrates_and_measures(delivered, info):
    shaping, judging = calibration.read(delivered, info)
    everything = intermediates.read(delivered).x
    np.testing.assert_array_equal(shaping.x, everything[::2])
    np.testing.assert_array_equal(judging.x, everything[1::2])


def test_both_halves_hold_all_labels(delivered, info):
    for half in calibration.read(delivered, info):
        assert half.conditions.any(axis=0).tolist() == [True, True, True, False]


@pytest.fixture
def bare(delivered, tmp_path):
    """What a server delivers to a site that keeps its labels."""
    path = tmp_path / "bare.safetensors"
    path.write_bytes(delivered.read_bytes())
    write(path, labels=None, label_names=())
    return path


def test_where_the_site_keeps_its_labels_both_halves_show_them_as_its_devices_choose_them(bare, delivered, info):
    kept = dataclasses.replace(info, labels_kept=True)
    for half in calibration.read(bare, kept):
        assert half.conditions.any(axis=0).tolist() == [True, True, True, False]
    for half in (*calibration.read(bare, info), *calibration.read(bare, dataclasses.replace(kept, label_names=()))):
        assert (half.conditions == np.eye(half.conditions.shape[1])[-1]).all()
    as_delivered = calibration.read(delivered, kept)[0]
    np.testing.assert_array_equal(as_delivered.conditions, calibration.read(delivered, info)[0].conditions)


def test_where_the_site_keeps_its_text_both_halves_show_some(bare, delivered, info):
    """Without any, guidance would compare what shows no text with itself."""
    kept = dataclasses.replace(info, text=TextSpace("t5-6-00", 6), text_kept=True)
    columns = kept.space.text_columns
    for path in (bare, delivered):
        halves = calibration.read(path, kept)
        for half in halves:
            text, flags = half.conditions[:, columns], half.conditions[:, -1]
            np.testing.assert_allclose(np.square(text).mean(axis=1), 1.0, rtol=0.01)
            assert len(np.unique(text, axis=0)) == len(half.x) and not flags.any()
        assert halves[0].conditions[:, kept.space.label_columns].any() == (path == delivered)
    for half in calibration.read(delivered, dataclasses.replace(kept, text_kept=False)):
        assert not half.conditions[:, columns].any()


def test_what_no_device_would_finish_calibrates_nothing(bare, delivered, info):
    """A client that was never trained without a condition would be judged by pictures of what it never learned."""
    taught = dataclasses.replace(info, blank_trained=False)
    with pytest.raises(MismatchError, match="carry no labels, and the client north was never trained without"):
        calibration.read(bare, taught)
    with_text = dataclasses.replace(taught, text=TextSpace("t5-6-00", 6))
    with pytest.raises(MismatchError, match="carry no text, and the client north was never trained without"):
        calibration.read(delivered, with_text)
    calibration.read(delivered, taught)
    calibration.read(bare, dataclasses.replace(with_text, labels_kept=True, text_kept=True))  # chosen as on a device


def test_the_loss_of_kept_labels_counts_what_guidance_makes_of_them(bare, info, reduced, model):
    reduced = OnnxStep(reduced["int8"].read_bytes())
    plain, guided = (dataclasses.replace(info, labels_kept=True, guidance=weight) for weight in (1.0, 8.0))
    losses = [measure_loss(model, reduced, calibration.read(bare, one)[1], one) for one in (plain, guided)]
    assert losses[1].psnr_db < losses[0].psnr_db - 1


def test_a_long_file_is_thinned_evenly(delivered, info, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_IMAGES", 12)
    everything = intermediates.read(delivered).x
    shaping, judging = calibration.read(delivered, info)
    np.testing.assert_array_equal(shaping.x, everything[::6])
    np.testing.assert_array_equal(judging.x, everything[3::6])


def test_an_intermediate_of_another_client_or_too_short_is_refused(delivered, info, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(delivered.read_bytes())
    short = intermediates.read(path)
    rows = slice(0, MIN_IMAGES - 1)
    write(path, x=short.x[rows], labels=short.labels[rows])
    with pytest.raises(MismatchError, match=rf"a\.safetensors holds 15 images; .* at least {MIN_IMAGES} are needed"):
        calibration.read(path, info)
    write(path, x=short.x, labels=short.labels, sigma=2.0)
    with pytest.raises(MismatchError, match="stands at sigma 2, the bundle was trained for"):
        calibration.read(path, info)
    write(path, sigma=0.5)  # north's cut
    with pytest.raises(MismatchError, match=r"stands at sigma 0\.5, the client takes over at 1;"):
        calibration.read(path, info)
    path.write_bytes(b"damaged")
    with pytest.raises(FileFormatError):
        calibration.read(path, info)


# --- at which levels ----------------------------------------------------------------------------------------


def test_calibration_covers_the_levels_that_finishing_visits_and_then_the_whole_range(delivered, info, model):
    shaping, _ = calibration.read(delivered, info)
    levels = [float(inputs["sigma"][0]) for inputs in calibration_inputs(model, shaping, info)]
    visited = client_sigmas(info.sigma_max, info.steps, info.sigma_low)[:-1]
    assert len(levels) == 2 * len(visited)
    np.testing.assert_allclose(levels[: len(visited)], visited, rtol=1e-6)
    np.testing.assert_allclose(
        levels[len(visited) :], np.geomspace(info.sigma_low, info.sigma_max, len(visited)), rtol=1e-6
    )


def test_the_visited_inputs_are_those_of_the_real_trajectory(delivered, info, model):
    shaping, _ = calibration.read(delivered, info)
    first = next(iter(calibration_inputs(model, shaping, info)))
    np.testing.assert_array_equal(first["x"], shaping.x)
    np.testing.assert_array_equal(first["labels"], shaping.conditions)


def test_the_spread_inputs_are_noised_as_their_level_says_and_half_of_them_unlabelled(delivered, info, model):
    shaping, _ = calibration.read(delivered, info)
    spread = list(calibration_inputs(model, shaping, info))[info.steps :]
    finished = shaping.finished(model, info)
    for inputs in spread:
        sigma = inputs["sigma"][0]
        assert (inputs["x"] - finished).std() == pytest.approx(sigma, rel=0.1)
        assert inputs["labels"][::2, -1].all() and not inputs["labels"][1::2, -1].any()


def test_what_a_client_never_learned_does_not_calibrate_it(delivered, info, model):
    never = dataclasses.replace(info, blank_trained=False)
    shaping, _ = calibration.read(delivered, never)
    assert not any(inputs["labels"][:, -1].any() for inputs in calibration_inputs(model, shaping, never))


def test_guidance_shows_the_network_unlabelled_images_on_the_way(delivered, info, model):
    shaping, _ = calibration.read(delivered, info)
    guided = dataclasses.replace(info, guidance=2.0)
    inputs = list(calibration_inputs(model, shaping, guided))
    assert len(inputs) == 4 * info.steps
    assert inputs[0]["labels"][:, -1].all() and not inputs[1]["labels"][:, -1].any()


# --- the loss -----------------------------------------------------------------------------------------------


def test_a_loss_is_plain_arithmetic():
    exact = np.full((2, 2, 2, 1), 100, dtype=np.uint8)
    other = exact.copy()
    other[0, 0, 0, 0], other[1, 1, 1, 0] = 104, 97
    psnr_db = round(10 * np.log10(255**2 / (25 / 8)), 2)
    assert loss_between(exact, other) == Loss(2, 0.875, 4, psnr_db, "no label", psnr_db)


def test_equal_pictures_have_no_loss_and_a_finite_figure():
    pixels = np.zeros((3, 2, 2, 1), dtype=np.uint8)
    assert loss_between(pixels, pixels) == Loss(3, 0.0, 0, MAX_PSNR_DB, "no label", MAX_PSNR_DB)


def with_noise_of(spoilt: np.ndarray):
    """A model beside one that comes out 1 grey level higher, 7 for images of a condition like this."""

    def exact(x, sigma, conditions):
        return 0 * x + 0.25 / 127.5

    def reduced(x, sigma, conditions):
        bad = (conditions * spoilt).sum(axis=1) == spoilt.sum()
        return exact(x, sigma, conditions) + np.where(bad, 7, 1)[:, None, None, None] / 127.5

    return exact, reduced


LABELS = tuple("0123456789")
PSNR_OF_7 = round(10 * np.log10(255**2 / 49), 2)


def shown(info, labels: np.ndarray | None) -> tuple[calibration.Batch, bundles.BundleInfo]:
    info = dataclasses.replace(info, label_names=LABELS, guidance=1.0, steps=1)
    x = np.zeros((40, *info.image_shape), dtype=np.float32)
    return calibration.Batch(x, info.space.conditions(40, labels), None), info


def test_one_label_of_ten_that_comes_out_badly_shows(info):
    batch, info = shown(info, np.eye(10, dtype=np.uint8)[np.arange(40) % 10])
    loss = measure_loss(*with_noise_of(np.eye(11)[7]), batch, info)
    assert (loss.worst_label, loss.worst_psnr_db) == ("7", PSNR_OF_7) and loss.psnr_db > 40 > 32 > PSNR_OF_7


def test_an_image_of_several_labels_counts_for_each_and_one_of_none_for_none(info):
    labels = np.zeros((40, 10), dtype=np.uint8)
    labels[:30, 1] = labels[:4, 2] = labels[10:20, 3] = 1  # none of the others is shown, and 30 to 39 show none
    batch, info = shown(info, labels)
    loss = measure_loss(*with_noise_of(np.eye(11)[2]), batch, info)
    assert (loss.worst_label, loss.worst_psnr_db) == ("2", PSNR_OF_7)
    loss = measure_loss(*with_noise_of(np.eye(11)[3]), batch, info)
    assert (loss.worst_label, loss.worst_psnr_db) == ("3", PSNR_OF_7)


ALL_BUT_FOUR = np.eye(10, dtype=np.uint8)[np.arange(40) % 10] * (np.arange(40) < 36)[:, None]


@pytest.mark.parametrize("labels", [None, ALL_BUT_FOUR.astype(np.uint8)])
def test_images_of_no_label_count_by_themselves(info, labels):
    batch, info = shown(info, labels)
    exact, reduced = with_noise_of(np.zeros(11))  # all of them badly
    where_shown = with_noise_of(np.full(11, 9.0))[1]  # none

    def mixed(x, sigma, conditions):
        bare = ~conditions[:, :10].any(axis=1)[:, None, None, None]
        return np.where(bare, reduced(x, sigma, conditions), where_shown(x, sigma, conditions))

    loss = measure_loss(exact, mixed, batch, info)
    assert (loss.worst_label, loss.worst_psnr_db) == ("no label", PSNR_OF_7)


def test_the_loss_is_measured_on_what_a_device_finishes(reduced, tiny_bundle, delivered, info, model):
    _, judging = calibration.read(delivered, info)
    held_back = intermediates.read(delivered)
    held_back = dataclasses.replace(held_back, x=held_back.x[1::2], labels=held_back.labels[1::2])
    exact, int8 = (Finisher.load(path).finish(held_back) for path in (tiny_bundle, reduced["int8"]))
    loss = measure_loss(model, OnnxStep(reduced["int8"].read_bytes()), judging, info)
    assert loss.images == 16 == len(exact)
    assert loss.mean_grey_levels == pytest.approx(np.abs(exact.astype(int) - int8.astype(int)).mean(), abs=0.02)
    assert bundles.read(reduced["int8"]).info.loss == loss


def test_a_history_that_travelled_along_is_used(delivered, info, model, tiny_bundle, tmp_path):
    path = tmp_path / "warm.safetensors"
    path.write_bytes(delivered.read_bytes())
    x = intermediates.read(path).x
    previous = 0.7 * np.sin(np.arange(x.size)).reshape(x.shape)
    write(path, previous_x0_hat=previous.astype(np.float32), previous_sigma=1.8)
    _, judging = calibration.read(path, info)
    warm = intermediates.read(path)
    warm = dataclasses.replace(
        warm, x=warm.x[1::2], labels=warm.labels[1::2], previous_x0_hat=warm.previous_x0_hat[1::2]
    )
    there = Finisher.load(tiny_bundle).finish(warm, len(warm))
    assert np.abs(to_uint8(judging.finished(model, info)).astype(int) - there.astype(int)).max() <= 1
