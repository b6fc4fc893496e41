"""collafuse.core.samplers on denoisers that are known in closed form (tests/oracles.py)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import samplers
from collafuse.core.errors import UsageError
from collafuse.core.noise import SIGMA_MAX, client_sigmas, karras_sigmas, server_sigmas, whole_sigmas
from collafuse.core.samplers import STEPS, Counted, History
from tests.oracles import LinearGaussian, four_digits

MIXTURE = four_digits()
NUMPY, TORCH = "numpy", "torch"
libraries = pytest.mark.parametrize("library", [NUMPY, TORCH])
methods = pytest.mark.parametrize("name", sorted(STEPS))
cuts = st.floats(0.01, SIGMA_MAX)


def pure_noise(count: int = 6, library: str = NUMPY, dtype: str = "float64", seed: int = 0):
    x = SIGMA_MAX * np.random.default_rng(seed).standard_normal((count, *MIXTURE.means.shape[1:]))
    return in_library(x.astype(dtype), library)


def in_library(x, library):
    return torch.from_numpy(np.array(x)) if library == TORCH else np.asarray(x)


def relative_difference(a, b) -> float:
    """Largest difference over the largest value."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def rms(a) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(a)))))


# --- server then client is the whole sampler ----------------------------------------------------------------


@libraries
@pytest.mark.parametrize("name", ["euler", "heun"])
@given(cut=cuts, server_steps=st.integers(1, 12), client_steps=st.integers(1, 6))
def test_split_equals_whole_exactly(name, library, cut, server_steps, client_steps):
    sampler = getattr(samplers, name)
    sigmas, k = whole_sigmas(cut, server_steps, client_steps, sigma_low=0.005)
    x = pure_noise(2, library)
    at_the_cut = sampler(MIXTURE, x, sigmas[: k + 1])
    assert (sampler(MIXTURE, at_the_cut, sigmas[k:]) == sampler(MIXTURE, x, sigmas)).all()


@libraries
@given(cut=cuts, server_steps=st.integers(1, 12), client_steps=st.integers(1, 6))
def test_split_equals_whole_exactly_for_dpmpp_2m_when_the_history_travels(library, cut, server_steps, client_steps):
    sigmas, k = whole_sigmas(cut, server_steps, client_steps, sigma_low=0.005)
    x = pure_noise(2, library)
    at_the_cut, history = samplers.run(samplers.dpmpp_2m_step, MIXTURE, x, sigmas[: k + 1])
    finished = samplers.dpmpp_2m(MIXTURE, at_the_cut, sigmas[k:], history)
    assert (finished == samplers.dpmpp_2m(MIXTURE, x, sigmas)).all()


@pytest.mark.parametrize("cut", [0.3, 1.0, 3.0])
def test_what_a_cold_cut_costs_dpmpp_2m(cut):
    """Without the history the client's first step is first order. Over 64 images in 16 + 6 steps this moves the
    finished images by 0.3 to 1.3 % of their size, no further from the solution than the steps themselves err."""
    sigmas, k = whole_sigmas(cut, server_steps=16, client_steps=6, sigma_low=0.02)
    x = pure_noise(64)
    at_the_cut = samplers.dpmpp_2m(MIXTURE, x, sigmas[: k + 1])
    cold, warm = samplers.dpmpp_2m(MIXTURE, at_the_cut, sigmas[k:]), samplers.dpmpp_2m(MIXTURE, x, sigmas)
    fine = samplers.heun(MIXTURE, x, whole_sigmas(cut, 400, 400, 0.002)[0])
    cost = rms(cold - warm) / rms(warm)
    print(f"cut {cut:g}: cold {rms(cold - fine):.4f}, warm {rms(warm - fine):.4f} from the solution; moved {cost:.2%}")
    assert 0 < cost < 0.02
    assert rms(cold - fine) < 1.5 * rms(warm - fine)


# --- one file for two libraries -----------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sigmas", [karras_sigmas(80.0, 0.5, 9), [*karras_sigmas(80.0, 0.02, 9), 0.0], [80.0, 0.0]])
def test_torch_and_numpy_agree(name, dtype, sigmas):
    sampler = getattr(samplers, name)
    here, there = (sampler(MIXTURE, pure_noise(6, library, dtype), sigmas) for library in (NUMPY, TORCH))
    assert (str(here.dtype), str(there.dtype)) == (dtype, f"torch.{dtype}")
    assert relative_difference(there, here) < 1e-6


@methods
def test_torch_and_numpy_agree_over_the_client_part(name):
    x = MIXTURE.draw(6, np.random.default_rng(1)) + 0.5 * np.random.default_rng(2).standard_normal((6, 1, 4, 4))
    x = x.astype(np.float32)
    sampler, sigmas = getattr(samplers, name), client_sigmas(0.5, 6, 0.02)
    there = sampler(MIXTURE, torch.from_numpy(x), sigmas)
    assert relative_difference(there, sampler(MIXTURE, x, sigmas)) < 1e-6


# --- one level per image ------------------------------------------------------------------------------------

PER_IMAGE = ([8.0, 3.0, 1.0, 0.2, 5.0], [2.0, 0.0, 0.9, 0.0, 4.5])
"""sigma and sigma_next of five images; two of them end at 0."""


@libraries
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_one_level_per_image_is_each_image_on_its_own(name, dtype, library):
    step, x = STEPS[name], pure_noise(5, library, dtype)
    sigma, sigma_next = (in_library(np.asarray(v), library) for v in PER_IMAGE)
    together, _ = step(MIXTURE, x, sigma, sigma_next, None)
    apart = [step(MIXTURE, x[i : i + 1], PER_IMAGE[0][i], PER_IMAGE[1][i], None)[0][0] for i in range(5)]
    assert str(together.dtype).endswith(dtype)
    for one, expected in zip(together, apart, strict=True):
        assert relative_difference(one, expected) < (1e-6 if dtype == "float32" else 1e-13)


@libraries
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_images_with_and_without_history_share_a_batch(dtype, library):
    x, before = pure_noise(5, library, dtype), pure_noise(5, library, dtype, seed=1)
    sigma, sigma_next = (in_library(np.asarray(v), library) for v in PER_IMAGE)
    last = [12.0, 4.0, math.inf, 0.3, math.inf]  # infinite: no history
    together, state = samplers.dpmpp_2m_step(
        MIXTURE, x, sigma, sigma_next, History(before, in_library(np.asarray(last), library))
    )
    for i in range(5):
        one = slice(i, i + 1)
        history = History(before[one], last[i]) if last[i] < math.inf else None
        apart, _ = samplers.dpmpp_2m_step(MIXTURE, x[one], PER_IMAGE[0][i], PER_IMAGE[1][i], history)
        assert relative_difference(together[one], apart) < (1e-6 if dtype == "float32" else 1e-13)
    assert (state.sigma == sigma).all()


@libraries
@methods
def test_a_batch_at_one_level_given_per_image_is_the_scalar_run(name, library):
    x, sigmas = pure_noise(3, library), [*karras_sigmas(80.0, 0.1, 6), 0.0]
    state, here = None, x
    for sigma, sigma_next in itertools.pairwise(sigmas):
        levels = (in_library(np.full(3, v), library) for v in (sigma, sigma_next))
        here, state = STEPS[name](MIXTURE, here, *levels, state)
    assert relative_difference(here, samplers.run(STEPS[name], MIXTURE, x, sigmas)[0]) < 1e-12


@methods
def test_every_image_is_on_its_own(name):
    x, sampler = pure_noise(4), getattr(samplers, name)
    sigmas = [*karras_sigmas(80.0, 0.05, 8), 0.0]
    assert relative_difference(sampler(MIXTURE, x[2:3], sigmas), sampler(MIXTURE, x, sigmas)[2:3]) < 1e-12


# --- edges --------------------------------------------------------------------------------------------------


@methods
@libraries
def test_one_step_to_0_gives_the_estimate_itself(name, library):
    x = pure_noise(1, library)
    assert (getattr(samplers, name)(MIXTURE, x, [80.0, 0.0]) == MIXTURE(x, 80.0)).all()


@methods
def test_a_cut_at_the_top_leaves_x_as_it_is(name):
    x = pure_noise(2)
    assert getattr(samplers, name)(MIXTURE, x, server_sigmas(SIGMA_MAX, 16)) is x


@methods
def test_a_schedule_may_end_above_0(name):
    """Then as much noise is left around the component that each image came to as that level says."""
    x = getattr(samplers, name)(MIXTURE, pure_noise(400), karras_sigmas(80.0, 0.5, 40))
    nearest = np.argmin(((x[:, None] - MIXTURE.means) ** 2).sum((2, 3, 4)), axis=1)
    assert rms(x - MIXTURE.means[nearest]) == pytest.approx(math.hypot(0.5, MIXTURE.std), rel=0.05)


@methods
@given(cut=st.floats(0.003, 0.05))
def test_a_cut_near_the_bottom_still_finishes(name, cut):
    x = MIXTURE.means + cut * np.random.default_rng(0).standard_normal(MIXTURE.means.shape)
    finished = getattr(samplers, name)(MIXTURE, x, client_sigmas(cut, 5, 0.02))
    assert rms(finished - MIXTURE.means) <= rms(x - MIXTURE.means) * (1 + 1e-9)


@methods
@pytest.mark.parametrize(
    "sigmas", [[], [1.0, 1.0], [1.0, 2.0], [1.0, -0.1], [1.0, 0.0, 0.0], [math.inf, 1.0], [math.nan]]
)
def test_levels_that_do_not_fall_are_refused(name, sigmas):
    with pytest.raises(UsageError, match="do not fall strictly to 0 or above"):
        getattr(samplers, name)(MIXTURE, pure_noise(1), sigmas)


@methods
@pytest.mark.parametrize("scalar", [np.float64, np.float32, np.array])
def test_levels_may_be_numpy_scalars(name, scalar):
    sampler, x, sigmas = getattr(samplers, name), pure_noise(2, dtype="float32"), [80.0, 4.0, 1.0, 0.0]
    got = sampler(MIXTURE, x, [scalar(sigma) for sigma in sigmas])
    assert got.dtype == np.float32
    assert relative_difference(got, sampler(MIXTURE, x, sigmas)) < 1e-6


# --- order and cost -----------------------------------------------------------------------------------------

GAUSSIAN = LinearGaussian(mean=0.2, variance=0.25)


def error(name: str, num_steps: int, end: float = 0.5) -> float:
    """Distance to the exact flow from sigma 10 to ``end``."""
    x = 0.2 + 10.0 * np.random.default_rng(0).standard_normal((50, 1, 2, 2))
    got = getattr(samplers, name)(GAUSSIAN, x, karras_sigmas(10.0, end, num_steps))
    return rms(got - GAUSSIAN.flow(x, 10.0, end))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_error_falls_as_the_order_promises(name, order):
    coarse, fine = error(name, 40), error(name, 80)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_second_order_beats_first_at_equal_cost():
    assert error("heun", 20) < 0.5 * error("euler", 40)
    assert error("dpmpp_2m", 40) < 0.1 * error("euler", 40)


@methods
def test_the_server_part_of_a_gaussian_has_the_right_spread_at_the_cut(name):
    x = SIGMA_MAX * np.random.default_rng(3).standard_normal((4000, 1, 2, 2))
    at_the_cut = getattr(samplers, name)(GAUSSIAN, x, server_sigmas(0.5, 200))
    assert at_the_cut.std() == pytest.approx(math.sqrt(0.25 + 0.5**2), rel=0.04)


@pytest.mark.parametrize(
    ("name", "sigmas", "nfe"),
    [
        ("euler", [4.0, 2.0, 1.0, 0.0], 3),
        ("dpmpp_2m", [4.0, 2.0, 1.0, 0.0], 3),
        ("heun", [4.0, 2.0, 1.0, 0.0], 5),
        ("heun", [4.0, 2.0, 1.0], 4),
        ("heun", [4.0], 0),
    ],
)
def test_network_evaluations(name, sigmas, nfe):
    denoise = Counted(MIXTURE)
    getattr(samplers, name)(denoise, pure_noise(1), sigmas)
    assert denoise.nfe == nfe == samplers.evaluations(name, sigmas, guided=False)
    assert samplers.evaluations(name, sigmas, guided=True) == 2 * nfe


@pytest.mark.parametrize("name", sorted(set(STEPS) - samplers.EVALUATES_AT_END))
def test_the_servers_samplers_never_ask_at_the_cut(name):
    asked = []
    getattr(samplers, name)(lambda x, sigma: asked.append(sigma) or MIXTURE(x, sigma), pure_noise(1), [8.0, 2.0, 0.5])
    assert asked == [8.0, 2.0]


@pytest.mark.parametrize("name", sorted(samplers.EVALUATES_AT_END))
def test_samplers_that_do_ask_at_the_cut_are_known(name):
    asked = []
    getattr(samplers, name)(lambda x, sigma: asked.append(sigma) or MIXTURE(x, sigma), pure_noise(1), [8.0, 2.0, 0.5])
    assert min(asked) == 0.5


# --- the stochastic one -------------------------------------------------------------------------------------


def normal(seed: int):
    rng = np.random.default_rng(seed)
    return lambda x: rng.standard_normal(x.shape)


def test_without_eta_ancestral_steps_are_euler_steps():
    x, sigmas = pure_noise(), [*karras_sigmas(80.0, 0.05, 8), 0.0]
    got = samplers.euler_ancestral(MIXTURE, x, sigmas, normal(0), eta=0.0)
    assert relative_difference(got, samplers.euler(MIXTURE, x, sigmas)) < 1e-12


@libraries
def test_one_ancestral_step_is_the_posterior_of_ddpm(library):
    """With eta 1 the mean and variance are those of q(x_next | x, x0_hat) (Ho et al. 2020, eq. 7, in sigma)."""
    sigma, sigma_next, x = 3.0, 1.0, pure_noise(2, library)
    nothing, ones = (
        samplers.euler_ancestral(MIXTURE, x, [sigma, sigma_next], lambda x, v=v: x * 0 + v) for v in (0.0, 1.0)
    )
    x0_hat, k = MIXTURE(x, sigma), (sigma_next / sigma) ** 2
    assert relative_difference(nothing, (1 - k) * x0_hat + k * x) < 1e-12
    assert relative_difference((ones - nothing) ** 2, x * 0 + sigma_next**2 * (1 - k)) < 1e-9


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_variance_on_a_gaussian(eta):
    """Each step is linear, so the variance follows a recursion; and it tends to the data's as steps grow."""
    sigmas = karras_sigmas(10.0, 0.5, 60)
    variance = GAUSSIAN.variance + sigmas[0] ** 2
    x = GAUSSIAN.mean + math.sqrt(variance) * np.random.default_rng(5).standard_normal((100_000, 1))
    for a, b in itertools.pairwise(sigmas):
        up = (eta * b / a) ** 2 * (a * a - b * b)
        keep, shrink = math.sqrt(b * b - up) / a, GAUSSIAN.variance / (GAUSSIAN.variance + a * a)
        variance = (shrink + keep * (1 - shrink)) ** 2 * variance + up
    got = samplers.euler_ancestral(GAUSSIAN, x, sigmas, normal(6), eta)
    assert got.var() == pytest.approx(variance, rel=6 * math.sqrt(2 / len(x)))
    assert variance == pytest.approx(GAUSSIAN.variance + sigmas[-1] ** 2, rel=0.1)


def test_the_noise_of_ancestral_steps_is_an_argument():
    x, sigmas = pure_noise(), [80.0, 1.0, 0.1, 0.0]
    first, again, other = (samplers.euler_ancestral(MIXTURE, x, sigmas, normal(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_eta_lies_in_0_to_1(eta):
    with pytest.raises(UsageError, match=r"eta=\S+; expected a number from 0"):
        samplers.euler_ancestral(MIXTURE, pure_noise(1), [2.0, 1.0], normal(0), eta)
