"""A whole bundle finished from JavaScript by docs/examples/finish.js: the pictures are those of collafuse finish.

Runs where node and the onnxruntime-node package are: ``make node`` puts it into .node, or COLLAFUSE_NODE names a
folder with node_modules in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collafuse.core import bundle as bundles
from collafuse.core import intermediate as intermediates
from edge_client import Finisher
from tests.bundles import resealed

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/finish.js"
MODULES = Path(os.environ.get("COLLAFUSE_NODE", ROOT / ".node")) / "node_modules"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (MODULES / "onnxruntime-node").is_dir(), reason="onnxruntime-node is not installed; make node installs it"
    ),
]


@pytest.fixture(scope="module")
def wholes(write_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for precision in ("fp32", "int8"):
        write_tiny(folder / f"{precision}.onnx", precision=precision, graph="whole")
    return folder


def finish_with_node(bundle, intermediate, folder):
    return subprocess.run(
        ["node", str(EXAMPLE), str(bundle), str(intermediate), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NODE_PATH": str(MODULES)},
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_javascript_makes_the_same_pictures(wholes, tiny_bundle, reduced, delivered, tmp_path, precision):
    done = finish_with_node(wholes / f"{precision}.onnx", delivered, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 33
    step = {"fp32": tiny_bundle, **reduced}[precision]
    expected = Finisher.load(step).finish(intermediates.read(delivered))
    pictures = np.stack([np.asarray(Image.open(file)) for file in sorted(tmp_path.glob("*.pgm"))])[..., None]
    # onnxruntime-node may be another version of onnxruntime: a value between two grey levels may fall on either.
    assert (pictures != expected).mean() < 1e-3 and np.abs(pictures.astype(int) - expected).max() <= 1


def test_an_unlabelled_intermediate_is_finished_without_labels(wholes, tiny_bundle, delivered, tmp_path):
    unlabelled = dataclasses.replace(intermediates.read(delivered), labels=None, label_names=())
    (tmp_path / "a.safetensors").write_bytes(intermediates.to_bytes(unlabelled))
    done = finish_with_node(wholes / "fp32.onnx", tmp_path / "a.safetensors", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    expected = Finisher.load(tiny_bundle).finish(unlabelled)
    pictures = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "out").glob("*.pgm"))])
    assert (pictures[..., None] != expected).mean() < 1e-3


def test_a_wrong_known_answer_and_a_wrong_level_are_noticed(wholes, delivered, tmp_path):
    data = (wholes / "fp32.onnx").read_bytes()
    answer = vars(bundles.read(wholes / "fp32.onnx").info.known_answer)
    wrong = resealed(data, known_answer={**answer, "values": [(v + 100) % 256 for v in answer["values"]]})
    (tmp_path / "wrong.onnx").write_bytes(wrong)
    done = finish_with_node(tmp_path / "wrong.onnx", delivered, tmp_path / "out")
    assert done.returncode == 1 and "the known answer is off by" in done.stderr
    lower = dataclasses.replace(intermediates.read(delivered), sigma=0.3)
    (tmp_path / "lower.safetensors").write_bytes(intermediates.to_bytes(lower))
    done = finish_with_node(wholes / "fp32.onnx", tmp_path / "lower.safetensors", tmp_path / "out")
    assert done.returncode == 1 and "at sigma 0.3 do not fit the bundle's [1,8,8] at sigma 1" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_example_refuses_a_bundle_of_one_step(tiny_bundle, delivered, tmp_path):
    done = finish_with_node(tiny_bundle, delivered, tmp_path / "out")
    assert done.returncode == 1 and "holds one step; export it with --graph whole" in done.stderr
