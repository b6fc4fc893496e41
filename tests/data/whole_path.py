"""From a data set on disk to finished images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from collafuse.config import from_mapping
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import to_uint8
from collafuse.nodes.client import finish
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import RunFolder
from edge_client import Finisher
from export.writer import export_client
from tests.nodes.sites import NETWORK, TRAINING
from tests.tiny import CPU, Recorder


def run_through(data: dict[str, Any], labels: tuple[str, ...], folder: Path, *, on_a_device: bool = False) -> None:
    """Train a server and one site that holds these labels, release, deliver and finish, on request through ONNX."""
    config = from_mapping(
        {
            "data": {"image_size": 8, "channels": 1, "held_out": 0.1} | data,
            "server": {"network": NETWORK, "training": TRAINING, "sampler": {"steps": 3}},
            "client": {"cut": {"sigma": 1.0}, "network": NETWORK, "training": TRAINING, "sampler": {"steps": 2}},
            "clients": {"a": {"labels": list(labels)}},
        }
    )
    made = run_experiment(config, RunFolder(folder / "run"), CPU, lambda node: Recorder())
    delivered = made.server.deliver("a", 2, labels=labels[1:2])
    model, client = made.models["a"], config.client("a")
    conditions = conditions_for(delivered, model.space)
    x = torch.from_numpy(delivered.x)
    finished = to_uint8(finish(model.denoiser, x, delivered.sigma, conditions, client, CPU).numpy())
    assert finished.shape == (2, 8, 8, 1) and finished.std() > 0
    if on_a_device:
        both = made.server.deliver("a", 2, labels=labels[1:3])
        export_client(model, client, "a", folder / "a.onnx")
        assert Finisher.load(folder / "a.onnx").finish(both).shape == (2, 8, 8, 1)
