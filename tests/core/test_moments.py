"""Moments of images: the basis, the noise that a budget needs, and adding up sites."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft

from collafuse.core import moments
from collafuse.core.errors import ConfigError
from collafuse.core.mechanism import Budget
from collafuse.core.moments import Basis, moments_of, noised, pool, statistics_of
from collafuse.core.statistics import Statement

SHAPE = (1, 4, 4)


def images(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape))


def files_of(x: np.ndarray, labels: np.ndarray, about: Statement, names: tuple[str, ...] | None = ("a", "b")):
    exact = moments_of([(x, labels)], about, len(names or ("all",)))
    return statistics_of(exact, about, names, simulated=False)


def covariance(gaussian: moments.Gaussian) -> np.ndarray:
    return gaussian.eigenvectors * gaussian.eigenvalues @ gaussian.eigenvectors.T


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4), (2, 6, 3)])
def test_the_whole_basis_is_the_orthonormal_cosine_transform(shape):
    basis, x = Basis(shape, shape[1] * shape[2]), images(5, shape=shape)
    y = basis.coefficients(x)
    expected = np.sort(scipy.fft.dctn(x, axes=(2, 3), norm="ortho").reshape(5, -1))
    np.testing.assert_allclose(np.sort(y), expected, atol=1e-12)
    np.testing.assert_allclose(basis.images(y), x, atol=1e-12)
    np.testing.assert_allclose(basis.matrix @ basis.matrix.T, np.eye(len(basis.matrix)), atol=1e-12)


def test_a_few_coefficients_are_the_lowest_frequencies():
    assert np.array_equal(Basis((1, 8, 8), 10).matrix, Basis((1, 8, 8), 64).matrix[:10])
    flat = Basis((1, 8, 8), 1).coefficients(np.full((1, 1, 8, 8), 0.5))
    assert flat == pytest.approx(0.5 * 8)
    ramp = np.broadcast_to(np.linspace(-1, 1, 8), (1, 1, 8, 8))
    kept = Basis((1, 8, 8), 3).images(Basis((1, 8, 8), 3).coefficients(ramp))
    assert ((kept - ramp) ** 2).mean() < 0.02 * (ramp**2).mean()


@pytest.mark.parametrize("coefficients", [0, 17, 1025])
def test_a_basis_has_as_many_coefficients_as_there_are(coefficients):
    with pytest.raises(ConfigError, match=f"coefficients={coefficients}.*1 to 16"):
        Basis(SHAPE, coefficients)


def test_a_basis_of_a_large_image_needs_little_memory():
    assert Basis((1, 1024, 1024), 4).matrix.shape == (4, 1024 * 1024)


# --- sums -----------------------------------------------------------------------------------------------------


def test_two_sites_together_are_their_union_exactly():
    about, x, labels = Statement(SHAPE, 16), images(300), np.arange(300) % 2
    parts = [files_of(x[rows], labels[rows], about) for rows in (slice(0, 70), slice(70, 300))]
    whole = files_of(x, labels, about)
    for row in (0, 1):
        split, one = pool([(part, row) for part in parts]), pool([(whole, row)])
        assert split.count == one.count == 150
        np.testing.assert_allclose(split.mean, one.mean, atol=1e-7)
        np.testing.assert_allclose(covariance(split), covariance(one), atol=1e-6)


def test_all_labels_together_are_one_gaussian_of_all_images():
    about, x = Statement(SHAPE, 16), images(200)
    file = files_of(x, np.arange(200) % 2, about)
    pooled, y = pool([(file, 0), (file, 1)]), Basis(SHAPE, 16).coefficients(x)
    np.testing.assert_allclose(pooled.mean, y.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(covariance(pooled), np.cov(y.T, bias=True), atol=1e-6)


def test_blocks_change_nothing():
    about, x, labels = Statement(SHAPE, 5), images(50), np.arange(50) % 2
    whole = moments_of([(x, labels)], about, 2)
    parts = moments_of([(x[i : i + 7], labels[i : i + 7]) for i in range(0, 50, 7)], about, 2)
    np.testing.assert_allclose(parts.products, whole.products, atol=1e-10)
    assert np.array_equal(parts.counts, whole.counts)


# --- noise ----------------------------------------------------------------------------------------------------

PRIVATE = Statement(SHAPE, 6, Budget(1.0, 1e-5), clip=0.5)


def weighted(x: np.ndarray, label: int) -> np.ndarray:
    """One image's part in all sums of two labels, in units in which the noise is the same on each."""
    one, limit = moments_of([(x[None], np.array([label]))], PRIVATE, 2), moments.radius(PRIVATE)
    a = moments.COUNT_WEIGHT
    parts = (a * one.counts, math.sqrt(2 * a) * one.sums / limit, one.products / limit**2)
    return np.concatenate([part.ravel() for part in parts])


def test_no_image_in_place_of_another_changes_the_sums_by_more_than_is_stated():
    rng, apart = np.random.default_rng(0), []
    for _ in range(400):
        # Also far too long ones, that must be clipped, and opposite ones, that are furthest from each other.
        x = rng.standard_normal(SHAPE) * rng.choice([0.1, 1.0, 30.0])
        other = rng.choice([-1.0, 0.0, 1.0]) * x + rng.choice([0.0, 1.0]) * rng.standard_normal(SHAPE)
        for label in (0, 1):
            apart.append(np.linalg.norm(weighted(x, 0) - weighted(other, label)))
    assert max(apart) <= moments.sensitivity() * (1 + 1e-12)
    assert max(apart) > 0.99 * moments.sensitivity()  # and the statement is no looser than it must be


def test_the_noise_is_that_of_the_budget_on_every_number():
    zero = moments_of([], PRIVATE, 4000)
    made = noised(zero, PRIVATE, np.random.default_rng(0).standard_normal)
    s = Budget(1.0, 1e-5).noise_multiplier * moments.sensitivity()
    limit, a = moments.radius(PRIVATE), moments.COUNT_WEIGHT
    on, off = np.eye(6, dtype=bool), np.triu(np.ones((6, 6), bool), 1)
    assert np.array_equal(made.products, made.products.transpose(0, 2, 1))
    for array, expected in (
        (made.counts, s / a),
        (made.sums, s * limit / math.sqrt(2 * a)),
        (made.products[:, on], s * limit**2),
        (made.products[:, off], s * limit**2 / math.sqrt(2)),
    ):
        assert array.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * array.size))


def test_noise_alone_leaves_no_direction_and_a_covariance_is_never_negative():
    about = Statement((1, 8, 8), 64, Budget(8.0, 1e-5), clip=1.0)
    x = np.zeros((2000, 1, 8, 8))
    exact = moments_of([(x, np.zeros(2000, int))], about, 1)
    file = statistics_of(noised(exact, about, np.random.default_rng(0).standard_normal), about, None, simulated=False)
    assert (pool([(file, 0)]).eigenvalues > 0).sum() <= 2
    strong = images(2000, shape=(1, 8, 8)) * np.linspace(0, 3, 8)
    noisy = noised(
        moments_of([(strong, np.zeros(2000, int))], about, 1), about, np.random.default_rng(1).standard_normal
    )
    pooled = pool([(statistics_of(noisy, about, None, simulated=False), 0)])
    assert pooled.eigenvalues.min() == 0 and (pooled.eigenvalues > 0).sum() > 0
