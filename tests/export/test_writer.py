"""A bundle is written only when it computes what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from collafuse.config import load
from collafuse.core import bundle as bundles
from collafuse.core.errors import ExportError, OutputExistsError
from collafuse.learning.denoiser import Denoiser
from export import writer
from export.graph import export_graph

ROOT = Path(__file__).parents[2]


def test_the_bundle_says_what_it_is(tiny_bundle, tiny_model):
    bundle = bundles.read(tiny_bundle)
    assert bundle.info.opset == bundle.summary.opset == 18
    assert bundle.info.label_names == tiny_model.label_names
    assert bundle.info.sigma_max == tiny_model.sigma_high
    assert bundle.summary.inputs["x"].axes == ("N", 1, 8, 8)


def test_it_names_no_place_of_the_machine_that_made_it(tiny_bundle):
    data = tiny_bundle.read_bytes()
    for place in (ROOT, Path.home(), tiny_bundle.parent):
        assert str(place).encode() not in data


@pytest.mark.parametrize("change", [1e-2, np.nan])
def test_a_graph_that_differs_from_torch_is_not_written(tiny_config, tiny_model, tmp_path, monkeypatch, change):
    def wrong(denoiser: Denoiser, opset: int) -> onnx.ModelProto:
        model = export_graph(denoiser, opset)
        last = next(i for i in model.graph.initializer if i.name.endswith("last.bias"))
        last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) + np.float32(change), last.name))
        return model

    monkeypatch.setattr(writer, "export_graph", wrong)
    with pytest.raises(ExportError):
        writer.export_client(tiny_model, tiny_config.client("north"), "north", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_kept(tiny_config, tiny_model, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        writer.export_client(tiny_model, tiny_config.client("north"), "north", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads_and_its_networks_can_be_built(path):
    config = load(path)
    for network in (config.server.network, *(c.network for c in config.clients.values())):
        Denoiser(network, config.data.image_shape, 3)
    assert all(c.cut.resolve().sigma < c.handover_sigma * 1.001 for c in config.clients.values())
