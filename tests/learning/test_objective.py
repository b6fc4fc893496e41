"""The one objective: the closed form it must recover, and the levels it is asked about."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from collafuse.core.noise import LOWEST_TRAINED_ABOVE_CUT, SIGMA_MAX, SIGMA_MIN
from collafuse.learning.denoiser import loss_weight
from collafuse.learning.objective import denoising_loss, draw_levels, lowest_level
from tests.oracles import GaussianMixture

CUT = 0.5
NUM_IMAGES = 100_000
NUM_BUMPS = 18
TOLERANCE = 0.04
"""Of a recovered denoiser: root mean square, images in [-1, 1]. At 1.05 x cut the regression's target scatters by about
3 cuts, of which 20 features over 100,000 images leave 0.02."""

TWO_PEAKS = GaussianMixture(np.array([-0.6, 0.5]).reshape(2, 1, 1, 1), (0.3, 0.7), std=0.15)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clean(seed: int) -> Tensor:
    return torch.from_numpy(TWO_PEAKS.draw(NUM_IMAGES, np.random.default_rng(seed)))


def regress(z: Tensor, floor: Tensor, sigma: float) -> Callable[[Tensor], Tensor]:
    """The denoiser that minimises the objective over combinations of a constant, x, and Gaussian bumps over where
    x lies. The objective is quadratic in them, so one Newton step finds it."""
    reach = 0.6 + 3.5 * sigma
    centers = torch.linspace(-reach, reach, NUM_BUMPS, dtype=torch.float64)
    width = 2.4 * reach / NUM_BUMPS

    def features(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1)
        return torch.cat([torch.ones_like(flat), flat, (-0.5 * ((flat - centers) / width) ** 2).exp()], dim=1)

    def loss(theta: Tensor) -> Tensor:
        levels, noise = torch.full_like(floor, sigma), normal(z.shape, seed=2)
        denoise = lambda x, level: (features(x) @ theta).reshape(x.shape)  # noqa: E731
        return denoising_loss(denoise, z, floor, levels, noise, 0.5).mean()

    start = torch.zeros(NUM_BUMPS + 2, dtype=torch.float64)
    gradient, hessian = torch.func.grad(loss)(start), torch.autograd.functional.hessian(loss, start)
    theta = torch.linalg.lstsq(hessian, -gradient).solution
    return lambda x: (features(x) @ theta).reshape(x.shape)


def error(denoise: Callable[[Tensor], Tensor], sigma: float) -> float:
    """Root mean square distance to the closed-form denoiser of the clean data, where x really lies."""
    x = clean(seed=3)[:20_000]
    x = x + sigma * normal(x.shape, seed=4)
    return float((denoise(x) - TWO_PEAKS(x, sigma)).square().mean().sqrt())


@pytest.mark.parametrize("times_cut", [LOWEST_TRAINED_ABOVE_CUT, 1.5, 5.0])
def test_a_regression_on_releases_recovers_the_denoiser_of_the_clean_data(times_cut):
    z = clean(0) + CUT * normal((NUM_IMAGES, 1, 1, 1), seed=1)
    found = regress(z, torch.full((NUM_IMAGES,), CUT, dtype=torch.float64), times_cut * CUT)
    assert error(found, times_cut * CUT) < TOLERANCE


@pytest.mark.parametrize("times_cut", [LOWEST_TRAINED_ABOVE_CUT, 1.5, 5.0])
def test_the_references_double_noising_does_not_recover_it(times_cut):
    # The reference noises a release once more at full strength, as if it were clean: on its variance-preserving
    # schedule x = sqrt(ab) z + sqrt(1 - ab) e, which in our coordinate is z + sigma e, at a floor of 0.
    z = clean(0) + CUT * normal((NUM_IMAGES, 1, 1, 1), seed=1)
    found = regress(z, torch.zeros(NUM_IMAGES, dtype=torch.float64), times_cut * CUT)
    assert error(found, times_cut * CUT) > 2 * TOLERANCE


def test_releases_at_two_cuts_teach_one_denoiser():
    cuts = torch.tensor([0.3, 0.6], dtype=torch.float64).repeat(NUM_IMAGES // 2)
    z = clean(0) + cuts.reshape(-1, 1, 1, 1) * normal((NUM_IMAGES, 1, 1, 1), seed=1)
    assert error(regress(z, cuts, 0.8), 0.8) < TOLERANCE


def a_batch(floor: float, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, floors, levels and noise of four images."""
    levels = (torch.full((4,), level, dtype=torch.float64) for level in (floor, sigma))
    return normal((4, 1, 2, 2), seed=0), *levels, normal((4, 1, 2, 2), seed=1)


def test_on_clean_images_it_is_the_loss_of_edm():
    x0, floor, sigma, noise = a_batch(0.0, 0.7)
    losses = denoising_loss(lambda x, level: 0.3 * x, x0, floor, sigma, noise, 0.5)
    expected = (0.3 * (x0 + 0.7 * noise) - x0).square().flatten(1).mean(1) * (0.7**2 + 0.5**2) / (0.7 * 0.5) ** 2
    assert torch.allclose(losses, expected, rtol=1e-12)


def test_towards_the_cut_it_says_less_and_less_about_the_denoiser():
    differences = []
    for times_cut in (1.5, 1.05, 1.0001):
        batch = a_batch(0.5, times_cut * 0.5)
        one, other = (denoising_loss(lambda x, level, a=a: a * x, *batch, 0.5) for a in (0.0, 2.0))
        differences.append(float((one - other).abs().max()))
    assert differences[0] > differences[1] > differences[2]
    assert differences[2] < 0.1


@pytest.mark.parametrize("floor", [0.0, 0.34, 4.0])
@pytest.mark.parametrize("above_cut", [0.02, 0.5, 9.0])
def test_the_best_denoiser_of_gaussian_images_has_the_same_loss_at_every_level(floor, above_cut):
    deviation, pixels = 0.6, 200_000
    x0, released, noise = (normal((1, 1, 1, pixels), seed) for seed in range(3))
    level, floors = torch.tensor([floor + above_cut]), torch.tensor([floor])
    best = lambda x, sigma: x * deviation**2 / (deviation**2 + sigma.square())  # noqa: E731
    losses = denoising_loss(best, deviation * x0 + floor * released, floors, level, noise, deviation)
    assert losses.tolist() == pytest.approx([1 + (floor / deviation) ** 2], rel=0.02)


def test_sites_of_different_cuts_count_alike_well_above_both():
    """What D gets wrong counts the same, from whichever site: the mixture that is learned is that of their images."""
    wrong = [
        float((denoising_loss(lambda x, level, a=a: a + 0 * x, *a_batch(floor, 30.0), 0.5)).mean())
        for floor in (0.1, 1.0)
        for a in (10.0, -10.0, 0.0)
    ]
    low, high = ((plus + minus) / 2 - zero for plus, minus, zero in (wrong[:3], wrong[3:]))
    assert low == pytest.approx(high, rel=0.01)


def test_just_above_the_cut_the_gradient_is_finite_and_not_zero():
    scale = torch.zeros((), requires_grad=True, dtype=torch.float64)
    lowest = float(lowest_level(torch.tensor(0.5)))
    denoising_loss(lambda x, level: scale * x, *a_batch(0.5, lowest), 0.5).mean().backward()
    assert scale.grad.isfinite() and scale.grad != 0


@pytest.mark.parametrize(
    ("floor", "lowest"), [(0.0, SIGMA_MIN), (SIGMA_MIN / 2, SIGMA_MIN), (SIGMA_MIN, 0.0021), (0.5, 0.525), (60.0, 63.0)]
)
def test_the_lowest_level_lies_above_the_floor_and_never_below_sigma_min(floor, lowest):
    assert float(lowest_level(torch.tensor(floor))) == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize("floor", [0.0021, 0.05, 0.5, 5.0, 70.0])
def test_the_denoiser_weighs_in_within_bounds_at_every_level_trained(floor):
    lowest = lowest_level(torch.tensor(floor, dtype=torch.float64))
    sigma = torch.logspace(0, 1, 50, base=SIGMA_MAX / float(lowest), dtype=torch.float64) * lowest
    zeros, one = torch.zeros(len(sigma), 1, 1, 1, dtype=torch.float64), torch.ones_like(sigma)
    batch = (zeros, floor * one, sigma, zeros)  # of zero images under zero noise, so that D alone is left
    effective = denoising_loss(lambda x, level: torch.ones_like(x), *batch, 0.5)
    weight = loss_weight(sigma, 0.5)
    assert (effective <= weight).all() and (effective >= 0.092 * weight).all()


RANGES = [  # low, high, mean, std
    (SIGMA_MIN, 0.5, -0.4, 1.6),
    (0.525, SIGMA_MAX, -0.4, 1.6),
    (0.002, SIGMA_MAX, -1.2, 1.2),
    (20.0, SIGMA_MAX, -0.4, 1.6),
    (0.002, 0.01, -0.4, 1.6),
]


@pytest.mark.parametrize(("low", "high", "mean", "std"), RANGES)
def test_levels_are_log_normal_cut_off_at_the_range(low, high, mean, std):
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    log_sigma = draw_levels(uniform, torch.full((20_000,), low), high, mean, std).double().log()
    law = stats.truncnorm((np.log(low) - mean) / std, (np.log(high) - mean) / std, loc=mean, scale=std)
    assert stats.kstest(log_sigma.numpy(), law.cdf).pvalue > 0.01


def test_each_image_keeps_to_its_own_lowest_level():
    low = torch.tensor([0.01, 0.5, 3.0, 79.0]).repeat(1000)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    sigma = draw_levels(uniform, low, SIGMA_MAX, -0.4, 1.6)
    assert (sigma >= low).all() and (sigma <= SIGMA_MAX).all()
    assert sigma[::4].min() < 0.02 and sigma[1::4].min() < 0.52  # and uses the range that it has


@pytest.mark.parametrize(
    ("low", "high", "mean", "std"),
    [
        (79.9, 80.0, -0.4, 1.6),
        (0.002, 0.00201, -0.4, 1.6),
        (1.0, 80.0, -10.0, 0.1),
        (0.002, 0.5, 10.0, 0.1),
        (5, 5, 0, 1),
    ],
)
def test_levels_keep_to_the_range_also_where_the_normal_has_no_mass(low, high, mean, std):
    uniform = torch.linspace(0, 1 - 2**-24, 1000)
    sigma = draw_levels(uniform, torch.full((1000,), float(low)), float(high), mean, std)
    assert sigma.isfinite().all() and (sigma >= low * (1 - 1e-6)).all() and (sigma <= high * (1 + 1e-6)).all()
