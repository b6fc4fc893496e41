"""collafuse.core.onnxwire against the onnx package, and against files that mean harm."""

from __future__ import annotations

import math

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import onnxwire
from collafuse.core.errors import FileFormatError
from collafuse.core.onnxwire import ValueInfo
from tests.bundles import halving_bundle, halving_model
from tests.damage import bit_flips, truncations


def summarise(data: bytes) -> onnxwire.ModelSummary:
    return onnxwire.summarise(data, "a.onnx")


def axes_of(value: onnx.ValueInfoProto) -> ValueInfo:
    tensor = value.type.tensor_type
    return ValueInfo(tensor.elem_type, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))


def test_a_real_model_is_read_as_the_onnx_package_reads_it(tiny_bundle):
    summary, model = summarise(tiny_bundle.read_bytes()), onnx.load(tiny_bundle)
    graph = model.graph
    assert summary.num_nodes == len(graph.node)
    assert summary.operators == {node.op_type for node in graph.node}
    assert summary.num_parameters == sum(math.prod(t.dims) for t in graph.initializer)
    assert summary.element_types == {t.data_type for t in graph.initializer}  # this one casts nothing
    assert summary.inputs == {v.name: axes_of(v) for v in graph.input}
    assert summary.outputs == {v.name: axes_of(v) for v in graph.output}
    assert summary.opset == next(o.version for o in model.opset_import if o.domain == "")
    assert {k: bytes(v).decode() for k, v in summary.metadata.items()} == {p.key: p.value for p in model.metadata_props}


def test_metadata_point_into_the_file():
    data = halving_bundle()
    digest = summarise(data).metadata["collafuse_sha256"]
    assert digest.obj is data
    assert bytes(digest) in data


def test_element_types_are_those_of_weights_constants_and_casts():
    model = halving_model()
    constant = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [1], [2])
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["two"], value=constant))
    model.graph.node.append(onnx.helper.make_node("Cast", ["two"], ["small"], to=onnx.TensorProto.UINT8))
    found = summarise(model.SerializeToString()).element_types
    assert found == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.UINT8}


def test_axes_are_numbers_symbols_or_unknown():
    model = halving_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    assert summarise(model.SerializeToString()).inputs["x"].axes == ("N", "?", 2, 2)


def test_unknown_fields_are_skipped_as_protocol_buffers_do():
    data = halving_bundle()
    for extra in (b"\xf8\x7f\x01", b"\xfa\x7f\x03abc", b"\xf9\x7f" + bytes(8), b"\xfd\x7f" + bytes(4)):
        assert summarise(data + extra).num_nodes == 1


# --- damage: refused or read, never another exception ---------------------------------------------------------


def refused_or_read(data: bytes) -> bool:
    try:
        summarise(data)
    except FileFormatError as error:
        assert str(error).startswith("a.onnx ")
        return False
    return True


def test_most_truncations_are_refused_and_none_fails_otherwise(tiny_bundle):
    data = tiny_bundle.read_bytes()
    read = [refused_or_read(spoiled) for spoiled in truncations(data, 100)]
    assert sum(read) < 10  # a cut between two metadata entries leaves a whole model


def test_bit_flips_are_refused_or_harmless(tiny_bundle):
    for data in (tiny_bundle.read_bytes(), halving_bundle()):
        assert not all(list(map(refused_or_read, bit_flips(data, 300))))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    assert not refused_or_read(data)


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0, 1, 2, 5]), st.binary(max_size=20)), max_size=8))
def test_arbitrary_messages_are_refused(fields):
    message = b""
    for number, wire, value in fields:
        body = {0: b"\x05", 1: bytes(8), 5: bytes(4), 2: bytes([len(value)]) + value}[wire]
        message += bytes([(number << 3 | wire) & 0x7F]) + body
    refused_or_read(b"\x3a" + bytes([len(message)]) + message if len(message) < 128 else message)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a graph of 2^64 - 1 bytes
        b"\x3a" + b"\x80" * 20,  # a length that never ends
        b"\x3b\x00",  # a group, which protocol buffers have given up
        b"\x3a\x05\x0a\x03\x22\x01",  # a name beyond the end
        b"\x3a\x05\x0a\x03\x22\x01\xff",  # a name that is not text
    ],
)
def test_broken_wire_formats_are_refused(data):
    with pytest.raises(FileFormatError, match=r"^a\.onnx .*(damaged|no valid ONNX|not text)"):
        summarise(data)


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", halving_model().graph.SerializeToString()])
def test_what_holds_no_graph_is_no_model(data):
    with pytest.raises(FileFormatError):
        summarise(data)


def test_two_graphs_are_refused():
    more = onnx.ModelProto(graph=onnx.GraphProto(node=halving_model().graph.node))
    with pytest.raises(FileFormatError, match=r"no ONNX model \(2 graphs\)"):
        summarise(halving_bundle() + more.SerializeToString())


def test_too_many_operators_are_refused():
    model = halving_model()
    node = onnx.GraphProto(node=[model.graph.node[0]]).SerializeToString()
    graph = model.graph.SerializeToString() + node * onnxwire.MAX_NODES
    length = bytes(
        [len(graph) & 0x7F | 0x80, len(graph) >> 7 & 0x7F | 0x80, len(graph) >> 14 & 0x7F | 0x80, len(graph) >> 21]
    )
    with pytest.raises(FileFormatError, match="has more than 100000 operators"):
        summarise(b"\x3a" + length + graph)


def test_too_many_metadata_entries_are_refused():
    model = halving_model()
    onnx.helper.set_model_props(model, {f"key {i}": "" for i in range(onnxwire.MAX_METADATA_ENTRIES + 1)})
    with pytest.raises(FileFormatError, match="has over 64 keys"):
        summarise(model.SerializeToString())
