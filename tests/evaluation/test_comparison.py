"""collafuse.evaluation.comparison: the spread is the one that repetition shows."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.evaluation import comparison
from collafuse.evaluation.comparison import Figure, compare, half_sample_spread, share

RNG = np.random.default_rng(2)


def test_the_spread_of_a_mean_is_its_standard_error(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 2000)
    a, b = RNG.standard_normal(400), 2 * RNG.standard_normal(300)
    found = half_sample_spread(lambda i, j: np.array([a[i].mean() - b[j].mean()]), (400, 300), RNG)
    assert found[0] == pytest.approx(np.sqrt(a.var() / 400 + b.var() / 300), rel=0.06)


def test_the_spread_of_the_kernel_distance_is_that_of_new_images():
    draws = [compare(RNG.standard_normal((200, 4)) + 0.3, RNG.standard_normal((200, 4)), RNG) for _ in range(25)]
    truly = np.std([one["kernel"].value for one in draws])
    assert np.mean([one["kernel"].spread for one in draws]) == pytest.approx(truly, rel=0.5)


def test_equal_distributions_differ_by_less_than_four_spreads():
    figures = compare(RNG.standard_normal((300, 4)), RNG.standard_normal((300, 4)), RNG)
    assert abs(figures["kernel"].value) < 4 * figures["kernel"].spread
    assert figures["precision"].value > 0.9
    assert figures["recall"].value > 0.9


def test_the_same_generator_gives_the_same_figures():
    a, b = RNG.standard_normal((40, 4)), RNG.standard_normal((50, 4))
    assert compare(a, b, np.random.default_rng(5)) == compare(a, b, np.random.default_rng(5))


def test_a_share_of_all_or_none_is_not_certain():
    assert share(np.ones(20, dtype=bool)).value == 1
    assert share(np.ones(20, dtype=bool)).spread > 0.03
    assert share(np.arange(1000) % 2 == 0).spread == pytest.approx(np.sqrt(0.25 / 1000), rel=0.01)


def test_a_figure_is_shown_with_its_spread():
    assert Figure(12.345, 0.678).shown() == "12.3 ± 0.68"
