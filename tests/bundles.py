"""Bundles made with the onnx package alone: the smallest honest one, and ways to make a dishonest one.

The graph halves x, so its known answer is plain arithmetic. ``sealed`` fills in metadata and a digest that are
right for whatever graph it is given, as someone who means harm would.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core.bundle import BundleInfo
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.knownanswer import KnownAnswer, known_answer_input, known_answer_values

SHAPE = (1, 2, 2)
LABELS = ("cat", "dog")
LEVELS = (0.002, 0.05, 0.5)


def halving_info(image_shape: tuple[int, int, int] = SHAPE, **changes: Any) -> BundleInfo:
    x, _, _ = known_answer_input(image_shape, ConditionSpace(LABELS), LEVELS)
    values = tuple(float(v) for v in known_answer_values(0.5 * x))
    info = BundleInfo(
        client="north",
        image_shape=image_shape,
        label_names=LABELS,
        sigma_min=0.002,
        sigma_max=0.5,
        sampler="euler",
        steps=3,
        sigma_low=0.05,
        guidance=1.0,
        blank_trained=True,
        precision="fp32",
        opset=18,
        provenance={"weights": "none"},
        known_answer=KnownAnswer(LEVELS, values, tolerance=1e-3),
    )
    return dataclasses.replace(info, **changes)


def tensor_input(name: str, *axes: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["N", *axes])


def halving_model() -> onnx.ModelProto:
    """x0_hat = half * x. sigma and labels are inputs that nothing uses."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "half"], ["x0_hat"])],
        "halving",
        [tensor_input("x", *SHAPE), tensor_input("sigma"), tensor_input("labels", len(LABELS) + 1)],
        [tensor_input("x0_hat", *SHAPE)],
        [numpy_helper.from_array(np.full(SHAPE, 0.5, dtype=np.float32), "half")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def steered_bundle(image_shape: tuple[int, int, int], space: ConditionSpace, **changes: Any) -> bytes:
    """x0_hat = half * x + conditions @ weights: pictures that differ with what they were asked for."""
    weights = np.cos(np.arange(space.width, dtype=np.float32))[:, None]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "half"], ["halved"]),
            helper.make_node("MatMul", ["labels", "weights"], ["asked"]),
            helper.make_node("Reshape", ["asked", "shape"], ["lifted"]),
            helper.make_node("Add", ["halved", "lifted"], ["x0_hat"]),
        ],
        "steered",
        [tensor_input("x", *image_shape), tensor_input("sigma"), tensor_input("labels", space.width)],
        [tensor_input("x0_hat", *image_shape)],
        [
            numpy_helper.from_array(np.full(image_shape, 0.5, dtype=np.float32), "half"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x, _, conditions = known_answer_input(image_shape, space, LEVELS)
    values = known_answer_values(0.5 * x + (conditions @ weights)[:, :, None, None])
    answer = KnownAnswer(LEVELS, tuple(float(v) for v in values), tolerance=1e-3)
    told = {"label_names": space.label_names, "text": space.text, "known_answer": answer, **changes}
    return sealed(model, halving_info(image_shape, **told))


def sealed(model: onnx.ModelProto, info: BundleInfo | str | None = None) -> bytes:
    """The bundle of a graph with these metadata (text is taken as it is) and a digest that is right."""
    del model.metadata_props[:]
    text = info if isinstance(info, str) else (info or halving_info()).to_json()
    return sealed_bytes(model.SerializeToString(), text)


def sealed_bytes(graph: bytes, text: str) -> bytes:
    """As :func:`sealed`, for a graph that the onnx package may not be able to read."""
    metadata = onnx.ModelProto()
    helper.set_model_props(metadata, {bundles.METADATA_KEY: text, bundles.DIGEST_KEY: bundles.NO_DIGEST})
    # Messages in this format are joined by writing one after the other.
    return bundles.with_digest(graph + metadata.SerializeToString())


def halving_bundle(change: Callable[[onnx.ModelProto], Any] | None = None) -> bytes:
    """The honest bundle, or one whose graph ``change`` has been at."""
    model = halving_model()
    if change is not None:
        change(model)
    return sealed(model)


def resealed(data: bytes, change: Callable[[onnx.ModelProto], Any] | None = None, **fields: Any) -> bytes:
    """A bundle with a changed graph or changed metadata fields, and a digest that is right again."""
    model = onnx.load_model_from_string(data)
    values = json.loads(next(p.value for p in model.metadata_props if p.key == bundles.METADATA_KEY))
    if change is not None:
        change(model)
    return sealed(model, json.dumps({**values, **fields}, sort_keys=True))


LOSS = {"images": 8, "mean_grey_levels": 0.5, "max_grey_levels": 3, "psnr_db": 48.0, "worst_label": "cat",
        "worst_psnr_db": 47.0}  # fmt: skip
"""What a bundle in reduced precision says that it costs."""


def read(data: bytes) -> bundles.Bundle:
    """A bundle from its bytes, checked."""
    return bundles.from_bytes(data, "a.onnx")
