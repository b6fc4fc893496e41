"""export.half: the file is half as large, and every device computes in fp32."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core.knownanswer import known_answer_input, known_answer_values
from edge_client import Finisher
from export.half import halve_weights
from export.runtime import OnnxStep
from tests.export.conftest import THREE, graph_of


def test_kernels_and_matrices_are_stored_in_half_and_nothing_else(reduced, tiny_model):
    model = onnx.load(reduced["fp16"])
    halved = {t.name.removesuffix(".half") for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    weights = {f"denoiser.{k}" for k, v in tiny_model.denoiser.state_dict().items() if v.ndim in (2, 4)}
    assert halved == weights


def test_the_file_is_about_half_as_large(reduced, tiny_bundle):
    def weight_bytes(path):
        return sum(len(t.raw_data) for t in onnx.load(path).graph.initializer)

    assert weight_bytes(reduced["fp16"]) < 0.55 * weight_bytes(tiny_bundle)


def test_each_weight_is_the_nearest_half(reduced, tiny_bundle):
    exact = {t.name: numpy_helper.to_array(t) for t in onnx.load(tiny_bundle).graph.initializer}
    for tensor in onnx.load(reduced["fp16"]).graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            original = exact[tensor.name.removesuffix(".half")]
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), original.astype(np.float16))


def test_onnxruntime_computes_in_fp32_and_converts_the_weights_once(reduced, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(reduced["fp16"], options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    assert collections.Counter(node.op_type for node in graph.node)["Cast"] == 0
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}


def test_a_weight_that_half_cannot_hold_stays_in_fp32(tiny_bundle):
    model = graph_of(tiny_bundle)
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    large = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weights = numpy_helper.to_array(large).copy()
    weights.flat[0] = 1e5
    large.CopyFrom(numpy_helper.from_array(weights, name))
    kept = {t.name: t.data_type for t in halve_weights(model).graph.initializer}
    assert kept[name] == TensorProto.FLOAT and TensorProto.FLOAT16 in kept.values()


def test_the_original_is_left_alone(tiny_bundle):
    model = graph_of(tiny_bundle)
    halve_weights(model)
    assert model == graph_of(tiny_bundle)


def test_a_bundle_in_half_is_finished_by_a_device(reduced, tiny_bundle, tiny_intermediate):
    exact, half = (Finisher.load(path).finish(tiny_intermediate) for path in (tiny_bundle, reduced["fp16"]))
    assert np.abs(exact.astype(int) - half.astype(int)).max() <= 1


def test_the_known_answer_is_that_of_the_halved_weights(reduced):
    bundle = bundles.read(reduced["fp16"])
    answer = bundle.info.known_answer
    inputs = known_answer_input((1, 8, 8), THREE, answer.sigmas)
    values = known_answer_values(OnnxStep(bundle.data)(*inputs))
    np.testing.assert_allclose(values, answer.values, rtol=0, atol=1e-6)
    assert answer.tolerance == 1e-3
