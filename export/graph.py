"""The denoiser as an ONNX graph: x, sigma, labels -> x0_hat, preconditioning inside, one file, dynamic batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from collafuse.core.bundle import INPUTS, OUTPUT
from collafuse.core.errors import ExportError, UsageError, first_line
from collafuse.learning.autoguidance import AutoGuided
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.parts import folded

DEFAULT_OPSET = 18
"""Loads in onnxruntime 1.18 and newer and was the fastest on CPUs (research/edge.md, section 2)."""
OPSETS = range(18, 21)
"""Below 18 torch keeps to 18; from 21 it writes operators that a bundle does not have (GroupNormalization)."""
MAX_BATCH = 65_536


class _Graph(nn.Module):
    """The three inputs under the names that the bundle format gives them."""

    def __init__(self, denoiser: Denoiser | AutoGuided) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return self.denoiser(x, sigma, labels)


def export_graph(denoiser: Denoiser | AutoGuided, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The ONNX model of a denoiser, without metadata.

    Raises ExportError when torch cannot export it, UsageError for an opset that a bundle cannot have.
    """
    if opset not in OPSETS:
        raise UsageError(f"opset {opset}; expected one of {', '.join(map(str, OPSETS))}.")
    denoiser = folded(denoiser.eval().cpu())
    # An example batch of 2: torch.export takes a dimension of 1 as a constant.
    batch = torch.export.Dim("N", min=1, max=MAX_BATCH)
    example = (torch.zeros(2, *denoiser.image_shape), torch.ones(2), torch.zeros(2, denoiser.condition_width))
    with quiet():
        try:
            program = torch.onnx.export(
                _Graph(denoiser),
                example,
                dynamo=True,
                opset_version=opset,
                external_data=False,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes={name: {0: batch} for name in INPUTS},
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ExportError(
                f"torch could not export the client's network to opset {opset}: {first_line(error)}"
            ) from error
    assert program is not None  # as it is with dynamo=True
    model = program.model_proto
    model.graph.name = "collafuse-client"
    model.doc_string = ""
    for node in model.graph.node:  # stack traces and paths of the machine that exported
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's chatter, which is about itself and not about the user's model."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
