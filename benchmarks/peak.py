"""The machine's matrix peak, measured: what a convolution could reach at best, in fp32 and in int8."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

SIZE = 1536
ROUNDS = 9


def fp32_gflops(threads: int) -> float:
    """GFLOP/s of onnxruntime's own matrix product in fp32, a multiplication and an addition counted as two."""
    return _measured("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT, threads)


def int8_gops(threads: int) -> float:
    """The same with unsigned 8-bit times signed 8-bit."""
    return _measured("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, threads)


def _measured(operator: str, a: int, b: int, c: int, threads: int) -> float:
    session = _session(operator, a, b, c, threads)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (SIZE, SIZE)).astype(helper.tensor_dtype_to_np_dtype(a))
    seconds = _median_seconds(lambda: session.run(None, {"a": x}))
    return 2 * SIZE**3 / seconds / 1e9


def _session(operator: str, a: int, b: int, c: int, threads: int) -> onnxruntime.InferenceSession:
    """a @ b with b constant, as weights are: onnxruntime may lay it out beforehand."""
    rng = np.random.default_rng(1)
    weights = rng.integers(-60, 60, (SIZE, SIZE)).astype(helper.tensor_dtype_to_np_dtype(b))
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        operator,
        [helper.make_tensor_value_info("a", a, [SIZE, SIZE])],
        [helper.make_tensor_value_info("c", c, [SIZE, SIZE])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _median_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
