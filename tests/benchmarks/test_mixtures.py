"""A mixture of Gaussians per label: its denoiser, draws and likelihood in closed form, and what fits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.mixtures import fit
from benchmarks.mixtures.__main__ import Look, errors, likelihoods, look
from benchmarks.mixtures.finishing import CUTS, Finishing
from benchmarks.mixtures.fit import LEAST, LEVELS, best_shrinkage, drawn_together, grouped, groups_of, mixture
from benchmarks.mixtures.model import MixtureDenoiser, uniforms
from benchmarks.statistics_server import Bench, gaussians, mixtures
from benchmarks.study.cells import Cell, Study
from collafuse.core.moments import Basis, Gaussian, pool, unpacked
from collafuse.core.statistics import Statement
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, Network
from collafuse.evaluation.generated import Generated
from collafuse.learning.gaussian import GaussianDenoiser
from collafuse.nodes.summary import summarise
from tests.tiny import denoiser as tiny_denoiser
from tests.tiny import image_set

SHAPE = (1, 2, 3)


def fitted(seed: int, size: int, count: float) -> Gaussian:
    rng = np.random.default_rng(seed)
    values, vectors = np.linalg.eigh(np.cov(rng.standard_normal((size, 4 * size))))
    return Gaussian(count, 2 * rng.standard_normal(size), values * rng.uniform(0, 2, size), vectors)


def denoiser(coefficients: int = 6) -> MixtureDenoiser:
    """Two labels of three and two Gaussians, and one of all images."""
    basis = Basis(SHAPE, coefficients)
    counts = [[50.0, 30.0, 20.0], [10.0, 90.0], [200.0]]
    seeds = iter(range(9))
    return MixtureDenoiser(basis, [[fitted(next(seeds), basis.dimension, c) for c in several] for several in counts])


def conditions(*columns: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[list(columns)]


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def log_parts(model: MixtureDenoiser, x: np.ndarray, sigma: float, gaussians: list[Gaussian]) -> np.ndarray:
    """log(share N(x; mu, C + sigma^2 I)) of one image's pixels [d], written out in pixels."""
    to_pixels = model.basis.images(np.eye(model.basis.dimension)).reshape(model.basis.dimension, -1)
    parts = []
    for one in gaussians:
        covariance = to_pixels.T @ (one.eigenvectors * one.eigenvalues) @ one.eigenvectors.T @ to_pixels
        covariance += sigma**2 * np.eye(x.size)
        away = x - one.mean @ to_pixels
        share = one.count / sum(each.count for each in gaussians)
        _, log_volume = np.linalg.slogdet(2 * np.pi * covariance)
        parts.append(np.log(share) - 0.5 * (away @ np.linalg.solve(covariance, away) + log_volume))
    return np.array(parts)


def test_a_mixture_of_one_is_the_gaussian_number_for_number():
    basis = Basis(SHAPE, 6)
    gaussians = [fitted(seed, 6, 50) for seed in range(3)]
    one, mixture = GaussianDenoiser(basis, gaussians), MixtureDenoiser(basis, [[each] for each in gaussians])
    x, asked, levels = noise(3), conditions(2, 0, 1), torch.tensor([0.3, 1.0, 4.0])
    assert np.array_equal(mixture.draw(x, 0.7, asked), one.draw(x, 0.7, asked))
    given = torch.from_numpy(x), levels, torch.from_numpy(asked)
    assert torch.equal(mixture(*given), one(*given))


@pytest.mark.parametrize("coefficients", [6, 3])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_likelihood_is_that_of_the_mixture_in_pixels(coefficients, sigma):
    model, x = denoiser(coefficients), 2 * noise(3)
    asked = (0, 2, 1)
    found = model.log_parts(torch.from_numpy(x), sigma, torch.from_numpy(conditions(*asked))).logsumexp(dim=1)
    mixtures = [model.gaussians[:3], model.gaussians[3:5], model.gaussians[5:]]
    for one, answer, label in zip(x, found, asked, strict=True):
        parts = log_parts(model, one.ravel().astype(np.float64), sigma, list(mixtures[label]))
        assert float(answer) == pytest.approx(np.logaddexp.reduce(parts), abs=1e-3)


@pytest.mark.parametrize("coefficients", [6, 3])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_denoiser_is_the_slope_of_the_likelihood(coefficients, sigma):
    """Tweedie: D(x, sigma) = x + sigma^2 grad log p(x), which knows nothing of how D is computed."""
    model, asked = denoiser(coefficients), torch.from_numpy(conditions(0, 1, 0))
    x = torch.from_numpy(2 * noise(3)).requires_grad_()
    model.log_parts(x, sigma, asked).logsumexp(dim=1).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(model(x, sigma, asked).detach(), (x + sigma**2 * x.grad).detach(), atol=1e-4, rtol=1e-4)


def test_each_image_has_its_own_level_and_label():
    model, x = denoiser(), torch.from_numpy(noise(4))
    levels, asked = torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.from_numpy(conditions(2, 0, 0, 1))
    together = model(x, levels, asked)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1], float(levels[i]), asked[i : i + 1]))


@pytest.mark.parametrize("coefficients", [6, 2])
def test_draws_have_the_moments_of_the_noised_mixture(coefficients):
    model, sigma, count = denoiser(coefficients), 0.7, 100_000
    drawn = model.draw(noise(count), sigma, np.repeat(conditions(1), count, axis=0)).reshape(count, -1)
    to_pixels = model.basis.images(np.eye(model.basis.dimension)).reshape(model.basis.dimension, -1)
    gaussians, shares = model.gaussians[3:5], (0.1, 0.9)
    means = np.stack([one.mean @ to_pixels for one in gaussians])
    covariances = [to_pixels.T @ (g.eigenvectors * g.eigenvalues) @ g.eigenvectors.T @ to_pixels for g in gaussians]
    mean = np.average(means, axis=0, weights=shares)
    expected = np.average(covariances, axis=0, weights=shares) + np.cov(means.T, aweights=shares, bias=True)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), expected + sigma**2 * np.eye(6), atol=0.1)


def test_an_images_gaussian_is_keyed_by_its_noise_whatever_the_batch():
    model, x = denoiser(), noise(6)
    together = model.draw(x, 1.0, np.repeat(conditions(0), 6, axis=0))
    for i in range(6):
        np.testing.assert_allclose(model.draw(x[i : i + 1], 1.0, conditions(0))[0], together[i], atol=1e-6)
    numbers = uniforms(noise(4000))
    assert len(set(numbers)) == 4000
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(np.full(10, 400), abs=80)
    assert abs(np.corrcoef(numbers, noise(4000).mean(axis=(1, 2, 3)))[0, 1]) < 0.08


# --- fitting --------------------------------------------------------------------------------------------------


def two_kinds(count: int, seed: int = 0) -> ImageSet:
    """Label a: bright above or bright below, which no Gaussian says; label b: grey."""
    rng = np.random.default_rng(seed)
    plain = image_set(count, side=4)
    pixels = rng.normal(128, 12, plain.pixels.shape)
    bright = rng.random(count) < 0.6
    of_a = plain.labels[:, 0] == 1
    pixels[of_a & bright, :, :2] += 90
    pixels[of_a & ~bright, :, 2:] += 90
    return replace(plain, pixels=pixels.clip(0, 255).astype(np.uint8))


def classifier(images: ImageSet) -> Classifier:
    return Classifier(Network(images.image_shape, len(images.label_names)))


def sites_gaussians(images: ImageSet) -> GaussianDenoiser:
    """What a statistics server has of one site, before its file."""
    file = summarise(images, Statement(images.image_shape, 16), share_labels=True, simulated=True)
    rows = [(file, row) for row in range(len(file.counts))]
    return GaussianDenoiser(Basis(images.image_shape, 16), [pool(part) for part in [*([one] for one in rows), rows]])


def test_one_gaussian_a_label_is_what_a_statistics_server_draws_from_bit_for_bit():
    images = two_kinds(1100)
    start = np.random.default_rng(0).standard_normal((9, 1, 4, 4)).astype(np.float32)
    asked = np.eye(3, dtype=np.float32)[[0, 1, 2] * 3]
    for shrinkage in (0.0, 0.9):
        drawn = mixture(images, 16, 1, shrinkage).draw(start, 0.5, asked)
        assert np.array_equal(drawn, sites_gaussians(images).draw(start, 0.5, asked))
    assert best_shrinkage(images, 16, 1) == 0.0
    bench = Bench(images, images, classifier(images), tiny_denoiser(), np.zeros(0, dtype=np.int64))
    assert np.array_equal(gaussians(bench, 16, None, 1.0).draw(start, 0.5, asked), drawn)


def test_groups_are_the_kinds_that_a_label_has_and_too_small_ones_are_dissolved():
    images = two_kinds(400)
    y = Basis((1, 4, 4), 16).coefficients(images.x0()[images.labels[:, 0] == 1])
    found = groups_of(y, 2)
    above = images.pixels[images.labels[:, 0] == 1][:, 0, :2].mean(axis=(1, 2)) > 170
    assert max(np.mean(found == above), np.mean(found != above)) > 0.98
    sizes = np.bincount(groups_of(y, 9))
    assert 2 <= len(sizes) < 9 and sizes.min() >= LEAST and sizes.sum() == 200


@pytest.mark.parametrize("shrinkage", [0.0, 0.6, 1.0])
def test_shrinking_leaves_each_labels_mean_and_covariance(shrinkage):
    images = two_kinds(400)
    model, one = mixture(images, 16, 3, shrinkage), sites_gaussians(images)
    for label, whole in enumerate(one.gaussians):
        rows = model.members[label, model.log_shares[label].isfinite()].tolist()
        assert len(rows) > 1 or label == 2
        shares = [g.count / whole.count for g in (model.gaussians[row] for row in rows)]
        means = np.stack([model.gaussians[row].mean for row in rows])
        mean = shares @ means
        covariances = [
            (g.eigenvectors * g.eigenvalues) @ g.eigenvectors.T for g in (model.gaussians[row] for row in rows)
        ]
        total = np.tensordot(shares, covariances, 1) + (means - mean).T * shares @ (means - mean)
        np.testing.assert_allclose(mean, whole.mean, atol=1e-5)
        np.testing.assert_allclose(total, (whole.eigenvectors * whole.eigenvalues) @ whole.eigenvectors.T, atol=1e-4)


def test_at_full_shrinkage_what_is_drawn_together_differs_in_total_variance_alone():
    found = drawn_together(grouped(two_kinds(400), 16, 2), 1.0)
    own = unpacked(found.file.covariances[found.labels == 0], 16)
    np.testing.assert_allclose(own[0] / np.trace(own[0]), own[1] / np.trace(own[1]), atol=1e-6)
    across = drawn_together(grouped(two_kinds(400), 16, 1), 1.0, across_labels=True).file.covariances
    np.testing.assert_allclose(across[0] / across[0, 0], across[1] / across[1, 0], rtol=1e-4)
    before = unpacked(grouped(two_kinds(400), 16, 2).file.covariances, 16)
    np.testing.assert_allclose(np.trace(own[0]), np.trace(before[0]), rtol=1e-5)


def test_shrinkage_is_chosen_by_images_that_were_not_fitted_to(monkeypatch):
    """Few images: all of it. Of groups whose covariances truly differ, with many images: none."""
    monkeypatch.setattr(fit, "SHRINKAGES", (0.0, 1.0))
    assert best_shrinkage(two_kinds(250), 16, 2, levels=(0.1,)) == 1.0
    assert best_shrinkage(of_different_directions(4000), 16, 2, levels=(0.1,)) == 0.0


def of_different_directions(count: int) -> ImageSet:
    """Each label varies along rows where it is bright, along columns where it is dark."""
    rng, plain = np.random.default_rng(0), image_set(count, side=4)
    bright = rng.random(count) < 0.5
    stripes = 25 * rng.standard_normal((count, 1, 4, 1))
    pixels = 128 + np.where(bright[:, None, None, None], 50 + stripes, -50 + stripes.transpose(0, 1, 3, 2))
    return replace(plain, pixels=(pixels + 3 * rng.standard_normal(plain.pixels.shape)).clip(0, 255).astype(np.uint8))


def test_a_mixture_is_likelier_than_a_gaussian_where_there_are_kinds():
    train, unseen = two_kinds(600), two_kinds(200, seed=1)
    x = torch.from_numpy(unseen.x0() + 0.2 * np.random.default_rng(2).standard_normal(unseen.pixels.shape)).float()
    asked = torch.from_numpy(unseen.conditions()).float()
    one, two = (mixture(train, 16, k, 0.9).log_parts(x, 0.2, asked).logsumexp(dim=1).mean() for k in (1, 2))
    assert two > one + 0.4


def test_a_mixture_for_which_a_label_has_too_few_images_is_left_out(capsys):
    images = two_kinds(200)
    bench = Bench(images, images, classifier(images), tiny_denoiser(), np.zeros(0, dtype=np.int64))
    assert list(mixtures(bench, [2, 6])) == [2]
    assert "No mixture of 6" in capsys.readouterr().out


def test_what_is_looked_at_is_the_error_and_the_likelihood_of_noisy_images():
    """A Gaussian's mean squared error and entropy are known; a network says no likelihood."""
    sigma, count = 0.5, 4000
    model = MixtureDenoiser(Basis((1, 4, 4), 16), [[Gaussian(50, np.zeros(16), np.full(16, 0.09), np.eye(16))]] * 3)
    values = 0.3 * np.random.default_rng(1).standard_normal((count, 1, 4, 4))
    images = replace(image_set(count), pixels=(127.5 * (values + 1)).round().clip(0, 255).astype(np.uint8))
    found = look(model, images, sigma)
    assert found.error == pytest.approx(0.09 * sigma**2 / (0.09 + sigma**2), rel=0.03)
    assert found.nats == pytest.approx(-8 * np.log(2 * np.pi * np.e * (0.09 + sigma**2)), abs=0.2)
    assert np.isnan(look(tiny_denoiser(), images.take(np.arange(4)), sigma).nats)


def test_tables_say_what_the_first_has_and_how_the_others_differ():
    columns = {"one": [Look(0.5, -32.0)] * len(LEVELS), "two": [Look(0.25, -30.5)] * len(LEVELS)}
    assert "| 0.34 | -2.0000 | +1.50 |" in likelihoods(columns, 16)
    assert "| 4 | 0.50000 | 0.5000 |" in errors(columns)


class Naming:
    """A judge that says which pictures it was shown: their mean grey level."""

    def figures(self, made: Generated, real: ImageSet) -> dict[str, list[float]]:
        return {"frechet": [float(made.pixels.mean()), 0.0], "read_as_asked": [float(len(made) == len(real))]}


def test_every_server_begins_at_every_cut_and_one_client_finishes():
    """With a client that knows the distribution, a walk from pure noise ends where a draw is."""
    images = two_kinds(40)
    exact = mixture(two_kinds(1000), 16, 1, 0.0)
    config = Study.read().config_of(Cell("one-site", "centralised"), Path("images"), Path("cache"))
    finishing = Finishing(exact, config, Naming(), images, images)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).standard_normal((40, 1, 4, 4)).astype(np.float32)
    for cut in CUTS:
        drawn = exact.draw(noise, cut, images.conditions())
        np.testing.assert_allclose(finishing.from_noise(noise, cut), drawn, atol=0.05)
    header, _, *rows = finishing.table({"one": exact}).splitlines()
    assert header == "| cut | one | network | real images, noised |" and len(rows) == len(CUTS)
    for row in rows:
        grey = [float(cell.split()[0]) for cell in row.split("|")[2:-1]]
        assert grey == pytest.approx([float(images.pixels.mean())] * 3, abs=8) and "(100%)" in row
