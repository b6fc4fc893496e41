"""The magnitude-preserving design: what it keeps, what it does not depend on, and how it is trained and folded."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from collafuse.config import NetworkSettings
from collafuse.evaluation.work import multiply_accumulates
from collafuse.learning.magnitude import (
    BRANCH,
    SILU,
    STREAM,
    Convolution,
    CosineAttention,
    FirstConvolution,
    LabelEmbedding,
    Linear,
    NoiseEmbedding,
    ResidualBlock,
    UnitWeight,
    force_magnitudes,
)
from collafuse.learning.networks import UNet
from collafuse.learning.parts import folded
from collafuse.learning.training import Trainer
from tests.learning.test_training import clean_data
from tests.tiny import CPU, Recorder, denoiser, training_settings

MAGNITUDE = NetworkSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), norm="magnitude")


def size(x: torch.Tensor) -> float:
    """Root mean square."""
    return float(x.detach().square().mean().sqrt())


def unit_noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def layers_of(network: nn.Module) -> list[UnitWeight]:
    return [layer for layer in network.modules() if isinstance(layer, UnitWeight)]


# --- magnitudes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_gives_features_as_large_as_it_takes(kernel):
    found = Convolution(48, 96, kernel)(unit_noise(4, 48, 16, 16))
    inner = found[..., 1:-1, 1:-1]  # at the border there is less to add up
    assert size(inner) == pytest.approx(1, rel=0.02)


def test_its_gain_undoes_what_silu_took():
    found = Convolution(64, 64, 1, gain=SILU)(functional.silu(unit_noise(4, 64, 16, 16)))
    assert size(found) == pytest.approx(1, rel=0.1)  # SiLU's output has a mean, which unequal weights add up to


def test_a_sum_keeps_the_magnitude_and_the_shares_of_its_sides():
    summed = STREAM * unit_noise(100, 100) + BRANCH * unit_noise(200, 100)[100:]
    assert size(summed) == pytest.approx(1, rel=0.02)
    assert pytest.approx(7 / 3) == STREAM / BRANCH


def test_the_embeddings_together_are_of_unit_magnitude():
    noise = NoiseEmbedding(256)(torch.linspace(-1.5, 1, 32))
    labels = LabelEmbedding(5, 256)(torch.eye(5))
    assert size(labels) == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert size(noise) == pytest.approx(math.sqrt(0.5), rel=0.15)


@pytest.mark.parametrize("channels", [(64, 64), (96, 64)])
def test_a_block_keeps_the_magnitude_of_its_stream(channels):
    block = ResidualBlock(*channels, 32, 0.0, attends=True)
    nn.init.constant_(block.modulation.gain, 0.02)
    assert size(block(unit_noise(4, channels[0], 16, 16), unit_noise(4, 32))) == pytest.approx(1, rel=0.1)


def test_a_whole_network_lets_features_neither_grow_nor_vanish():
    settings = NetworkSettings(channels=32, multipliers=(1, 2), blocks=6, norm="magnitude")
    network = UNet(settings, (3, 16, 16), 3)
    sizes = []
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda module, given, found: sizes.append(size(found)))
    flat = unit_noise(4, 3, 1, 1).expand(-1, -1, 16, 16)  # pooling takes from whatever is not
    network(flat, torch.linspace(-1, 0, 4), torch.eye(3)[[0, 1, 2, 2]])
    assert len(sizes) == 2 * 6 + 1 + 2 * 7
    assert min(sizes) > 0.5 and max(sizes) < 2


def test_nothing_is_normalised_while_it_runs_and_nothing_has_a_bias():
    network = UNet(NetworkSettings(channels=8, norm="magnitude"), (1, 8, 8), 3)
    assert not any(isinstance(module, nn.GroupNorm | nn.LayerNorm) for module in network.modules())
    assert {name.rpartition(".")[2] for name, _ in network.named_parameters()} == {"weight", "gain"}


def test_a_channel_of_ones_stands_in_for_biases():
    with torch.no_grad():
        found = FirstConvolution(1, 8)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4))
    assert found.abs().sum() > 0 and torch.equal(found[0], found[1])


# --- weights that are normalised where they are used --------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Convolution(4, 6, 3), unit_noise(2, 4, 5, 5)),
        (Linear(4, 6), unit_noise(2, 4)),
        (LabelEmbedding(4, 6), torch.eye(4)),
    ],
    ids=["convolution", "linear", "labels"],
)
def test_the_length_of_raw_weights_says_nothing(layer, x):
    layer, x = copy.deepcopy(layer).double(), x.double()
    with torch.no_grad():
        before = layer(x)
        layer.weight *= 7.0
    assert torch.allclose(layer(x), before, rtol=1e-3)
    gradient = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight)[0]
    along = (gradient * layer.weight).sum(layer._over)
    assert (along.abs() < 1e-3 * (gradient.abs() * layer.weight.abs()).sum(layer._over)).all()  # at right angles
    layer.force()
    assert torch.allclose(layer.weight.square().sum(layer._over), torch.ones(()).double(), atol=1e-3)
    assert torch.allclose(layer(x), before, rtol=1e-3)


def test_attention_goes_by_directions():
    attention, x = CosineAttention(16), unit_noise(2, 16, 4, 4)
    branch = [attention(scale * x) - STREAM * scale * x for scale in (1.0, 5.0)]
    assert size(branch[0]) > 0.01 and torch.allclose(branch[0], branch[1], atol=1e-3)


def test_after_every_step_weights_are_of_unit_magnitude(tmp_path: Path):
    settings = training_settings(steps=30, warmup_steps=30, learning_rate=0.2)
    trainer = Trainer(denoiser(MAGNITUDE), clean_data(), settings, tmp_path, CPU, Recorder())
    before = copy.deepcopy(trainer.model)
    trainer.run()
    for layer, old in zip(layers_of(trainer.model), layers_of(before), strict=True):
        assert torch.allclose(layer.weight.square().sum(layer._over), torch.ones(()), atol=1e-3)
        assert not torch.equal(layer.weight, old.weight)
    # The average of weights on a sphere lies inside it, and is used as if it lay on it.
    shorter = [float(layer.weight.detach().square().sum(layer._over).mean()) for layer in layers_of(trainer.ema)]
    assert min(shorter) < 0.999 and max(shorter) < 1.02
    arguments = unit_noise(3, 1, 4, 4), 0.3, torch.eye(3)
    used = trainer.ema(*arguments)
    force_magnitudes(trainer.ema)
    assert torch.allclose(trainer.ema(*arguments), used, atol=1e-4)


def test_the_layout_of_memory_stays_and_changes_nothing():
    plain = denoiser(MAGNITUDE).eval()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    arguments = unit_noise(3, 1, 4, 4), 0.3, torch.eye(3)
    assert torch.allclose(last(*arguments), plain(*arguments), atol=1e-6)
    force_magnitudes(last)
    kernels = [layer.weight for layer in layers_of(last) if layer.weight.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_the_work_that_is_counted_is_that_of_its_convolutions():
    settings = NetworkSettings(channels=8, multipliers=(1,), blocks=1, norm="magnitude")
    network = UNet(settings, (1, 4, 4), 3)
    counted = multiply_accumulates(lambda: network(unit_noise(1, 1, 4, 4), torch.zeros(1), torch.eye(3)[:1]))
    assert counted == sum(
        layer.weight.numel() * (16 if isinstance(layer, Convolution) else 1) for layer in layers_of(network)
    )


# --- folding ------------------------------------------------------------------------------------------------


def test_a_folded_network_computes_the_same_with_weights_as_they_are_used():
    model = denoiser(MAGNITUDE).eval()
    plain = folded(model)
    arguments = unit_noise(3, 1, 4, 4), torch.tensor([0.01, 0.5, 70.0]), torch.eye(3)
    assert torch.equal(plain(*arguments), model(*arguments))
    for layer, original in zip(layers_of(plain), layers_of(model), strict=True):
        assert torch.equal(layer.used(), layer.weight) and torch.equal(layer.weight, original.used())
    assert not any(name.endswith("gain") for name, _ in plain.named_parameters())
    assert not any(layer.folded for layer in layers_of(model))


def test_a_conventional_network_folds_to_itself():
    model = denoiser(NetworkSettings(channels=8)).eval()
    states = model.state_dict(), folded(model).state_dict()
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_the_numbers_of_a_text_together_count_as_one_label():
    torch.manual_seed(0)
    layer = LabelEmbedding(2 + 64 + 1, 256, slice(2, 66))
    label, text = torch.zeros(1, 67), torch.zeros(1, 67)
    label[0, 0] = 1.0
    text[0, 2:66] = torch.randn(64).sign()
    magnitudes = [layer(one).square().mean().sqrt().item() for one in (label, text)]
    assert magnitudes[0] == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert magnitudes[1] == pytest.approx(math.sqrt(0.5), rel=0.2)
    whole = layer(label + text)
    layer.fold()
    assert torch.allclose(layer(label + text), whole, atol=1e-6)
