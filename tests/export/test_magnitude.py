"""A magnitude-preserving client as a bundle: a graph of plain convolutions, in every precision."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from collafuse.config import NetworkSettings
from collafuse.core import bundle as bundles
from collafuse.core.noise import SIGMA_MIN
from collafuse.learning.magnitude import UnitWeight
from collafuse.learning.weights import TrainedModel
from edge_client import Finisher
from export.parity import TOLERANCE
from export.writer import export_client
from tests.export.conftest import in_every_precision
from tests.tiny import denoiser

NETWORK = NetworkSettings(channels=8, multipliers=(1, 2), blocks=1, norm="magnitude")


def model_of(network: NetworkSettings, north) -> TrainedModel:
    made = denoiser(network, (1, 8, 8), north.labels)
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.05)  # near zero as they start, a graph without the network would agree with torch
    return TrainedModel(made.eval(), "client", SIGMA_MIN, north.handover_sigma, steps=0, id="tiny")


@pytest.fixture(scope="module")
def north(tiny_config):
    return tiny_config.client("north").model_copy(update={"network": NETWORK})


@pytest.fixture(scope="module")
def model(north) -> TrainedModel:
    return model_of(NETWORK, north)


@pytest.fixture(scope="module")
def exported(model, north, delivered, tmp_path_factory) -> dict[str, Path]:
    made = in_every_precision(model, north, delivered, tmp_path_factory.mktemp("magnitude"))
    for precision, (_, done) in made.items():
        assert precision == "fp16" or 0 < done.parity.trajectory < TOLERANCE / 2
    return {precision: path for precision, (path, _) in made.items()}


@pytest.mark.slow
def test_the_graph_between_image_and_estimate_is_convolutions_silu_sums_and_joins(exported):
    operators = collections.Counter(node.op_type for node in onnx.load(exported["fp32"]).graph.node)
    # The preconditioning, the embedding of the level, and the shape of the channel of ones.
    about = set("Sqrt Reciprocal Div Log Pow Sin Cos Shape Expand Reshape Gather Unsqueeze Squeeze".split())
    assert set(operators) - about == {"Conv", "Gemm", "Sigmoid", "Mul", "Add", "Concat", "AveragePool", "Resize"}
    assert operators["Sqrt"] == 1


def test_its_weights_are_those_that_multiply(exported, model):
    stored = [numpy_helper.to_array(t) for t in onnx.load(exported["fp32"]).graph.initializer]
    for name, layer in model.denoiser.named_modules():
        if isinstance(layer, UnitWeight):
            used = layer.used().detach().numpy()
            assert any(a.size == used.size and np.array_equal(a.ravel(), used.ravel()) for a in stored), name


def test_attention_by_directions_is_exported_as_torch_computes_it(north, tmp_path):
    attending = NETWORK.model_copy(update={"attention": (4,)})
    done = export_client(model_of(attending, north), north, "north", tmp_path / "attending.onnx")
    assert 0 < done.parity.step < TOLERANCE / 2


@pytest.mark.parametrize("precision", sorted(bundles.PRECISIONS))
def test_a_device_finishes_with_it(exported, tiny_intermediate, precision):
    pictures, exact = (Finisher.load(exported[p]).finish(tiny_intermediate).astype(int) for p in (precision, "fp32"))
    assert exact.std() > 10 and np.abs(pictures - exact).mean() < 2.6
