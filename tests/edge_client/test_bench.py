"""edge_client.bench: what a bundle costs, measured by running it."""

from __future__ import annotations

import json
import sys
import tempfile

import numpy as np
import pytest

from collafuse.core import bundle as bundles
from collafuse.core.errors import CollaFuseError, FileFormatError, StorageError, UsageError
from edge_client import Finisher, choice
from edge_client import bench as benches
from edge_client.bench import COLUMNS, Start, bench, measure_speed, sample
from edge_client.providers import PROVIDERS, Provider
from edge_client.tinybundle import tiny_bundle
from tests.bundles import halving_bundle, halving_info

FINISH = (sys.executable, "-m", "cli", "finish")


@pytest.fixture
def halving(tmp_path):
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return tmp_path / "halving.onnx"


@pytest.fixture
def few_starts(monkeypatch):
    monkeypatch.setattr(benches, "STARTS", 1)


def test_a_sample_fits_the_bundle_and_carries_its_labels(halving):
    one = sample(halving_info(), 4)
    assert (len(one), one.sigma, one.used_labels) == (4, 0.5, ("cat", "dog"))
    assert Finisher.load(halving).finish(one).shape == (4, 2, 2, 1)
    assert sample(bundles.read(halving).info, 1).digest == sample(halving_info(), 1).digest


def test_an_evaluation_is_a_part_of_an_image(tmp_path):
    (tmp_path / "convolution.onnx").write_bytes(tiny_bundle())
    finisher = Finisher.load(tmp_path / "convolution.onnx", threads=1, steps=4)
    speed = measure_speed(finisher, 4, repetitions=5)
    assert finisher.nfe == 4
    # Four evaluations and the sampler's arithmetic; a busy machine makes either look slow.
    assert 0 < speed.per_evaluation_ms < speed.per_image_ms


def test_everything_is_measured_in_one_go(halving, few_starts, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    result = bench(
        halving, FINISH, provider="cpu", threads=1, steps=2, batch_sizes=(1, 3), repetitions=2, say=said.append
    )
    assert (result.provider, result.threads, result.steps, result.nfe, result.sampler) == ("cpu", 1, 2, 2, "euler")
    assert (result.bundle, result.bundle_bytes, result.parameters) == ("halving.onnx", halving.stat().st_size, 4)
    assert [speed.batch_size for speed in result.speeds] == [1, 3]
    assert 0 < result.start.second_s < 60 and 0 < result.start.first_s < 60
    assert result.start.peak_memory_mb is None or 20 < result.start.peak_memory_mb < 200
    assert {"cpu", "features", "onnxruntime", "python"} <= set(result.machine)
    assert said
    kept = [path.relative_to(tmp_path / "cache") for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all("provider" not in str(path) for path in kept)  # what was measured is not taken for a verdict


@pytest.mark.parametrize("provider", ["same", "auto"])
def test_starts_that_build_an_engine_are_announced(halving, tmp_path, monkeypatch, provider):
    """With an empty cache each first start builds one, which takes minutes; ``auto`` does, whatever it chooses then."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = []

    def measured(*_):
        said.append("measured")
        return Start(1.0, 1.0, None)

    monkeypatch.setattr(benches, "measure_start", measured)
    monkeypatch.setattr(choice, "choose", lambda *_: "cpu")
    for builds, version in ((False, "101300"), (True, ""), (True, "101300")):
        monkeypatch.setattr(benches.machine, "tensorrt_version", lambda version=version: version)
        monkeypatch.setitem(PROVIDERS, "same", Provider("same", "CPUExecutionProvider", "", builds_engines=builds))
        bench(halving, FINISH, provider=provider, repetitions=1, say=said.append)
    before = [said[i - 1] for i, one in enumerate(said) if one == "measured"]
    assert [("engine" in one, "minutes" in one) for one in before] == [(False, False), (False, False), (True, True)]


def test_the_command_prints_a_row_below_its_head_or_json(halving, few_starts, monkeypatch, capsys):
    from cli.app import main

    for more in ([], ["--json"]):
        words = ["bench", str(halving), "--provider", "cpu", "--repetitions", "1", *more]
        monkeypatch.setattr(sys, "argv", ["collafuse", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        out = capsys.readouterr().out
        if more:
            assert json.loads(out)["speeds"][0]["batch_size"] == 16
        else:
            head, rule, row = out.splitlines()
            assert len(COLUMNS) == head.count("|") - 1 == rule.count("|") - 1 == row.count("|") - 1
            assert "halving.onnx, fp32, 0.0 MB" in row


@pytest.mark.parametrize("change", [{"batch_sizes": (0,)}, {"batch_sizes": (5000,)}, {"repetitions": 0}])
def test_impossible_sizes_are_refused(halving, change):
    with pytest.raises(UsageError, match="expected sizes from 1 to 4096"):
        bench(halving, FINISH, provider="cpu", **change)


def test_a_bundle_that_is_none_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(FileFormatError, match="expected a client bundle"):
        bench(tmp_path / "gone.onnx", FINISH, provider="cpu")


def test_a_process_that_fails_says_so_with_its_code(halving):
    command = (sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(9)")
    with pytest.raises(CollaFuseError, match="in a fresh process failed: no room") as caught:
        benches.measure_start(command, (), sample(halving_info(), 1))
    assert caught.value.exit_code == 9


def test_a_machine_without_room_for_a_small_file_says_so(halving, monkeypatch):
    def full(*arguments, **options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(StorageError, match="which measuring a start needs; set TMPDIR"):
        benches.measure_start(FINISH, (), sample(halving_info(), 1))


def test_medians_and_not_the_first_run(halving, monkeypatch):
    """The first run warms caches up, so it counts in no median."""
    ticks = iter([0, 100, 100, 101, 101, 103, 103, 104, *np.arange(200, 300)])
    monkeypatch.setattr(benches.time, "perf_counter", lambda: next(ticks))
    assert measure_speed(Finisher.load(halving), 1, repetitions=3).per_image_ms == 1000.0
