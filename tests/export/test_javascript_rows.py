"""docs/examples/finish.js hands a graph the very conditions that a device in Python does, text among them.

A stand-in for onnxruntime-node writes down what it is given, so that node alone is enough.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from collafuse.core import intermediate as intermediates
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.core.intermediate import Intermediate
from collafuse.core.knownanswer import known_answer_input
from collafuse.core.pairing import conditions_for
from collafuse.core.texts import EncodedText

EXAMPLE = Path(__file__).parents[2] / "docs/examples/finish.js"
TEXT = TextSpace("t5-4-00", 4)
STAND_IN = """
const fs = require('node:fs');
let calls = 0;
async function run({ x, labels }) {
  fs.writeFileSync(`rows${calls++}.json`, JSON.stringify([labels.dims, Array.from(labels.data)]));
  return { pixels: { data: new Uint8Array(x.data.length) } };
}
class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
module.exports = { env: { versions: {} }, Tensor, InferenceSession: { create: async () => ({ run }) } };
"""

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def finish(
    folder: Path, space: ConditionSpace, one: Intermediate, blank_trained: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the example on a bundle of this space whose graph answers black."""
    package = folder / "node_modules" / "onnxruntime-node"
    package.mkdir(parents=True)
    (package / "index.js").write_text(STAND_IN)
    text = {} if space.text is None else {"text_encoder": space.text.encoder, "text_width": space.text.width}
    answer = {"sigmas": [0.5] * 4, "values": [0.0] * 4, "tolerance": 1.0}
    names, shape = list(space.label_names), list(one.image_shape)
    about = {"graph": "whole", "image_shape": shape, "sigma_max": 0.5, "label_names": names}
    about["blank_trained"] = blank_trained
    model = onnx.ModelProto()
    helper.set_model_props(model, {"collafuse": json.dumps(about | {"known_answer": answer} | text)})
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    (folder / "a.safetensors").write_bytes(intermediates.to_bytes(one))
    return subprocess.run(
        ["node", str(EXAMPLE), "a.onnx", "a.safetensors", "out"],
        cwd=folder,
        env={**os.environ, "NODE_PATH": str(folder / "node_modules")},
        capture_output=True,
        text=True,
        check=False,
    )


def intermediate(labels: bool | str, text: TextSpace | None) -> Intermediate:
    """Four images labelled y x y x, or not, or with all labels absent; with four texts, one empty, or without."""
    rows = np.array([[1, -1, 1, -1], [2, 0, 0, 0], [0, 0, 0, 0], [1.5, 0.3, -1.25, 0.2]], dtype=np.float16)
    rows[3] /= np.sqrt(np.square(rows[3].astype(np.float64)).mean())
    return Intermediate(
        x=np.ones((4, 1, 2, 2), dtype=np.float32),
        sigma=0.5,
        labels=np.eye(2, dtype=np.uint8)[[0, 1, 0, 1]] * (labels != "absent") if labels else None,
        label_names=("y", "x") if labels else (),
        server_model="m",
        sampler="euler",
        nfe=1,
        guidance=1.0,
        text=None if text is None else EncodedText(text, rows),
    )


@pytest.mark.parametrize(
    ("names", "labels", "takes", "text"),
    [(("x", "y"), True, TEXT, TEXT), (("x", "y"), False, TEXT, TEXT), ((), False, TEXT, TEXT),
     (("x", "y"), True, TEXT, None), (("x", "y"), False, TEXT, None), (("x", "y"), True, None, None),
     ((), "absent", None, None), ((), "absent", TEXT, None), ((), "absent", TEXT, TEXT)],
)  # fmt: skip
def test_the_rows_are_those_of_python(tmp_path, names, labels, takes, text):
    space, one = ConditionSpace(names, takes), intermediate(labels, text)
    done = finish(tmp_path, space, one)
    assert done.returncode == 0, done.stderr
    for call, expected in enumerate((known_answer_input((1, 2, 2), space, (0.5,) * 4)[2], conditions_for(one, space))):
        shape, values = json.loads((tmp_path / f"rows{call}.json").read_text())
        assert shape == list(expected.shape)
        assert np.abs(np.reshape(values, shape) - expected).max() < 1e-6


@pytest.mark.parametrize("takes", [TextSpace("t5-4-11", 4), None])
def test_text_of_another_encoder_is_refused(tmp_path, takes):
    done = finish(tmp_path, ConditionSpace(("x", "y"), takes), intermediate(True, TEXT))
    assert done.returncode == 1 and "text of t5-4-00 does not fit the bundle's" in done.stderr


@pytest.mark.parametrize(
    ("names", "takes", "labels", "text", "lacking"),
    [(("x", "y"), None, False, None, "labels"), (("x", "y"), TEXT, False, None, "labels and no text"),
     (("x", "y"), TEXT, True, None, "text"), (("x", "y"), TEXT, False, TEXT, "labels"),
     ((), TEXT, "absent", None, "text"), ((), TEXT, False, TEXT, None),
     (("x", "y"), None, True, None, None), (("x", "y"), TEXT, "absent", TEXT, None)],
)  # fmt: skip
def test_images_that_lack_what_the_client_was_never_trained_without_are_refused(
    tmp_path, names, takes, labels, text, lacking
):
    done = finish(tmp_path, ConditionSpace(names, takes), intermediate(labels, text), blank_trained=False)
    assert (done.returncode == 0) is (lacking is None) is (tmp_path / "out").exists()
    assert lacking is None or f"the images carry no {lacking}, and the client" in done.stderr


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_that_no_pgm_or_ppm_file_holds_are_refused(tmp_path, channels):
    four = dataclasses.replace(intermediate(False, None), x=np.ones((4, channels, 2, 2), dtype=np.float32))
    done = finish(tmp_path, ConditionSpace(()), four)
    assert done.returncode == 1 and f"images with {channels} channels" in done.stderr
    assert not (tmp_path / "out").exists()
