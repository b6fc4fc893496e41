"""The closed-form denoiser and draws of a statistics server, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError
from collafuse.core.moments import Basis, Gaussian
from collafuse.core.samplers import STEPS, run
from collafuse.learning import gaussian
from collafuse.learning.gaussian import GaussianDenoiser, TrainedGaussians
from tests.damage import bit_flips, safetensors_parts, truncations

SHAPE = (1, 2, 3)


def fitted(seed: int, size: int) -> Gaussian:
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(np.cov(rng.standard_normal((size, 4 * size))))
    return Gaussian(60.0 + seed, 0.5 * rng.standard_normal(size), values * rng.uniform(0, 2, size), vectors)


def denoiser(coefficients: int = 6, labels: int = 2) -> GaussianDenoiser:
    basis = Basis(SHAPE, coefficients)
    return GaussianDenoiser(basis, [fitted(seed, basis.dimension) for seed in range(labels + 1)])


def conditions(*columns: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[list(columns)]


def pixel_moments(model: GaussianDenoiser, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] of images, written out."""
    one = model.gaussians[label]
    basis = model.basis.images(np.eye(model.basis.dimension)).reshape(model.basis.dimension, -1)
    return one.mean @ basis, basis.T @ (one.eigenvectors * one.eigenvalues) @ one.eigenvectors.T @ basis


@pytest.mark.parametrize("coefficients", [6, 3])
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_the_denoiser_is_the_posterior_mean(coefficients, sigma):
    """Against mu + C (C + sigma^2 I)^-1 (x - mu) in pixels, by solving."""
    model = denoiser(coefficients)
    x = np.random.default_rng(5).standard_normal((3, *SHAPE))
    found = model(torch.from_numpy(x).float(), sigma, torch.from_numpy(conditions(0, 2, 1))).numpy()
    for one, answer, label in zip(x, found, (0, 2, 1), strict=True):
        mean, covariance = pixel_moments(model, label)
        gain = np.linalg.solve(covariance + sigma**2 * np.eye(6), one.ravel() - mean)
        np.testing.assert_allclose(answer.ravel(), mean + covariance @ gain, atol=1e-5)


def test_the_denoiser_is_the_posterior_mean_by_counting():
    """Of many draws of x0 and x, those with x near a point have the mean that D says."""
    model = GaussianDenoiser(Basis((1, 1, 1), 1), [Gaussian(50, np.array([0.3]), np.array([0.5]), np.eye(1))])
    rng = np.random.default_rng(0)
    x0 = 0.3 + np.sqrt(0.5) * rng.standard_normal(2_000_000)
    x = x0 + 0.8 * rng.standard_normal(len(x0))
    near = np.abs(x - 1.2) < 0.02
    found = float(model(torch.full((1, 1, 1, 1), 1.2), 0.8, torch.ones(1, 1)))
    assert x0[near].mean() == pytest.approx(found, abs=5 * x0[near].std() / np.sqrt(near.sum()))


def test_each_image_has_its_own_level_and_label():
    model, x = denoiser(), torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    levels, asked = torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.from_numpy(conditions(2, 0, 0, 1))
    together = model(x, levels, asked)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1], float(levels[i]), asked[i : i + 1]))


@pytest.mark.parametrize("coefficients", [6, 2])
def test_draws_have_the_moments_of_noised_images(coefficients):
    model, sigma, count = denoiser(coefficients), 0.7, 200_000
    noise = np.random.default_rng(1).standard_normal((count, *SHAPE)).astype(np.float32)
    drawn = model.draw(noise, sigma, np.repeat(conditions(1), count, axis=0)).reshape(count, -1)
    mean, covariance = pixel_moments(model, 1)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), covariance + sigma**2 * np.eye(6), atol=0.05)


def test_a_draw_is_where_a_sampler_of_many_steps_arrives():
    model, asked = denoiser(), torch.from_numpy(conditions(0))
    noise = np.random.default_rng(3).standard_normal((1, *SHAPE)).astype(np.float32)
    high = torch.from_numpy(model.draw(noise, 80.0, conditions(0)))
    sigmas = list(np.geomspace(80.0, 0.5, 400))
    arrived, _ = run(STEPS["heun"], lambda x, sigma: model(x, sigma, asked), high, sigmas)
    np.testing.assert_allclose(arrived.numpy(), model.draw(noise, 0.5, conditions(0)), atol=2e-3)


# --- the file -------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    gaussian.save(tmp_path / "weights.safetensors", TrainedGaussians(denoiser(), ("a", "b")))
    return tmp_path / "weights.safetensors"


def test_gaussians_come_back_as_they_were(path):
    found, model = gaussian.load(path), denoiser()
    assert found.label_names == ("a", "b") and len(found.id) == 16
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    asked = torch.from_numpy(conditions(0, 1, 2))
    torch.testing.assert_close(found.denoiser(x, 1.0, asked), model(x, 1.0, asked))
    assert [one.count for one in found.denoiser.gaussians] == [60.0, 61.0, 62.0]


def test_the_file_holds_nothing_but_gaussians(path):
    header, _ = safetensors_parts(path.read_bytes())
    assert set(header) - {"__metadata__"} == {"counts", "means", "eigenvalues", "eigenvectors"}


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("eigenvalues", lambda v: -v - 1, "an eigenvalue is below 0"),
        ("eigenvectors", lambda v: 2 * v, "not orthonormal"),
        ("eigenvectors", lambda v: v * np.float32(np.nan), "not finite"),
        ("means", lambda v: v[:, :-1], "other sizes"),
        ("counts", lambda v: v[:-1], "other sizes"),
        ("counts", lambda v: v.astype(np.float32), "'counts' is float32"),
    ],
)
def test_a_changed_file_is_refused(path, tensor, change, message):
    file = tensorfile.read(path, gaussian.KIND, gaussian.VERSION)
    tensors = file.tensors | {tensor: change(file.tensors[tensor])}
    tensorfile.write(path, gaussian.KIND, gaussian.VERSION, file.fields.rest(), tensors, overwrite=True)
    with pytest.raises(FileFormatError, match=message):
        gaussian.load(path)


def test_truncations_and_bit_flips_are_refused(path):
    data = path.read_bytes()
    for spoiled in [*truncations(data, 40), *bit_flips(data, 100)]:
        path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match="weights"):
            gaussian.load(path)
