"""A client that is guided by its earlier version is one graph of two networks, in every precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from collafuse.core import bundle as bundles
from collafuse.core import intermediate as intermediates
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import to_uint8
from collafuse.learning.autoguidance import Early
from collafuse.nodes.client import finish
from edge_client import Finisher
from tests.export.conftest import in_every_precision


@pytest.fixture(scope="module")
def guided(tiny_model):
    """The tiny client; its earlier version knows a little less."""
    early = tiny_model.denoiser
    parts = {name: 0.9 * tensor for name, tensor in early.state_dict().items()}
    other = type(early)(early.network_settings, early.image_shape, early.space, early.sigma_data).eval()
    other.load_state_dict(parts)
    return dataclasses.replace(tiny_model, early=Early(other, 3)).autoguided(1.5)


@pytest.fixture(scope="module")
def exported(guided, tiny_config, delivered, tmp_path_factory):
    return in_every_precision(guided, tiny_config.client("north"), delivered, tmp_path_factory.mktemp("guided"))


def test_a_device_finishes_as_torch_does(guided, tiny_config, tiny_model, delivered, exported):
    path, made = exported["fp32"]
    given = intermediates.read(delivered)
    here = Finisher.load(path).finish(given)
    asked = conditions_for(given, guided.space), tiny_config.client("north"), torch.device("cpu")
    there, plain = (
        to_uint8(finish(one, torch.from_numpy(given.x), given.sigma, *asked).numpy())
        for one in (guided.denoiser, tiny_model.denoiser)
    )
    assert np.abs(here.astype(int) - there).max() <= 1 and np.abs(here.astype(int) - plain).max() > 5
    assert made.info.provenance["weights"] == guided.id != tiny_model.id


def test_a_bundle_says_how_it_is_guided(exported, tiny_bundle):
    assert bundles.read(exported["fp32"][0]).info.provenance["autoguidance"] == "1.5, by itself after 3 steps"
    assert "autoguidance" not in bundles.read(tiny_bundle).info.provenance


def test_both_networks_are_inside(exported, tiny_bundle):
    sizes = [
        sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
        for path in (tiny_bundle, exported["fp32"][0])
    ]
    assert 1.9 * sizes[0] < sizes[1] <= 2.1 * sizes[0]


def test_in_int8_the_first_and_the_last_convolution_of_each_network_are_in_fp32(exported):
    graph = onnx.load(exported["int8"][0]).graph
    fp32 = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    kept = {node.input[1] for node in graph.node if node.op_type == "Conv" and node.input[1] in fp32}
    assert kept == {
        f"denoiser.{which}.network.{end}.weight" for which in ("trained", "early") for end in ("first", "last")
    }


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precisions_are_close(exported, precision):
    loss = exported[precision][1].info.loss
    assert loss is not None and loss.worst_psnr_db > 40
