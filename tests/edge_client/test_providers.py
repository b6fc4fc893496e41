"""edge_client.providers, placement and session: a provider really runs the bundle, or the command fails."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from collafuse.core import bundle as bundles
from collafuse.core.errors import FileFormatError, RuntimeMissingError, UsageError
from edge_client import Finisher, caches, placement, session
from edge_client.bench import bench, sample
from edge_client.denoiser import OnnxDenoiser
from edge_client.providers import (
    PROVIDERS,
    Provider,
    ProviderError,
    Setting,
    candidates,
    default_batch_size,
    most_at_once,
    named,
)
from edge_client.session import open_session
from edge_client.tinybundle import tiny_bundle
from tests.bundles import halving_bundle, halving_info, resealed

CPU, CUDA, TENSORRT = (PROVIDERS[name].runtime_name for name in ("cpu", "cuda", "tensorrt"))
SAME = Provider("same", CPU, "nothing to do")
"""The CPU under another name, so that whatever must prove itself can do so here."""


@pytest.fixture
def halving(tmp_path) -> Path:
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return tmp_path / "halving.onnx"


# --- the table ----------------------------------------------------------------------------------------------


def test_names_are_ours_or_onnxruntimes():
    assert named("cuda") is named("CUDAExecutionProvider") is PROVIDERS["cuda"]
    assert named("QNNExecutionProvider").options(Setting(halving_info(), 1, None)) == {}
    for name in ("abacus", "", "../ExecutionProvider"):
        with pytest.raises(UsageError, match="is not known; use auto, cpu, cuda"):
            named(name)


def test_every_provider_has_options_that_onnxruntime_can_take():
    for name, provider in PROVIDERS.items():
        options = provider.options(Setting(halving_info(), 3, Path("cache")))
        assert (name, all(type(part) is str for pair in options.items() for part in pair)) == (name, True)


def test_candidates_are_ours_alone():
    """The Azure provider sits in the ordinary package and would call a cloud."""
    assert candidates([TENSORRT, "AzureExecutionProvider", CPU]) == ["cpu", "tensorrt"]


def test_threads_go_to_providers_that_bring_their_own():
    setting = Setting(halving_info(), 3, None)
    assert PROVIDERS["xnnpack"].options(setting)["intra_op_num_threads"] == "3"
    assert PROVIDERS["openvino"].options(setting)["num_of_threads"] == "3"


def test_an_engine_is_built_for_every_batch_and_kept(tmp_path):
    """All three inputs need a range, and a known answer has at most 16 levels."""
    options = PROVIDERS["tensorrt"].options(Setting(halving_info(), 1, tmp_path))
    assert options["trt_profile_min_shapes"] == "x:1x1x2x2,sigma:1,labels:1x3"
    assert options["trt_profile_max_shapes"] == "x:64x1x2x2,sigma:64,labels:64x3"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    # In Python onnxruntime takes nothing else for its switches: at "1" it ends with an exception.
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert not [o for o in PROVIDERS["tensorrt"].options(Setting(halving_info(), 1, None)) if "cache" in o]


@pytest.mark.parametrize(
    ("provider", "side", "expected"), [("cpu", 8, 16), ("cpu", 16, 4), ("cpu", 32, 1), ("cpu", 64, 1), ("cuda", 64, 16)]
)
def test_a_cpu_takes_few_images_at_once(provider, side, expected):
    assert default_batch_size(provider, (3, side, side)) == expected


def test_a_job_takes_no_more_images_at_once_than_its_provider(halving, monkeypatch):
    """A TensorRT engine fails beyond the batches that it was built for."""
    monkeypatch.setitem(PROVIDERS, "same", replace(SAME, largest_batch=2))
    finisher, sizes = Finisher.load(halving, provider="same"), []
    call = OnnxDenoiser.__call__
    monkeypatch.setattr(OnnxDenoiser, "__call__", lambda self, x, *more: sizes.append(len(x)) or call(self, x, *more))
    batch = sample(finisher.bundle.info, 5)
    assert len(finisher.finish(batch, batch_size=4)) == 5
    assert max(sizes) == 2 and finisher.check(batch, 1) == 1
    with pytest.raises(UsageError, match="batch size 3: same takes at most 2 images at once; measure with fewer"):
        bench(halving, (), provider="same", batch_sizes=(2, 3))


def test_the_largest_batch_of_an_engine_is_what_it_was_built_for():
    assert most_at_once("tensorrt", 100) == most_at_once(TENSORRT, 64) == 64 and most_at_once("cpu", 100) == 100


# --- where operators ran ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placed", "reason"),
    [
        ({("A", "Conv"): 9, (CPU, "Shape"): 5}, None),
        ({("A", "A_subgraph_1"): 1}, None),
        ({("A", "Mul"): 1}, None),
        ({}, "says nothing of where it ran; is there room in TMPDIR"),  # as on a full disk
        ({(CPU, "Conv"): 9}, "ran no operator"),
        ({("A", "Conv"): 9, (CPU, "FusedConv"): 2}, f"of the bundle's convolutions, 2 ran on {CPU}"),
        ({("A", "Conv"): 9, ("B", "QLinearConv"): 1}, "1 ran on B"),
    ],
)
def test_a_provider_runs_a_bundle_when_it_runs_its_convolutions(placed, reason):
    found = placement.shortfall(Counter(placed), "A")
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[" * 5000, '[{"cat": "Node", "args": 1}]', '[{"cat": "Node"}]', "\xff"]
)
def test_a_profile_that_says_nothing_places_nothing(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    assert placement.read_profile(tmp_path / "p.json") == Counter()
    assert placement.read_profile(tmp_path / "gone.json") == Counter()


def test_what_native_code_says_is_kept_and_stderr_restored(capfd):
    with placement.Complaints() as complaints:
        os.write(2, b"[E:onnxruntime] Failed to load library a.so with error: libb.so: no such file\x1b[m\n")
    os.write(2, b"after")
    assert complaints.reason() == "libb.so: no such file"
    assert capfd.readouterr().err == "after"


# --- opening ------------------------------------------------------------------------------------------------


def test_a_provider_that_was_not_built_in_is_refused(halving):
    with pytest.raises(RuntimeMissingError) as caught:
        Finisher.load(halving, provider="xnnpack")
    for part in ("xnnpack", "built without it", onnxruntime.__version__, CPU, "--use_xnnpack", "--provider cpu"):
        assert part in str(caught.value)


def test_a_provider_that_is_there_in_name_only_is_refused(halving, monkeypatch):
    """onnxruntime itself goes on with the CPU, as it does where the libraries of CUDA are missing."""
    offered = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, *offered])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ProviderError, match="cuda does not run here: onnxruntime ran no operator"):
            open_session(bundles.read(halving), "cuda")


@pytest.fixture
def same(monkeypatch):
    monkeypatch.setitem(PROVIDERS, "same", SAME)
    return "same"


@pytest.fixture
def convolution(tmp_path) -> Path:
    """The path of a bundle with a convolution in it."""
    (tmp_path / "convolution.onnx").write_bytes(tiny_bundle())
    return tmp_path / "convolution.onnx"


def test_a_provider_that_proves_itself_is_used_and_said(same, convolution, capfd):
    said = []
    finisher = Finisher.load(convolution, provider=same, say=said.append)
    batch = sample(finisher.bundle.info, 3)
    assert finisher.provider == "same"
    assert (finisher.finish(batch) == Finisher.load(convolution).finish(batch)).all()
    (line,) = said
    there, of, total = line.split()[2:5]
    assert line.startswith("same runs ") and of == "of" and there == total != "0"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("1", "1")])
def test_tensorrt_computes_in_float32_unless_the_user_says_otherwise(same, halving, monkeypatch, before, after):
    """10 bits of mantissa, which it takes by default, would be off by more than a known answer allows."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "unset")  # so that it is as before when the test ends
    if before is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    else:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", before)
    monkeypatch.setitem(PROVIDERS, "same", Provider("same", CPU, "", environment=PROVIDERS["tensorrt"].environment))
    open_session(bundles.read(halving), same)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == after


def test_the_proof_leaves_nothing_behind(same, halving, tmp_path, monkeypatch):
    """It is a file, which onnxruntime writes where the process runs unless told otherwise."""
    for place in ("here", "temporary"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    open_session(bundles.read(halving), same)
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()]


def test_a_provider_that_computes_something_else_is_refused(same, halving):
    """As hardware of low precision does."""
    answer = halving_info().known_answer
    values = {"sigmas": answer.sigmas, "tolerance": answer.tolerance, "values": [v + 0.1 for v in answer.values]}
    halving.write_bytes(resealed(halving.read_bytes(), known_answer=values))
    with pytest.raises(ProviderError, match=r"its known answer is off by 0\.1, allowed is 0\.001"):
        open_session(bundles.read(halving), same)


def test_a_graph_that_a_provider_refuses_is_the_providers_failure(same, halving):
    def change(model):
        model.graph.node[0].input[1] = "nowhere"

    halving.write_bytes(halving_bundle(change))
    with pytest.raises(ProviderError, match="same does not run here: .*nowhere") as caught:
        open_session(bundles.read(halving), same)
    # A bundle that ran on the CPU is not to be exported again because a provider fails.
    assert "export" not in str(caught.value) and ".." not in str(caught.value)


def test_an_engine_is_announced_where_it_will_be_built(same, halving, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PROVIDERS, "same", Provider("same", CPU, "", builds_engines=True))
    monkeypatch.setattr(session.machine, "tensorrt_version", lambda: "101300")
    said = []
    open_session(bundles.read(halving), same, say=said.append)
    (folder,) = (tmp_path / "cache/collafuse/engines").iterdir()
    assert "this takes minutes" in said[0] and str(folder) in said[0]
    (folder / "one.engine").write_bytes(b"")
    open_session(bundles.read(halving), same, say=said.append)
    assert said[2] == f"Loading the TensorRT engine in {folder}."
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    open_session(bundles.read(halving), same, say=said.append)
    assert "each time" in said[4]


@pytest.fixture
def engines(same, monkeypatch, tmp_path) -> Path:
    """The folder of what the provider "same" compiles, which holds an engine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PROVIDERS, "same", Provider("same", CPU, "", builds_engines=True))
    folder = caches.engine_folder("same", bundles.from_bytes(halving_bundle(), "halving").digest)
    for name in ("one.engine", "one.profile", "one.timing"):
        (folder / name).write_bytes(b"half of")
    return folder


SAYS = "[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP "


@pytest.mark.parametrize("what", ["could not deserialize engine from cache: ", "could not create timing cache: "])
def test_an_engine_that_a_power_cut_damaged_is_built_again(engines, halving, monkeypatch, what):
    """onnxruntime writes it in place, and refuses what is left of it at every start."""
    load = session._load

    def refusing(*arguments):
        if any(engines.iterdir()):
            raise FileFormatError("it cannot be loaded; export it again.") from RuntimeError(f"{SAYS}{what}{engines}/x")
        return load(*arguments)

    monkeypatch.setattr(session, "_load", refusing)
    said = []
    assert open_session(bundles.read(halving), "same", say=said.append).provider == "same"
    assert any(str(engines) in line and "cannot be read and is removed" in line for line in said)
    assert list(engines.iterdir()) == []


def test_an_engine_that_fails_otherwise_is_kept(engines, halving, monkeypatch):
    """Where memory runs out, say, building it again takes minutes and helps nothing."""

    def refusing(*_):
        raise FileFormatError("it cannot be loaded; export it again.") from RuntimeError(f"{SAYS}: out of memory")

    monkeypatch.setattr(session, "_load", refusing)
    with pytest.raises(ProviderError, match="out of memory"):
        open_session(bundles.read(halving), "same")
    assert len(list(engines.iterdir())) == 3


@pytest.mark.skipif(
    PROVIDERS["openvino"].runtime_name not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime-openvino in the place of onnxruntime",
)
def test_openvino_finishes_alike(convolution):
    finisher = Finisher.load(convolution)
    batch = sample(finisher.bundle.info, 5)
    here, there = finisher.finish(batch), Finisher.load(convolution, provider="openvino").finish(batch)
    assert abs(there.astype(int) - here.astype(int)).max() <= 1


def test_the_command_fails_where_the_provider_does(halving, tmp_path, monkeypatch, capsys):
    from cli.app import main

    words = ("finish", str(halving), "x", "-o", str(tmp_path / "o"), "--provider", "cuda")
    monkeypatch.setattr(sys, "argv", ["collafuse", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 11 and "provider cuda does not run here" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
