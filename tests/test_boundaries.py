"""What each side may load, in fresh interpreters: a device has no torch, and the core needs little at all."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import collafuse.core
import edge_client
from collafuse.core import intermediate as intermediates
from collafuse.core.bundle import OPERATORS

ROOT = Path(__file__).parents[1]
TRAINING = {"torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "yaml", "sklearn", "scipy", "matplotlib"}
DEVICE = {"onnxruntime", "pydantic", "PIL", "typer", "rich", "httpx"}

CORE = [f"collafuse.core.{module.name}" for module in pkgutil.iter_modules(collafuse.core.__path__)]
EDGE = [f"edge_client.{module.name}" for module in pkgutil.iter_modules(edge_client.__path__)]


def fresh(code: str, *arguments: str) -> str:
    """What a new interpreter prints; it starts in the repository, as a user's does."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*modules: str) -> set[str]:
    return set(json.loads(fresh(LOADED, *modules)))


def test_the_walk_over_the_modules_finds_them():
    assert {"collafuse.core.samplers", "collafuse.core.bundle"} <= set(CORE)
    assert {"edge_client.finisher", "edge_client.session"} <= set(EDGE)


def test_import_collafuse_loads_nothing_else():
    assert not loaded_by("collafuse") & (TRAINING | DEVICE | {"numpy", "safetensors"})


def test_the_core_needs_numpy_and_safetensors_only():
    loaded = loaded_by(*CORE)
    assert not loaded & (TRAINING | DEVICE)
    assert {"numpy", "safetensors"} <= loaded  # the check sees what is loaded
    assert not loaded & {"edge_client", "export", "cli", "configs"}


def test_the_device_side_needs_nothing_of_training():
    loaded = loaded_by("edge_client", *EDGE)
    assert not loaded & TRAINING
    assert {"onnxruntime", "PIL"} <= loaded
    assert not loaded & {"export", "cli", "configs", "pydantic"}


def test_a_configuration_module_is_imported_without_training_packages():
    assert not loaded_by("collafuse.config") & (TRAINING - {"yaml"})


# --- a device that cannot have torch ------------------------------------------------------------------------

FINISH_WITHOUT_TORCH = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ImportError(f"{name} is not on this device")

ABSENT = set(sys.argv[4].split(","))
sys.meta_path.insert(0, Absent())
for name in ABSENT:
    try:
        __import__(name)
    except ImportError as error:
        assert "not on this device" in str(error)
    else:
        sys.exit(f"{name} could be imported, so this proves nothing")

from pathlib import Path
from collafuse.core import intermediate
from edge_client import Finisher
from edge_client.job import finish_to_folder

finisher = Finisher.load(sys.argv[1])
batch = intermediate.read(Path(sys.argv[2]))
finish_to_folder(finisher, batch, Path(sys.argv[3]))
print(json.dumps(finisher.finish(batch).tolist()))
"""


def test_a_device_without_torch_and_onnx_finishes_files(tiny_bundle, tiny_intermediate, tmp_path):
    file, out = tmp_path / "intermediates.safetensors", tmp_path / "out"
    file.write_bytes(intermediates.to_bytes(tiny_intermediate))
    printed = fresh(FINISH_WITHOUT_TORCH, str(tiny_bundle), str(file), str(out), ",".join(TRAINING))
    images = np.array(json.loads(printed))
    here = edge_client.Finisher.load(tiny_bundle).finish(tiny_intermediate)
    assert np.abs(images - here.astype(int)).max() <= 1
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i:06d}.png" for i in range(5)), "job.json", "sheet.png"]


CHECK_WITHOUT_RUNTIME = """
import sys
from pathlib import Path
from collafuse.core import bundle
print(bundle.read(Path(sys.argv[1])).info.client, "onnxruntime" in sys.modules)
"""


def test_a_bundle_is_checked_before_onnxruntime_is_there(tiny_bundle):
    assert fresh(CHECK_WITHOUT_RUNTIME, str(tiny_bundle)).split() == ["north", "False"]


@pytest.mark.parametrize("operator", ["Loop", "If", "Scan", "SequenceMap", "Optional", "RandomNormal", "StringConcat"])
def test_no_operator_of_a_bundle_is_more_than_arithmetic(operator):
    assert operator not in OPERATORS


def test_every_operator_of_a_bundle_is_one_of_onnx():
    onnx = pytest.importorskip("onnx", reason="the train extra is not installed")
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= OPERATORS


# --- what a device tells others -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["edge_client", "cli.app"])
def test_onnxruntime_is_loaded_with_its_reports_switched_off(first, tmp_path, monkeypatch):
    """It would keep an identifier of the device in the user's cache folder, whether it reaches the network or not."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh(f"import {first}, onnxruntime")
    assert not list(tmp_path.iterdir())


def test_whoever_wants_the_reports_keeps_them(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert fresh("import os, edge_client; print(os.environ['ORT_DISABLE_TELEMETRY'])").strip() == "0"


# --- what makes a file dangerous to read --------------------------------------------------------------------

DANGEROUS = re.compile(
    r"\b(pickle|shelve|marshal|dill)\b|(?<!\.)\b(torch|np|numpy|yaml|joblib)\.(load|save|dump)\(|unsafe_load"
    r"|from joblib import .*\b(load|dump)\b|(?<![.\w])(eval|exec)\("  # joblib runs work in processes, too
)


@pytest.mark.parametrize("folder", ["collafuse", "edge_client", "export", "cli", "configs"])
def test_nothing_that_ships_reads_or_writes_what_could_run_code(folder):
    """A linter says so as well; here for whoever runs the tests alone."""
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")}
    assert texts
    found = {(str(path), match.group()) for path, text in texts.items() for match in DANGEROUS.finditer(text)}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "from pickle import loads",
        "torch.load(path)",
        "yaml.load(text)",
        "x = eval(text)",
        "joblib.load(path)",
        "from joblib import Parallel, load",
    ],
)
def test_that_search_finds_what_it_is_for(line):
    assert DANGEROUS.search(line)
