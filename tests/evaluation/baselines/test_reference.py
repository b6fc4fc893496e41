"""The reference's protocol: what crosses, where a client starts, and what the repair makes exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from collafuse.config import ClientSettings
from collafuse.core.errors import ConfigError
from collafuse.core.noise import SIGMA_MAX, sigma_from_t, t_from_sigma
from collafuse.core.samplers import euler
from collafuse.data.dealing import SiteData
from collafuse.evaluation.baselines import reference
from collafuse.evaluation.baselines.noising import DoubleNoising, FreshReleases
from collafuse.learning.examples import TrainingData, to_float
from tests.nodes.sites import config
from tests.tiny import CPU, Recorder, denoiser, image_set, training_settings


def client(**cut: float | str) -> ClientSettings:
    return ClientSettings.model_validate({"cut": cut})


@pytest.mark.parametrize("cut", [0.2, 0.34, 1.0, 4.0])
def test_the_repaired_start_is_where_the_crossing_tensor_stands(cut):
    """A clean image, noised by the site and again by the schedule, is at the repaired level an ordinary noisy image."""
    rng, x0, count = np.random.default_rng(0), 0.7, 400_000
    site, schedule = rng.standard_normal((2, count))
    copy = (x0 + cut * site) / math.sqrt(1 + cut**2)
    start = reference.repaired_start(client(sigma=cut))
    taken = reference.as_taken((copy + cut * schedule).astype(np.float32), cut, start)
    assert taken.mean() == pytest.approx(x0, abs=5 * start / math.sqrt(count))
    assert taken.std() == pytest.approx(start, rel=0.01)


@pytest.mark.parametrize(("share", "time"), [(0.1, 0.144), (0.2, 0.284), (0.3, 0.419), (0.5, 0.669), (0.8, 0.940)])
def test_the_repaired_start_of_a_share_on_the_cosine_schedule(share, time):
    # Computed apart, from alpha_bar(t) = alpha_bar(share)^2.
    assert t_from_sigma(reference.repaired_start(client(t=share, schedule="cosine")), "cosine") == pytest.approx(
        time, abs=1e-3
    )


def test_the_published_start_is_t_plus_t_times_one_minus_t():
    assert reference.start(client(t=0.2, schedule="cosine")) == pytest.approx(sigma_from_t(0.36, "cosine"))
    assert reference.start(client(t=0.2, schedule="linear")) == pytest.approx(sigma_from_t(0.36, "linear"))
    assert reference.start(client(sigma=79.0)) == SIGMA_MAX


def test_no_repair_starts_above_pure_noise():
    with pytest.raises(ConfigError, match="above 80"):
        reference.repaired_start(client(sigma=9.0))


def test_with_perfect_denoisers_the_repair_keeps_the_variance_and_the_published_start_does_not():
    """Gaussian data of variance 0.1, closed-form denoisers at both sides: what is left is the protocol's error."""
    cut, variance, count = 0.34, 0.1, 200_000
    settings = client(sigma=cut)
    copies = (variance + cut**2) / (1 + cut**2)
    x = SIGMA_MAX * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at_cut = euler(lambda x, s: x * copies / (copies + s**2), x, list(np.geomspace(SIGMA_MAX, cut, 300)))

    def finished(start: float) -> float:
        taken = torch.from_numpy(reference.as_taken(at_cut.numpy(), cut, start)).double()
        levels = [*np.geomspace(start, 0.002, 300), 0.0]
        return float(euler(lambda x, s: x * variance / (variance + s**2), taken, levels).var()) / variance

    assert finished(reference.repaired_start(settings)) == pytest.approx(1, abs=0.02)
    assert finished(reference.start(settings)) < 0.95  # started too high, too much is taken for noise
    assert finished(cut) > 1.1  # and too low, too little


# --- what the server learns from ----------------------------------------------------------------------------


def trainer(kind, tmp_path, floor=0.5):
    images = image_set(8)
    data = TrainingData(torch.from_numpy(images.pixels), torch.zeros(8, 3), torch.full((8,), floor), SIGMA_MAX)
    return kind(denoiser(), data, training_settings(), tmp_path, CPU, Recorder())


def made(one, step, count=8):
    """What a step learns from the first images."""
    rows = torch.arange(count)
    return one.examples(to_float(one.data.images[rows]), rows, step)


def test_copies_are_fresh_at_every_step_and_the_same_when_it_is_repeated(tmp_path):
    one = trainer(FreshReleases, tmp_path)
    first, _, _ = made(one, 0)
    assert torch.equal(first, made(trainer(FreshReleases, tmp_path), 0)[0])
    assert not torch.equal(first, made(one, 1)[0])
    clean, _, _ = made(trainer(FreshReleases, tmp_path, floor=0.0), 0)
    assert float((first - clean).std()) == pytest.approx(0.5, rel=0.2)


def test_fresh_copies_are_trained_as_releases_are(tmp_path):
    _, floor, low = made(trainer(FreshReleases, tmp_path), 0, 4)
    assert floor.tolist() == [0.5] * 4 and low.tolist() == pytest.approx([0.525] * 4)


def test_double_noising_takes_scaled_copies_for_clean_images(tmp_path):
    z, floor, low = made(trainer(DoubleNoising, tmp_path), 3, 4)
    assert torch.allclose(z, made(trainer(FreshReleases, tmp_path), 3, 4)[0] / math.sqrt(1.25))
    assert floor.tolist() == [0.0] * 4 and low.tolist() == [0.5] * 4


def test_the_reference_server_knows_the_spread_of_the_copies():
    images = image_set(64)
    part = reference.server_part(config(), {"a": SiteData(images, images.take(np.arange(0)))})
    copies = (images.x0().var() + 0.25) / 1.25
    assert part.settings.sigma_data == pytest.approx(math.sqrt(copies), rel=1e-3)
