"""collafuse.core.bundle: the graphs that a bundle may hold. onnxruntime is not used in this file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core.errors import FileFormatError
from tests.bundles import LOSS, SHAPE, halving_bundle, halving_info, read, resealed, tensor_input
from tests.damage import bit_flips, truncations

# --- graphs that mean harm, sealed with a right digest ------------------------------------------------------


def nodes(model: onnx.ModelProto, *more: onnx.NodeProto) -> None:
    model.graph.node.extend(more)


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["unused"], value=tensor)


def tensor(dims, external: bool = False) -> onnx.TensorProto:
    made = TensorProto(name="unused", data_type=TensorProto.FLOAT, dims=dims)
    if external:
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="/etc/passwd")
    return made


def sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.ones(1, dtype=np.float32), "unused")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, dtype=np.int64)), [4])


def subgraph() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [tensor_input("y")])


def function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("ours", "Mul", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))


def convolution(**attributes):
    return lambda m: nodes(m, helper.make_node("Conv", ["x", "half"], ["unused"], **attributes))


def only_location(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


HOSTILE = {
    "weights in another file": (lambda m: m.graph.initializer.append(tensor([4], external=True)), "external data"),
    "weights said to be elsewhere": (only_location, "external data"),
    "a constant in another file": (lambda m: nodes(m, constant(tensor([4], external=True))), "external data"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.append(sparse()), "sparse tensors"),
    "a sparse constant": (
        lambda m: nodes(m, helper.make_node("Constant", [], ["unused"], sparse_value=sparse())),
        "sparse tensors",
    ),
    "a function": (function, "model-local functions"),
    "training information": (lambda m: m.training_info.add(), "training information"),
    "a loop": (lambda m: nodes(m, helper.make_node("Loop", ["", ""], ["y"], body=subgraph())), "subgraph"),
    "a scan": (lambda m: nodes(m, helper.make_node("Scan", ["x"], ["y"], body=subgraph())), "subgraph"),
    "a branch": (
        lambda m: nodes(m, helper.make_node("If", ["x"], ["y"], then_branch=subgraph(), else_branch=subgraph())),
        "subgraph",
    ),
    "a list of branches": (
        lambda m: nodes(m, helper.make_node("Identity", ["x"], ["y"], branches=[subgraph(), subgraph()])),
        "subgraph",
    ),
    "a custom operator": (lambda m: nodes(m, helper.make_node("Shell", ["x"], ["y"], domain="evil")), "domain 'evil'"),
    "an operator of Microsoft's": (
        lambda m: nodes(m, helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")),
        "domain 'com.microsoft'",
    ),
    "an unknown operator": (lambda m: nodes(m, helper.make_node("Shell", ["x"], ["y"])), "uses the operators 'Shell'"),
    "an operator that draws": (
        lambda m: nodes(m, helper.make_node("RandomNormalLike", ["x"], ["y"])),
        "uses the operators 'RandomNormalLike'",
    ),
    "a loop without a body": (lambda m: nodes(m, helper.make_node("Loop", [], ["y"])), "uses the operators 'Loop'"),
    "giant weights": (
        lambda m: m.graph.initializer.append(tensor([1 << 20, 1 << 20])),
        "more than 1073741824 elements",
    ),
    "weights of negative size": (lambda m: m.graph.initializer.append(tensor([-1])), "more than 1073741824 elements"),
    "weights of many axes": (lambda m: m.graph.initializer.append(tensor([1] * 17)), "tensor with more than 16 axes"),
    "a stride of many numbers": (convolution(strides=[1] * 17), "more than 16 numbers as its strides"),
    "a giant constant": (lambda m: nodes(m, constant(tensor([1 << 40]))), "more than 1073741824 elements"),
    "a stride of nothing": (convolution(strides=[0, 1]), "an operator with strides below 1"),
    "a step backwards": (convolution(strides=[1, -1]), "an operator with strides below 1"),
    "no groups": (convolution(group=0), "an operator with group below 1"),
    "blocks of nothing": (
        lambda m: nodes(m, helper.make_node("QuantizeLinear", ["x", "half"], ["y"], block_size=0)),
        "an operator with block_size below 1",
    ),
    "no dilation": (convolution(dilations=[1, 0]), "an operator with dilations below 1"),
    "an empty kernel": (convolution(kernel_shape=[0, 0]), "an operator with kernel_shape below 1"),
    "fewer outputs than it says": (
        lambda m: nodes(m, helper.make_node("Split", ["x"], ["one", "two"], axis=2, num_outputs=1)),
        "num_outputs other than its outputs",
    ),
    "no operators": (lambda m: m.graph.ClearField("node"), "no ONNX model"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_before_it_is_loaded(name, tmp_path):
    change, message = HOSTILE[name]
    (tmp_path / "evil.onnx").write_bytes(halving_bundle(change))
    with pytest.raises(FileFormatError, match=rf"evil\.onnx .*{message}"):
        bundles.read(tmp_path / "evil.onnx")


def replace_input(index: int, value: onnx.ValueInfoProto):
    return lambda model: model.graph.input[index].CopyFrom(value)


def sequence_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))


WRONG_ENDS = {
    "one input too few": (lambda m: m.graph.input.pop(), "a bundle with graph 'step' maps x, sigma, labels"),
    "one input too many": (lambda m: m.graph.input.append(tensor_input("y")), "maps 'labels', 'sigma', 'x', 'y'"),
    "one input renamed": (replace_input(1, tensor_input("t")), "maps 'labels', 't', 'x'"),
    "one input twice": (lambda m: m.graph.input.append(tensor_input("x", *SHAPE)), "names 'x' twice"),
    "the output renamed": (lambda m: m.graph.output[0].MergeFrom(tensor_input("eps")), "to 'eps'; a bundle with"),
    "no output": (lambda m: m.graph.ClearField("output"), "a bundle with graph 'step' maps"),
    "a second output": (lambda m: m.graph.output.append(tensor_input("x", *SHAPE)), "a bundle with graph 'step' maps"),
    "half precision": (replace_input(0, tensor_input("x", *SHAPE, dtype=TensorProto.FLOAT16)), "x has ONNX type 10 "),
    "other images": (replace_input(0, tensor_input("x", 3, 2, 2)), "x has ONNX type . and axes"),
    "images without channels": (replace_input(0, tensor_input("x", 2, 2)), "x has ONNX type . and axes"),
    "fewer labels": (replace_input(2, tensor_input("labels", 1)), "labels has ONNX type . and axes"),
    "sigma as a column": (replace_input(1, tensor_input("sigma", 1)), "sigma has ONNX type . and axes"),
    "any number of channels": (replace_input(0, tensor_input("x", "C", 2, 2)), "x has ONNX type . and axes"),
    "a batch of 3 only": (
        replace_input(0, helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, *SHAPE])),
        "x has ONNX type . and axes",
    ),
    "a list of images": (sequence_input, "an input or output that is not a tensor"),
    "no type": (lambda m: m.graph.input[0].ClearField("type"), "x has ONNX type . and axes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ENDS)
def test_a_graph_with_other_ends_is_refused(name):
    change, message = WRONG_ENDS[name]
    with pytest.raises(FileFormatError, match=message):
        read(halving_bundle(change))


# --- constants that do not fit each other ---------------------------------------------------------------------


def convolving(bias: int = 4, scales: int = 4, zeros: int = 4, axis: int | None = 0, through: str = "DequantizeLinear"):
    """Adds a convolution with a kernel of 4 channels in 8 bits, as export.quantise writes it."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.extend(
            [
                helper.make_tensor("kernel8", TensorProto.INT8, [4, 1, 1, 1], [1] * 4),
                helper.make_tensor("scales", TensorProto.FLOAT, [scales], [0.1] * scales),
                helper.make_tensor("zeros", TensorProto.INT8, [zeros], [0] * zeros),
                helper.make_tensor("bias", TensorProto.FLOAT, [bias], [0.0] * bias),
            ]
        )
        attributes = {} if axis is None else {"axis": axis}
        model.graph.node.append(helper.make_node(through, ["kernel8", "scales", "zeros"], ["kernel"], **attributes))
        model.graph.node.append(helper.make_node("Conv", ["x", "kernel", "bias"], ["y"], kernel_shape=[1, 1]))

    return change


def test_a_convolution_in_8_bits_is_accepted():
    read(resealed(halving_bundle(), convolving(), precision="int8", loss=LOSS))


@pytest.mark.parametrize(
    ("change", "operator"),
    [
        (convolving(bias=3), "Conv"),
        (convolving(bias=5), "Conv"),
        (convolving(bias=0), "Conv"),
        (convolving(scales=3, zeros=3), "DequantizeLinear"),
        (convolving(scales=1), "DequantizeLinear"),
        (convolving(zeros=1), "DequantizeLinear"),
        (convolving(axis=1), "DequantizeLinear"),
        (convolving(axis=-4), "DequantizeLinear"),
        (convolving(axis=None), "DequantizeLinear"),
        (convolving(through="Add", axis=None), "Conv"),  # a kernel of unknown shape
        (lambda m: nodes(m, helper.make_node("QuantizeLinear", ["x"], ["y"])), "QuantizeLinear"),
        (lambda m: nodes(m, helper.make_node("QuantizeLinear", ["x", "half"], ["y"])), "QuantizeLinear"),
        (lambda m: nodes(m, helper.make_node("Conv", ["x"], ["y"])), "Conv"),
        (lambda m: nodes(m, helper.make_node("Conv", ["x", "half", "nowhere"], ["y"])), "Conv"),
    ],
)
def test_constants_that_do_not_fit_each_other_are_refused(change, operator):
    """onnxruntime 1.23 would read beyond the end of the shorter one."""
    with pytest.raises(FileFormatError, match=f" has a {operator} whose constants do not fit each other"):
        read(resealed(halving_bundle(), change, precision="int8", loss=LOSS))


# --- whole graphs -------------------------------------------------------------------------------------------


def whole_bundle(change=lambda model: None, **fields) -> bytes:
    """x as pixels: an honest whole bundle for the reader, whatever it computes."""

    def make(model: onnx.ModelProto) -> None:
        del model.graph.input[1], model.graph.node[:]
        model.graph.node.append(helper.make_node("Cast", ["x"], ["bytes"], to=TensorProto.UINT8))
        model.graph.node.append(helper.make_node("Transpose", ["bytes"], ["pixels"], perm=[0, 2, 3, 1]))
        model.graph.output[0].CopyFrom(tensor_input("pixels", 2, 2, 1, dtype=TensorProto.UINT8))
        change(model)

    return resealed(halving_bundle(), make, **{"graph": "whole", **fields})


def test_a_whole_graph_maps_x_and_labels_to_pixels():
    bundle = read(whole_bundle())
    assert bundle.info.graph == "whole" and bundle.info.precision == "fp32"


def test_a_known_answer_in_grey_levels_may_be_farther_off_than_one_of_images():
    answer = vars(halving_info().known_answer)
    assert read(whole_bundle(known_answer={**answer, "tolerance": 3.0})).info.known_answer.tolerance == 3.0
    for data in (
        whole_bundle(known_answer={**answer, "tolerance": 128.0}),
        resealed(halving_bundle(), known_answer={**answer, "tolerance": 3.0}),
    ):
        with pytest.raises(FileFormatError, match="tolerance"):
            read(data)


WRONG_WHOLES = {
    "a whole graph that says it is a step": ({"graph": "step"}, lambda model: None),
    "sigma as an input": ({}, lambda model: model.graph.input.append(tensor_input("sigma"))),
    "no labels": ({}, lambda model: model.graph.input.pop()),
    "pixels as floats": ({}, lambda m: m.graph.output[0].CopyFrom(tensor_input("pixels", 2, 2, 1))),
    "channels first": (
        {},
        lambda m: m.graph.output[0].CopyFrom(tensor_input("pixels", 1, 2, 2, dtype=TensorProto.UINT8)),
    ),
    "pixels for one image": (
        {},
        lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 2, 2, 1])),
    ),
    "x0_hat as well": ({}, lambda m: m.graph.output.append(tensor_input("x0_hat", *SHAPE))),
    "signed bytes inside": ({}, lambda m: m.graph.initializer.append(helper.make_tensor("t", 3, [1], [1]))),
}


@pytest.mark.parametrize("name", WRONG_WHOLES)
def test_a_whole_graph_with_other_ends_or_elements_is_refused(name):
    fields, change = WRONG_WHOLES[name]
    with pytest.raises(FileFormatError, match=r"^a\.onnx.*( maps |pixels has ONNX type|holds elements of)"):
        read(whole_bundle(change, **fields))


def test_every_truncation_and_bit_flip_of_a_whole_bundle_is_refused():
    data = whole_bundle()
    for spoiled in (*truncations(data, 60), *bit_flips(data, 200)):
        with pytest.raises(FileFormatError, match=r"^a\.onnx"):
            read(spoiled)


# --- element types ------------------------------------------------------------------------------------------


def add_tensor(element_type: int):
    return lambda model: model.graph.initializer.append(helper.make_tensor("more", element_type, [1], [1]))


def add_cast(element_type: int):
    return lambda model: model.graph.node.append(helper.make_node("Cast", ["x"], ["cast"], to=element_type))


def add_rounding(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.INT8, [], [0]))
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["rounded"]))


MISPLACED = {
    "halves in fp32": ("fp32", add_tensor(TensorProto.FLOAT16)),
    "bytes in fp32": ("fp32", add_tensor(TensorProto.INT8)),
    "bytes in fp16": ("fp16", add_tensor(TensorProto.UINT8)),
    "halves in int8": ("int8", add_tensor(TensorProto.FLOAT16)),
    "double precision": ("fp32", add_tensor(TensorProto.DOUBLE)),
    "texts": ("fp32", lambda model: model.graph.initializer.append(helper.make_tensor("t", 8, [1], [b"text"]))),
    "a number in 4 bits": ("int8", add_tensor(TensorProto.INT4)),
    "a cast to texts": ("fp32", add_cast(TensorProto.STRING)),
    "a cast to half in fp32": ("fp32", add_cast(TensorProto.FLOAT16)),
    "a type that is none": ("fp32", add_cast(-1)),
    "a constant in double": (
        "fp32",
        lambda model: model.graph.node.append(
            helper.make_node("Constant", [], ["c"], value=helper.make_tensor("v", TensorProto.DOUBLE, [1], [1.0]))
        ),
    ),
    "rounding in fp32": ("fp32", add_rounding),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_a_graph_holds_the_element_types_of_its_precision_and_no_others(name):
    precision, change = MISPLACED[name]
    loss = None if precision == "fp32" else LOSS
    with pytest.raises(FileFormatError, match=rf"says that it is in {precision} and holds elements of the ONNX types"):
        read(resealed(halving_bundle(), change, precision=precision, loss=loss))


@pytest.mark.parametrize(("precision", "change"), [("fp16", add_tensor(TensorProto.FLOAT16)), ("int8", add_rounding)])
def test_what_a_precision_needs_is_allowed(precision, change):
    assert read(resealed(halving_bundle(), change, precision=precision, loss=LOSS)).info.precision == precision
