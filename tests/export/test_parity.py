"""export.parity: the gate between torch and a bundle. It opens for an honest graph and for no other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core.errors import ExportError
from export.parity import BATCHES, NUM_LEVELS, TOLERANCE, check_parity, levels_between

Change = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="module")
def info(tiny_bundle):
    return bundles.read(tiny_bundle).info


@pytest.fixture
def check(tiny_bundle, tiny_model, info):
    """Compares torch with the real graph after a change to it."""

    def run(change: Change = lambda graph: None, tolerance: float = TOLERANCE, **changes):
        model = onnx.load(tiny_bundle)
        change(model.graph)
        changed = dataclasses.replace(info, **changes)
        return check_parity(tiny_model.denoiser, model.SerializeToString(), changed, tolerance)

    return run


def number(graph: onnx.GraphProto, name: str, *values: float) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.float32), name))
    return name


def steps(graph: onnx.GraphProto, *nodes: tuple[str, list[str], str]) -> None:
    """Nodes after the last one of the graph; its output is called ``honest`` from then on."""
    next(node for node in graph.node if "x0_hat" in node.output).output[0] = "honest"
    graph.node.extend(helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes)


def off_by(error: float) -> Change:
    """The same error in every value."""
    return lambda graph: steps(graph, ("Add", ["honest", number(graph, "error", error)], "x0_hat"))


def off_where(comparison: str, sigma: float) -> Change:
    """An error of 0.01 at the levels on one side of sigma."""

    def change(graph: onnx.GraphProto) -> None:
        number(graph, "level", sigma), number(graph, "error", 0.01)
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "per image"))
        graph.node.append(helper.make_node("Cast", ["there?"], ["there"], to=TensorProto.FLOAT))
        graph.node.insert(0, helper.make_node(comparison, ["sigma", "level"], ["there?"]))
        steps(
            graph,
            ("Mul", ["there", "error"], "errors"),
            ("Reshape", ["errors", "per image"], "shaped"),
            ("Add", ["honest", "shaped"], "x0_hat"),
        )

    return change


def images_see_each_other(graph: onnx.GraphProto) -> None:
    """Right for a batch of one."""
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "images"))
    steps(
        graph,
        ("ReduceMean", ["honest", "images"], "mean"),
        ("Sub", ["honest", "mean"], "apart"),
        ("Mul", ["apart", number(graph, "almost", 0.99)], "nearer"),
        ("Add", ["mean", "nearer"], "x0_hat"),
    )


def deaf(name: str, value: float) -> Change:
    """A graph that does not listen to one of its inputs."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["constant" if given == name else given for given in node.input]
        graph.node.insert(0, helper.make_node("Mul", [name, number(graph, "nothing", 0.0)], ["zero"]))
        graph.node.insert(1, helper.make_node("Add", ["zero", number(graph, "something", value)], ["constant"]))

    return change


def without_an_image(graph: onnx.GraphProto) -> None:
    for name, value in {"from": 0, "to": 1, "axis": 0}.items():
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    steps(graph, ("Slice", ["honest", "from", "to", "axis"], "x0_hat"))


# --- the gate opens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_an_honest_graph_passes_far_below_the_tolerance(check, sampler, guidance):
    parity = check(sampler=sampler, guidance=guidance)
    assert 0 < parity.step < TOLERANCE / 5 and 0 < parity.trajectory < TOLERANCE / 2
    assert parity.grey_levels <= 1


def test_levels_go_from_the_lowest_to_the_cut_evenly_in_their_logarithm():
    levels = levels_between(0.002, 0.5)
    assert (levels[0], levels[-1], len(levels)) == (0.002, 0.5, NUM_LEVELS)
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(250) / (NUM_LEVELS - 1))


def test_at_least_five_levels_and_the_batches_1_2_5():
    assert NUM_LEVELS >= 5 and set(BATCHES) >= {1, 2, 5}


def test_an_error_is_measured_as_large_as_it_is(check):
    parity = check(off_by(5e-4), tolerance=1.0)
    assert parity.step == pytest.approx(5e-4, rel=0.02)
    assert 2e-4 < parity.trajectory < 5e-3  # of the same size; the network carries it from step to step


# --- and closes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [2e-4, -2e-4, 0.1])
def test_an_error_above_the_tolerance_is_refused_with_its_size(check, error):
    with pytest.raises(ExportError, match=r"by (\S+) in one step .* allowed are 0.0001 and 1") as caught:
        check(off_by(error))
    assert float(str(caught.value).split("torch by ")[1].split()[0]) == pytest.approx(abs(error), rel=0.1)


@pytest.mark.parametrize(
    "change", [off_where("Less", 0.003), off_where("Greater", 0.4)], ids=["below 0.003 only", "above 0.4 only"]
)
def test_an_error_at_one_end_of_the_levels_is_found(check, change):
    with pytest.raises(ExportError, match="by 0.01 in one step"):
        check(change)


def test_images_that_influence_each_other_are_found(check):
    with pytest.raises(ExportError, match="differs from torch"):
        check(images_see_each_other)


@pytest.mark.parametrize("change", [deaf("sigma", 0.1), deaf("labels", 0.5)], ids=["sigma", "labels"])
def test_an_input_that_is_not_used_is_found(check, change):
    with pytest.raises(ExportError, match="differs from torch"):
        check(change)


def test_the_trajectory_counts_with_the_guidance_it_will_run_with(check):
    """Guidance of 40 amplifies a difference that one step alone would allow."""

    def labelled_only(graph: onnx.GraphProto) -> None:
        for name, value in {"from": 0, "to": 3, "axis": 1}.items():
            graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
        graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1, 1]), "per image"))
        steps(
            graph,
            ("Slice", ["labels", "from", "to", "axis"], "attributes"),
            ("ReduceSum", ["attributes", "axes"], "labelled"),
            ("Mul", ["labelled", number(graph, "error", 1e-5)], "errors"),
            ("Reshape", ["errors", "per image"], "shaped"),
            ("Add", ["honest", "shaped"], "x0_hat"),
        )

    assert check(labelled_only).step < TOLERANCE / 5
    with pytest.raises(ExportError, match="over the trajectory"):
        check(labelled_only, guidance=40.0)


def test_values_that_are_not_finite_are_refused(check):
    with pytest.raises(ExportError, match=r"at sigma 0.002, batch 1 the exported graph gives .* not finite"):
        check(off_by(float("nan")))


def test_a_model_that_gives_no_finite_values_itself_is_refused(tiny_bundle, tiny_model, info):
    broken = copy.deepcopy(tiny_model.denoiser)
    torch.nn.init.constant_(broken.network.last.bias, float("nan"))
    with pytest.raises(ExportError, match=r"at sigma 0.002, batch 1 torch itself gives values that are not finite"):
        check_parity(broken, tiny_bundle.read_bytes(), info)


def test_a_graph_that_forgets_images_is_refused(check):
    with pytest.raises(ExportError, match=r"at sigma 0.002, batch 2 the exported graph gives shape \(1, 1, 8, 8\)"):
        check(without_an_image)


def test_bytes_that_onnxruntime_cannot_load_are_refused(tiny_model, info):
    with pytest.raises(ExportError, match=r"onnxruntime \S+ cannot load the exported graph"):
        check_parity(tiny_model.denoiser, b"no model", info)
