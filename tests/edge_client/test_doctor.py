"""edge_client.doctor and tinybundle: what works on a machine is found out by doing it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from collafuse.core import bundle as bundles
from collafuse.core.errors import MismatchError, StorageError
from edge_client import caches, child, doctor, machine, proof, trial
from edge_client.child import run_child
from edge_client.denoiser import known_answer_error
from edge_client.doctor import OK, PROBLEM, WARNING, Check, examine, exit_code, installed_runtimes
from edge_client.session import open_session
from edge_client.tinybundle import tiny_bundle
from edge_client.trial import Trial
from tests.bundles import halving_bundle, halving_info, halving_model, resealed, sealed, tensor_input

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def named(checks, name: str) -> Check:
    return next(check for check in checks if check.name == name)


# --- the tiny bundle ----------------------------------------------------------------------------------------


def test_the_tiny_bundle_is_an_honest_one():
    data = tiny_bundle()
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    bundle = bundles.from_bytes(data, "tiny")
    assert bundle.summary.operators == {"Conv", "Reshape", "Add", "Sub", "Tanh"}
    assert known_answer_error(open_session(bundle), bundle) < 1e-6
    assert tiny_bundle() == data


def test_the_tiny_bundle_uses_all_its_inputs():
    """TensorRT is told a range for each; where a kept engine has fewer inputs, onnxruntime builds it at each start."""
    nodes = onnx.load_model_from_string(tiny_bundle()).graph.node
    assert {name for node in nodes for name in node.input} >= set(bundles.INPUTS)


# --- a machine that works -----------------------------------------------------------------------------------


def test_this_machine_works():
    checks = list(examine())
    assert exit_code(checks) == 0
    for name in ("python", "numpy", "onnxruntime", "processor", "threads", "disk here", "clock", "onnxruntime runs"):
        assert named(checks, name).status == OK, name
    assert named(checks, "provider cpu").found == "runs a small graph and gives its known answer"
    assert all(check.fix for check in checks if check.status != OK)


def test_a_bundle_is_checked_and_timed(tmp_path):
    (tmp_path / "a.onnx").write_bytes(halving_bundle())
    checks = list(examine(tmp_path / "a.onnx"))
    assert named(checks, "bundle").found == "a.onnx: 1x2x2, fp32, 3 steps of euler"
    assert "known answer met" in named(checks, "bundle on cpu").found and exit_code(checks) == 0


@pytest.mark.parametrize(("sampler", "guidance", "shown"), [("euler", 1.0, 30), ("heun", 1.0, 50), ("heun", 2.0, 100)])
def test_what_an_image_takes_counts_the_evaluations_of_its_sampler(monkeypatch, tmp_path, sampler, guidance, shown):
    (tmp_path / "a.onnx").write_bytes(resealed(halving_bundle(), sampler=sampler, guidance=guidance))  # of three steps
    monkeypatch.setattr(proof, "require", lambda bundle: None)
    monkeypatch.setattr(trial, "try_isolated", lambda path, name, threads: Trial(name, 10.0, ""))
    (check,) = list(doctor._bundle(tmp_path / "a.onnx", ["cpu"], 1))[1:]
    assert f"about {shown} ms an image" in check.found


def test_the_command_prints_each_check_or_json(monkeypatch, capsys, tmp_path):
    from cli.app import main

    (tmp_path / "damaged.onnx").write_bytes(halving_bundle()[:-1])
    for words, code in (([], 0), (["--json"], 0), ([str(tmp_path / "damaged.onnx"), "--json"], 5)):
        monkeypatch.setattr(sys, "argv", ["collafuse", "doctor", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert (stop.value.code or 0) == code
        assert ("Finishing works here" in shown.err) == (code == 0)
        if "--json" in words:
            values = json.loads(shown.out)
            assert values["works"] == (code == 0) and {"name", "status", "found", "fix"} <= set(values["checks"][0])
        else:
            assert "ok       provider cpu" in shown.out


# --- machines that do not -----------------------------------------------------------------------------------

BROKEN = 'raise ImportError("libstdc++.so.6: version GLIBCXX_3.4.29 not found")\n'


@pytest.mark.parametrize("package", ["onnxruntime", "numpy"])
def test_a_package_that_cannot_be_imported_is_named_and_nothing_else_breaks(tmp_path, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(BROKEN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    command = [sys.executable, "-m", "cli", "doctor", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 11, done.stderr
    (problem,) = [check for check in json.loads(done.stdout)["checks"] if check["status"] == PROBLEM]
    assert problem["name"] == "onnxruntime runs" and "GLIBCXX_3.4.29 not found" in problem["found"]
    assert "pip install" in problem["fix"]


def test_a_package_that_is_missing_or_old(monkeypatch):
    def version(name):
        if name == "numpy":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "safetensors" else "99.0"

    monkeypatch.setattr(doctor, "_installed_version", version)
    checks = {check.name: check for check in doctor._packages()}
    assert (checks["numpy"].status, checks["numpy"].fix) == (PROBLEM, "pip install 'numpy>=1.26'")
    assert (checks["safetensors"].status, checks["typer"].status) == (WARNING, OK)


def installed(monkeypatch, **versions: str) -> None:
    """Only these onnxruntimes are installed; a line stands for a hyphen."""
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "installed_runtimes", lambda: found)


def test_an_old_runtime_for_a_gpu_is_not_to_be_joined_by_the_ordinary_one(monkeypatch):
    """They would overwrite each other's files. Those for Jetsons come from elsewhere than the package index."""
    for name, advice in (("onnxruntime", "pip install 'onnxruntime>=1.23'"), ("onnxruntime_gpu", "onnxruntime-gpu")):
        installed(monkeypatch, **{name: "1.20.0"})
        (check,) = [check for check in doctor._packages() if check.name == "onnxruntime"]
        assert check.status == WARNING and advice in check.fix
    assert "pip install" not in check.fix and "where this one came from" in check.fix


def test_a_runtime_that_cannot_be_imported_is_replaced_by_its_like(monkeypatch):
    def broken(*_):
        raise child.ChildError("numpy.core.multiarray failed to import")

    monkeypatch.setattr(doctor, "run_child", broken)
    installed(monkeypatch, onnxruntime_gpu="1.23.0")
    (check,) = doctor._providers(Path("/"), None, 1)
    assert check.status == PROBLEM and "onnxruntime-gpu" in check.fix and "numpy<2" in check.fix
    assert "numpy onnxruntime;" not in check.fix


def test_the_versions_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, oldest in doctor.PACKAGES.items():
        assert re.search(rf'"{name}>={re.escape(oldest)}[",]', text), name


def test_two_runtimes_at_once_are_found(tmp_path, monkeypatch):
    for name, brings in (("onnxruntime_gpu", "onnxruntime"), ("onnxruntime_extensions", "onnxruntime_extensions")):
        folder = tmp_path / f"{name}-1.31.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.1\n")
        (folder / "RECORD").write_text(f"{brings}/__init__.py,,\n")
        (tmp_path / brings).mkdir()
        (tmp_path / brings / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert len(installed_runtimes()) == 2 and installed_runtimes()["onnxruntime-gpu"] == "1.31.1"
    check = doctor._runtimes()
    assert check.status == WARNING and "pip uninstall -y onnxruntime-gpu onnxruntime" in check.fix


def test_a_runtime_that_the_system_installed_is_found(tmp_path, monkeypatch):
    """Debian's packages have no list of their files for Python."""
    (tmp_path / "onnxruntime-1.21.0.dist-info").mkdir()
    text = "Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.21.0\n"
    (tmp_path / "onnxruntime-1.21.0.dist-info/METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installed_runtimes() == {}  # only the list was left behind
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").touch()
    assert installed_runtimes() == {"onnxruntime": "1.21.0"}


def test_little_memory_a_full_disk_and_a_wrong_clock_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor.machine, "memory_mb", lambda: (512.0, 90.0))
    assert doctor._memory().status == WARNING and "90 of 512 MB" in doctor._memory().found
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e6}))
    assert [check.status for check in doctor._disk()] == [WARNING, WARNING]
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert doctor._clock().status == WARNING and "1970-01-01" in doctor._clock().found


def test_where_not_even_a_small_file_can_be_written_that_is_the_problem(monkeypatch):
    """On a full disk Python finds no folder for temporary files at all."""

    def full(*arguments, **options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(doctor.tempfile, "gettempdir", full)
    with monkeypatch.context() as patch:
        patch.setattr(doctor.tempfile, "TemporaryDirectory", full)
        checks = list(examine())
    assert named(checks, "disk for temporary files").status == WARNING
    assert "not tried: cannot write a temporary file (No usable" in named(checks, "onnxruntime runs").found
    assert exit_code(checks) == StorageError.exit_code
    monkeypatch.setattr(doctor, "run_child", lambda *_: {"unwritten": "No space left on device"})
    (check,) = doctor._providers(Path("/"), None, 1)
    assert (check.status, check.found) == (PROBLEM, "not tried: No space left on device")


def test_the_child_says_that_it_could_not_write_and_is_not_taken_for_a_broken_package(tmp_path):
    answer = run_child("doctor", (str(tmp_path / "no/such/folder/tiny.onnx"),), 60)
    assert answer["unwritten"] == "No such file or directory" and "cpu" in answer["candidates"]


def test_a_user_without_a_home_has_no_cache_and_is_told(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(caches.Path, "home", homeless)
    check = doctor._cache()
    assert check.status == WARNING and "no home folder" in check.found and "XDG_CACHE_HOME" in check.fix


def test_a_cache_that_cannot_be_written_is_a_warning(cache):
    assert doctor._cache().status == OK
    (cache / "collafuse").chmod(0o777)
    assert doctor._cache().status == WARNING


def test_a_cache_without_room_is_a_warning(cache, monkeypatch):
    """finish says that it cannot be written, and sends to doctor for more."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e6}))
    check = doctor._cache()
    assert check.status == WARNING and f"1 MB free in {cache / 'collafuse'}" in check.found
    assert "free some space" in check.fix


@pytest.mark.parametrize(
    ("architecture", "features", "status"),
    [
        ("x86_64", ["avx", "avx2"], OK),
        ("x86_64", ["sse4_2"], WARNING),
        ("aarch64", ["asimd"], WARNING),
        ("aarch64", ["asimd", "asimddp"], OK),
        ("riscv64", [], OK),
    ],
)
def test_processors_that_are_slow_are_named(monkeypatch, architecture, features, status):
    monkeypatch.setattr(doctor.platform, "machine", lambda: architecture)
    monkeypatch.setattr(doctor.machine, "cpu_features", lambda: features)
    assert doctor._processor().status == status


def test_a_provider_in_name_only_is_a_warning_with_its_fix(tmp_path):
    (tmp_path / "tiny.onnx").write_bytes(tiny_bundle())
    check = doctor._provider(tmp_path / "tiny.onnx", "cuda", 1)
    assert check.status == WARNING and "offered, but fails: this onnxruntime was built without it" in check.found
    assert "onnxruntime-gpu" in check.fix


def test_without_the_cpu_nothing_works(monkeypatch):
    monkeypatch.setattr(trial, "try_isolated", lambda path, name, threads: Trial(name, None, "it crashed (SIGILL)"))
    checks = list(examine())
    assert exit_code(checks) == 11 and named(checks, "provider cpu").status == PROBLEM
    assert "SIGILL" in named(checks, "provider cpu").found


def test_engines_are_announced_before_they_are_built(monkeypatch, tmp_path):
    """Each may take minutes, in which the command would seem to hang."""
    said, tried = [], []

    def built(path, name, threads):
        tried.append((path.name, name, len(said)))
        return Trial(name, 1.0, "")

    monkeypatch.setattr(trial, "try_isolated", built)
    monkeypatch.setattr(proof, "require", lambda bundle: None)
    monkeypatch.setattr(machine, "tensorrt_version", lambda: "101300")
    answer = {"unwritten": "", "version": "1", "offered": [], "candidates": ["cpu", "tensorrt"]}
    monkeypatch.setattr(doctor, "run_child", lambda *_: answer)
    (tmp_path / "a.onnx").write_bytes(halving_bundle())
    list(examine(tmp_path / "a.onnx", say=said.append))
    tiny, given = "tiny.onnx", "a.onnx"
    assert tried == [(tiny, "cpu", 0), (tiny, "tensorrt", 1), (given, "cpu", 1), (given, "tensorrt", 2)]
    assert all("engine" in one and "minutes" in one for one in said)


def test_a_bundle_that_finishing_would_refuse_is_a_problem_and_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "try_isolated", lambda *_: pytest.fail("it was run"))
    (tmp_path / "whole.onnx").write_bytes(whole_bundle())
    (check,) = doctor._bundle(tmp_path / "whole.onnx", ["cpu"], 1)
    assert "export it" not in check.fix and "--graph step" in check.found
    assert (check.status, check.exit_code) == (PROBLEM, MismatchError.exit_code)
    (tmp_path / "a.onnx").write_bytes(halving_bundle())
    monkeypatch.setattr(child, "PROGRAM", "import os; os.abort()")
    check = list(doctor._bundle(tmp_path / "a.onnx", ["cpu", "cuda"], 1))[-1]
    assert (check.status, check.exit_code) == (PROBLEM, 5) and "it crashed (SIGABRT)" in check.found


def whole_bundle() -> bytes:
    """A whole graph by its inputs and its output; it is not to be run."""
    model = halving_model()
    del model.graph.input[1]
    model.graph.node[0].output[0] = "half"
    model.graph.node.append(helper.make_node("Transpose", ["half"], ["last"], perm=[0, 2, 3, 1]))
    model.graph.node.append(helper.make_node("Cast", ["last"], ["pixels"], to=2))
    model.graph.output[0].CopyFrom(tensor_input("pixels", 2, 2, 1, dtype=2))
    return sealed(model, halving_info(graph="whole"))


def test_a_bundle_that_runs_on_some_provider_is_no_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(proof, "require", lambda bundle: None)
    (tmp_path / "a.onnx").write_bytes(halving_bundle())
    outcomes = {"cpu": Trial("cpu", 1.0, ""), "cuda": Trial("cuda", None, "broken")}
    monkeypatch.setattr(trial, "try_isolated", lambda path, name, threads: outcomes[name])
    checks = list(doctor._bundle(tmp_path / "a.onnx", ["cpu", "cuda"], 1))
    assert [check.status for check in checks] == [OK, OK, WARNING] and "--provider cpu" in checks[2].fix
    outcomes["cpu"] = Trial("cpu", None, "broken too")
    assert exit_code(list(doctor._bundle(tmp_path / "a.onnx", ["cpu", "cuda"], 1))) == 11
