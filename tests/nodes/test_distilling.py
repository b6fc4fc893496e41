"""A site's distilled client: where it goes, what is written beside it, and that it resumes."""

from __future__ import annotations

import pytest
import torch

from collafuse.core.errors import MismatchError
from collafuse.learning import weights
from collafuse.learning.autoguidance import AutoGuided
from collafuse.learning.distillation import Distiller
from collafuse.nodes.distilling import distill
from collafuse.nodes.runfolder import NodeFolder
from tests.nodes.sites import TRAINING, client, config
from tests.tiny import CPU, Recorder, image_set


def trained(tmp_path, steps: int = 4, **sampler: float):
    settings = config(distillation={"steps": steps, "teacher_steps": 3}, sampler={"steps": 2} | sampler)
    site, folder = client(image_set(12), settings), NodeFolder(tmp_path)
    return site, site.train(folder, CPU, Recorder()), folder


def test_the_configuration_beside_it_says_one_step_without_guidance(tmp_path):
    site, model, folder = trained(tmp_path, guidance=2.0, autoguidance=1.5)
    made = distill(site, folder, folder.distilled, CPU, Recorder())
    sampler = folder.distilled.read_config().client("a").sampler
    assert (sampler.steps, sampler.guidance, sampler.autoguidance) == (1, 1.0, 1.0)
    assert made.sigma_high == model.sigma_high and made.id != model.id
    assert folder.read_config().client("a").sampler.steps == 2


def test_it_learns_what_its_teacher_makes_with_autoguidance(tmp_path, monkeypatch):
    site, _, folder = trained(tmp_path, autoguidance=2.0)
    teachers = []
    monkeypatch.setattr(Distiller, "run", lambda self, *_: teachers.append(self.teacher) or self.ema)
    distill(site, folder, folder.distilled, CPU, Recorder())
    (teacher,) = teachers
    assert isinstance(teacher.denoiser, AutoGuided) and teacher.denoiser.weight == 2.0
    early = weights.load(folder.path / weights.EARLY)
    assert early.steps == 1 and torch.equal(
        *(next(one.parameters()) for one in (teacher.denoiser.early, early.denoiser))
    )


def test_a_distillation_does_not_go_on_with_another_autoguidance(tmp_path):
    site, _, folder = trained(tmp_path)
    distill(site, folder, folder.distilled, CPU, Recorder())
    other = client(image_set(12), trained(tmp_path / "other", autoguidance=2.0)[0].config)
    with pytest.raises(MismatchError, match="starting weights"):
        distill(other, folder, folder.distilled, CPU, Recorder(), resume=True)


def test_the_trained_client_keeps_its_weights(tmp_path):
    site, model, folder = trained(tmp_path)
    distill(site, folder, folder.distilled, CPU, Recorder())
    assert weights.load(folder.weights).id == model.id


def test_an_interrupted_distillation_goes_on_to_the_same_weights(tmp_path):
    site, _, folder = trained(tmp_path / "a")
    whole = distill(site, folder, folder.distilled, CPU, Recorder())

    class Interrupt(Recorder):
        def logged(self, record):
            if record["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(site, folder, NodeFolder(tmp_path / "b"), CPU, Interrupt())
    resumed = distill(site, folder, NodeFolder(tmp_path / "b"), CPU, Recorder(), resume=True)
    pairs = zip(whole.denoiser.parameters(), resumed.denoiser.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_distillation_does_not_go_on_from_another_teacher(tmp_path):
    site, _, folder = trained(tmp_path / "a")
    distill(site, folder, folder.distilled, CPU, Recorder())
    other = client(image_set(12, seed=1), site.config)
    other.train(NodeFolder(tmp_path / "b"), CPU, Recorder())
    with pytest.raises(MismatchError, match="starting weights"):
        distill(site, NodeFolder(tmp_path / "b"), folder.distilled, CPU, Recorder(), resume=True)


@pytest.mark.parametrize(
    ("images", "changes", "what"),
    [
        (image_set(12), {"cut": {"sigma": 0.8}}, "level where it takes over: 1.0, here it is 1.6"),
        (image_set(12, ("b", "a")), {}, r"labels and text: .*'a', 'b'.*, here it is .*'b', 'a'"),
    ],
)
def test_a_client_is_distilled_for_what_it_was_trained_for(tmp_path, images, changes, what):
    folder = trained(tmp_path)[2]
    with pytest.raises(MismatchError, match=what):
        distill(client(images, config(**changes)), folder, folder.distilled, CPU, Recorder())
    assert not folder.distilled.path.exists()


@pytest.mark.parametrize(("taught", "wanted", "refused"), [(0, 0.1, True), (0, 0, False), (0.1, 0, False)])
def test_a_student_is_not_taught_images_without_a_condition_by_a_teacher_that_knows_none(
    tmp_path, taught, wanted, refused
):
    """Its bundle would say that they were trained, and finish them."""
    teacher, student = (
        client(image_set(12), config(distillation={"steps": 1}, training=TRAINING | {"label_dropout": share}))
        for share in (taught, wanted)
    )
    folder = NodeFolder(tmp_path)
    teacher.train(folder, CPU, Recorder())
    if refused:
        with pytest.raises(MismatchError, match=r"label_dropout=0, never without a condition, here it is 0\.1"):
            distill(student, folder, folder.distilled, CPU, Recorder())
        assert not folder.distilled.path.exists()
        return
    distill(student, folder, folder.distilled, CPU, Recorder())
    assert folder.distilled.read_config().client("a").training.label_dropout == wanted
