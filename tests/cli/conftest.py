"""Commands as a user runs them: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.app import main

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

    def __call__(self, *arguments, code=0):
        words = list(map(str, arguments))
        if words[0] in TRAINING:
            words[1:1] = TINY_OPTIONS  # first, so that a test's own settings win
        done = self._run(words)
        assert done.returncode == code, f"{arguments} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def _run(self, words):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "cli", *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=300
        )


class InProcess(Cli):
    """The same in this process, for the many cases of bad input: torch is loaded once."""

    def __init__(self, folder: Path, monkeypatch, capsys) -> None:
        super().__init__(folder)
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def _run(self, words):
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setattr(sys, "argv", ["collafuse", *words])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = self.capsys.readouterr()
        return subprocess.CompletedProcess(words, stop.value.code or 0, shown.out, shown.err)


@pytest.fixture
def run_cli(tmp_path):
    return Cli(tmp_path)


@pytest.fixture
def call_cli(tmp_path, monkeypatch, capsys):
    return InProcess(tmp_path, monkeypatch, capsys)


@pytest.fixture
def call_trained(trained, monkeypatch, capsys):
    return InProcess(trained, monkeypatch, capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a tiny run, a bundle and intermediates, made by the commands; read-only for tests."""
    folder = tmp_path_factory.mktemp("trained")
    cli = Cli(folder)
    cli("train", "digits.yaml", "-o", "run")
    cli("export-client", "run", "--client", "north", "-o", "north.onnx")
    cli("deliver", "run", "--client", "north", "-n", 5, "--seed", 1, "-o", "north.safetensors")
    return folder
