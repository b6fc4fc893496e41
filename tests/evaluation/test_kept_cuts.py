"""Cuts that a plan keeps: of what they are, beside the images and the machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.core.conditioning import TextSpace
from collafuse.core.texts import EncodedText
from collafuse.data.dealing import SiteData
from collafuse.evaluation.plan import Settings, key_of
from collafuse.evaluation.whole_run import WholeRun
from tests.tiny import CPU


@pytest.fixture(scope="module")
def run(digits_run) -> WholeRun:
    return WholeRun.open(digits_run, CPU)


def test_a_kept_cut_is_of_one_way_to_sample_at_the_server(run):
    """train --resume --set server.sampler.steps=24 trains nothing, so the server is the same; its images are not."""
    key = key_of(run, "north", 0.6, Settings(), "features")
    sampler = run.config.server.sampler.model_copy(update={"steps": 24})
    for changes in ({"sampler": sampler}, {"send_previous": True}, {"mixed_precision": "cpu"}):
        config = run.config.model_copy(update={"server": run.config.server.model_copy(update=changes)})
        assert key != key_of(replace(run, config=config), "north", 0.6, Settings(), "features")


def test_a_kept_cut_is_of_everybodys_images_and_of_what_they_show(run):
    """Other sites' images stand in the gallery, and with their labels make the features that distances are in."""
    assert key_of(run, "north", 0.6, Settings(), "features")["images"] == run.images_digest
    north, south = run.sites["north"], run.sites["south"]
    turned = replace(north.train, labels=north.train.labels[:, ::-1].copy())
    text = EncodedText(TextSpace("t5-4-00", 4), np.ones((len(north.train), 4), dtype=np.float16))
    changes = (
        {"south": SiteData(south.train.take(np.arange(50)), south.held_out)},
        {"north": SiteData(turned, north.held_out)},
        {"north": SiteData(replace(north.train, text=text), north.held_out)},
    )
    found = {replace(run, sites={**run.sites, **changed}).images_digest for changed in changes}
    assert len(found | {run.images_digest}) == 4
