"""What a node learns from: the order of its images, and the scale of what lies behind the noise."""

from __future__ import annotations

import math

import pytest
import torch

from collafuse.learning.examples import TrainingData, batch_rows, estimate_sigma_data, to_float


def grey_levels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2), (100, 1), (5, 3)])
def test_each_epoch_visits_every_image_once(count, batch_size):
    steps = math.ceil(4 * count / batch_size)
    stream = torch.cat([batch_rows(count, batch_size, step, seed=0) for step in range(steps)])[: 4 * count]
    epochs = stream.reshape(4, count)
    assert (epochs.sort(dim=1).values == torch.arange(count)).all()
    assert count < 5 or len({tuple(epoch.tolist()) for epoch in epochs}) == 4  # in a new order each time


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    later, first = batch_rows(50, 8, 3, seed=0), batch_rows(50, 8, 0, seed=0)
    assert torch.equal(batch_rows(50, 8, 3, seed=0), later)
    assert not torch.equal(later, first) and not torch.equal(batch_rows(50, 8, 3, seed=1), later)


def test_the_scale_of_clean_images_is_measured():
    images = grey_levels(200)
    data = TrainingData(images, torch.zeros(200, 1), torch.zeros(200), 0.5)
    assert estimate_sigma_data(data) == pytest.approx(float(to_float(images).std()), rel=1e-3)


@pytest.mark.parametrize("seed", [2, 6, 18])
def test_the_scale_is_the_same_for_any_number_of_threads_whose_sums_end_in_other_digits(seed):
    images = (0.5 * torch.randn(2048, 3, 16, 16, generator=torch.Generator().manual_seed(seed))).half()
    data = TrainingData(images, torch.zeros(2048, 1), torch.zeros(2048), 80.0)
    threads, found = torch.get_num_threads(), {}
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found[count] = estimate_sigma_data(data)
    finally:
        torch.set_num_threads(threads)
    assert set(found.values()) == {found[1]} and found[1] == pytest.approx(float(images.double().std()), rel=1e-5)


@pytest.mark.parametrize("sigma_cut", [0.2, 1.0])
def test_the_scale_behind_a_release_is_measured_without_its_noise(sigma_cut):
    images = to_float(grey_levels(2000))
    z = images + sigma_cut * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    noisier = z[:500] + 5  # what has more noise says less and is left out
    floors = torch.cat([torch.full((2000,), sigma_cut), torch.full((500,), 2 * sigma_cut)])
    data = TrainingData(torch.cat([z, noisier]).half(), torch.zeros(2500, 1), floors, 80.0)
    assert estimate_sigma_data(data) == pytest.approx(float(images.std()), abs=0.03)


@pytest.mark.parametrize("seed", range(8))
def test_where_noise_hides_the_scale_it_is_one_that_images_can_have(seed):
    z = 50 * torch.randn(100, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    data = TrainingData(z.half(), torch.zeros(100, 1), torch.full((100,), 50.0), 80.0)
    assert 0.1 <= estimate_sigma_data(data) <= 1  # images lie in [-1, 1]
