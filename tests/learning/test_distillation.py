"""Distillation: what the teacher promises, and what a student learns of it."""

from __future__ import annotations

import copy

import pytest
import torch

from collafuse.core.conditioning import guided
from collafuse.core.noise import client_sigmas
from collafuse.core.samplers import STEPS, run
from collafuse.learning.distillation import Distiller, Teacher
from collafuse.learning.examples import TrainingData
from tests.tiny import CPU, NETWORK, Recorder, denoiser, training_settings


def noised(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(sigma), 1, 4, 4, generator=generator) * sigma.reshape(-1, 1, 1, 1)
    return x, torch.eye(3)[torch.arange(len(sigma)) % 3]


@pytest.mark.parametrize("sampler", sorted(STEPS))
@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (4, 1.0), (3, 2.0)])
def test_a_teacher_finishes_each_image_as_a_device_would_alone(sampler, steps, guidance):
    model, sigma = denoiser(), torch.tensor([0.5, 0.2, 0.03])
    x, conditions = noised(sigma)
    together = Teacher(model, sampler, steps, 0.02, guidance).finish(x, sigma, conditions)
    for i, level in enumerate(sigma.tolist()):
        one = slice(i, i + 1)
        with torch.no_grad():
            denoise = guided(model, conditions[one], guidance)
            alone, _ = run(STEPS[sampler], denoise, x[one], client_sigmas(level, steps, 0.02))
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def data() -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return TrainingData(images, torch.eye(3)[torch.arange(12) % 2], torch.zeros(12), sigma_high=0.5)


def distiller(folder, steps: int, observer: Recorder, norm: str = "group") -> Distiller:
    trained = denoiser(NETWORK.model_copy(update={"norm": norm}))
    settings = training_settings(steps=steps, batch_size=12, learning_rate=3e-3, label_dropout=0.1)
    teacher = Teacher(trained, "dpmpp_2m", 6, 0.02)
    return Distiller(copy.deepcopy(trained), teacher, data(), settings, folder, CPU, observer, "distilled")


@pytest.mark.parametrize("norm", ["group", "magnitude"])
def test_a_student_arrives_at_once_nearer_to_where_its_teacher_arrives(tmp_path, norm):
    made = distiller(tmp_path, 200, Recorder(), norm)
    student = made.run()
    sigma = torch.full((64,), 0.5)
    x, conditions = noised(sigma)
    with torch.no_grad():
        target = made.teacher.finish(x, sigma, conditions)
        before, after = (
            float((model(x, sigma, conditions) - target).square().mean()) for model in (made.teacher.denoiser, student)
        )
    assert after < 0.5 * before


def test_half_of_the_levels_are_where_the_client_takes_over(tmp_path):
    made = distiller(tmp_path, 1, Recorder())
    sigma = made._batch(0).sigma
    assert (sigma[::2] == 0.5).all() and (sigma[1::2] < 0.5).all()


def test_a_teacher_stays_as_it_was(tmp_path):
    made = distiller(tmp_path, 3, Recorder())
    before = copy.deepcopy(made.teacher.denoiser.state_dict())
    made.run()
    assert all(torch.equal(before[name], now) for name, now in made.teacher.denoiser.state_dict().items())
