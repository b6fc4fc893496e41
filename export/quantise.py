"""int8: convolutions between QuantizeLinear and DequantizeLinear (static QDQ), which onnxruntime fuses when it loads.

Activations are unsigned 8-bit with one scale per tensor, weights signed with one scale per output channel. The
first and the last convolution of a network stay in fp32: they touch the image itself and cost little. So do embeddings,
norms and attention products: with linear layers in 8 bits too the whole was slower (research/edge.md, section 2).

Weights use 7 of their 8 bits. On x86 without VNNI the kernels add two products of an activation and a weight in
16 bits: 255 * 127 twice is 64770 and saturates at 32767, 255 * 64 twice is 32640 and does not. So every kernel
adds exactly, and machines differ by no more than where a value is rounded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from collafuse.core.errors import ExportError, StorageError, first_line

from .calibration import Inputs
from .graph import quiet

QUANTISED = ("Conv",)
LARGEST_WEIGHT = 64
"""Of the signed 8-bit weights, see above."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Iterable[Inputs]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Inputs | None:
        return next(self._inputs, None)


def quantise(model: onnx.ModelProto, inputs: Iterable[Inputs]) -> onnx.ModelProto:
    """A copy of a step graph with its inner convolutions in int8, each tensor's range taken from these inputs.

    Raises ExportError when onnxruntime cannot quantise it or no convolution is left to quantise, StorageError where
    there is no room for temporary files.
    """
    convolutions = [node.name for node in model.graph.node if node.op_type in QUANTISED]
    kept = {*_outermost(model.graph.node), *_outermost(reversed(model.graph.node), backwards=True)}
    if kept.issuperset(convolutions):
        raise ExportError(
            f"the client's network has {len(convolutions)} convolutions, of which the first and the last stay in fp32: "
            "none is left for int8. No bundle was written; export it with --precision fp16 or fp32."
        )
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # Says that the graph needs no preparation: torch's exporter has folded what there is to fold.
    onnx.helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            quantised = _quantised_in(Path(folder), prepared, inputs, sorted(kept))
    except OSError as error:
        raise StorageError(
            f"cannot write a temporary file ({error.strerror or error}), which quantising needs; set TMPDIR to a "
            "folder with some room. No bundle was written."
        ) from error
    del quantised.metadata_props[:]
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    return quantised


def _outermost(nodes: Iterable[onnx.NodeProto], *, backwards: bool = False) -> list[str]:
    """The convolutions with no other before them (``backwards``: behind them), on the way through these nodes: one of
    each network that a graph holds."""
    behind: set[str] = set()
    found = []
    for node in nodes:
        comes_from, leads_to = (node.output, node.input) if backwards else (node.input, node.output)
        reached = not behind.isdisjoint(comes_from)
        if node.op_type in QUANTISED and not reached:
            found.append(node.name)
        if reached or node.op_type in QUANTISED:
            behind.update(leads_to)
    return found


def _quantised_in(
    folder: Path, prepared: onnx.ModelProto, inputs: Iterable[Inputs], kept: list[str]
) -> onnx.ModelProto:
    """What onnxruntime makes of a graph, from file to file; ``kept`` names the operators that stay as they are."""
    before, after = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(prepared, before)
    try:
        quantize_static(
            before,
            after,
            _Reader(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=kept,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ExportError(
            f"onnxruntime could not quantise the client's network: {first_line(error)}. No bundle was written; "
            "export it with --precision fp16 or fp32."
        ) from error
    return onnx.load(after)
