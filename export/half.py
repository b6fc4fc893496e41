"""Weights in half: the file is half as large, and a device computes in fp32 as before.

Each kernel and matrix is kept as float16 with a Cast to float32 behind it, which onnxruntime carries out once,
when it loads the graph. So it costs no time per image and needs no hardware for half. Norms and biases are a
small part of the file and stay in fp32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTED = ("Conv", "Gemm")
"""Operators whose second input is a kernel or a matrix."""


def halve_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the weights of its convolutions and linear layers in float16.

    A weight that half cannot hold (65504 is its largest number) stays as it is.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    graph = halved.graph
    weights = {node.input[1] for node in graph.node if node.op_type in WEIGHTED}
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=TensorProto.FLOAT))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *rest])
    return halved
