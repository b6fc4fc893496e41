"""The raw network F: sizes, conditions, and what it is at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from collafuse.config import NetworkSettings, load
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.errors import ConfigError
from collafuse.learning import plain
from collafuse.learning.blocks import SelfAttention
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.networks import UNet, num_parameters
from collafuse.learning.parts import folded
from tests.tiny import denoiser


def conditions(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize(
    ("settings", "image_shape", "num_labels"),
    [
        ({"multipliers": (1,), "blocks": 1}, (1, 4, 4), 0),
        ({"multipliers": (1, 2), "blocks": 2}, (3, 8, 8), 10),
        ({"multipliers": (1, 2, 2), "blocks": 1, "attention": (4, 8)}, (3, 16, 16), 3),
        ({"multipliers": (1, 1, 1, 1), "blocks": 1, "attention": (1,)}, (1, 8, 8), 1),
        ({"multipliers": (2,), "blocks": 3, "dropout": 0.5}, (1, 5, 5), 40),
        ({"channels": 72, "multipliers": (1, 3), "blocks": 1, "attention": (2,)}, (4, 4, 4), 2),
        ({"multipliers": (1, 2, 2), "blocks": 1, "attention": (4,), "norm": "magnitude"}, (3, 8, 8), 3),
        ({"multipliers": (2,), "blocks": 2, "dropout": 0.5, "norm": "magnitude"}, (1, 5, 5), 0),
    ],
)
def test_the_output_has_the_shape_of_the_input(settings, image_shape, num_labels):
    network = UNet(NetworkSettings(**{"channels": 8} | settings), image_shape, num_labels + 1)
    x = torch.randn(3, *image_shape)
    assert network(x, torch.zeros(3), torch.ones(3, num_labels + 1)).shape == x.shape


@pytest.mark.parametrize(
    ("side", "multipliers", "nearest"), [(9, (1, 2), "8 or 10"), (30, (1, 1, 1), "28 or 32"), (1, (1, 1), "2")]
)
def test_a_side_that_cannot_be_halved_is_refused_with_the_nearest_that_can(side, multipliers, nearest):
    with pytest.raises(ConfigError, match=f"image_size={side} .* use image_size {nearest},"):
        NetworkSettings(multipliers=multipliers).check_side(side)


def test_the_network_itself_refuses_such_a_side():
    with pytest.raises(ConfigError, match="image_size=9"):
        UNet(NetworkSettings(channels=8, multipliers=(1, 2)), (1, 9, 9), 1)


def test_a_network_without_norms_has_none_and_is_not_swayed_by_a_pixel_far_away():
    settings = NetworkSettings(channels=8, multipliers=(1,), blocks=1, norm="none")
    network = denoiser(settings, (1, 16, 16), ()).network
    assert not any(isinstance(m, torch.nn.GroupNorm) for m in network.modules())
    x = torch.randn(1, 1, 16, 16)
    other = x.clone()
    other[..., 0, 0] += 5.0
    outputs = [network(one, torch.zeros(1), torch.ones(1, 1)) for one in (x, other)]
    assert torch.equal(outputs[0][..., -1, -1], outputs[1][..., -1, -1])  # norms see all pixels, convolutions few
    assert not torch.equal(outputs[0], outputs[1])


def test_attention_at_a_resolution_that_never_occurs_is_refused_with_those_that_do():
    settings = NetworkSettings(multipliers=(1, 2, 2), attention=(8, 16))
    settings.check_side(32)
    with pytest.raises(ConfigError, match=r"attention=\[8, 16\].*image_size=24 has the resolutions 24, 12, 6, not 8"):
        settings.check_side(24)


@pytest.mark.parametrize("norm", ["group", "magnitude", "none"])
def test_a_fresh_network_gives_zero(norm):
    network = UNet(NetworkSettings(channels=8, attention=(4,), norm=norm), (1, 8, 8), 3)
    assert not network(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.ones(2, 3)).any()


def awake(settings: NetworkSettings, image_shape: tuple[int, int, int], width: int) -> UNet:
    """A network of which nothing is zero any more."""
    torch.manual_seed(0)
    network = UNet(settings, image_shape, width)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


WITHOUT_NORMS = NetworkSettings(channels=8, multipliers=(1, 2), blocks=1, norm="none")


def test_a_network_without_norms_is_told_level_and_label_at_the_image_and_in_every_block():
    network = awake(WITHOUT_NORMS, (1, 8, 8), 2)
    x = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    out = network(x, torch.tensor([0.0, -1.0, 0.0]), conditions((1, 0), (1, 0), (0, 0)))
    assert not torch.allclose(out[0], out[1], atol=1e-4) and not torch.allclose(out[0], out[2], atol=1e-4)

    for block in network.all_blocks():
        embeddings = torch.randn(2, block.modulation.in_features)
        features = torch.randn(1, block.conv1.in_channels, 4, 4).expand(2, -1, -1, -1)
        first, second = block(features, embeddings)
        assert not torch.allclose(first, second, atol=1e-4)


def test_weights_of_a_network_without_norms_are_normalised_per_channel_whatever_their_size():
    network, x = awake(WITHOUT_NORMS, (1, 8, 8), 2), torch.randn(1, 1, 8, 8)
    before = network(x, torch.zeros(1), conditions((1, 0)))
    layers = [layer for layer in network.modules() if isinstance(layer, plain.Convolution)]
    assert len(layers) == 2 * 7 + 5  # two in a block, and where its width changes one beside them
    with torch.no_grad():
        for layer in layers:
            layer.weight *= torch.rand(layer.out_channels, 1, 1, 1) + 0.5
    assert torch.allclose(network(x, torch.zeros(1), conditions((1, 0))), before, atol=1e-3)
    assert torch.allclose(folded(network)(x, torch.zeros(1), conditions((1, 0))), before, atol=1e-3)
    assert all(layer.size is not None for layer in layers)  # of the network itself nothing was folded


@pytest.mark.parametrize(("attention", "expected"), [((), 0), ((8,), 3), ((4,), 4), ((8, 4), 7)])
def test_attention_stands_at_the_named_resolutions_only(attention, expected):
    # One block down and two up per level; the middle block belongs to the lowest.
    network = UNet(NetworkSettings(channels=8, multipliers=(1, 1), blocks=1, attention=attention), (1, 8, 8), 1)
    assert sum(isinstance(m, SelfAttention) for m in network.modules()) == expected


def test_attention_lets_a_pixel_see_all_others():
    torch.manual_seed(0)
    attention = SelfAttention(8, nn.GroupNorm(2, 8))
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    attention(x)[0, :, 0, 0].sum().backward()
    assert (x.grad[0].abs().sum(0) > 0).all()


def test_no_label_is_not_the_same_as_none_of_the_attributes():
    model = denoiser().eval()
    x = torch.randn(1, 1, 4, 4).expand(4, -1, -1, -1)
    rows = conditions((0, 0, 1), (0, 0, 0), (1, 0, 0), (1, 1, 0))
    out = model(x, 0.5, rows)
    apart = [(out[i] - out[j]).abs().max() for i in range(4) for j in range(i)]
    assert min(apart) > 1e-3


@pytest.mark.parametrize("norm", ["group", "magnitude"])
def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(norm):
    settings = NetworkSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4, 2), norm=norm)
    model = denoiser(settings).eval()
    x, sigma = torch.randn(3, 1, 4, 4), torch.tensor([0.01, 0.5, 70.0])
    rows = conditions((1, 0, 0), (0, 1, 0), (0, 0, 1))
    alone = torch.cat([model(x[i : i + 1], sigma[i : i + 1], rows[i : i + 1]) for i in range(3)])
    assert torch.allclose(model(x, sigma, rows), alone, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = denoiser(NetworkSettings(channels=8, multipliers=(1,), blocks=1, dropout=0.5))
    arguments = torch.randn(2, 1, 4, 4), 0.5, conditions((1, 0, 0), (0, 1, 0))
    assert not torch.equal(model.train()(*arguments), model(*arguments))
    assert torch.equal(model.eval()(*arguments), model(*arguments))


def test_server_and_client_may_have_very_different_sizes():
    sizes = [
        num_parameters(UNet(NetworkSettings(channels=c, multipliers=m), (1, 8, 8), 4))
        for c, m in ((64, (1, 2)), (8, (1,)))
    ]
    assert sizes[0] > 50 * sizes[1]


SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_networks_of_every_shipped_configuration_can_be_built_and_run(path):
    """On torch's meta device: shapes alone, so that a GPU-sized network costs nothing."""
    config = load(path)
    shape = config.data.image_shape
    for network in (config.server.network, *(config.client(name).network for name in config.clients)):
        with torch.device("meta"):
            built = Denoiser(network, shape, ConditionSpace(tuple("0123456789")))
            assert built(torch.zeros(2, *shape), torch.ones(2), torch.zeros(2, 11)).shape == (2, *shape)
