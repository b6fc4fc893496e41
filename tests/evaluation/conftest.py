"""A small trained run over real digits: two sites with one cut, one with another."""

from __future__ import annotations

from pathlib import Path

import pytest

from collafuse.config import from_mapping
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import RunFolder
from tests.tiny import CPU, Recorder

TRAINING = {"steps": 4, "batch_size": 8, "warmup_steps": 1, "log_every": 2, "checkpoint_every": 4}
NETWORK = {"channels": 8, "multipliers": [1, 2], "blocks": 1}
SETTINGS = {
    "data": {"dataset": "digits", "held_out": 0.2},
    "server": {"network": NETWORK, "training": TRAINING, "sampler": {"name": "euler", "steps": 4}},
    "client": {
        "network": NETWORK,
        "training": TRAINING,
        "sampler": {"name": "euler", "steps": 3},
        "cut": {"sigma": 0.5},
    },
    "clients": {
        "north": {"labels": ["0", "1"]},
        "east": {"labels": ["2", "3"]},
        "south": {"labels": ["4", "5"], "cut": {"sigma": 1.5}},
    },
}


def train(folder: Path, **changes: object) -> RunFolder:
    """A run of these settings."""
    run = RunFolder(folder)
    run_experiment(from_mapping(SETTINGS | changes), run, CPU, lambda node: Recorder())
    return run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="session")
def statistics_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same with a server that adds up statistics."""
    return train(tmp_path_factory.mktemp("added-up") / "run", server=SETTINGS["server"] | {"kind": "statistics"})
