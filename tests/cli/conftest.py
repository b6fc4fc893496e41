"""Commands as a user runs them: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = [
    "server.network.channels=8",
    "server.network.blocks=1",
    "server.training.steps=6",
    "server.training.warmup_steps=2",
    "client.network.channels=8",
    "client.training.steps=6",
    "client.training.warmup_steps=2",
]
TINY_OPTIONS = [part for setting in TINY for part in ("--set", setting)]
TRAINING = {"demo", "train", "train-server", "train-client"}


class Cli:
    """Runs ``collafuse`` in a folder; training commands get tiny settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments, code=0, tiny=True, env=None):
        words = list(map(str, arguments))
        if tiny and words[0] in TRAINING:
            words[1:1] = TINY_OPTIONS  # first, so that a test's own settings win
        command = [sys.executable, "-m", "cli", *words]
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, "COLUMNS": "120", "OMP_NUM_THREADS": "1", **(env or {})}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def run_cli(tmp_path):
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a tiny run, a bundle and intermediates, made by the commands; read-only for tests."""
    folder = tmp_path_factory.mktemp("trained")
    cli = Cli(folder)
    cli("train", "digits.yaml", "-o", "run")
    cli("export-client", "run", "--client", "north", "-o", "north.onnx")
    cli("deliver", "run", "--client", "north", "-n", 5, "--seed", 1, "-o", "north.safetensors")
    return folder
