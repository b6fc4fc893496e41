"""Each published set, from its own layout on disk to finished images."""

from __future__ import annotations

import pytest
import torch

from collafuse.config import from_mapping
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import to_uint8
from collafuse.nodes.client import finish
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import RunFolder
from edge_client import Finisher
from export.writer import export_client
from tests.data.published import LABELS, LAYOUT_WRITERS, WRITERS
from tests.nodes.sites import NETWORK, TRAINING
from tests.tiny import CPU, Recorder


@pytest.mark.parametrize("name", [*WRITERS, *LAYOUT_WRITERS])
def test_a_published_set_trains_releases_delivers_and_finishes(name, tmp_path, monkeypatch):
    root = tmp_path / "data"
    (WRITERS | LAYOUT_WRITERS)[name](root, monkeypatch)
    values = {"dataset": name, "path": str(root), "image_size": 8, "channels": 1, "held_out": 0.1}
    config = from_mapping(
        {
            "data": values,
            "server": {"network": NETWORK, "training": TRAINING, "sampler": {"steps": 3}},
            "client": {"cut": {"sigma": 1.0}, "network": NETWORK, "training": TRAINING, "sampler": {"steps": 2}},
            "clients": {"a": {"labels": list(LABELS[name][:4])}},
        }
    )
    made = run_experiment(config, RunFolder(tmp_path / "run"), CPU, lambda node: Recorder())
    delivered = made.server.deliver("a", 2, labels=LABELS[name][1:2])
    model, client = made.models["a"], config.client("a")
    conditions = conditions_for(delivered, model.label_names)
    x = torch.from_numpy(delivered.x)
    finished = to_uint8(finish(model.denoiser, x, delivered.sigma, conditions, client, CPU).numpy())
    assert finished.shape == (2, 8, 8, 1) and finished.std() > 0
    if name == "celeba":  # several labels at once, and through ONNX as on a device: from here on all sets are alike
        both = made.server.deliver("a", 2, labels=LABELS[name][1:3])
        export_client(model, client, "a", tmp_path / "a.onnx")
        assert Finisher.load(tmp_path / "a.onnx").finish(both).shape == (2, 8, 8, 1)
