"""export.whole: one graph from intermediate to pixels makes the pictures that a device makes step by step."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest

import export.writer
from collafuse.core import bundle as bundles
from collafuse.core import intermediate as intermediates
from collafuse.core.errors import ExportError, MismatchError, UsageError
from collafuse.core.knownanswer import known_answer_input, known_answer_values
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import to_uint8
from edge_client import Finisher
from export.runtime import OnnxWhole
from export.whole import MAX_EVALUATIONS, whole_graph
from tests.bundles import halving_info, halving_model
from tests.export.conftest import graph_of

PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def steps(tiny_bundle, reduced):
    """The tiny client's step bundles by precision."""
    return {"fp32": tiny_bundle, **reduced}


@pytest.fixture(scope="module")
def wholes(write_tiny, tmp_path_factory):
    """The same as whole bundles."""
    folder = tmp_path_factory.mktemp("whole")
    for precision in PRECISIONS:
        write_tiny(folder / f"{precision}.onnx", precision=precision, graph="whole")
    return {precision: folder / f"{precision}.onnx" for precision in PRECISIONS}


def run_whole(path, intermediate):
    info = bundles.read(path).info
    return OnnxWhole(path.read_bytes())(intermediate.x, conditions_for(intermediate, info.space))


def grey_levels_apart(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- the same pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_call_makes_the_pictures_of_collafuse_finish(steps, wholes, delivered, precision):
    intermediate = intermediates.read(delivered)
    expected = Finisher.load(steps[precision]).finish(intermediate)
    pixels = run_whole(wholes[precision], intermediate)
    assert (pixels.dtype, pixels.shape) == (np.uint8, expected.shape)
    assert (pixels != expected).mean() < 1e-3 and grey_levels_apart(pixels, expected) <= 1


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_every_sampler_guidance_and_number_of_steps(tiny_bundle, tiny_intermediate, sampler, guidance, num_steps):
    info = bundles.read(tiny_bundle).info
    info = dataclasses.replace(info, sampler=sampler, guidance=guidance, steps=num_steps)
    whole = whole_graph(graph_of(tiny_bundle), info).SerializeToString()
    finisher = Finisher.load(tiny_bundle, sampler=sampler, guidance=guidance, steps=num_steps)
    conditions = conditions_for(tiny_intermediate, info.space)
    pixels = OnnxWhole(whole)(tiny_intermediate.x, conditions)
    assert grey_levels_apart(pixels, finisher.finish(tiny_intermediate)) <= 1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_at_once(wholes, tiny_intermediate, batch):
    everything = run_whole(wholes["fp32"], tiny_intermediate)
    x, labels = tiny_intermediate.x[:batch], tiny_intermediate.labels[:batch]
    some = dataclasses.replace(tiny_intermediate, x=x, labels=labels)
    assert grey_levels_apart(run_whole(wholes["fp32"], some), everything[:batch]) <= 1


def test_unlabelled_images_are_asked_for_by_the_flag(tiny_bundle, wholes, tiny_intermediate):
    unlabelled = dataclasses.replace(tiny_intermediate, labels=None, label_names=())
    pixels = run_whole(wholes["fp32"], unlabelled)
    assert grey_levels_apart(pixels, Finisher.load(tiny_bundle).finish(unlabelled)) <= 1
    assert grey_levels_apart(pixels, run_whole(wholes["fp32"], tiny_intermediate)) > 1


def test_pixels_are_rounded_and_clipped_as_ours_are():
    """The network that halves, in one step: pixels are those of x / 2, with ties to even."""
    info = halving_info(steps=1)
    model = OnnxWhole(whole_graph(halving_model(), info).SerializeToString())
    ties = np.arange(256, dtype=np.float32) / 127.5 - 1.0 + 0.5 / 127.5  # between two grey levels
    beyond = np.array([-3.0, 3.0, -1.0, 1.0], dtype=np.float32)
    halves = np.concatenate([ties, beyond]).reshape(-1, 1, 2, 2)
    conditions = np.zeros((len(halves), 3), dtype=np.float32)
    np.testing.assert_array_equal(model(2 * halves, conditions), to_uint8(halves))


def test_colour_comes_out_as_rows_of_rgb():
    info = halving_info((3, 2, 2), steps=1)
    step = halving_model()
    for value in (step.graph.input[0], step.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 3
    x = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    pixels = OnnxWhole(whole_graph(step, info).SerializeToString())(x, np.zeros((4, 3), dtype=np.float32))
    np.testing.assert_array_equal(pixels, to_uint8(0.5 * x))


# --- the graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_whole_bundle_is_valid_has_its_weights_once_and_no_loop(steps, wholes, precision):
    model, step = onnx.load(wholes[precision]), onnx.load(steps[precision])
    onnx.checker.check_model(model, full_check=True)
    bundle = bundles.read(wholes[precision])  # refuses loops, functions and other operators
    assert (bundle.info.graph, bundle.info.precision) == ("whole", precision)
    assert bundle.summary.opset == bundle.info.opset == 18
    kernels = [t.name for t in step.graph.initializer if len(t.dims) >= 2]
    names = [t.name for t in model.graph.initializer]
    assert len(names) == len(set(names)) and all(names.count(name) == 1 for name in kernels)
    extra = sum(len(t.raw_data) for t in model.graph.initializer) - sum(len(t.raw_data) for t in step.graph.initializer)
    assert extra < 1000


def test_weights_in_half_are_converted_once_however_many_steps(wholes):
    model = onnx.load(wholes["fp16"])
    halves = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    to_float = [n for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == onnx.TensorProto.FLOAT]
    assert len(to_float) == halves > 0


def test_the_convolutions_of_every_step_are_fused_in_int8(wholes, steps, tmp_path):
    def operators(path):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)

    one, all_steps = operators(steps["int8"]), operators(wholes["int8"])
    assert all_steps["QLinearConv"] == 4 * one["QLinearConv"] > 0 and all_steps["Conv"] == 4 * one["Conv"]


def test_guidance_costs_a_second_evaluation_per_step(tiny_bundle):
    info, graph = bundles.read(tiny_bundle).info, graph_of(tiny_bundle)
    convolutions = sum(node.op_type == "Conv" for node in graph.graph.node)
    for guidance, evaluations in ((1.0, 4), (2.0, 8)):
        whole = whole_graph(graph, dataclasses.replace(info, guidance=guidance))
        assert sum(node.op_type == "Conv" for node in whole.graph.node) == evaluations * convolutions


def test_the_step_graph_is_left_alone(tiny_bundle):
    graph = graph_of(tiny_bundle)
    whole_graph(graph, bundles.read(tiny_bundle).info)
    assert graph == graph_of(tiny_bundle)


def test_too_many_evaluations_for_one_graph_are_refused(tiny_bundle):
    info = dataclasses.replace(bundles.read(tiny_bundle).info, steps=MAX_EVALUATIONS + 1)
    with pytest.raises(UsageError, match="65 steps of dpmpp_2m are more than 64 evaluations"):
        whole_graph(graph_of(tiny_bundle), info)


# --- the bundle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_known_answer_is_in_grey_levels_and_all_images_stand_at_the_cut(wholes, precision):
    bundle = bundles.read(wholes[precision])
    answer, info = bundle.info.known_answer, bundle.info
    assert set(answer.sigmas) == {info.sigma_max} and 1.0 <= answer.tolerance <= 8.0
    x, _, conditions = known_answer_input(info.image_shape, info.space, answer.sigmas)
    values = known_answer_values(OnnxWhole(bundle.data)(x, conditions))
    np.testing.assert_allclose(values, answer.values, rtol=0, atol=answer.tolerance)
    assert np.std(answer.values) > 0


def test_collafuse_finish_says_that_it_needs_the_steps(wholes):
    with pytest.raises(MismatchError, match=r"fp32\.onnx holds the whole finishing in one graph.*--graph step"):
        Finisher.load(wholes["fp32"])


def test_an_unknown_graph_is_refused(write_tiny, tmp_path):
    with pytest.raises(UsageError, match="graph 'half' is not known; use one of step, whole"):
        write_tiny(tmp_path / "a.onnx", graph="half")


def test_a_whole_graph_that_makes_other_pictures_is_refused_and_leaves_nothing(write_tiny, tmp_path, monkeypatch):
    def one_step_less(step, info):
        return whole_graph(step, dataclasses.replace(info, steps=info.steps - 1))

    monkeypatch.setattr(export.writer, "whole_graph", one_step_less)
    with pytest.raises(ExportError, match=r"finished in one graph, pictures differ by .* No bundle was written"):
        write_tiny(tmp_path / "a.onnx", graph="whole")
    assert not list(tmp_path.iterdir())
