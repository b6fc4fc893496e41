"""export.quantise: int8 convolutions that are really fused, exact on every kernel, and close to fp32."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core.errors import ExportError, StorageError
from collafuse.core.knownanswer import known_answer_input, known_answer_values
from edge_client import Finisher
from edge_client.session import known_answer_error, open_session
from export import calibration
from export.calibration import calibration_inputs
from export.quantise import LARGEST_WEIGHT, quantise
from export.runtime import OnnxStep
from tests.export.conftest import THREE, graph_of


@pytest.fixture(scope="module")
def model(reduced) -> onnx.ModelProto:
    return onnx.load(reduced["int8"])


def optimised(path, folder, level) -> collections.Counter:
    """The operators that onnxruntime runs in the end."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = level
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_onnxruntime_fuses_every_convolution_but_the_first_and_the_last(reduced, tiny_bundle, tmp_path):
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(tiny_bundle).graph.node)
    operators = optimised(reduced["int8"], tmp_path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert operators["QLinearConv"] == convolutions - 2 > 10
    assert operators["Conv"] == 2


def test_the_first_and_the_last_convolution_are_in_fp32(model):
    fp32 = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    kept = [node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in fp32]
    assert kept == ["denoiser.network.first.weight", "denoiser.network.last.weight"]


def test_only_convolutions_are_quantised(model):
    """What goes through 8 bits comes out of a convolution or goes into one."""
    into = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    back = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    entering = {node.input[0] for node in convolutions}
    leaving = {node.output[0] for node in convolutions}
    assert into and all(source in leaving or back[eight_bits] in entering for eight_bits, source in into.items())


def test_activations_are_unsigned_and_weights_signed_per_channel_without_saturation(model):
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kernels = {name: array for name, array in weights.items() if name.endswith("weight_quantized")}
    assert kernels
    for name, kernel in kernels.items():
        assert kernel.dtype == np.int8
        assert np.abs(kernel.astype(int)).max() <= LARGEST_WEIGHT
        assert weights[name.replace("_quantized", "_scale")].shape == (len(kernel),)
        assert not weights[name.replace("_quantized", "_zero_point")].any()
    zero_points = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {weights[name].dtype for name in zero_points} == {np.dtype(np.uint8)}
    # Two products of 8 and 7 bits fit into the 16 bits in which older kernels add them.
    assert 2 * 255 * LARGEST_WEIGHT < 2**15


def test_the_kernels_in_8_bits_compute_what_the_graph_says(reduced, tiny_intermediate):
    """Unoptimised, onnxruntime carries the graph out as it is written, in fp32; optimised, in integers."""
    bundle = bundles.read(reduced["int8"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = onnxruntime.InferenceSession(bundle.data, options, providers=["CPUExecutionProvider"])
    x, sigma, labels = known_answer_input((1, 8, 8), THREE, bundle.info.known_answer.sigmas)
    (expected,) = literal.run(None, {"x": x, "sigma": sigma, "labels": labels})
    assert np.abs(OnnxStep(bundle.data)(x, sigma, labels) - expected).max() <= bundle.info.known_answer.tolerance


def test_finished_images_stay_close_to_fp32(reduced, tiny_bundle, tiny_intermediate):
    exact, int8 = (Finisher.load(path).finish(tiny_intermediate) for path in (tiny_bundle, reduced["int8"]))
    apart = np.abs(exact.astype(int) - int8.astype(int))
    assert 0 < apart.mean() < 2


# --- the known answer ---------------------------------------------------------------------------------------


def test_the_known_answer_is_onnxruntimes_own(reduced):
    bundle = bundles.read(reduced["int8"])
    assert known_answer_error(open_session(bundle), bundle) < 1e-6


def test_its_tolerance_spans_what_rounding_moves_and_no_more(reduced):
    bundle = bundles.read(reduced["int8"])
    answer, model = bundle.info.known_answer, OnnxStep(bundle.data)
    x, sigma, labels = known_answer_input((1, 8, 8), THREE, answer.sigmas)
    noise = np.random.default_rng(99)
    for size in (1e-6, 1e-5):  # as two machines' sums in fp32 differ
        nudged = x * (1 + size * noise.standard_normal(x.shape))
        values = known_answer_values(model(nudged, sigma, labels))
        assert np.abs(values - answer.values).max() <= answer.tolerance
    assert 1e-3 <= answer.tolerance < 0.1


@pytest.mark.parametrize("fault", ["a kernel moved by one", "a kernel clipped"])
def test_a_graph_that_computes_otherwise_does_not_meet_it(reduced, model, fault):
    bundle, wrong = bundles.read(reduced["int8"]), onnx.ModelProto()
    wrong.CopyFrom(model)
    kernel = next(t for t in wrong.graph.initializer if t.name.endswith("up.1.1.conv1.weight_quantized"))
    values = numpy_helper.to_array(kernel)
    faulty = np.roll(values, 1) if "moved" in fault else values.clip(-20, 20)
    kernel.CopyFrom(numpy_helper.from_array(faulty, kernel.name))
    broken = dataclasses.replace(bundle, data=wrong.SerializeToString())
    x, sigma, labels = known_answer_input((1, 8, 8), THREE, bundle.info.known_answer.sigmas)
    values = known_answer_values(OnnxStep(broken.data)(x, sigma, labels))
    assert np.abs(values - bundle.info.known_answer.values).max() > bundle.info.known_answer.tolerance


# --- what cannot be quantised -------------------------------------------------------------------------------


def test_a_network_without_inner_convolutions_is_refused(tiny_bundle):
    model = graph_of(tiny_bundle)
    rest = [node for node in model.graph.node if node.op_type != "Conv"]
    del model.graph.node[:]
    model.graph.node.extend(rest)
    with pytest.raises(ExportError, match="has 0 convolutions, of which .* none is left for int8"):
        quantise(model, [])


def test_a_graph_that_onnxruntime_cannot_calibrate_is_refused_in_one_sentence(tiny_bundle):
    with pytest.raises(ExportError, match="onnxruntime could not quantise the client's network: ") as caught:
        quantise(graph_of(tiny_bundle), [])  # nothing to calibrate on
    assert "\n" not in str(caught.value)


def test_a_disk_without_room_for_the_graph_is_named(tiny_bundle, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.quantise.onnx.save", full)
    with pytest.raises(StorageError, match="No space left on device.*set TMPDIR"):
        quantise(graph_of(tiny_bundle), [])


def test_the_same_calibration_gives_the_same_graph(tiny_bundle, delivered, model):
    info = bundles.read(tiny_bundle).info
    graph = graph_of(tiny_bundle)
    exact = OnnxStep(graph.SerializeToString())
    shaping, _ = calibration.read(delivered, info)
    again = quantise(graph, calibration_inputs(exact, shaping, info))
    assert again.graph == model.graph
