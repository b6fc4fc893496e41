"""A site's distilled client: where it goes, what is written beside it, and that it resumes."""

from __future__ import annotations

import pytest
import torch

from collafuse.core.errors import MismatchError
from collafuse.learning import weights
from collafuse.nodes.distilling import distill
from collafuse.nodes.runfolder import NodeFolder
from tests.nodes.sites import client, config
from tests.tiny import CPU, Recorder, image_set


def trained(tmp_path, steps: int = 4, guidance: float = 1.0):
    settings = config(distillation={"steps": steps, "teacher_steps": 3}, sampler={"steps": 2, "guidance": guidance})
    site, folder = client(image_set(12), settings), NodeFolder(tmp_path)
    return site, site.train(folder, CPU, Recorder()), folder


def test_the_configuration_beside_it_says_one_step_without_guidance(tmp_path):
    site, model, folder = trained(tmp_path, guidance=2.0)
    made = distill(site, model, folder.distilled, CPU, Recorder())
    sampler = folder.distilled.read_config().client("a").sampler
    assert (sampler.steps, sampler.guidance) == (1, 1.0)
    assert made.sigma_high == model.sigma_high and made.id != model.id
    assert folder.read_config().client("a").sampler.steps == 2


def test_the_trained_client_keeps_its_weights(tmp_path):
    site, model, folder = trained(tmp_path)
    distill(site, model, folder.distilled, CPU, Recorder())
    assert weights.load(folder.weights).id == model.id


def test_an_interrupted_distillation_goes_on_to_the_same_weights(tmp_path):
    site, model, folder = trained(tmp_path / "a")
    whole = distill(site, model, folder.distilled, CPU, Recorder())

    class Interrupt(Recorder):
        def logged(self, record):
            if record["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(site, model, NodeFolder(tmp_path / "b"), CPU, Interrupt())
    resumed = distill(site, model, NodeFolder(tmp_path / "b"), CPU, Recorder(), resume=True)
    pairs = zip(whole.denoiser.parameters(), resumed.denoiser.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_distillation_does_not_go_on_from_another_teacher(tmp_path):
    site, model, folder = trained(tmp_path / "a")
    distill(site, model, folder.distilled, CPU, Recorder())
    other = client(image_set(12, seed=1), site.config)
    teacher = other.train(NodeFolder(tmp_path / "b"), CPU, Recorder())
    with pytest.raises(MismatchError, match="starting weights"):
        distill(site, teacher, folder.distilled, CPU, Recorder(), resume=True)


@pytest.mark.parametrize(
    ("images", "changes", "what"),
    [
        (image_set(12), {"cut": {"sigma": 0.8}}, "level where it takes over: 1.0, here it is 1.6"),
        (image_set(12, ("b", "a")), {}, r"labels and text: .*'a', 'b'.*, here it is .*'b', 'a'"),
    ],
)
def test_a_client_is_distilled_for_what_it_was_trained_for(tmp_path, images, changes, what):
    _, model, folder = trained(tmp_path)
    with pytest.raises(MismatchError, match=what):
        distill(client(images, config(**changes)), model, folder.distilled, CPU, Recorder())
    assert not folder.distilled.path.exists()
