"""Preconditioning: the identities of Karras et al. 2022, table 1, through the denoiser itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from collafuse.config import NetworkSettings
from collafuse.core.conditioning import ConditionSpace, guided
from collafuse.core.samplers import Counted
from collafuse.learning.denoiser import TOGETHER_ON_CPU, Denoiser, guided_together, loss_weight
from tests.tiny import NETWORK, denoiser

LEVELS = [0.002, 0.05, 0.5, 2.0, 80.0]
DATA = 0.5


class Constant(nn.Module):
    """A network that gives one number everywhere and keeps what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, c_noise: Tensor, conditions: Tensor) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return torch.full_like(x, self.value)


def with_network(network: nn.Module) -> Denoiser:
    denoiser = Denoiser(NETWORK, (1, 4, 4), ConditionSpace(), DATA)
    denoiser.network = network
    return denoiser


def noisy_images(sigma: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = DATA * torch.randn(5000, 1, 4, 4, generator=generator)
    return x0, x0 + sigma * torch.randn(x0.shape, generator=generator)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_network_sees_unit_variance(sigma):
    denoiser = with_network(Constant(0.0))
    denoiser(noisy_images(sigma)[1], sigma, torch.ones(5000, 1))
    assert float(denoiser.network.x.var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_network_is_to_give_unit_variance(sigma):
    x0, x = noisy_images(sigma)
    skip = with_network(Constant(0.0))(x, sigma, torch.ones(5000, 1))
    c_out = with_network(Constant(1.0))(x, sigma, torch.ones(5000, 1)) - skip
    assert float(((x0 - skip) / c_out).var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_network_sees_the_level_as_a_quarter_of_its_logarithm(sigma):
    denoiser = with_network(Constant(0.0))
    denoiser(torch.zeros(2, 1, 4, 4), sigma, torch.ones(2, 1))
    assert denoiser.network.c_noise.tolist() == pytest.approx([math.log(sigma) / 4] * 2)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_weight_of_the_loss_undoes_the_scale_of_the_output(sigma):
    c_out = with_network(Constant(1.0))(torch.zeros(1, 1, 4, 4), sigma, torch.ones(1, 1))
    assert torch.allclose(loss_weight(torch.tensor(sigma), DATA) * c_out.square(), torch.ones(()), rtol=1e-5)


def test_a_fresh_denoiser_gives_the_best_guess_that_ignores_what_images_look_like():
    x, sigma = torch.randn(3, 1, 4, 4), torch.tensor([0.002, 0.5, 80.0])
    found = Denoiser(NETWORK, (1, 4, 4), ConditionSpace(), DATA)(x, sigma, torch.ones(3, 1))
    assert torch.allclose(found, x * (DATA**2 / (sigma**2 + DATA**2)).reshape(-1, 1, 1, 1))


def test_a_level_may_be_a_number_or_one_per_image_of_any_type():
    denoiser, x = with_network(Constant(0.3)), torch.randn(2, 1, 4, 4)
    ways = [0.7, torch.tensor(0.7), torch.tensor([0.7, 0.7]), torch.tensor([0.7, 0.7], dtype=torch.float64)]
    outputs = [denoiser(x, sigma, torch.ones(2, 1)) for sigma in ways]
    assert all(torch.equal(one, outputs[0]) and one.dtype == torch.float32 for one in outputs)


def test_mixed_precision_changes_nothing_on_a_cpu():
    denoiser = Denoiser(NetworkSettings(channels=8), (1, 4, 4), ConditionSpace())
    nn.init.normal_(denoiser.network.last.weight)
    arguments = torch.randn(2, 1, 4, 4), 0.5, torch.ones(2, 1)
    plain = denoiser(*arguments)
    denoiser.mixed_precision = True
    assert torch.equal(denoiser(*arguments), plain)


@pytest.mark.parametrize("norm", ["group", "magnitude"])
@pytest.mark.parametrize(("asked", "close"), [(True, 0.0), ("cpu", 0.02)])
def test_a_cpu_multiplies_in_bfloat16_where_that_is_asked_for(asked, close, norm):
    x, sigma, conditions = torch.randn(8, 1, 4, 4), torch.linspace(0.1, 5, 8), torch.ones(8, 3)
    plain, mixed = (denoiser(NETWORK.model_copy(update={"norm": norm})) for _ in range(2))
    mixed.mixed_precision = asked
    found = mixed(x, sigma, conditions)
    furthest = float((found - plain(x, sigma, conditions)).detach().abs().max())
    assert found.dtype == torch.float32 and (furthest == 0 if close == 0 else 0 < furthest < close)


@pytest.mark.parametrize("sigma", [0.7, torch.tensor([0.7, 1.5, 9.0])], ids=["one level", "a level each"])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_guidance_in_one_evaluation_is_guidance_in_two(guidance, sigma):
    model = Counted(denoiser())
    x, conditions = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(3)
    together = guided_together(model, conditions, guidance)(x, sigma)
    assert model.nfe == 1
    assert torch.allclose(together, guided(denoiser(), conditions, guidance)(x, sigma), atol=1e-6)


def test_a_batch_that_fills_a_cpu_is_not_doubled():
    model, count = Counted(denoiser()), TOGETHER_ON_CPU + 1
    guided_together(model, torch.ones(count, 3), 2.0)(torch.zeros(count, 1, 4, 4), 1.0)
    assert model.nfe == 2
