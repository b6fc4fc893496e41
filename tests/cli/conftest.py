"""Commands as a user gives them: in processes of their own, or in this one."""

import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from cli.app import main
from tests.nursery import Nursery

TINY = [
    "server.network.channels=8",
    "server.network.blocks=1",
    "server.training.steps=6",
    "server.training.batch_size=16",
    "server.training.warmup_steps=2",
    "client.network.channels=8",
    "server.sampler.steps=6",
    "client.training.steps=6",
    "client.training.batch_size=16",
    "client.training.warmup_steps=2",
]
TINY_OPTIONS = [part for setting in TINY for part in ("--set", setting)]
TRAINING = {"demo", "train", "train-server", "train-client"}


class Commands(ABC):
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

    @abstractmethod
    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]: ...


class Cli(Commands):
    """Each in a process of its own, which the nursery starts."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        super().__init__(folder)
        self._nursery = nursery

    def _run(self, words):
        return self._nursery.complete(words, self.folder)


class InProcess(Commands):
    """All in this process, for the many cases of bad input: torch is loaded once."""

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
def run_cli(tmp_path, nursery):
    return Cli(tmp_path, nursery)


@pytest.fixture
def run_trained(trained, nursery):
    return Cli(trained, nursery)


@pytest.fixture
def call_cli(tmp_path, monkeypatch, capsys):
    return InProcess(tmp_path, monkeypatch, capsys)


@pytest.fixture
def call_trained(trained, monkeypatch, capsys):
    return InProcess(trained, monkeypatch, capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, nursery):
    """A folder with a tiny run, a bundle and intermediates, made by the commands; read-only for tests."""
    folder = tmp_path_factory.mktemp("trained")
    cli = Cli(folder, nursery)
    cli("train", "digits.yaml", "-o", "run")
    cli("export-client", "run", "--client", "north", "-o", "north.onnx")
    cli("deliver", "run", "--client", "north", "-n", 5, "--seed", 1, "-o", "north.safetensors")
    return folder
