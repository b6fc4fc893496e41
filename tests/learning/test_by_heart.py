"""A server that learns the noise of its releases is told so: its loss falls below what anybody else reaches."""

from __future__ import annotations

import pytest
import torch

from collafuse.evaluation.baselines.noising import FreshReleases
from collafuse.learning.examples import TrainingData
from collafuse.learning.losses import Losses
from collafuse.learning.objective import denoising_loss, least_loss
from collafuse.learning.training import Trainer
from tests.tiny import CPU, NETWORK, Recorder, denoiser, training_settings

CUT = 0.5


def flat_images(count: int, z: torch.Tensor | None = None) -> TrainingData:
    """Images of one grey each, as they are or as released."""
    images = torch.full((count, 1, 4, 4), 128, dtype=torch.uint8) if z is None else z.half()
    return TrainingData(images, torch.eye(3)[torch.arange(count) % 2], torch.full((count,), CUT), 80.0)


def trained(tmp_path, data: TrainingData, kind: type[Trainer] = Trainer, **settings) -> Recorder:
    observer = Recorder()
    settings = {"learning_rate": 1e-2, "batch_size": 32, "steps": 40, "warmup_steps": 5, "log_every": 10, **settings}
    kind(denoiser(NETWORK), data, training_settings(**settings), tmp_path, CPU, observer).run()
    return observer


@pytest.mark.parametrize("sigma", [0.53, 1.0, 40.0])
def test_whoever_knows_the_images_and_not_the_noise_has_the_least_loss(sigma):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((200_000, 1, 1, 1), 0.3, dtype=torch.float64)
    n, more = (torch.randn(x0.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    floor, level = (torch.full((len(x0),), value, dtype=torch.float64) for value in (CUT, sigma))
    losses = denoising_loss(lambda x, s: x0, x0 + CUT * n, floor, level, more, 0.4)
    assert losses.mean() == pytest.approx(least_loss(floor, level, 0.4)[0].item(), rel=0.02)


def test_it_is_nothing_for_clean_images():
    assert (least_loss(torch.zeros(3), torch.tensor([0.1, 1.0, 9.0]), 0.5) == 0).all()


class ByHeart(Trainer):
    """Knows the noise of every release."""

    def losses(self, denoise, z, floor, sigma, noise):
        k = (floor / sigma).square().reshape(-1, 1, 1, 1)
        return super().losses(lambda x, s: 0 * denoise(x, s) + (z - k * x) / (1 - k), z, floor, sigma, noise)


def test_a_server_that_knows_its_releases_by_heart_says_so_once(tmp_path):
    z = CUT * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    observer = trained(tmp_path, flat_images(64, z), ByHeart)
    assert len(observer.records) == 4 and all(one["loss"] < 1e-3 < one["least_loss"] for one in observer.records)
    (note,) = observer.notes
    assert (
        note.startswith("warning: at step 10 ")
        and "fewer steps, on more images, with network.dropout, or with training.validation" in note
    )


def test_one_that_keeps_the_best_step_is_not_told_to(tmp_path):
    z = CUT * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    observer = trained(tmp_path, flat_images(64, z), ByHeart, validation=0.25)
    _, note, *_ = observer.notes
    assert "(collafuse audit). Kept are the weights of the step that knew most" in note


@pytest.mark.parametrize(("batch_size", "log_every"), [(32, 10), (4, 1)])
def test_one_to_whom_the_noise_is_always_new_has_nothing_to_learn_by_heart(tmp_path, batch_size, log_every):
    observer = trained(tmp_path, flat_images(2), FreshReleases, batch_size=batch_size, log_every=log_every)
    assert not observer.notes


@pytest.mark.parametrize(
    ("share", "values", "known"),
    [(0.94, 10**6, True), (0.96, 10**6, False), (0.94, 1000, False), (0.7, 1000, True), (0.1, 32, False)],
)
def test_chance_alone_raises_no_alarm(share, values, known):
    """The mean square of so many standard normal numbers spreads by sqrt(2 / values)."""
    assert Losses([share * 8.0], [2], [8.0], values, 1.0).by_heart == known


def test_a_training_on_clean_images_has_no_least_loss(tmp_path):
    data = flat_images(2)
    observer = trained(tmp_path, TrainingData(data.images, data.conditions, torch.zeros(2), 0.5), steps=10)
    assert not observer.notes and all("least_loss" not in record for record in observer.records)
