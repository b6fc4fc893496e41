"""Whole and split sampling are one sampler, and clipping bounds what it says it bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collafuse.core.noise import SIGMA_MAX, SIGMA_MIN
from collafuse.evaluation.baselines import halves, pfdm, whole
from collafuse.evaluation.baselines.asked import Asked
from collafuse.learning.autoguidance import Early
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.sites import Site
from tests.nodes.sites import config
from tests.tiny import CPU, denoiser

SITES = {"a": Site(0.5, ("a", "b"), simulated=True)}


@pytest.mark.parametrize(
    ("theirs", "mine"), [("euler", "euler"), ("heun", "heun"), ("euler", "dpmpp_2m"), ("euler_ancestral", "heun")]
)
def test_one_model_as_both_halves_makes_what_it_makes_as_a_whole(theirs, mine):
    """The same noise, labels, levels and steps: what differs between methods is the models alone."""
    model = TrainedModel(denoiser(), "whole", SIGMA_MIN, SIGMA_MAX, 0)
    server, client = {"name": theirs, "guidance": 2.0}, {"name": mine, "steps": 3, "guidance": 0.5}
    settings = config(server={"sampler": server}, handover=1.2, sampler=client)
    asked = Asked(settings, {"whole": model, "server": model, "a": model}, SITES, "a", 6, 3, CPU)
    one, two = whole.sample(asked), halves.sample(asked)
    assert np.array_equal(one.labels, two.labels) and one.label_names == two.label_names
    assert np.abs(one.pixels.astype(int) - two.pixels).max() <= 1  # a grey level, where rounding went the other way


def test_each_half_is_guided_by_its_own_early_version_as_the_whole_is_there():
    model = TrainedModel(denoiser(), "whole", SIGMA_MIN, SIGMA_MAX, 8, early=Early(denoiser(seed=1), 2))
    both = {"server": {"sampler": {"autoguidance": 2.5}}, "sampler": {"name": "euler", "autoguidance": 1.5}}
    settings = config(**both)
    asked = Asked(settings, {"whole": model, "server": model, "a": model}, SITES, "a", 6, 3, CPU)
    one, two = whole.sample(asked), halves.sample(asked)
    assert np.abs(one.pixels.astype(int) - two.pixels).max() <= 1
    for half in ({"server": {"sampler": {}}}, {"sampler": {"name": "euler"}}):
        found = whole.sample(dataclasses.replace(asked, config=config(**(both | half))))
        assert not np.array_equal(found.pixels, one.pixels)


def test_clipping_scales_down_what_is_too_large_and_leaves_the_rest():
    images = np.stack([np.full((1, 4, 4), value, np.float32) for value in (-1.0, 0.5, 0.2)])
    clipped = pfdm.clipped(images)
    assert np.allclose(clipped[0], -0.5) and np.array_equal(clipped[1:], images[1:])
