"""Autoguidance at the nodes: who is guided, and what a run that is sampled with it needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collafuse.config import from_mapping
from collafuse.core import intermediate as intermediates
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import MismatchError
from collafuse.learning import weights
from collafuse.learning.autoguidance import AutoGuided
from collafuse.learning.early import EarlyWeights
from collafuse.nodes.client import load_client
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import NodeFolder, RunFolder
from collafuse.nodes.server import Server
from collafuse.nodes.server_training import train_server
from tests.nodes.sites import TRAINING, client, config, release_of
from tests.tiny import CPU, Recorder, image_set

STEPS = {"training": TRAINING | {"steps": 8}}


def trained_server(folder: NodeFolder, autoguidance: float, resume: bool = False) -> Server:
    sampler = {"steps": 4, "autoguidance": autoguidance}
    settings = config(server={"sampler": sampler, "network": {"channels": 8, "multipliers": [1], "blocks": 1}} | STEPS)
    found = {"a": [release_of(0.5, simulated=True)]}
    return train_server(settings, found, folder, CPU, Recorder(), resume=resume)


def test_a_server_is_guided_as_its_configuration_says_whenever_it_is_loaded(tmp_path):
    folder = NodeFolder(tmp_path)
    plain = trained_server(folder, 1.0)
    before = folder.weights.read_bytes()
    guided = trained_server(folder, 2.0, resume=True)  # no step is left
    assert folder.weights.read_bytes() == before and weights.load(folder.path / weights.EARLY).steps == 2
    assert isinstance(guided.model.denoiser, AutoGuided) and guided.model.denoiser.weight == 2.0
    one, other = (server.deliver("a", 4, seed=3) for server in (plain, guided))
    assert np.abs(one.x - other.x).max() > 1e-3 and one.server_model != other.server_model
    again = Server.load(folder, CPU).deliver("a", 4, seed=3)
    assert np.array_equal(again.x, other.x) and again.server_model == other.server_model


def test_guided_images_are_the_same_in_batches_of_any_size_and_compiled(tmp_path):
    server = trained_server(NodeFolder(tmp_path), 2.0)
    whole, parts = server.deliver("a", 6, seed=1), server.deliver("a", 6, seed=1, batch_size=2)
    np.testing.assert_allclose(parts.x, whole.x, rtol=1e-5, atol=1e-5)
    notes = []
    server.compile(6, notes.append)
    server._compiled = type(server._compiled)(server.model.denoiser, 6, notes.append, backend="eager")
    np.testing.assert_allclose(server.deliver("a", 6, seed=1).x, whole.x, rtol=1e-5, atol=1e-5)
    assert not notes


def test_a_client_is_guided_when_it_is_loaded_and_warm_starts_from_what_a_server_learned(tmp_path):
    folder = NodeFolder(tmp_path / "a")
    site = client(image_set(12), config(sampler={"steps": 2, "autoguidance": 3.0}, **STEPS))
    model = site.train(folder, CPU, Recorder())
    assert isinstance(model.denoiser, AutoGuided) and model.denoiser.weight == 3.0
    loaded = load_client(folder, site.settings)
    assert loaded.id == model.id != weights.load(folder.weights).id
    assert torch.equal(next(loaded.learned.parameters()), next(weights.load(folder.weights).denoiser.parameters()))
    pupil = client(image_set(12), config(**STEPS))
    pupil.train(NodeFolder(tmp_path / "b"), CPU, Recorder(), init=weights.load(folder.weights))


def test_a_client_that_has_no_early_version_says_what_to_do(tmp_path):
    site = client(image_set(12), config(sampler={"steps": 2, "autoguidance": 3.0}))
    site.train(NodeFolder(tmp_path), CPU, Recorder())
    (tmp_path / weights.EARLY).unlink()
    with pytest.raises(MismatchError, match="autoguidance=3 needs an earlier version of the trained client"):
        load_client(NodeFolder(tmp_path), site.settings)


def test_training_anew_leaves_no_earlier_version_of_older_weights(tmp_path):
    folder, site = NodeFolder(tmp_path), client(image_set(12))
    site.train(folder, CPU, Recorder())
    folder.clear()
    assert not list(tmp_path.iterdir())


def test_a_run_takes_another_autoguidance_without_training_again(tiny_config, tmp_path):
    run = RunFolder(tmp_path / "run")

    def ran(**sampler):
        values = tiny_config.model_dump(mode="json", exclude_none=True)
        for node in (values["server"], *values["clients"].values()):
            node["sampler"] |= sampler
            node["training"] |= {"steps": 8}
        return run_experiment(from_mapping(values), run, CPU, lambda name: Recorder(), resume=run.path.exists())

    plain = ran()
    before = {path: path.read_bytes() for path in run.path.rglob("weights.safetensors")}
    guided = ran(autoguidance=1.5)
    assert len(before) > 2 and all(path.read_bytes() == data for path, data in before.items())
    assert not isinstance(plain.server.model.denoiser, AutoGuided)
    everyone = [guided.server.model, *guided.models.values()]
    assert all(isinstance(model.denoiser, AutoGuided) and model.denoiser.weight == 1.5 for model in everyone)


def test_a_run_from_before_there_were_early_versions_is_left_as_it_was(tiny_config, tmp_path):
    """Its configuration said 2.0 before it was refused, so that nothing could be done with it any more."""
    run = RunFolder(tmp_path / "run")
    run_experiment(tiny_config, run, CPU, lambda name: Recorder())
    for path in run.path.rglob(weights.EARLY):
        path.unlink()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.suffix != ".sqlite"}
    values = tiny_config.model_dump(mode="json", exclude_none=True)
    values["server"]["sampler"] |= {"autoguidance": 2.0}
    with pytest.raises(MismatchError, match="the trained server, .*Restore it .*or set sampler.autoguidance to 1"):
        run_experiment(from_mapping(values), run, CPU, lambda name: Recorder(), resume=True)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_validation_that_keeps_an_early_step_leaves_the_rest_of_a_run_to_be_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(EarlyWeights, "before", lambda self, step, like: None)
    site, heard = client(image_set(12), config(sampler={"steps": 2, "autoguidance": 2.0}, **STEPS)), Recorder()
    model = site.train(NodeFolder(tmp_path), CPU, heard)
    assert not isinstance(model.denoiser, AutoGuided) and model.id == weights.load(tmp_path / "weights.safetensors").id
    assert any(note.startswith("warning: sampler.autoguidance=2 needs an earlier version") for note in heard.notes)
    server = trained_server(NodeFolder(tmp_path / "server"), 2.0)
    assert server.deliver("a", 1).x.shape == (1, 1, 4, 4)


def test_what_is_delivered_says_how_it_was_guided(tmp_path):
    server = trained_server(NodeFolder(tmp_path), 2.5)
    delivered = server.deliver("a", 2)
    write_bytes(tmp_path / "x.safetensors", intermediates.to_bytes(delivered))
    assert intermediates.read(tmp_path / "x.safetensors").autoguidance == delivered.autoguidance == 2.5
    with intermediates.IntermediateFile(tmp_path / "x.safetensors") as file:
        assert file.autoguidance == 2.5
