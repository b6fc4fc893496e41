"""The study: what its cells are, which trainings they share, and what its table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.study import errors, methods, steps
from benchmarks.study.cells import REAL, Cell, Study
from benchmarks.study.table import finished, to_markdown
from benchmarks.study.turns import alone
from collafuse.core.noise import SIGMA_MAX
from collafuse.data.dealing import SiteData
from collafuse.learning.examples import TrainingData
from tests.tiny import CPU, Recorder, denoiser, image_set, training_settings

STUDY = Study.read()
MAIN = Cell("one-site", "collafuse", 1.0)


@pytest.mark.parametrize("cell", STUDY.cells, ids=lambda cell: cell.key)
def test_every_cell_is_a_configuration_with_the_networks_and_steps_of_all(cell):
    config = STUDY.config_of(cell, Path("images"), Path("cache"))
    assert config.method == cell.method or cell.method == REAL
    assert config.server.training.seed == cell.seed and config.server.network.dropout == 0
    network = config.server.network.model_copy(update={"dropout": 0.2 * (cell.variant == "client-dropout")})
    for client in config.clients.values():
        assert client.network == network and client.training.seed == cell.seed
        assert client.sampler.autoguidance == config.server.sampler.autoguidance
        times = {"server-longer": 3, "server-longest": 9, "best-step-longer": 4, "best-step-longer-guided": 4}
        times = times.get(cell.variant, 1)
        assert config.server.training.steps == times * client.training.steps
        assert config.server.training.validation == client.training.validation


def test_an_error_is_that_of_the_estimates_under_the_same_noise_for_each():
    images = image_set(1200)
    own = errors.error(lambda x, sigma, conditions: x, images, 0.5)
    assert own == pytest.approx(0.25, rel=0.02) and own == errors.error(lambda x, sigma, conditions: x, images, 0.5)
    assert errors.error(lambda x, sigma, conditions: 0 * x, images, 0.5) == pytest.approx((images.x0() ** 2).mean())


def test_no_cell_stands_twice():
    assert len(set(STUDY.cells)) == len(STUDY.cells)


def test_the_committed_lines_are_of_cells_that_stand_in_the_list():
    assert set(finished()) <= set(STUDY.cells)


def parts(tmp_path, cell: Cell) -> dict[str, str]:
    images = image_set(12, side=16)
    images = replace(images, pixels=np.repeat(images.pixels, 3, axis=1))
    sites = {"all": SiteData(images, images.take(np.arange(0)))}
    config = STUDY.config_of(cell, Path("images"), Path("cache"))
    return {part.node: part.digest for part in methods.parts_of(cell, config, sites, tmp_path)}


def test_cells_share_a_training_where_it_is_the_same_and_nowhere_else(tmp_path):
    main, cut = parts(tmp_path, MAIN), parts(tmp_path, replace(MAIN, variant="handover-1"))
    assert main["server"] == cut["server"] and main["all"] != cut["all"]
    for same_client in ("fresh", "levels-near", "ema-longer"):
        other = parts(tmp_path, replace(MAIN, variant=same_client))
        assert main["all"] == other["all"] and main["server"] != other["server"], same_client
    before = parts(tmp_path, replace(MAIN, variant="clean-weight"))
    assert before["all"] == cut["all"] and before["server"] != cut["server"]
    assert parts(tmp_path, Cell("one-site", "reference", 1.0))["all"] == cut["all"]
    assert parts(tmp_path, replace(MAIN, variant="autoguided")) == main
    for nothing_trained in methods.UNTRAINED:
        assert parts(tmp_path, replace(MAIN, variant=nothing_trained)) == {"all": cut["all"]}
    assert not set(parts(tmp_path, replace(MAIN, seed=1)).values()) & set(main.values())
    assert not set(parts(tmp_path, replace(MAIN, cut=4.0)).values()) & set(main.values())
    assert len(list((tmp_path / "releases" / "one-site-1").glob("*.safetensors"))) == 1  # for all of these


def test_a_mixture_of_one_delivers_what_the_statistics_server_does_but_for_its_files_rounding(tmp_path):
    images = image_set(120, side=16)
    site = SiteData(replace(images, pixels=np.repeat(images.pixels, 3, axis=1)), images.take(np.arange(0)))
    cell, start = replace(MAIN, variant="statistics"), np.random.default_rng(0).standard_normal((4, 3, 16, 16))
    config = STUDY.config_of(cell, Path("images"), Path("cache"))
    asked = site.train.conditions()[:4]
    servers = methods.statistics_server(cell, config, {"all": site}, tmp_path), methods.mixture_server(site, 1)
    one, other = (server.begin(start.astype(np.float32), 1.0, asked) for server in servers)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_of_several_studies_each_takes_what_no_other_has(tmp_path):
    with alone(tmp_path / "cells" / "one") as mine, alone(tmp_path / "cells" / "one", wait=False) as theirs:
        assert mine and not theirs
    with alone(tmp_path / "cells" / "one", wait=False) as later:
        assert later


def line(cell: Cell, frechet: float, sites: dict[str, float]) -> dict:
    def figures(value: float) -> dict:
        return {"frechet": [value, 0.1], "kernel": [0.002, 0.0005]}

    return cell.to_json() | {
        "figures": figures(frechet),
        "figures_per_site": {name: figures(value) for name, value in sites.items()},
        "samples": 50,
        "reference_images": 60,
        "training_images": {"all": 70},
        "steps": {"whole": 80},
        "judge_accuracy": 0.5,
        "judge": "abc",
    }


def test_the_table_joins_seeds_and_compares_with_one_model_of_the_same_seed_and_levels():
    whole = Cell("one-site", "centralised", 1.0)
    elsewhere, early = replace(whole, variant="handover-1"), replace(MAIN, variant="handover-1")
    sites = {"a": 2, "b": 1}
    measured = {
        whole: (10, sites),
        replace(whole, seed=1): (20, sites),
        MAIN: (11, sites | {"a": 3}),
        replace(MAIN, seed=1): (26, sites | {"a": 5}),
        elsewhere: (30, sites),
        early: (15, sites),
    }
    text = to_markdown({cell: line(cell, *figures) for cell, figures in measured.items()}, STUDY)
    assert "| collafuse | 1 | 2 | 18.5 ± 11 | 0.002 ± 0 | - | - | - | 1.200 ± 0.14 |" in text
    assert "| collafuse, handover-1 | 1 | 1 | 15 ± 0.1 | 0.002 ± 0.0005 | - | - | - | 0.500 |" in text
    assert "| collafuse | 1 | 2 | 4 ± 1.4 | 1 ± 0 |" in text  # at the sites
    assert "50 samples against 60 held-out images" in text


def test_figures_of_two_judges_have_no_ratio_and_the_table_names_both():
    whole, other = Cell("one-site", "centralised", 1.0), {"judge": "def", "judge_accuracy": 0.6}
    lines = {whole: line(whole, 10, {}), MAIN: line(MAIN, 11, {}) | other}
    text = to_markdown(lines, STUDY)
    assert "| collafuse | 1 | 1 | 11 ± 0.1 | 0.002 ± 0.0005 | - | - | - | - |" in text
    assert "50.0% of held-out ones right (abc; seed 0) and one that reads 60.0%" in text


@pytest.mark.parametrize(
    ("cell", "variant"),
    [
        (MAIN, None),
        (replace(MAIN, variant="fresh"), None),
        (replace(MAIN, variant="handover-1.5"), "handover-1.5"),
        (replace(MAIN, variant="clean-weight"), "handover-1"),
        (replace(MAIN, variant="statistics", cut=4.0, seed=2), "handover-1"),
        (Cell("skewed-250", "local", 1.0, "handover-1"), "handover-1"),
        (replace(MAIN, variant="ancestral", seed=1), "ancestral"),
        (replace(MAIN, variant="ancestral", method="reference"), "ancestral"),
        (replace(MAIN, variant="longer"), "longer"),
        (replace(MAIN, variant="autoguided"), "autoguided"),
        (replace(MAIN, variant="client-dropout"), None),
    ],
)
def test_a_cell_stands_beside_the_whole_model_that_walks_its_levels(cell, variant):
    beside = STUDY.beside(cell)
    assert beside == Cell(cell.data, "centralised", cell.cut, variant, cell.seed)
    one, other = (STUDY.config_of(of, Path("images"), Path("cache")) for of in (cell, beside))
    assert {c.handover_sigma for c in one.clients.values()} == {c.handover_sigma for c in other.clients.values()}
    assert one.server.sampler == other.server.sampler
    assert {c.training.steps for c in one.clients.values()} == {c.training.steps for c in other.clients.values()}


def test_real_images_stand_beside_no_model():
    assert STUDY.beside(Cell("one-site", REAL)) is None


def test_a_figure_by_evaluations_changes_those_of_clients_alone():
    config = STUDY.config_of(MAIN, Path("images"), Path("cache"))
    changed = steps.finishing_in(config, 24)
    assert {c.sampler.steps for c in changed.clients.values()} == {24} and changed.server == config.server
    changed = steps.guided_by(config, (1.5, 2.0))
    assert {c.sampler.guidance for c in changed.clients.values()} == {2.0} and changed.server.sampler.guidance == 1.5
    changed = steps.guided_by(config, (1.5, 2.0), "autoguidance")
    assert {c.sampler.autoguidance for c in changed.clients.values()} == {2.0}
    assert (changed.server.sampler.autoguidance, changed.server.sampler.guidance) == (1.5, 1.0)
    assert changed.server.sampler.steps == config.server.sampler.steps


def test_the_clean_weight_counts_what_lies_near_the_release_less(tmp_path):
    """On Gaussian data, whose best denoiser is known: (1 - k) (1 + (cut / sigma_data)^2) of it is left."""
    cut, levels, pixels = 1.0, torch.tensor([1.06, 1.5, 4.0]), 200_000
    images = image_set(3)
    floor = torch.full((3,), cut)
    data = TrainingData(torch.from_numpy(images.pixels), torch.zeros(3, 3), floor, SIGMA_MAX)
    one = methods.CleanWeight(denoiser(), data, training_settings(), tmp_path, CPU, Recorder())
    sd, generator = one.model.sigma_data, torch.Generator().manual_seed(0)
    x0, released, added = (torch.randn(3, 1, 1, pixels, generator=generator) for _ in range(3))

    def perfect(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x * (sd**2 / (sd**2 + sigma.square())).reshape(-1, 1, 1, 1)

    losses = one.losses(perfect, sd * x0 + cut * released, floor, levels, added)
    expected = (1 - (cut / levels).square()) * (1 + (cut / sd) ** 2)
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=0.02)
