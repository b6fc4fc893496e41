"""edge_client.proof: a bundle is loaded in a process of its own first, once."""

from __future__ import annotations

import dataclasses
import resource
import sys

import numpy as np
import pytest
from onnx import helper, numpy_helper

from collafuse.core.errors import FileFormatError
from edge_client import Finisher, child, proof
from tests.bundles import halving_bundle


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def halving(tmp_path):
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return tmp_path / "halving.onnx"


def programs(monkeypatch, code: str) -> None:
    """What a child runs from now on."""
    monkeypatch.setattr(child, "PROGRAM", code.replace("{", "{{").replace("}", "}}"))


def test_a_verdict_of_another_machine_is_none(halving, monkeypatch):
    """A home folder may lie on a network or be copied with a memory card; other chips have other kernels."""
    Finisher.load(halving)
    programs(monkeypatch, "raise SystemExit(7)")
    monkeypatch.setattr(proof.machine, "identity", lambda: "another")
    with pytest.raises(FileFormatError, match="exit code 7"):
        Finisher.load(halving)


def test_a_bundle_is_tried_once_for_this_onnxruntime(halving, monkeypatch):
    Finisher.load(halving)
    programs(monkeypatch, "raise SystemExit(7)")
    Finisher.load(halving)
    monkeypatch.setattr(proof.onnxruntime, "__version__", "0.0")
    with pytest.raises(FileFormatError, match="onnxruntime 0.0 was given the bundle .*failed with exit code 7"):
        Finisher.load(halving)


def test_a_verdict_that_cannot_be_kept_is_given_all_the_same_and_that_is_said(halving, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    said: list[str] = []
    Finisher.load(halving, say=said.append)
    assert len(said) == 1 and "each start tries the bundle first" in said[0]


def test_another_bundle_is_tried_anew(halving, monkeypatch):
    Finisher.load(halving)
    programs(monkeypatch, "raise SystemExit(7)")
    halving.write_bytes(halving_bundle(lambda model: setattr(model, "producer_name", "another")))
    with pytest.raises(FileFormatError, match="exit code 7"):
        Finisher.load(halving)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os; os.abort()", r"it crashed \(SIGABRT\); it is not loaded"),
        ("import os; os.kill(os.getpid(), 24)", r"it used up its processor time \(SIGXCPU\); it is not loaded"),
        ("import time; time.sleep(60)", "it did not finish within 1 s"),
        ("print('no answer')", "it failed with exit code 0"),
    ],
)
def test_what_breaks_a_process_breaks_that_one_alone_and_is_tried_again(halving, monkeypatch, code, what):
    with monkeypatch.context() as patch:
        programs(patch, code)
        patch.setattr(proof, "SECONDS", 1.0)
        with pytest.raises(FileFormatError, match=what):
            Finisher.load(halving)
    Finisher.load(halving)


def test_a_machine_that_starts_no_process_says_so(halving, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileFormatError, match="it could not be started"):
        Finisher.load(halving)


def giant(model) -> None:
    """As many numbers as two to the power of 33, of which one is used."""
    for name, value in (("from", 0), ("to", 1 << 33), ("by", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    made = [
        helper.make_node("Range", ["from", "to", "by"], ["many"]),
        helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["most_float"], to=1),
        helper.make_node("Mul", ["x", "most_float"], ["x_most"]),
    ]
    for node in reversed(made):
        model.graph.node.insert(0, node)
    model.graph.node[-1].input[0] = "x_most"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux counts it")
def test_what_a_process_holds_before_it_loads_is_not_the_bundles(halving, monkeypatch):
    """Loading NumPy maps 41 MB for each core beyond the first, for matrix products: 2.6 GB on 64 cores."""
    mapped = f"import mmap; held = mmap.mmap(-1, {3 << 30}, flags=mmap.MAP_PRIVATE)"
    monkeypatch.setattr(child, "PROGRAM", f"{mapped}; {child.PROGRAM}")
    Finisher.load(halving)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux counts it")
def test_a_graph_that_asks_for_all_memory_gets_no_more_than_its_limit(halving):
    halving.write_bytes(halving_bundle(giant))
    with pytest.raises(FileFormatError, match="onnxruntime .*(alloc|memory)"):
        Finisher.load(halving)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20  # KiB


def test_the_limit_leaves_room_for_a_large_bundle_and_large_images():
    from collafuse.core import bundle as bundles

    small = bundles.from_bytes(halving_bundle(), "a.onnx")
    limit = proof.memory_limit(small)
    assert 1 << 30 <= limit < 1.1 * (1 << 30)
    large = bundles.Bundle(bytes(1 << 20), small.info, small.summary, small.digest)
    assert proof.memory_limit(large) - limit >= 3 << 20


def sized(side: int, parameters: int):
    """A bundle for images of so many pixels a side, of a network with so many weights."""
    from collafuse.core import bundle as bundles

    small = bundles.from_bytes(halving_bundle(), "a.onnx")
    info = dataclasses.replace(small.info, image_shape=(3, side, side))
    summary = dataclasses.replace(small.summary, num_parameters=parameters)
    return dataclasses.replace(small, info=info, summary=summary)


def test_the_time_grows_with_the_network_and_its_images_up_to_an_hour():
    """A client of 3.6 million weights took 1.3 s of processor time for one image of 256x256, on a fast machine."""
    assert proof.seconds_more(sized(32, 1_000_000)) < 2
    assert proof.seconds_more(sized(256, 3_597_459)) > 100 * 1.3
    assert proof.seconds_more(sized(512, 3_597_459)) == pytest.approx(4 * proof.seconds_more(sized(256, 3_597_459)))
    assert proof.seconds_more(sized(1024, 100_000_000)) == proof.MOST_SECONDS_MORE == 3600


def test_both_limits_on_time_leave_it(monkeypatch):
    large, given, limits = sized(256, 3_597_459), [], {}
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update({kind: pair[0]}))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(proof, "run_child", lambda *given_: given.extend(given_) or {"refused": ""})
    proof._limit(large)
    proof.require(large)
    more = proof.seconds_more(large)
    assert limits[resource.RLIMIT_CPU] == pytest.approx(proof.PROCESSOR_SECONDS + more, abs=1)
    assert given[2] == proof.SECONDS + more
