"""The smallest bundle that says something about a provider: one convolution and a little around it, byte by byte.

A device has no onnx package to make one with. The bundle goes through the same checks and the same known-answer test
as a real one, so what runs it runs the operators that matter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from collafuse.core.bundle import (
    DIGEST_KEY,
    FLOAT32,
    INPUTS,
    INT64,
    METADATA_KEY,
    NO_DIGEST,
    OUTPUT,
    BundleInfo,
    with_digest,
)
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.knownanswer import KnownAnswer, known_answer_input, known_answer_values

IMAGE_SHAPE = (3, 16, 16)
SIGMAS = (0.1, 0.5)
IR_VERSION, OPSET = 8, 18
INTS = 7
"""ONNX's attribute type for a list of whole numbers."""
PER_IMAGE = (-1, 1, 1, 1)
"""The shape of one number for each image."""


def tiny_bundle() -> bytes:
    """The bundle's bytes, the same each time."""
    weights = _weights()
    x, sigma, labels = known_answer_input(IMAGE_SHAPE, ConditionSpace(), SIGMAS)
    each = PER_IMAGE
    answer = known_answer_values(np.tanh(_convolution(x, weights) + sigma.reshape(each) - labels.reshape(each)))
    info = BundleInfo(
        client="doctor",
        image_shape=IMAGE_SHAPE,
        label_names=(),
        sigma_min=0.002,
        sigma_max=SIGMAS[-1],
        sampler="euler",
        steps=1,
        sigma_low=0.05,
        guidance=1.0,
        blank_trained=True,
        precision="fp32",
        opset=OPSET,
        provenance={"made by": "collafuse doctor"},
        known_answer=KnownAnswer(SIGMAS, tuple(float(v) for v in answer), tolerance=1e-3),
    )
    graph = _graph(weights)
    texts = ((METADATA_KEY, info.to_json()), (DIGEST_KEY, NO_DIGEST))
    metadata = [_message(14, (1, key.encode()), (2, text.encode())) for key, text in texts]
    model = _field(1, IR_VERSION) + _message(8, (2, OPSET)) + _field(7, graph) + b"".join(metadata)
    return with_digest(model)


def _weights() -> NDArray[np.float32]:
    """[3, 3, 3, 3], from a formula, so that it needs no file."""
    return (0.2 * np.sin(np.arange(81, dtype=np.float64))).reshape(3, 3, 3, 3).astype(np.float32)


def _convolution(x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """x [N, C, H, W] with weights [C, C, 3, 3] and a border of zeros, in NumPy."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    parts = [
        np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], weights[:, :, i, j])
        for i in range(3)
        for j in range(3)
    ]
    total: NDArray[np.float32] = np.sum(parts, axis=0, dtype=np.float32)
    return total


def _graph(weights: NDArray[np.float32]) -> bytes:
    """GraphProto: x0_hat = tanh(conv(x, weights) + sigma - labels). All inputs are used, as in a real bundle."""
    pads = _message(5, (1, b"pads"), *((8, 1) for _ in range(4)), (20, INTS))
    nodes = (
        _node("Conv", "x", "weights", "hidden") + pads,
        _node("Reshape", "sigma", "each", "level"),
        _node("Reshape", "labels", "each", "flag"),
        _node("Add", "hidden", "level", "raised"),
        _node("Sub", "raised", "flag", "whole"),
        _node("Tanh", "whole", OUTPUT),
    )
    tensors = (
        _tensor("weights", FLOAT32, weights.shape, weights.astype("<f4").tobytes()),
        _tensor("each", INT64, (4,), np.asarray(PER_IMAGE, dtype="<i8").tobytes()),
    )
    shapes: dict[str, Sequence[int]] = dict(zip(INPUTS, (IMAGE_SHAPE, (), (1,)), strict=True))
    inputs = b"".join(_field(11, _value(name, shape)) for name, shape in shapes.items())
    output = _field(12, _value(OUTPUT, IMAGE_SHAPE))
    parts = [*(_field(1, node) for node in nodes), _field(2, b"tiny"), *(_field(5, tensor) for tensor in tensors)]
    return b"".join(parts) + inputs + output


def _node(operator: str, *names: str) -> bytes:
    """NodeProto: of these names the last is the output."""
    inputs = b"".join(_field(1, name.encode()) for name in names[:-1])
    return inputs + _field(2, names[-1].encode()) + _field(4, operator.encode())


def _tensor(name: str, element_type: int, shape: Sequence[int], data: bytes) -> bytes:
    """TensorProto."""
    dims = b"".join(_field(1, size) for size in shape)
    return dims + _field(2, element_type) + _field(8, name.encode()) + _field(9, data)


def _value(name: str, axes: Sequence[int]) -> bytes:
    """ValueInfoProto of a float32 tensor [N, *axes]."""
    dims = _message(1, (2, b"N")) + b"".join(_message(1, (1, size)) for size in axes)
    return _field(1, name.encode()) + _message(2, (1, _field(1, FLOAT32) + _field(2, dims)))


def _message(number: int, *fields: tuple[int, bytes | int]) -> bytes:
    return _field(number, b"".join(_field(*field) for field in fields))


def _field(number: int, value: bytes | int) -> bytes:
    """One field of a protocol buffer: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return out + struct.pack("B", value)
