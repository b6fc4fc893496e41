"""collafuse.evaluation.quality: against closed forms and against a second way to the same number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from collafuse.evaluation.quality import cubic_kernel, frechet_distance, kernel_distance, nearest

RNG = np.random.default_rng(0)


def kid(a: np.ndarray, b: np.ndarray) -> float:
    return kernel_distance(cubic_kernel(a, a), cubic_kernel(b, b), cubic_kernel(a, b))


def test_the_frechet_distance_is_the_textbook_formula_with_a_matrix_root():
    a, b = RNG.standard_normal((50, 6)) @ RNG.standard_normal((6, 6)), RNG.standard_normal((40, 6)) + 0.5
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(apart + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


def test_the_frechet_distance_of_moved_and_stretched_features_has_a_closed_form():
    a = RNG.standard_normal((200, 4))
    expected = 4 * 0.3**2 + np.trace(np.cov(a, rowvar=False)) * (2 - 1) ** 2  # |m|^2 + tr C (s - 1)^2, for a of mean 0
    centred = a - a.mean(0)
    assert frechet_distance(centred, 2 * centred + 0.3) == pytest.approx(expected)


def test_fewer_images_than_features_are_no_obstacle():
    a = RNG.standard_normal((5, 30))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_the_kernel_distance_is_the_sum_over_pairs_of_different_images():
    a, b = RNG.standard_normal((7, 3)), RNG.standard_normal((5, 3))

    def mean(x, y, same):
        values = [(p @ q / 3 + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if not (same and i == j)]
        return np.mean(values)

    assert kid(a, b) == pytest.approx(mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False))


def test_the_kernel_distance_of_gaussians_has_a_closed_form():
    # In one dimension E (xy + 1)^3 = 1 + 3 m1 m1' + 3 m2 m2' + m3 m3' with the raw moments; x of N(0, 1), y of N(1, 1).
    x, y = RNG.standard_normal((4000, 1)), RNG.standard_normal((4000, 1)) + 1
    moments_x, moments_y = np.array([0, 1, 0]), np.array([1, 2, 4])
    expected = np.array([3, 3, 1]) @ np.square(moments_x - moments_y)
    assert kid(x, y) == pytest.approx(expected, rel=0.15)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average():
    values = [kid(RNG.standard_normal((20, 4)), RNG.standard_normal((30, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_a_mix_of_labels_that_is_fixed_does_not_bring_the_sides_nearer():
    strata = np.repeat([0, 1, 2], [10, 6, 8])
    centres = 2 * RNG.standard_normal((3, 4))

    def draw():
        a, b = (centres[strata] + RNG.standard_normal((24, 4)) for _ in range(2))
        return cubic_kernel(a, a), cubic_kernel(b, b), cubic_kernel(a, b)

    draws = [draw() for _ in range(400)]
    heeding = [kernel_distance(*one, (strata, strata)) for one in draws]
    assert abs(np.mean(heeding)) < 4 * np.std(heeding) / 20
    heedless = [kernel_distance(*one) for one in draws]
    assert np.mean(heedless) < -10 * np.std(heedless) / 20


def test_the_nearest_image_is_the_one_with_the_smallest_distance():
    images, others = (RNG.integers(0, 256, (n, 1, 3, 3), dtype=np.uint8) for n in (9, 11))
    every = np.sqrt(np.square(images[:, None].astype(float) - others[None]).sum(axis=(2, 3, 4)))
    rows, distances = nearest(images, others, chunk=4)
    assert (rows == every.argmin(axis=1)).all()
    assert distances == pytest.approx(every.min(axis=1))
