"""A tiny client in reduced precision, and the intermediates it is exported with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import export.writer
from collafuse.config import ClientSettings
from collafuse.core import intermediate as intermediates
from collafuse.core.bundle import PRECISIONS
from collafuse.core.conditioning import ConditionSpace
from collafuse.learning.weights import TrainedModel
from export.graph import export_graph
from export.writer import Exported, export_client

THREE = ConditionSpace(("0", "1", "2"))
"""What north's bundle is asked for."""


def graph_of(path: Path) -> onnx.ModelProto:
    """The graph as the exporter made it, before metadata went in."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return model


def in_every_precision(
    model: TrainedModel, settings: ClientSettings, delivered: Path, folder: Path
) -> dict[str, tuple[Path, Exported]]:
    """North's bundle of a model in each precision, and what was said of it. torch, which takes most of the time of an
    export, makes the graph once."""
    made: list[bytes] = []

    def made_once(*arguments) -> onnx.ModelProto:
        if not made:
            made.append(export_graph(*arguments).SerializeToString())
        return onnx.load_from_string(made[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.writer, "export_graph", made_once)
        paths = {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}
        return {
            p: (path, export_client(model, settings, "north", path, precision=p, intermediates=delivered))
            for p, path in paths.items()
        }


@pytest.fixture(scope="session")
def delivered(tiny_intermediate, tmp_path_factory) -> Path:
    """A file of 33 intermediates where north takes over, in blocks of one label as a server delivers them."""
    one = tiny_intermediate
    noise = np.random.default_rng(3).standard_normal((33, *one.image_shape))
    pattern = np.cos(np.arange(noise.size)).reshape(noise.shape)
    labels = np.zeros((33, len(one.label_names)), dtype=np.uint8)
    labels[np.arange(33), np.repeat([0, 1, 3], 11)] = 1
    x = (0.8 * pattern + one.sigma * noise).astype(np.float32)
    path = tmp_path_factory.mktemp("delivered") / "north.safetensors"
    path.write_bytes(intermediates.to_bytes(dataclasses.replace(one, x=x, labels=labels)))
    return path


@pytest.fixture(scope="session")
def write_tiny(tiny_bundle, tiny_model, tiny_config, delivered) -> Callable[..., Exported]:
    """Exports the tiny client to a path, without the seconds that torch takes: its graph is the tiny bundle's."""

    def write(path: Path, **options) -> Exported:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export.writer, "export_graph", lambda *_: graph_of(tiny_bundle))
            options = {"intermediates": delivered, **options}
            return export_client(tiny_model, tiny_config.client("north"), "north", path, **options)

    return write


@pytest.fixture(scope="session")
def reduced(write_tiny, tmp_path_factory) -> dict[str, Path]:
    """The tiny client's bundles in fp16 and int8."""
    folder = tmp_path_factory.mktemp("reduced")
    paths = {precision: folder / f"{precision}.onnx" for precision in ("fp16", "int8")}
    for precision, path in paths.items():
        write_tiny(path, precision=precision)
    return paths
