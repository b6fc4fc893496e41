"""A small bounded reader of the ONNX wire format (protocol buffers), so that a device needs no onnx package.

It walks a model once, keeps what a bundle's checks need, and refuses with FileFormatError what our exporter
never writes: external data, sparse tensors, model-local functions, subgraphs (loops and branches), operators
of other domains, training information, convolutions and quantisers whose constants do not fit each other. Nothing is
allocated from a size that a file merely claims.

Field numbers are those of onnx.proto3: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto,
ValueInfoProto, OperatorSetIdProto and StringStringEntryProto.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .errors import FileFormatError

MAX_NODES = 100_000
MAX_TENSOR_ELEMENTS = 1 << 30
MAX_AXES = 16
MAX_METADATA_ENTRIES = 64
DEFAULT_DOMAINS = ("", "ai.onnx")
COUNTED = "num_outputs"
"""The attribute that says how many outputs an operator has: where it has others, onnxruntime ends the whole process."""
DIVISORS = frozenset({"strides", "dilations", "kernel_shape", "group", "block_size"})
"""Attributes that a runtime divides by: onnxruntime 1.23 ends the whole process where a stride is 0."""
SHAPED = frozenset({"Cast", "Conv", "DequantizeLinear", "QuantizeLinear"})
"""Operators whose constants are held against each other: onnxruntime 1.23 reads beyond the end of a convolution's
bias, or of the scales of its channels, where they are shorter than its kernel says."""
TYPES = frozenset({"to", "dtype", "output_dtype"})
"""Attributes that name the element type of what an operator makes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class ValueInfo:
    """An input or output: ONNX element type (1 is float32) and axes, a number or a symbol each."""

    element_type: int
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class _Node:
    """An operator of SHAPED: names of its inputs and outputs, and the axis it works along."""

    operator: str
    inputs: list[bytes]
    outputs: list[bytes]
    axis: int | None


@dataclass
class ModelSummary:
    """What the reader keeps of a model."""

    opset: int = 0
    num_nodes: int = 0
    num_parameters: int = 0
    operators: set[str] = field(default_factory=set)
    element_types: set[int] = field(default_factory=set)
    """ONNX element types of weights and constants, and those that operators are told to make."""
    inputs: dict[str, ValueInfo] = field(default_factory=dict)
    outputs: dict[str, ValueInfo] = field(default_factory=dict)
    metadata: dict[str, memoryview] = field(default_factory=dict)


class _Reader:
    """Walks messages of one model; ``source`` names the file in errors."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.summary = ModelSummary()
        self._shaped: list[_Node] = []
        self._shapes: dict[bytes, tuple[int, ...]] = {}

    def refuse(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.source} {what}; our exporter never writes that, so the file is refused.")

    def fields(self, data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
        """(field number, wire type, value): an int for a varint, the bytes otherwise."""
        position, end = 0, len(data)
        while position < end:
            tag, position = self._varint(data, position)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                integer, position = self._varint(data, position)
                yield number, wire, integer
                continue
            if wire == _BYTES:
                length, position = self._varint(data, position)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise FileFormatError(f"{self.source} is no valid ONNX file (wire type {wire}); get the bundle anew.")
            if length > end - position:
                raise FileFormatError(f"{self.source} is cut short or damaged; get the bundle anew.")
            yield number, wire, data[position : position + length]
            position += length

    def _varint(self, data: memoryview, position: int) -> tuple[int, int]:
        if position < len(data) and data[position] < 0x80:  # nearly all: names and numbers are short
            return data[position], position + 1
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(data):
                break
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise FileFormatError(f"{self.source} is cut short or damaged; get the bundle anew.")

    def nested(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Only the length-delimited fields."""
        return ((number, value) for number, wire, value in self.fields(data) if isinstance(value, memoryview))

    def text(self, data: memoryview) -> str:
        try:
            return bytes(data[:1000]).decode()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{self.source} holds a name that is not text; get the bundle anew.") from error

    def model(self, data: memoryview) -> None:
        graphs = 0
        for number, value in self.nested(data):
            if number == 7:
                graphs += 1
                self.graph(value)
            elif number == 8:
                self.opset(value)
            elif number == 14:
                self.metadata_entry(value)
            elif number in (20, 25):
                raise self.refuse("holds training information or model-local functions")
        if graphs != 1 or not self.summary.num_nodes:
            raise FileFormatError(f"{self.source} is no ONNX model ({graphs} graphs); expected a client bundle.")

    def opset(self, data: memoryview) -> None:
        domain, version = "", 0
        for number, _, value in self.fields(data):
            if number == 1 and isinstance(value, memoryview):
                domain = self.text(value)
            elif number == 2 and isinstance(value, int):
                version = value
        if domain in DEFAULT_DOMAINS:
            self.summary.opset = version

    def metadata_entry(self, data: memoryview) -> None:
        parts = {number: value for number, value in self.nested(data) if number in (1, 2)}
        key = self.text(parts.get(1, memoryview(b"")))
        if key in self.summary.metadata or len(self.summary.metadata) >= MAX_METADATA_ENTRIES:
            raise self.refuse(f"repeats the metadata key {key!r} or has over {MAX_METADATA_ENTRIES} keys")
        self.summary.metadata[key] = parts.get(2, memoryview(b""))

    def graph(self, data: memoryview) -> None:
        for number, value in self.nested(data):
            if number == 1:
                self.node(value)
            elif number == 5:
                self.weight(value)
            elif number == 11:
                self.value_info(value, self.summary.inputs)
            elif number == 12:
                self.value_info(value, self.summary.outputs)
            elif number == 15:
                raise self.refuse("holds sparse tensors")
        for node in self._shaped:  # in the order of the graph: what is made comes before who reads it
            if not self._fits(node):
                raise self.refuse(f"has a {node.operator} whose constants do not fit each other")

    def weight(self, data: memoryview) -> None:
        dims = self.tensor(data)
        self.summary.num_parameters += math.prod(dims)
        names = [value for number, value in self.nested(data) if number == 8]
        self._shapes.update({bytes(name): dims for name in names})

    def _fits(self, node: _Node) -> bool:
        """Whether kernel and bias, or tensor, scale and zero point, agree; unknown is no."""
        shapes = [self._shapes.get(name) for name in node.inputs]
        if not shapes or (node.operator != "Cast" and len(shapes) < 2):
            return False
        first = shapes[0]
        if node.operator in ("Cast", "DequantizeLinear") and first is not None:
            self._shapes.update(dict.fromkeys(node.outputs, first))
        if node.operator == "Cast":
            return True
        if node.operator == "Conv":
            kernel = shapes[1]
            return kernel is not None and shapes[2:] in ([], [kernel[:1]])
        per_channel = [first[:1]] if first is not None and node.axis == 0 else []
        return shapes[1] in [(), *per_channel] and shapes[2:] in ([], shapes[1:2])

    def node(self, data: memoryview) -> None:
        self.summary.num_nodes += 1
        if self.summary.num_nodes > MAX_NODES:
            raise self.refuse(f"has more than {MAX_NODES} operators")
        names: dict[int, list[bytes]] = {1: [], 2: []}
        operator, axis, counted = "", None, None
        for number, value in self.nested(data):
            if number in names:
                names[number].append(bytes(value))
            elif number == 4:
                operator = self.text(value)
            elif number == 5:
                name, numbers = self.attribute(value)
                if name == "axis" and numbers:
                    axis = numbers[0]
                elif name == COUNTED:
                    counted = numbers
            elif number == 7 and self.text(value) not in DEFAULT_DOMAINS:
                raise self.refuse(f"uses the custom operator domain {self.text(value)!r}")
        self.summary.operators.add(operator)
        if counted not in (None, [len(names[2])]):
            raise self.refuse(f"has an operator with {COUNTED} other than its outputs")
        if operator in SHAPED:
            self._shaped.append(_Node(operator, names[1], names[2], axis))

    def attribute(self, data: memoryview) -> tuple[str, list[int]]:
        """Name of an attribute, and its whole numbers if they matter here."""
        name, integers = "", []
        for number, _, value in self.fields(data):
            if number in (3, 8):
                integers.append(value)
            if isinstance(value, int):
                continue
            if number == 1:
                name = self.text(value)
            elif number in (6, 11):
                raise self.refuse("holds a subgraph (a loop or a branch)")
            elif number in (22, 23):
                raise self.refuse("holds sparse tensors")
            elif number in (5, 10):
                self.tensor(value)
        if name not in DIVISORS | TYPES | {"axis", COUNTED}:
            return name, []
        numbers = self._few(integers, f"has an operator with more than {MAX_AXES} numbers as its {name}")
        if name in DIVISORS and not all(0 < i < 1 << 31 for i in numbers):
            raise self.refuse(f"has an operator with {name} below 1")
        if name in TYPES:
            self.summary.element_types.update(numbers)
        return name, numbers

    def tensor(self, data: memoryview) -> tuple[int, ...]:
        """Dimensions of a TensorProto; refuses external data and absurd sizes."""
        many = f"declares a tensor with more than {MAX_AXES} axes"
        sizes: list[int | memoryview] = []
        element_type = 0
        for number, _, value in self.fields(data):
            if number == 1:
                sizes.append(value)
                if len(sizes) > MAX_AXES:  # not kept until the end: a file may hold millions
                    raise self.refuse(many)
            elif number == 2 and isinstance(value, int):
                element_type = value
            elif number == 13 or (number == 14 and value != 0):
                raise self.refuse("keeps tensors in another file (external data)")
        dims = self._few(sizes, many)
        if math.prod(dims) > MAX_TENSOR_ELEMENTS:
            raise self.refuse(f"declares a tensor of more than {MAX_TENSOR_ELEMENTS} elements")
        self.summary.element_types.add(element_type)
        return tuple(dims)

    def _few(self, values: Iterable[int | memoryview], what: str) -> list[int]:
        """The whole numbers of a repeated field, at most MAX_AXES of them; ``what`` says that there are more."""
        numbers = list(itertools.islice((i for value in values for i in self._integers(value)), MAX_AXES + 1))
        if len(numbers) > MAX_AXES:
            raise self.refuse(what)
        return numbers

    def _integers(self, data: int | memoryview) -> Iterator[int]:
        """Of a repeated field, which is written one by one or packed; negative ones come as 2^63 and more."""
        if isinstance(data, int):
            yield data
            return
        position = 0
        while position < len(data):
            value, position = self._varint(data, position)
            yield value

    def value_info(self, data: memoryview, into: dict[str, ValueInfo]) -> None:
        name, element_type = "", 0
        axes: list[int | str] = []
        for number, value in self.nested(data):
            if number == 1:
                name = self.text(value)
            elif number == 2:
                for kind, tensor_type in self.nested(value):
                    if kind != 1:
                        raise self.refuse("has an input or output that is not a tensor")
                    element_type, axes = self._tensor_type(tensor_type)
        if name in into:
            raise self.refuse(f"names {name!r} twice")
        into[name] = ValueInfo(element_type, tuple(axes))

    def _tensor_type(self, data: memoryview) -> tuple[int, list[int | str]]:
        element_type, axes = 0, []
        for number, _, value in self.fields(data):
            if number == 1 and isinstance(value, int):
                element_type = value
            elif number == 2 and isinstance(value, memoryview):
                axes = [self._axis(axis) for number, axis in self.nested(value) if number == 1]
        return element_type, axes

    def _axis(self, data: memoryview) -> int | str:
        for number, _, value in self.fields(data):
            if number == 1 and isinstance(value, int):
                return value
            if number == 2 and isinstance(value, memoryview):
                return self.text(value)
        return "?"


def summarise(data: bytes, source: str) -> ModelSummary:
    """What a model holds. Raises FileFormatError when it is damaged or holds what is never accepted.

    The metadata values are views into ``data``, so their place in the file is known.
    """
    reader = _Reader(source)
    reader.model(memoryview(data))
    return reader.summary
