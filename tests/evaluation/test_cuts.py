"""Cuts that a plan tries: those at which the server, as it samples, is asked about nothing that it has not learned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collafuse.config import from_mapping
from collafuse.data.listening import Unheard
from collafuse.evaluation.cuts import LADDER, cuts_for, none_can_be_tried, say_what_is_left_out
from collafuse.evaluation.whole_run import WholeRun
from tests.evaluation.conftest import SETTINGS
from tests.tiny import CPU


@pytest.fixture(scope="module")
def dense(digits_run) -> WholeRun:
    """A server that denoises down to the cut itself, in so many steps that above sigma 12 they come too near to it."""
    server = SETTINGS["server"] | {"sampler": {"name": "euler", "steps": 40}}
    config = from_mapping(SETTINGS | {"server": server, "client": SETTINGS["client"] | {"handover": 1.0}})
    return replace(WholeRun.open(digits_run, CPU), config=config)


def test_a_cut_above_which_the_servers_steps_are_too_dense_is_left_out(dense):
    """The plan ended there, after minutes and without a table of the others: 20 is the last of those by default."""
    assert cuts_for(dense, "north", None)[-1] == 12.0 == LADDER[-2]
    assert cuts_for(dense, "north", (0.5, 20.0)) == [0.5]
    assert len(cuts_for(dense, "north", None)) == 5


def test_it_is_said_why(dense):
    said, listener = [], Unheard()
    listener.say = said.append
    say_what_is_left_out(dense, [("north", 0.5), ("east", 0.5), ("south", 2.0)], (0.1, 0.5, 2.0, 20.0), listener)
    of_north = [text for text in said if text.startswith("north")]
    assert (
        "north is not tried at sigma 20: server.sampler (euler, 40 steps) would evaluate at sigma 20.78" in of_north[0]
    )
    assert "north is not tried at sigma 0.1, 2: it released at 0.5" in of_north[1]
    assert "no cut of [20.0] can be tried. At sigma 20, server.sampler" in none_can_be_tried(dense, (20.0,))
    assert "lies from 0.5 to 80" in none_can_be_tried(dense, (0.1,))
