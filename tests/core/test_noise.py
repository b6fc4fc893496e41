"""collafuse.core.noise against formulas written another way."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import noise
from collafuse.core.errors import ConfigError
from collafuse.core.noise import SIGMA_MAX, SIGMA_MIN, SIGMA_SLACK, Cut

levels = st.floats(SIGMA_MIN * 1.001, SIGMA_MAX)
schedules = st.sampled_from(noise.SCHEDULES)


@given(levels)
def test_log_snr_there_and_back(sigma):
    assert noise.sigma_from_log_snr(noise.log_snr_from_sigma(sigma)) == pytest.approx(sigma, rel=1e-13)


@given(levels)
def test_alpha_bar_there_and_back(sigma):
    assert noise.sigma_from_alpha_bar(noise.alpha_bar_from_sigma(sigma)) == pytest.approx(sigma, rel=1e-9)


@given(levels)
def test_log_snr_is_the_log_of_signal_power_over_noise_power(sigma):
    alpha_bar = noise.alpha_bar_from_sigma(sigma)
    assert noise.log_snr_from_sigma(sigma) == pytest.approx(math.log(alpha_bar / (1 - alpha_bar)), abs=1e-9)


@given(st.floats(0.01, 0.99), schedules)
def test_t_there_and_back(t, schedule):
    assert noise.t_from_sigma(noise.sigma_from_t(t, schedule), schedule) == pytest.approx(t, abs=1e-6)


@given(st.floats(0.0, 0.998), schedules)
def test_noise_rises_with_t(t, schedule):
    assert noise.sigma_from_t(t + 0.001, schedule) > noise.sigma_from_t(t, schedule)


@pytest.mark.parametrize(("schedule", "sigma"), [("cosine", 0.34), ("linear", 0.72)])
def test_a_step_fraction_is_not_a_noise_level(schedule, sigma):
    assert round(noise.sigma_from_t(0.2, schedule), 2) == sigma


@pytest.mark.parametrize("t", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_linear_is_the_limit_of_the_1000_step_table_of_ddpm(t):
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[round(1000 * t) - 1]
    assert noise.sigma_from_t(t, "linear") == pytest.approx(math.sqrt((1 - alpha_bar) / alpha_bar), rel=0.06)


@pytest.mark.parametrize("t", [0.05, 0.2, 0.5, 0.9])
def test_cosine_is_nichol_and_dhariwal_equation_17(t):
    power = [math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (t, 0.0)]
    alpha_bar = power[0] / power[1]
    assert noise.sigma_from_t(t, "cosine") == pytest.approx(((1 - alpha_bar) / alpha_bar) ** 0.5, rel=1e-9)


@pytest.mark.parametrize("schedule", noise.SCHEDULES)
def test_schedules_begin_without_noise(schedule):
    assert noise.sigma_from_t(0.0, schedule) == 0.0


def test_a_level_beyond_the_end_of_a_schedule_maps_to_its_end():
    assert noise.t_from_sigma(1e9, "linear") == 1.0
    assert noise.sigma_from_t(1.0, "cosine") == math.inf


@pytest.mark.parametrize("t", [-0.01, 1.01, 200, math.nan])
def test_t_is_continuous_time_in_0_to_1(t):
    with pytest.raises(ConfigError, match=r"outside \[0, 1\]; t is continuous time, not a step index"):
        noise.sigma_from_t(t, "cosine")


@pytest.mark.parametrize("function", [noise.sigma_from_t, noise.t_from_sigma])
def test_an_unknown_schedule_is_named_beside_the_known_ones(function):
    with pytest.raises(ConfigError, match="'sigmoid' is not known; use one of cosine, linear"):
        function(0.5, "sigmoid")


# --- the cut ------------------------------------------------------------------------------------------------


@given(levels, schedules)
def test_the_three_ways_to_give_a_cut_agree(sigma, schedule):
    assert Cut.from_settings(sigma=sigma).sigma == sigma
    assert Cut.from_settings(log_snr=-2 * math.log(sigma)).sigma == pytest.approx(min(sigma, SIGMA_MAX), rel=1e-12)
    t = noise.t_from_sigma(sigma, schedule)
    assert Cut.from_settings(t=t, schedule=schedule).sigma == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma": SIGMA_MIN},  # the range is open below
        {"sigma": 0.0},
        {"sigma": -1.0},
        {"sigma": 80.001},
        {"sigma": math.nan},
        {"sigma": math.inf},
        {"log_snr": 13.0},
        {"log_snr": -9.0},
        {"log_snr": -5000.0},  # too large for a float
        {"log_snr": 5000.0},
        {"log_snr": math.nan},
        {"t": 0.0, "schedule": "cosine"},
        {"t": 1.0, "schedule": "cosine"},
        {"t": 1.0, "schedule": "linear"},
    ],
)
def test_a_cut_outside_the_range_is_refused_with_the_range(settings):
    with pytest.raises(ConfigError, match=r"cut sigma=\S+ lies outside \(0.002, 80\].*Choose a sigma inside") as caught:
        Cut.from_settings(**settings)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "nothing"),
        ({"sigma": 1.0, "log_snr": 0.0}, "sigma and log_snr"),
        ({"sigma": 1.0, "t": 0.2, "schedule": "cosine"}, "sigma and t"),
        ({"log_snr": 0.0, "t": 0.2, "schedule": "cosine"}, "log_snr and t"),
    ],
)
def test_a_cut_is_given_in_exactly_one_way(settings, named):
    with pytest.raises(ConfigError, match=f"a cut is given by {named}; give exactly one of sigma, log_snr, or t"):
        Cut.from_settings(**settings)


@pytest.mark.parametrize("settings", [{"t": 0.2}, {"sigma": 1.0, "schedule": "cosine"}])
def test_t_and_schedule_belong_together(settings):
    with pytest.raises(ConfigError, match="t and schedule belong together"):
        Cut.from_settings(**settings)


def test_a_cut_at_the_top_is_allowed():
    assert Cut(SIGMA_MAX).lowest_trained == SIGMA_MAX


def test_a_cut_at_one_has_no_minus_in_front_of_its_log_snr():
    assert Cut(1.0).describe().startswith("sigma 1 (log-SNR +0.00,")


def test_nothing_is_learned_at_the_cut_itself():
    assert Cut(1.0).lowest_trained == pytest.approx(1.05)


def test_a_cut_is_shown_in_all_three_coordinates():
    shown = Cut.from_settings(t=0.2, schedule="cosine").describe()
    assert shown == "sigma 0.336 (log-SNR +2.18, t 0.20 cosine / 0.10 linear)"


# --- step spacings ------------------------------------------------------------------------------------------


@given(levels, st.floats(1e-3, 0.999), st.integers(1, 200))
def test_karras_levels_fall_and_end_exactly(start, ratio, num_steps):
    sigmas = noise.karras_sigmas(start, start * ratio, num_steps)
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (num_steps + 1, start, start * ratio)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_karras_levels_are_edm_equation_5():
    positions = np.arange(19) / 18
    expected = (80 ** (1 / 7) + positions * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(noise.karras_sigmas(80.0, 0.002, 18), expected, rtol=1e-12)


@pytest.mark.parametrize(("start", "end", "steps"), [(1.0, 1.0, 4), (1.0, 2.0, 4), (1.0, 0.0, 4), (1.0, 0.5, 0)])
def test_impossible_spacings_are_refused(start, end, steps):
    with pytest.raises(ConfigError, match=f"cannot space {steps} steps"):
        noise.karras_sigmas(start, end, steps)


@given(levels, st.integers(1, 60), st.integers(1, 60), st.floats(0.002, 0.5))
def test_cutting_is_slicing(cut, server_steps, client_steps, sigma_low):
    sigmas, k = noise.whole_sigmas(cut, server_steps, client_steps, sigma_low)
    assert sigmas[: k + 1] == noise.server_sigmas(cut, server_steps)
    assert sigmas[k:] == noise.client_sigmas(cut, client_steps, sigma_low)
    at_the_top = cut > SIGMA_MAX * (1 - SIGMA_SLACK)
    assert (sigmas[0], sigmas[k], sigmas[-1]) == (SIGMA_MAX, SIGMA_MAX if at_the_top else cut, 0.0)
    assert len(sigmas) - 1 - k == client_steps


@pytest.mark.parametrize("cut", [SIGMA_MAX, math.nextafter(SIGMA_MAX, 0)])
def test_a_cut_at_the_top_leaves_the_server_nothing_to_do(cut):
    sigmas, k = noise.whole_sigmas(cut, 16, 5, 0.02)
    assert (k, sigmas[0]) == (0, SIGMA_MAX)


def test_the_client_evaluates_last_at_sigma_low():
    assert noise.client_sigmas(1.0, 6, 0.02)[-2:] == [0.02, 0.0]


def test_one_client_step_goes_to_0_at_once():
    assert noise.client_sigmas(0.5, 1, 0.02) == [0.5, 0.0]


@pytest.mark.parametrize("steps", [0, -3])
def test_a_client_needs_a_step(steps):
    with pytest.raises(ConfigError, match=f"steps={steps}; a client needs at least one step"):
        noise.client_sigmas(0.5, steps, 0.02)


# --- the noise of a release ---------------------------------------------------------------------------------


def test_system_noise_has_the_moments_of_a_standard_normal():
    count = 400_000
    n = noise.system_noise((count,))
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        spread = math.sqrt({1: 1.0, 2: 2.0, 3: 15.0, 4: 96.0}[power] / count)  # of the mean of n^power
        assert abs((n**power).mean() - moment) < 6 * spread


def test_system_noise_is_normal_in_the_tails():
    n = np.abs(noise.system_noise((400_000,)))
    for bound in (1.0, 2.0, 3.0):
        expected = math.erfc(bound / math.sqrt(2))
        assert (n > bound).mean() == pytest.approx(expected, abs=6 * math.sqrt(expected / len(n)))
    assert n.max() < 9


def test_neighbours_and_both_halves_of_system_noise_are_independent():
    n = noise.system_noise((2, 100_000))  # Box-Muller makes the two rows from the same uniforms
    for a, b in ((n[0], n[1]), (n[0, 1:], n[0, :-1]), (n[0] ** 2 - 1, n[1] ** 2 - 1)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1, 5, 7)])
def test_system_noise_has_the_shape_asked_for(shape):
    assert noise.system_noise(shape).shape == shape


def test_system_noise_cannot_be_seeded():
    def seeded():
        random.seed(0)  # noqa: TID251 - the attempt is the test
        np.random.seed(0)  # noqa: NPY002, TID251
        return noise.system_noise((1000,))

    first, second = seeded(), seeded()
    assert not np.isin(first, second).any()
