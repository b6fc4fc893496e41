"""Reconstruction against closed forms, scikit-image's figures, and pure noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from collafuse.evaluation.attacks.reconstruction import GaussianPrior, compare, cosines, psnr, ssim, wiener
from tests.evaluation.attacks.worlds import blobs, exposure, pure_noise


def test_the_wiener_filter_is_the_conditional_mean():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((4, 4))
    x0 = rng.standard_normal((5000, 4)) @ mixing + 1
    prior, sigma = GaussianPrior.fit(x0.reshape(-1, 1, 2, 2)), 0.7
    covariance, mean = np.cov(x0, rowvar=False, bias=True), x0.mean(axis=0)
    x = rng.standard_normal((3, 4))
    expected = mean + (x - mean) @ np.linalg.solve(covariance + sigma**2 * np.eye(4), covariance)
    assert prior.denoise(x.reshape(3, 1, 2, 2), sigma).reshape(3, 4) == pytest.approx(expected, abs=1e-5)


def test_a_prior_from_few_images_has_the_same_variances_as_from_the_covariance():
    few = blobs(30).x0()
    centred = few.reshape(30, -1) - few.reshape(30, -1).mean(axis=0)
    exact = np.linalg.eigvalsh(centred.T @ centred / 30)[::-1]
    prior = GaussianPrior.fit(few)
    assert np.sort(prior.variances)[::-1] == pytest.approx(exact[: len(prior.variances)], rel=1e-4, abs=1e-6)
    assert prior.directions @ prior.directions.T == pytest.approx(np.eye(len(prior.variances)), abs=1e-4)


def test_ssim_is_that_of_scikit_image():
    # structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2), 0.26.
    i, j = np.mgrid[:16, :12]
    x = np.sin(i / 3) * np.cos(j / 2) * 0.8
    y = np.sin(i / 3 + 0.3) * np.cos(j / 2) * 0.7 + 0.1 * np.cos(i * j)
    a, b = np.stack([x, x])[:, None], np.stack([y, 0 * y])[:, None]
    assert ssim(a, b) == pytest.approx([0.5226705973466584, 0.0011296322137130655], rel=1e-9)


def test_figures_of_equal_images_are_perfect_and_psnr_is_that_of_its_error():
    x0 = blobs(4).x0()
    assert ssim(x0, x0) == pytest.approx(1) and cosines(x0.reshape(4, -1), x0.reshape(4, -1)) == pytest.approx(1)
    assert psnr(x0, x0 + 0.2) == pytest.approx(20)


def _gains(site, sigma):
    known = blobs(400, seed=3)
    groups = (i.labels.argmax(axis=1) for i in (known, site.images))
    estimate, mean = wiener(site.z, sigma, known.x0(), *groups)
    return compare(site.images.x0(), {"Wiener": estimate}, mean, None)[0]


def test_a_quiet_release_is_reconstructed_and_pure_noise_is_not():
    quiet, noise = _gains(exposure(0.3), 0.3), _gains(pure_noise(3.0), 3.0)
    assert quiet.alarm and quiet.gain_db > 3 and quiet.psnr_db > 16
    assert not noise.alarm


def test_a_prior_draws_where_its_own_sampler_ends():
    """From the noise that a server starts from: then the two can be compared picture by picture."""
    prior, start = GaussianPrior.fit(blobs(200).x0()), np.random.default_rng(0).standard_normal((50, 1, 8, 8))
    x, sigmas = 80 * start, np.geomspace(80, 0.5, 400)
    for sigma, below in itertools.pairwise(sigmas):
        x = x + (below - sigma) / sigma * (x - prior.denoise(x, sigma))
    assert np.abs(prior.draw(start, 0.5) - x).max() < 0.05 * np.abs(x).max()
