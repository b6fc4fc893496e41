"""A client without norms as a bundle: per pixel a device has convolutions to do, what folds into them and a scale."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

from collafuse.config import NetworkSettings
from collafuse.core import bundle as bundles
from collafuse.core.noise import SIGMA_MIN
from collafuse.learning.weights import TrainedModel
from edge_client import Finisher
from export.parity import TOLERANCE
from export.writer import Exported
from tests.export.conftest import in_every_precision
from tests.tiny import denoiser

NETWORK = NetworkSettings(channels=8, multipliers=(1, 2), blocks=1, norm="none")


@pytest.fixture(scope="module")
def north(tiny_config):
    return tiny_config.client("north").model_copy(update={"network": NETWORK})


@pytest.fixture(scope="module")
def model(north) -> TrainedModel:
    """Weights as after some training: fresh ones give zero, and a graph without the network would agree with that."""
    made = denoiser(NETWORK, (1, 8, 8), north.labels)
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1 if name.endswith("weight") else 0.5)
    return TrainedModel(made.eval(), "client", SIGMA_MIN, north.handover_sigma, steps=0, id="tiny")


@pytest.fixture(scope="module")
def exported(model, north, delivered, tmp_path_factory) -> dict[str, tuple[Path, Exported]]:
    return in_every_precision(model, north, delivered, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("precision", list(bundles.PRECISIONS))
def test_every_precision_agrees_with_torch_and_runs(exported, precision):
    path, done = exported[precision]
    assert precision == "fp16" or 0 < done.parity.trajectory < TOLERANCE / 2
    assert Finisher.load(path).bundle.info.precision == precision


def test_between_the_first_and_the_last_convolution_all_folds_into_convolutions_but_a_scale_a_block(exported, model):
    path, _ = exported["fp32"]
    nodes = list(onnx.load(path).graph.node)
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    between = behind(convolutions[0], nodes) & before(convolutions[-1], nodes)
    found = Counter(node.op_type for i, node in enumerate(nodes) if i in between)
    blocks = len(list(model.denoiser.network.all_blocks()))
    assert set(found) == {"Conv", "Relu", "Add", "Concat", "AveragePool", "Resize", "Mul"}
    # Its weights are normalised before the device sees them; a shift is added, and so are the sides of a sum.
    assert found["Mul"] == blocks and found["Add"] == 2 * blocks


def behind(first: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> set[int]:
    """Positions of the nodes, which are in order, that need the output of this one."""
    tensors, found = set(first.output), set()
    for i, node in enumerate(nodes):
        if tensors & set(node.input):
            tensors |= set(node.output)
            found.add(i)
    return found


def before(last: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> set[int]:
    """Positions of the nodes whose output this one needs."""
    tensors, found = set(last.input), set()
    for i, node in reversed(list(enumerate(nodes))):
        if tensors & set(node.output):
            tensors |= set(node.input)
            found.add(i)
    return found
