"""Changes to a graph or to the description of a tensor file that know its structure, for whoever means harm.

A mutated bundle is sealed again, with a digest that is right, so that what refuses it is not the digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core import tensorfile
from collafuse.core.bundle import OPERATORS
from tests.bundles import sealed_bytes
from tests.damage import safetensors_parts

Rng = np.random.Generator
HOSTILE_NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 16, 1 << 31, 1 << 33, 1 << 40, (1 << 63) - 1, -(1 << 63))
HOSTILE_FLOATS = (0.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), -float("inf"))


def _one(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))] if len(items) else None


def _names(graph: onnx.GraphProto) -> list[str]:
    made = [name for node in graph.node for name in (*node.input, *node.output)]
    return [*made, *(t.name for t in graph.initializer), "x", "sigma", "labels", "x0_hat", "nowhere", ""]


def another_operator(model: onnx.ModelProto, rng: Rng) -> None:
    _one(rng, model.graph.node).op_type = _one(rng, sorted(OPERATORS))


def another_input(model: onnx.ModelProto, rng: Rng) -> None:
    node = _one(rng, model.graph.node)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = _one(rng, _names(model.graph))


def more_or_fewer_inputs(model: onnx.ModelProto, rng: Rng) -> None:
    node = _one(rng, model.graph.node)
    if node.input and rng.random() < 0.5:
        del node.input[-1]
    else:
        node.input.extend([_one(rng, _names(model.graph))] * int(rng.integers(1, 5)))


def nodes_gone_doubled_or_turned(model: onnx.ModelProto, rng: Rng) -> None:
    nodes, at = model.graph.node, int(rng.integers(len(model.graph.node)))
    kind = rng.integers(3)
    if kind == 0:
        del nodes[at]
    elif kind == 1:
        nodes.append(nodes[at])
    else:
        turned = list(nodes)[at:][::-1]
        del nodes[at:]
        nodes.extend(turned)


def another_attribute(model: onnx.ModelProto, rng: Rng) -> None:
    with_some = [node for node in model.graph.node if node.attribute]
    if not with_some:
        return
    node = _one(rng, with_some)
    attribute = _one(rng, node.attribute)
    if attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = int(_one(rng, HOSTILE_NUMBERS))
    elif attribute.type == AttributeProto.INT:
        attribute.i = int(_one(rng, HOSTILE_NUMBERS))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = _one(rng, HOSTILE_FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = bytes(rng.integers(0, 256, 9, dtype=np.uint8))
    elif attribute.type == AttributeProto.TENSOR:
        _spoil_tensor(attribute.t, rng)


def attribute_gone_or_borrowed(model: onnx.ModelProto, rng: Rng) -> None:
    node, other = _one(rng, model.graph.node), _one(rng, model.graph.node)
    if node.attribute and rng.random() < 0.5:
        del node.attribute[-1]
    elif other.attribute:
        node.attribute.append(_one(rng, other.attribute))


def _spoil_tensor(tensor: onnx.TensorProto, rng: Rng) -> None:
    kind = rng.integers(6)
    if kind == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = int(_one(rng, HOSTILE_NUMBERS))
    elif kind == 1:
        turned = list(tensor.dims)[::-1]
        del tensor.dims[:]
        tensor.dims.extend(turned)
    elif kind == 2:
        tensor.data_type = int(rng.integers(0, 24))
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
    elif kind == 4:
        tensor.raw_data += bytes(int(rng.integers(1, 100)))
    elif tensor.raw_data and tensor.data_type in (TensorProto.FLOAT, TensorProto.INT64):
        values = numpy_helper.to_array(tensor).copy().reshape(-1)
        pool = HOSTILE_FLOATS if tensor.data_type == TensorProto.FLOAT else HOSTILE_NUMBERS
        if values.size:
            values[int(rng.integers(values.size))] = _one(rng, pool)
            tensor.raw_data = values.tobytes()


def another_weight(model: onnx.ModelProto, rng: Rng) -> None:
    if model.graph.initializer:
        _spoil_tensor(_one(rng, model.graph.initializer), rng)


def another_shape_tensor(model: onnx.ModelProto, rng: Rng) -> None:
    """A wrong size for whoever reshapes, slices, expands, pads or resizes by it."""
    whole = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64 and t.raw_data]
    if whole:
        tensor = _one(rng, whole)
        values = numpy_helper.to_array(tensor).copy().reshape(-1)
        if values.size:
            values[int(rng.integers(values.size))] = _one(rng, HOSTILE_NUMBERS)
            tensor.raw_data = values.tobytes()


def a_weight_twice(model: onnx.ModelProto, rng: Rng) -> None:
    if model.graph.initializer:
        copy = model.graph.initializer.add()
        copy.CopyFrom(_one(rng, model.graph.initializer))
        if rng.random() < 0.5:
            copy.name = _one(rng, _names(model.graph))


def another_version(model: onnx.ModelProto, rng: Rng) -> None:
    if rng.random() < 0.5:
        model.opset_import[0].version = int(_one(rng, (0, 1, 5, 9, 13, 17, 19, 21, 22, 24, 27, 99, 1 << 40)))
    else:
        model.ir_version = int(_one(rng, (0, 1, 3, 7, 11, 13, 99, 1 << 40)))


def wrong_shapes_said(model: onnx.ModelProto, rng: Rng) -> None:
    name, element_type = _one(rng, _names(model.graph)), int(rng.integers(0, 24))
    axes = [int(_one(rng, HOSTILE_NUMBERS)) for _ in range(int(rng.integers(0, 5)))]
    model.graph.value_info.append(helper.make_tensor_value_info(name, element_type, axes))


def a_giant(model: onnx.ModelProto, rng: Rng) -> None:
    """An operator that makes much out of little, in front of the first node."""
    size, graph = int(_one(rng, (1 << 20, 1 << 28, 1 << 33, 1 << 40))), model.graph
    whole = {"g_shape": [size], "g_pads": [0, 0, 0, size, 0, 0, 0, 0], "g_sizes": [1, 1, size, 8]}
    for name, values in whole.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.int64), "g_zero"))
    graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.int64), "g_one"))
    graph.initializer.append(numpy_helper.from_array(np.array(size, dtype=np.int64), "g_end"))
    made = [
        helper.make_node("ConstantOfShape", ["g_shape"], ["giant"]),
        helper.make_node("Expand", ["g_one", "g_shape"], ["giant"]),
        helper.make_node("Tile", ["sigma", "g_shape"], ["giant"]),
        helper.make_node("Range", ["g_zero", "g_end", "g_one"], ["giant"]),
        helper.make_node("Pad", ["x", "g_pads"], ["giant"]),
        helper.make_node("Resize", ["x", "", "", "g_sizes"], ["giant"]),
    ]
    graph.node.insert(0, _one(rng, made))
    if rng.random() < 0.7:  # so that nobody takes it for something that is not needed
        graph.node.insert(1, helper.make_node("Shape", ["giant"], ["giant_shape"]))
        graph.node.insert(2, helper.make_node("Cast", ["giant"], ["giant_float"], to=TensorProto.FLOAT))
        graph.node.insert(3, helper.make_node("ReduceMax", ["giant_float"], ["most"], keepdims=0))
        for node in list(graph.node)[4:]:
            if "x" in node.input and node.op_type in ("Mul", "Add", "Sub"):
                node.input[1] = "most"
                break


MUTATIONS: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    another_operator,
    another_input,
    more_or_fewer_inputs,
    nodes_gone_doubled_or_turned,
    another_attribute,
    attribute_gone_or_borrowed,
    another_weight,
    another_shape_tensor,
    a_weight_twice,
    another_version,
    wrong_shapes_said,
    a_giant,
)


def mutated_bundles(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """What was done and the sealed bundle, ``count`` times; one to three changes each."""
    rng = np.random.default_rng(seed)
    original = onnx.load_model_from_string(data)
    text = next(p.value for p in original.metadata_props if p.key == bundles.METADATA_KEY)
    del original.metadata_props[:]
    for index in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(original)
        done = [MUTATIONS[index % len(MUTATIONS)]]
        done += [MUTATIONS[int(rng.integers(len(MUTATIONS)))] for _ in range(int(rng.integers(0, 3)))]
        for mutation in done:
            mutation(model, rng)
        yield "+".join(mutation.__name__ for mutation in done), sealed_bytes(model.SerializeToString(), text)


def mutated_tensor_files(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """A tensor file with one to three changes to its metadata, header or bytes, and a digest that is right again
    wherever the file still says what its tensors are."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        header, payload = safetensors_parts(data)
        ours = json.loads(header["__metadata__"]["collafuse"])
        for _ in range(int(rng.integers(1, 4))):
            payload = _spoil_file(header, ours, bytearray(payload), rng)
        del ours["sha256"]
        try:
            arrays = {name: _array(payload, header[name]) for name in header if name != "__metadata__"}
            ours["sha256"] = tensorfile.content_digest(ours, arrays)
        except (KeyError, ValueError, TypeError, MemoryError):
            ours["sha256"] = "0" * 64
        header["__metadata__"]["collafuse"] = json.dumps(ours)
        text = json.dumps(header).encode()
        yield len(text).to_bytes(8, "little") + text + payload


def _array(payload: bytes, entry: dict[str, Any]) -> np.ndarray:
    dtype = {"F32": "<f4", "F16": "<f2", "U8": "u1"}[entry["dtype"]]
    return np.frombuffer(payload[slice(*entry["data_offsets"])], dtype).reshape(entry["shape"])


def _spoil_file(header: dict[str, Any], ours: dict[str, Any], payload: bytearray, rng: Rng) -> bytes:
    names = [name for name in header if name != "__metadata__"]
    kind = rng.integers(8)
    entry = header[_one(rng, names)] if names else {}
    if kind == 0:
        key = _one(rng, [k for k in ours if k != "sha256"])
        ours[key] = _one(rng, (None, 0, -1, 1e300, 0.5, True, "", "x" * 5000, [], {}, ["a", "a"], float("nan")))
    elif kind == 1 and entry:
        entry["dtype"] = _one(rng, ("F32", "F16", "F64", "U8", "I64", "BOOL", "F8_E4M3", "X9"))
    elif kind == 2 and entry:
        entry["shape"] = [int(_one(rng, HOSTILE_NUMBERS)) for _ in range(int(rng.integers(0, 6)))]
    elif kind == 3 and entry:
        entry["data_offsets"][int(rng.integers(2))] = int(_one(rng, HOSTILE_NUMBERS))
    elif kind == 4 and names:
        header[_one(rng, ("x", "labels", "previous_x0_hat", "more"))] = header.pop(_one(rng, names))
    elif kind == 5:
        del payload[int(rng.integers(len(payload) + 1)) :]
    elif kind == 6 and payload:
        at = 4 * int(rng.integers(len(payload) // 4)) if len(payload) >= 4 else 0
        payload[at : at + 4] = np.float32(_one(rng, HOSTILE_FLOATS)).tobytes()
    elif kind == 7:
        ours[_one(rng, ("x0", "seed", "sigma", "label_names"))] = _one(rng, (1, 0.25, ["0"], None))
    return bytes(payload)
