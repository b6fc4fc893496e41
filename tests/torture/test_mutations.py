"""Bundles and intermediates that were changed by someone who knows their structure, and sealed again."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from collafuse.core import intermediate
from collafuse.core.errors import CollaFuseError
from edge_client import Finisher
from tests.mutations import mutated_bundles, mutated_tensor_files
from tests.torture.amounts import amount
from tests.torture.runtimes import each_runtime, run_in, version_in

LOAD_EACH = """
import json, sys, time
from pathlib import Path
from collafuse.core import bundle
from collafuse.core.errors import FileFormatError
from edge_client import Finisher, machine

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    started, by = time.monotonic(), "checks"
    try:
        bundle.read(path)
        by = "first load"
        Finisher.load(path, threads=1)
        by = None
    except FileFormatError as error:
        assert "\\n" not in str(error) and str(error).endswith("."), error
    print(json.dumps({"refused": by, "seconds": time.monotonic() - started}), flush=True)
print(json.dumps({"peak": machine.peak_memory_mb()}))
"""


@each_runtime
@amount(12, 1000)
def test_a_mutated_bundle_is_refused_or_gives_its_known_answer_and_breaks_nothing(
    tiny_bundle, tmp_path, python, amount, figure
):
    for index, (_, data) in enumerate(mutated_bundles(tiny_bundle.read_bytes(), amount)):
        (tmp_path / f"{index:04d}.onnx").write_bytes(data)
    done = run_in(python, LOAD_EACH, tmp_path, timeout=30 + 20 * amount)
    assert done.returncode == 0, done.stderr
    *outcomes, last = map(json.loads, done.stdout.splitlines())
    assert len(outcomes) == amount
    refused = Counter(one["refused"] for one in outcomes)
    slowest = max(one["seconds"] for one in outcomes)
    assert refused["checks"] and refused["first load"]
    assert last["peak"] < 512
    figure(
        f"{amount} mutated bundles, onnxruntime {version_in(python)}: {refused['checks']} refused by the checks, "
        f"{refused['first load']} by the first load, {refused[None]} gave their known answer; slowest {slowest:.1f} s, "
        f"the loading process held {last['peak']:.0f} MB at most"
    )


@pytest.fixture(scope="module")
def finisher(tiny_bundle) -> Finisher:
    return Finisher.load(tiny_bundle, threads=1)


@amount(60, 1000)
def test_a_mutated_intermediate_is_refused_or_finished_as_it_says(
    finisher, tiny_intermediate, tmp_path, amount, figure
):
    path, finished = tmp_path / "a.safetensors", 0
    for data in mutated_tensor_files(intermediate.to_bytes(tiny_intermediate), amount):
        path.write_bytes(data)
        try:
            images = finisher.finish(intermediate.read(path))
        except CollaFuseError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
            continue
        finished += 1
        with intermediate.IntermediateFile(path) as file:
            assert images.shape == (len(file), 8, 8, 1) and images.dtype == np.uint8
    assert 0 < finished < amount
    figure(f"{amount} mutated intermediates: {amount - finished} refused, {finished} finished; nothing else happened")
