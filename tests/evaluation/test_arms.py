"""collafuse.evaluation.arms: each arm is the images that its name says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.config import from_mapping
from collafuse.core.errors import ConfigError
from collafuse.core.noise import Cut
from collafuse.core.pictures import to_uint8
from collafuse.data.dealing import load_sites
from collafuse.evaluation import arms, baselines
from collafuse.evaluation.arms import SplitRun, arms_of
from collafuse.nodes import client as nodes_client
from collafuse.nodes.runfolder import RunFolder
from tests.evaluation.conftest import SETTINGS
from tests.tiny import CPU, Recorder


@pytest.fixture
def split(digits_run) -> SplitRun:
    sites = load_sites(digits_run.read_config())
    return SplitRun(digits_run, {name: site.held_out for name, site in sites.items()}, CPU)


@pytest.mark.parametrize("client", ["north", "south"])
def test_every_arm_makes_as_many_as_asked_and_the_same_again(split, client):
    for arm in split.arms():
        made, again, other = (arm.generate(client, 6, seed) for seed in (1, 1, 2))
        assert made.pixels.shape == (6, 8, 8, 1)
        assert (made.pixels == again.pixels).all()
        assert (made.pixels != other.pixels).any()
        assert set(made.label_names) >= set(split.held_out[client].label_names)


def test_batches_change_no_picture(split, monkeypatch):
    whole = [arm.generate("north", 5, 0).pixels for arm in split.arms()]
    monkeypatch.setattr(arms, "BATCH", 2)
    for arm, before in zip(split.arms(), whole, strict=True):
        assert np.abs(arm.generate("north", 5, 0).pixels.astype(int) - before).max() <= 1


def test_a_client_that_were_the_server_would_make_alone_what_both_make(split):
    # Cutting is slicing: with one denoiser on both sides the whole way is the same, in the same steps.
    split.models["north"] = split.server.model
    alone, both = split.client_alone("north", 4, 0), split.composite("north", 4, 0)
    assert np.abs(alone.pixels.astype(int) - both.pixels).max() <= 1


@pytest.mark.parametrize("batch", [256, 3])
def test_a_client_goes_on_from_the_servers_last_step_where_that_is_sent(split, monkeypatch, batch):
    """As a device does: then the multistep sampler too is the same with and without a cut."""
    monkeypatch.setattr(arms, "BATCH", batch)
    server, multistep = split.server.config.server, {"name": "dpmpp_2m"}
    sampler, mine = server.sampler.model_copy(update=multistep), split.settings["north"].sampler
    sends = {"server": server.model_copy(update={"sampler": sampler, "send_previous": True})}
    split.server.config = split.server.config.model_copy(update=sends)
    client = {"sampler": mine.model_copy(update=multistep)}
    split.settings["north"] = split.settings["north"].model_copy(update=client)
    split.models["north"] = split.server.model
    alone, both = split.client_alone("north", 4, 0), split.composite("north", 4, 0)
    assert np.abs(alone.pixels.astype(int) - both.pixels).max() <= 1
    delivered = split.from_server("north", 4, 0)
    cold = split.finished("north", replace(delivered, previous_x0_hat=None, previous_sigma=None))
    assert np.abs(cold.pixels.astype(int) - both.pixels).max() > 1


def test_the_server_alone_is_asked_about_nothing_below_what_it_learned(split, monkeypatch):
    asked, denoiser = [], split.server.model.denoiser
    forward = denoiser.forward
    monkeypatch.setattr(denoiser, "forward", lambda x, sigma, c: asked.append(float(sigma)) or forward(x, sigma, c))
    made = split.server_alone("south", 2, 0)
    assert min(asked) == pytest.approx(Cut(1.5).lowest_trained)
    assert len(asked) == 5  # four steps down, then the image itself
    assert len(made) == 2


def test_true_noise_that_vanishes_leaves_the_held_out_images(split, monkeypatch):
    monkeypatch.setattr(nodes_client, "finish", lambda denoiser, x, sigma, *rest: x / (1 + 0 * sigma))
    monkeypatch.setattr(arms, "start_noise", lambda indices, shape, seed: np.zeros((len(indices), *shape)))
    count = len(split.held_out["north"]) + 3
    made, images = split.from_true_noise("north", count, 0), split.held_out["north"]
    assert (made.pixels[:-3] == to_uint8(images.x0())).all()
    assert (made.labels[-3:] == images.labels[:3]).all()


def test_what_a_site_keeps_is_asked_for_by_no_arm(split, monkeypatch):
    sites = split.server.sites
    monkeypatch.setitem(sites, "north", replace(sites["north"], label_names=None))
    asked, finish_all = [], arms.finish_all

    def finish(denoiser, x, sigma, conditions, *rest):
        asked.append(conditions)
        return finish_all(denoiser, x, sigma, conditions, *rest)

    monkeypatch.setattr(arms, "finish_all", finish)
    for arm in split.arms():
        assert arm.generate("north", 3, 0).labels is None, arm.name
    assert len(asked) == 2 and all((one == [0, 0, 1]).all() for one in asked)  # "no condition", for both that finish


def test_a_run_of_an_unknown_method_is_refused(digits_run, monkeypatch):
    monkeypatch.setattr(arms, "METHODS", {})
    with pytest.raises(ConfigError, match="'collafuse' of .* is not measured"):
        arms_of(digits_run, {}, CPU)


def test_a_baseline_stands_beside_with_the_images_that_it_generates(tmp_path):
    config = from_mapping(SETTINGS | {"method": "centralised"})
    run = RunFolder(tmp_path / "run")
    baselines.train(config, run, CPU, lambda node: Recorder())
    (arm,) = arms_of(run, {}, CPU)
    made = arm.generate("north", 4, 1)
    assert arm.name == "centralised" and (made.pixels == baselines.generate(run, "north", 4, 1, CPU).pixels).all()


def test_a_statistics_server_has_the_same_arms(statistics_run):
    held_out = {name: site.held_out for name, site in load_sites(statistics_run.read_config()).items()}
    for arm in arms_of(statistics_run, held_out, CPU):
        assert arm.generate("north", 4, 1).pixels.shape == (4, 8, 8, 1)
