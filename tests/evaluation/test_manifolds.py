"""collafuse.evaluation.manifolds: against scikit-learn's neighbours, and what the figures promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from collafuse.evaluation.manifolds import coverage, density, distances, precision, radii, recall

RNG = np.random.default_rng(1)
REAL, MADE = RNG.standard_normal((60, 3)), RNG.standard_normal((45, 3)) * 0.7 + 0.4
GG, RR, GR = distances(MADE, MADE), distances(REAL, REAL), distances(MADE, REAL)


def test_distances_and_radii_are_scikit_learns():
    reached, _ = NearestNeighbors(n_neighbors=4).fit(REAL).kneighbors(REAL)  # the first is the image itself
    assert radii(RR, 3) == pytest.approx(reached[:, 3], abs=1e-6)
    np.testing.assert_allclose(GR, np.linalg.norm(MADE[:, None] - REAL[None], axis=2))


def test_each_figure_is_the_count_over_balls():
    three, five = radii(RR, 3), radii(RR, 5)
    assert precision(RR, GR) == np.mean([any(GR[i, j] <= three[j] for j in range(60)) for i in range(45)])
    own = radii(GG, 3)
    assert recall(GG, GR) == np.mean([any(GR[i, j] <= own[i] for i in range(45)) for j in range(60)])
    assert density(RR, GR) == pytest.approx(sum(GR[i, j] <= five[j] for i in range(45) for j in range(60)) / 5 / 45)
    assert coverage(RR, GR) == np.mean([any(GR[i, j] <= five[j] for i in range(45)) for j in range(60)])


def test_images_far_away_are_neither_precise_nor_do_they_cover():
    far = distances(MADE + 100, REAL)
    assert (precision(RR, far), recall(GG, far), density(RR, far), coverage(RR, far)) == (0, 0, 0, 0)


def test_one_good_image_again_and_again_is_precise_and_recalls_nothing():
    same = np.repeat(REAL[:1], 40, axis=0)
    within, across = distances(same, same), distances(same, REAL)
    assert precision(RR, across) == 1
    assert recall(within, across) <= 2 / 60
    assert coverage(RR, across) < 0.3


def test_density_of_equal_distributions_is_about_one():
    a, b = RNG.standard_normal((800, 2)), RNG.standard_normal((800, 2))
    assert density(distances(b, b), distances(a, b)) == pytest.approx(1, abs=0.1)


def test_a_set_smaller_than_its_neighbours_is_measured_all_the_same():
    few = distances(REAL[:3], REAL[:3])
    assert radii(few, 5) == pytest.approx(few.max(axis=1))
