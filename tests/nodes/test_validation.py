"""A node that keeps images back: its log tells the loss on them, and its weights are those of the best step."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch

from collafuse.data.dealing import SiteData
from collafuse.evaluation.baselines import fedavg
from collafuse.learning import weights
from collafuse.nodes.client import Client
from collafuse.nodes.distilling import distill
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server_training import train_server
from tests.nodes.sites import TRAINING, config, release_of
from tests.tiny import CPU, Recorder, image_set

KEEPS_BACK = TRAINING | {"steps": 12, "validation": 0.25, "learning_rate": 0.1}


def best_of(folder: NodeFolder) -> int:
    """The step with the least loss, as the node's log tells it."""
    records = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return min(records, key=lambda record: record["validation_loss"])["step"]


def test_a_servers_and_a_clients_weights_are_those_of_their_best_steps(tmp_path):
    settings = config(server={"training": KEEPS_BACK, "network": {"channels": 8, "multipliers": [1], "blocks": 1}},
                      training=KEEPS_BACK)  # fmt: skip
    server, site = NodeFolder(tmp_path / "server"), NodeFolder(tmp_path / "site")
    train_server(settings, {"a": [release_of(0.5, count=16)]}, server, CPU, Recorder())
    images = image_set(16)
    client = Client(settings, "a", SiteData(images, images.take(np.arange(0))))
    client.train(site, CPU, Recorder())
    for folder, role in ((server, "server"), (site, "client")):
        assert weights.load(folder.weights, role).steps == best_of(folder) < 12

    student = NodeFolder(tmp_path / "student")
    once = config(training=KEEPS_BACK, distillation={"steps": 6, "teacher_steps": 2})
    distill(Client(once, "a", client.site), site, student, CPU, Recorder())
    assert weights.load(student.weights, "client").steps == best_of(student)


def test_no_site_of_a_federation_learns_from_what_is_kept_back(tmp_path, monkeypatch):
    monkeypatch.setattr(fedavg, "LOCAL_STEPS", 3)
    settings = config({"a": {}, "b": {}}, server={"training": KEEPS_BACK})
    images = image_set(40)
    sites = {
        name: SiteData(images.take(np.arange(*rows)), images.take(np.arange(0)))
        for name, rows in (("a", (0, 30)), ("b", (30, 40)))
    }
    (part,) = fedavg.parts(settings, sites, tmp_path)
    trainer = part.trainer_in(NodeFolder(tmp_path), CPU, Recorder())
    whole = torch.cat([site.data.images for site in trainer.sites])
    assert len(trainer.learned) == 30 and torch.equal(whole, part.data.images[trainer.learned])
    assert all(site.learned.tolist() == list(range(len(site.data))) for site in trainer.sites)
    assert trainer.shares == [len(site.data) / 30 for site in trainer.sites]
    kept = part.train(NodeFolder(tmp_path / "run"), CPU, Recorder()).steps
    assert part.settings.log_every == 3 and kept == best_of(NodeFolder(tmp_path / "run"))  # as a round ends


def test_a_site_whose_every_image_is_kept_back_has_no_part(tmp_path):
    images = image_set(40)
    (part,) = fedavg.parts(
        config({"a": {}, "b": {}}, server={"training": KEEPS_BACK}),
        {"a": SiteData(images, images.take(np.arange(0))), "b": SiteData(images.take(np.arange(1)), images)},
        tmp_path,
    )
    trainers = [
        replace(part, settings=part.settings.model_copy(update={"seed": seed})).trainer_in(
            NodeFolder(tmp_path), CPU, Recorder()
        )
        for seed in range(8)
    ]
    assert {len(trainer.sites) for trainer in trainers} == {1, 2}
    assert all(sum(trainer.shares) == 1 for trainer in trainers)
