"""Federated averaging beside what it is made of: the plain training loop, and a mean."""

from __future__ import annotations

import pytest
import torch

from collafuse.core.conditioning import ConditionSpace
from collafuse.data.dealing import load_sites
from collafuse.evaluation.baselines import fedavg
from collafuse.evaluation.baselines.fedavg import Federated
from collafuse.learning.examples import TrainingData
from collafuse.learning.seeds import keyed_seed
from collafuse.learning.training import Trainer
from collafuse.nodes.runfolder import NodeFolder
from tests.tiny import CPU, NETWORK, Recorder, image_set, training_settings

COUNTS = {"one": 6, "two": 2}


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    monkeypatch.setattr(fedavg, "LOCAL_STEPS", 3)


def data(rows: slice = slice(0, 8)) -> TrainingData:
    images = image_set(8)
    return TrainingData(
        torch.from_numpy(images.pixels)[rows], torch.eye(3)[torch.arange(8) % 2][rows], torch.zeros(8)[rows], 80.0
    )


def part(counts: dict[str, int], steps: int = 6, **more) -> Federated:
    settings = training_settings(steps=steps, warmup_steps=0, **more)
    return Federated("whole", "whole", NETWORK, settings, ConditionSpace(("a", "b")), data(), counts=counts)


def alone(whole: Federated, name: str, rows: slice, folder) -> Trainer:
    """A site's training without any other site."""
    settings = whole.settings.model_copy(update={"seed": keyed_seed(whole.settings.seed, "site", name)})
    return Trainer(whole.denoiser(), data(rows), settings, folder, CPU, Recorder())


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_single_site_trains_as_if_nobody_averaged(tmp_path):
    whole = part({"only": 8})
    federated = whole.trainer_in(NodeFolder(tmp_path / "f"), CPU, Recorder()).run()
    assert same(federated, alone(whole, "only", slice(0, 8), tmp_path / "a").run())


@pytest.mark.parametrize(("steps", "early"), [(12, 3), (20, 3), (24, 6), (8, None)])
def test_the_early_version_is_of_the_end_of_a_round(tmp_path, steps, early):
    """Within one there is none that all sites share; it was that of the round before, or of no training at all."""
    training = part(COUNTS, steps=steps).trainer_in(NodeFolder(tmp_path / "f"), CPU, Recorder())
    training.run()
    if early is None:
        assert training.early is None
        return
    shorter = part(COUNTS, steps=steps).trainer_in(NodeFolder(tmp_path / "g"), CPU, Recorder())
    for step in range(early):
        shorter.take_step(step)
    assert training.early.steps == early and same(training.early.denoiser, shorter.ema)


def test_a_round_ends_with_the_mean_of_the_sites_counted_by_their_images(tmp_path):
    whole = part(COUNTS, steps=3)
    averaged = whole.trainer_in(NodeFolder(tmp_path / "f"), CPU, Recorder()).run()
    one = alone(whole, "one", slice(0, 6), tmp_path / "1").run().state_dict()
    two = alone(whole, "two", slice(6, 8), tmp_path / "2").run().state_dict()
    for name, value in averaged.state_dict().items():
        assert torch.allclose(value, 0.75 * one[name] + 0.25 * two[name], atol=1e-6), name


def test_an_interrupted_training_goes_on_exactly(tmp_path):
    whole = part(COUNTS, steps=9)
    straight = whole.trainer_in(NodeFolder(tmp_path / "straight"), CPU, Recorder()).run()

    class Stopped(Exception):
        pass

    class Stops(Recorder):
        def logged(self, record):
            if record["step"] == 7:
                raise Stopped

    folder = NodeFolder(tmp_path / "stopped")
    with pytest.raises(Stopped):
        whole.trainer_in(folder, CPU, Stops()).run()
    resumed = Recorder()
    assert same(whole.trainer_in(folder, CPU, resumed).run(resume=True), straight)
    assert resumed.starts == [(6, 9)]


def test_checkpoints_are_made_at_the_end_of_rounds_alone(tiny_config):
    settings = tiny_config.server.training.model_copy(update={"checkpoint_every": 10})
    config = tiny_config.model_copy(update={"server": tiny_config.server.model_copy(update={"training": settings})})
    (made,) = fedavg.parts(config, load_sites(config), None)
    assert made.settings.checkpoint_every == 9
