"""The Gaussian mechanism: noise for a budget, no more and no less."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collafuse.core.errors import ConfigError
from collafuse.core.mechanism import Budget, delta_of


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
def test_the_noise_spends_the_budget_and_no_less_noise_would_do(epsilon, delta):
    multiplier = Budget(epsilon, delta).noise_multiplier
    assert delta_of(1 / multiplier, epsilon) == pytest.approx(delta, rel=1e-9)
    assert delta_of(1.001 / multiplier, epsilon) > delta


def test_it_needs_less_noise_than_the_classical_rule():
    """Dwork and Roth 2014, theorem A.1, which holds for epsilon below 1."""
    assert Budget(0.9, 1e-5).noise_multiplier < math.sqrt(2 * math.log(1.25e5)) / 0.9


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 0.5), (0.3, 0.1), (3.0, 4.0)])
def test_delta_is_the_mass_beyond_the_budget_by_brute_force(mu, epsilon):
    """The integral of max(0, p - e^epsilon q) for p = N(mu, 1) and q = N(0, 1)."""
    x, width = np.linspace(-15, 20, 700_001, retstep=True)
    p, q = np.exp(-((x - mu) ** 2) / 2), np.exp(-(x**2) / 2)
    beyond = np.maximum(0, p - math.exp(epsilon) * q).sum() * width / math.sqrt(2 * math.pi)
    assert delta_of(mu, epsilon) == pytest.approx(beyond, rel=1e-5)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (101.0, 1e-5), (1.0, 0.0), (1.0, 0.5)])
def test_a_budget_that_promises_nothing_is_refused(epsilon, delta):
    with pytest.raises(ConfigError, match="expected an epsilon above 0 and at most 100"):
        Budget(epsilon, delta)
