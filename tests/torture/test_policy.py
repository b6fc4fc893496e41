"""What a model file can do to whoever loads it: refused before onnxruntime is there, with any onnxruntime.

The files are laid out for real, beside what they would read, so that what onnxruntime makes of them shows, too.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import SHAPE, halving_bundle, tensor_input
from tests.torture.runtimes import each_runtime, run_in, version_in

SECRET = np.full(SHAPE, 0.5, dtype=np.float32).tobytes()
ENDLESS = (1 << 62) + 1

Change = Callable[[onnx.ModelProto], None]


def external(location: str) -> onnx.TensorProto:
    made = TensorProto(name="half", data_type=TensorProto.FLOAT, dims=SHAPE, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(SECRET)))):
        made.external_data.add(key=key, value=value)
    return made


def weights_at(location: str) -> Change:
    return lambda model: model.graph.initializer[0].CopyFrom(external(location))


def constant_at(location: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[:]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["half"], value=external(location)))

    return change


def sparse_at(location: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[:]
        values = external(location)
        values.dims[:] = [4]
        indices = numpy_helper.from_array(np.arange(4, dtype=np.int64))
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1, 2, 2]))

    return change


def body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    scalar = lambda name, kind: helper.make_tensor_value_info(name, kind, [])  # noqa: E731
    return helper.make_graph(
        list(nodes),
        "body",
        [scalar("i", TensorProto.INT64), scalar("go", TensorProto.BOOL), tensor_input("carried", *SHAPE)],
        [scalar("go_on", TensorProto.BOOL), tensor_input("carried_on", *SHAPE)],
    )


def endless_loop(model: onnx.ModelProto) -> None:
    inside = body(
        helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["carried"], ["carried_on"])
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(ENDLESS), "trips"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
    model.graph.node[0].input[0] = "looped"
    model.graph.node.insert(0, helper.make_node("Loop", ["trips", "go", "x"], ["looped"], body=inside))


def branch(model: onnx.ModelProto) -> None:
    arm = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "arm", [], [tensor_input("y", *SHAPE)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
    model.graph.node[0].input[0] = "chosen"
    model.graph.node.insert(0, helper.make_node("If", ["go"], ["chosen"], then_branch=arm, else_branch=arm))


def giant_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="much", data_type=1, dims=[1 << 40], raw_data=bytes(16)))


def custom_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].input[0] = "gelu"
    model.graph.node.insert(0, helper.make_node("Gelu", ["x"], ["gelu"], domain="com.microsoft"))


def function(model: onnx.ModelProto) -> None:
    inside = [helper.make_node("Identity", ["a"], ["b"])]
    model.opset_import.append(helper.make_opsetid("ours", 1))
    model.functions.append(helper.make_function("ours", "Copy", ["a"], ["b"], inside, [helper.make_opsetid("", 18)]))
    model.graph.node[0].input[0] = "copied"
    model.graph.node.insert(0, helper.make_node("Copy", ["x"], ["copied"], domain="ours"))


def one_input_more(model: onnx.ModelProto) -> None:
    model.graph.input.append(tensor_input("path", 1))


def texts(model: onnx.ModelProto) -> None:
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("sigma", TensorProto.STRING, ["N"]))


POLICY: dict[str, Change] = {
    "external data: a file above": weights_at("../secret.bin"),
    "external data: an absolute path": weights_at("{secret}"),
    "external data: a symbolic link": weights_at("link.bin"),
    "external data: a linked folder": weights_at("folder/secret.bin"),
    "external data: a hard link": weights_at("hard.bin"),
    "external data: a sparse weight": sparse_at("../secret.bin"),
    "external data: a constant": constant_at("../secret.bin"),
    "an endless loop": endless_loop,
    "a branch": branch,
    "a giant constant": giant_constant,
    "a custom domain": custom_domain,
    "a function": function,
    "one input more": one_input_more,
    "an input of texts": texts,
}

REFUSE_EACH = """
import json, sys
from pathlib import Path
from collafuse.core import bundle
from collafuse.core.errors import FileFormatError

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    try:
        bundle.read(path)
        print(json.dumps("read"))
    except FileFormatError as error:
        print(json.dumps(str(error)))
assert "onnxruntime" not in sys.modules
"""

BY_ITSELF = """
import sys
import numpy as np, onnxruntime

onnxruntime.set_default_logger_severity(4)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
fed = {i.name: np.ones([1, *[a for a in i.shape[1:]]], np.float32) for i in session.get_inputs() if "float" in i.type}
session.run(None, fed)
"""


@pytest.fixture
def laid_out(tmp_path) -> Path:
    """A folder of bundles, one per rule, beside what they reach for."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(SECRET)
    (folder / "link.bin").symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    os.link(secret, folder / "hard.bin")
    for index, (name, change) in enumerate(POLICY.items()):
        data = halving_bundle(lambda m, c=change: (c(m), _settle(m, secret)))
        (folder / f"{index:02d} {name.replace(':', '')}.onnx").write_bytes(data)
    return folder


def _settle(model: onnx.ModelProto, secret: Path) -> None:
    """Put the secret's absolute path where one is wanted."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace("{secret}", str(secret))


@each_runtime
def test_the_policy_set_is_refused_before_onnxruntime_is_there(laid_out, python, figure):
    done = run_in(python, REFUSE_EACH, laid_out, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(POLICY) and all(str(laid_out) in sentence for sentence in said), said
    figure(f"policy set: {len(said)}/{len(POLICY)} refused without onnxruntime {version_in(python)}")


@pytest.mark.torture
@each_runtime
def test_what_onnxruntime_makes_of_them_by_itself(laid_out, python, figure):
    """Not ours to mend; it says what the policy is for. Whatever it does, it does in a process of its own."""
    taken = []
    for path in sorted(laid_out.glob("*.onnx")):
        try:
            done = run_in(python, BY_ITSELF, path, timeout=10)
            outcome = "" if done.returncode > 0 else "runs" if done.returncode == 0 else "ends the process"
        except subprocess.TimeoutExpired:
            outcome = "never returns"
        if outcome:
            taken.append(f"{path.stem[3:]} ({outcome})")
    figure(f"onnxruntime {version_in(python)} by itself: {', '.join(taken) or 'refuses all'}")
