"""The Gaussian mechanism against dp-accounting 0.6.0, whose figures were computed once and written down here.

pld.from_gaussian_mechanism(1 / mu, value_discretization_interval=1e-4), 1e-3 for mu = 10; RdpAccountant for Rényi.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from collafuse.core.errors import UsageError
from collafuse.core.mechanism import delta_of
from collafuse.evaluation.accounting import (
    gaussian_epsilon,
    gaussian_mu,
    gaussian_renyi,
    most_auc,
    most_found,
    pixel_sensitivity,
    release_guarantee,
)

EPSILONS = {  # mu: epsilon at delta 1e-3, 1e-5, 1e-8
    0.1: (0.19753400011367955, 0.34066940409839697, 0.49285042992269956),
    0.5: (1.3522762506702175, 1.99309140791015, 2.70760633768351),
    1.0: (3.1386705526293808, 4.37717810002877, 5.776098383411631),
    2.0: (7.581279926600971, 9.997256150250438, 12.749246404322236),
    5.0: (27.1760171345615, 33.10373233702597, 39.89114670694657),
    10.0: (80.0325262568746, 91.81728977103391, 105.32724723366032),
}


@pytest.mark.parametrize("mu", EPSILONS)
def test_epsilon_agrees_with_dp_accounting_within_a_thousandth(mu):
    ours = [gaussian_epsilon(mu, delta) for delta in (1e-3, 1e-5, 1e-8)]
    assert ours == pytest.approx(EPSILONS[mu], rel=1e-3)


@pytest.mark.parametrize(
    ("mu", "epsilon", "delta"),
    [
        (0.5, 0.5, 0.052440323287674326),
        (0.5, 2.0, 9.43916863494777e-06),
        (0.5, 5.0, 4.6128899232647755e-24),
        (2.0, 0.5, 0.5991856185341206),
        (2.0, 2.0, 0.33189799877691867),
        (2.0, 5.0, 0.03228198475007937),
    ],
)
def test_delta_agrees_with_dp_accounting_within_a_thousandth(mu, epsilon, delta):
    assert delta_of(mu, epsilon) == pytest.approx(delta, rel=1e-3)


def test_renyi_agrees_with_dp_accounting():
    # RdpAccountant([2, 8, 32]) after GaussianDpEvent(0.5), which is mu = 2.
    assert [gaussian_renyi(2.0, order) for order in (2, 8, 32)] == [4, 16, 64]


@pytest.mark.parametrize("mu", [1e-3, 0.3, 3.0, 30.0, 400.0, 1e4])
def test_delta_undoes_epsilon_at_every_size_of_mu(mu):
    epsilon = gaussian_epsilon(mu, 1e-5)
    assert epsilon == 0 or delta_of(mu, epsilon) == pytest.approx(1e-5, rel=1e-4)
    assert epsilon <= mu * mu / 2 + mu * math.sqrt(2 * math.log(1e5))


def test_copies_add_as_the_square_root_and_equal_one_release_with_less_noise():
    shape = (3, 32, 32)
    many, one = release_guarantee(shape, 4.0, releases=16), release_guarantee(shape, 1.0)
    assert many.mu == pytest.approx(one.mu) and many.epsilon == pytest.approx(one.epsilon)
    assert one.mu == pytest.approx(2 * math.sqrt(3072)) == pixel_sensitivity(shape)
    assert one.rho == pytest.approx(one.mu**2 / 2)


def test_more_noise_guarantees_more_and_so_much_noise_that_nothing_is_left_guarantees_all():
    epsilons = [release_guarantee((1, 8, 8), sigma).epsilon for sigma in (0.5, 1.0, 4.0, 80.0)]
    assert epsilons == sorted(epsilons, reverse=True)
    assert gaussian_epsilon(1e-6, 1e-5) == 0.0


def test_impossible_figures_are_refused():
    for call in (lambda: gaussian_mu(1, 0), lambda: gaussian_epsilon(1, 0), lambda: gaussian_renyi(1, 1)):
        with pytest.raises(UsageError, match="expected|above"):
            call()


@pytest.mark.parametrize("mu", [0.2681, 1.666, 4.0])
@pytest.mark.parametrize("false_alarms", [0.01, 0.1])
def test_what_an_attack_finds_at_most_is_what_all_its_budgets_together_allow(mu, false_alarms):
    """(epsilon, delta)-privacy allows e^epsilon false_alarms + delta; of mu-GDP every epsilon, also below 0, has its
    delta."""
    allowed = min(math.exp(e) * false_alarms + delta_of(mu, e) for e in np.linspace(-10, 30, 40_000))
    assert most_found(mu, false_alarms) == pytest.approx(allowed, rel=1e-4)


@pytest.mark.parametrize("mu", [0.2681, 1.666, 4.0])
def test_the_largest_area_is_that_below_what_is_found_at_most(mu):
    levels = (np.arange(20_000) + 0.5) / 20_000
    assert most_auc(mu) == pytest.approx(np.mean([most_found(mu, a) for a in levels]), abs=1e-4)
