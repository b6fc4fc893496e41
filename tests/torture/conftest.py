"""What the tortures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nursery import Nursery
from tests.torture.experiment import CONFIG


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """``figure(text)``: what came out, printed at the end of the session; docs/reliability.md records it."""
    return lambda text: record_property("figure", text)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """A folder with tiny.yaml, a run of it, and north's bundle and intermediates; made by the commands, to read."""
    folder = tmp_path_factory.mktemp("tiny-run")
    (folder / "tiny.yaml").write_text(CONFIG)
    run = nursery.at(folder).run
    run("train", "tiny.yaml", "-o", "run", "--device", "cpu")
    run("export-client", "run", "--client", "north", "-o", "north.onnx")
    run("deliver", "run", "--client", "north", "-n", 12, "--seed", 1, "-o", "north.safetensors")
    run("release", "tiny.yaml", "--client", "north", "--new-ledger", "-o", "north-release.safetensors")
    return folder
