"""The whole finishing as one ONNX graph: an intermediate in, 8-bit pictures out, for runtimes without our Python.

The samplers are plain arithmetic on whatever they are given. Here they are given symbols, which write down each
operation as an ONNX node instead of carrying it out, and a denoiser that writes down a copy of the step graph. So
the graph is the sampler of a device to the letter, its weights are in it once however many steps there are, and
it can be made of a step graph in any precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from collafuse.core.bundle import INPUTS, OUTPUT, PIXELS, WHOLE_INPUTS, BundleInfo
from collafuse.core.errors import UsageError
from collafuse.core.noise import client_sigmas
from collafuse.core.samplers import evaluations

from .runtime import finish

MAX_EVALUATIONS = 64
"""Each is a copy of the network's operators (not of its weights), so loading takes longer with each."""


class _Writer:
    """Collects nodes and constants; copies a step graph with its weights shared among the copies."""

    def __init__(self, step: onnx.GraphProto) -> None:
        self.step = step
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = {tensor.name: tensor for tensor in step.initializer}
        self._copies = 0
        # What depends on weights alone is the same in every copy: written once, under its own name.
        self._shared = set(self.initializers)
        for node in step.node:
            if self._shared.issuperset(name for name in node.input if name):
                self.nodes.append(node)
                self._shared.update(node.output)

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Write one node; returns the name of its output."""
        output = output or f"whole/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def constant(self, value: Any) -> str:
        """The name of a constant, float32 unless the value is an array of another type."""
        array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=np.float32)
        name = f"whole/{array.dtype}{array.tolist()}"
        self.initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def copy_of_step(self, inputs: dict[str, str]) -> str:
        """Write a copy of the step graph that reads these values; returns the name of its output."""
        prefix, self._copies = f"call{self._copies}/", self._copies + 1

        def renamed(name: str) -> str:
            return name if not name or name in self._shared else inputs.get(name, prefix + name)

        for node in self.step.node:
            if self._shared.issuperset(node.output):
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = prefix + node.name
            copy.input[:] = map(renamed, node.input)
            copy.output[:] = map(renamed, node.output)
            self.nodes.append(copy)
        return renamed(OUTPUT)


@dataclass(frozen=True)
class _Symbol:
    """An array of the graph being written; arithmetic on it writes nodes."""

    writer: _Writer
    name: str

    def _write(self, kind: str, *operands: Any) -> _Symbol:
        names = [o.name if isinstance(o, _Symbol) else self.writer.constant(float(o)) for o in operands]
        return _Symbol(self.writer, self.writer.node(kind, names))

    def __add__(self, other: Any) -> _Symbol:
        return self._write("Add", self, other)

    def __sub__(self, other: Any) -> _Symbol:
        return self._write("Sub", self, other)

    def __mul__(self, other: Any) -> _Symbol:
        return self._write("Mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> _Symbol:
        return self._write("Div", self, other)


def check_evaluations(info: BundleInfo) -> None:
    """Raise UsageError where finishing takes more evaluations than one graph may hold."""
    sigmas = client_sigmas(info.sigma_max, info.steps, info.sigma_low)
    if evaluations(info.sampler, sigmas, guided=info.guidance != 1.0) > MAX_EVALUATIONS:
        raise UsageError(
            f"{info.steps} steps of {info.sampler} are more than {MAX_EVALUATIONS} evaluations, too many for one "
            "graph; use fewer --steps, or --graph step."
        )


def whole_graph(step: onnx.ModelProto, info: BundleInfo) -> onnx.ModelProto:
    """A model ``x, labels -> pixels`` that finishes as the bundle's defaults say, from its sigma_max.

    x float32 [N, C, H, W] and labels float32 [N, W] as a step graph takes them; pixels uint8 [N, H, W, C],
    rounded as collafuse.core.pictures.to_uint8 does. Raises UsageError for more than MAX_EVALUATIONS.
    """
    check_evaluations(info)
    writer = _Writer(step.graph)
    x, labels = (_Symbol(writer, name) for name in WHOLE_INPUTS)
    batch = writer.node("Shape", [x.name], end=1)

    def denoise(x: _Symbol, sigma: float, conditions: _Symbol) -> _Symbol:
        levels = writer.node("Expand", [writer.constant(sigma), batch])
        return _Symbol(writer, writer.copy_of_step(dict(zip(INPUTS, (x.name, levels, conditions.name), strict=True))))

    finished = finish(denoise, x, labels, info, blank=_unconditional(labels, info.space.width))
    _write_pixels(finished)
    ends = {value.name: value for value in step.graph.input}
    channels, height, width = info.image_shape
    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["N", height, width, channels])
    return helper.make_model(
        helper.make_graph(
            writer.nodes,
            "collafuse-client-whole",
            [ends[name] for name in WHOLE_INPUTS],
            [pixels],
            list(writer.initializers.values()),
        ),
        opset_imports=step.opset_import,
        ir_version=step.ir_version,
        producer_name=step.producer_name,
        producer_version=step.producer_version,
    )


def _unconditional(labels: _Symbol, width: int) -> _Symbol:
    """The "no condition" row for each row."""
    blank = np.zeros(width, dtype=np.float32)
    blank[-1] = 1.0
    writer = labels.writer
    return _Symbol(writer, writer.node("Add", [(labels * 0.0).name, writer.constant(blank)]))


def _write_pixels(finished: _Symbol) -> None:
    """Grey levels from images in [-1, 1], as collafuse.core.pictures.to_uint8."""
    writer = finished.writer
    clipped = writer.node("Clip", [finished.name, writer.constant(-1.0), writer.constant(1.0)])
    levels = (_Symbol(writer, clipped) + 1.0) * 127.5
    rounded = writer.node("Round", [levels.name])  # half to even, as NumPy
    last = writer.node("Transpose", [rounded], perm=[0, 2, 3, 1])
    writer.node("Cast", [last], PIXELS, to=TensorProto.UINT8)
