"""collafuse.evaluation.comparison: the spread is the one that repetition shows."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.evaluation import comparison
from collafuse.evaluation.comparison import Figure, compare, half_of, half_sample_spread, share

RNG = np.random.default_rng(2)


def alike(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One stratum on either side."""
    return np.zeros(len(a), dtype=np.int64), np.zeros(len(b), dtype=np.int64)


def drawn(count: int, mean: float = 0.0) -> dict[str, Figure]:
    """Two fresh samples of Gaussians, compared."""
    a, b = RNG.standard_normal((count, 4)) + mean, RNG.standard_normal((count, 4))
    return compare(a, b, alike(a, b), RNG)


def test_the_spread_of_a_mean_is_its_standard_error(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 2000)
    a, b = RNG.standard_normal(400), 2 * RNG.standard_normal(300)
    found = half_sample_spread(lambda i, j: np.array([a[i].mean() - b[j].mean()]), alike(a, b), RNG)
    assert found[0] == pytest.approx(np.sqrt(a.var() / 400 + b.var() / 300), rel=0.06)


def test_half_of_every_stratum_is_drawn():
    strata = np.repeat([0, 1, 2], [40, 7, 20])
    for _ in range(20):
        rows = half_of(strata, RNG)
        assert len(rows) == len(set(rows)) in (33, 34)
        assert np.abs(np.bincount(strata[rows]) - [20, 3.5, 10]).max() <= 1


def test_what_differs_between_strata_is_no_spread_where_the_mix_is_given():
    strata = np.arange(200) % 2
    values = 100.0 * strata + RNG.standard_normal(200)
    spread = half_sample_spread(lambda i, j: np.array([values[i].mean() - values[j].mean()]), (strata, strata), RNG)
    assert spread[0] < 0.5


def test_the_spread_of_the_kernel_distance_is_that_of_new_images():
    draws = [drawn(200, 0.3) for _ in range(25)]
    truly = np.std([one["kernel"].value for one in draws])
    assert np.mean([one["kernel"].spread for one in draws]) == pytest.approx(truly, rel=0.5)


def test_near_the_floor_spreads_of_distances_are_too_large_and_never_too_small():
    draws = [drawn(60) for _ in range(40)]
    for name in ("frechet", "kernel"):
        truly = np.std([one[name].value for one in draws], ddof=1)
        assert 1 < np.mean([one[name].spread for one in draws]) / truly < 4, name


def test_equal_distributions_differ_by_less_than_four_spreads():
    figures = drawn(300)
    assert abs(figures["kernel"].value) < 4 * figures["kernel"].spread
    assert figures["precision"].value > 0.9
    assert figures["recall"].value > 0.9


def test_the_same_generator_gives_the_same_figures():
    a, b = RNG.standard_normal((40, 4)), RNG.standard_normal((50, 4))
    one, two = (compare(a, b, alike(a, b), np.random.default_rng(5)) for _ in range(2))
    assert one == two


def test_a_share_of_all_or_none_is_not_certain():
    assert share(np.ones(20, dtype=bool)).value == 1
    assert share(np.ones(20, dtype=bool)).spread > 0.03
    assert share(np.arange(1000) % 2 == 0).spread == pytest.approx(np.sqrt(0.25 / 1000), rel=0.01)


def test_a_figure_is_shown_with_its_spread():
    assert Figure(12.345, 0.678).shown() == "12.3 ± 0.68"
