"""Intervals and alarms against known figures."""

from __future__ import annotations

import math

import pytest

from collafuse.evaluation.attacks.finding import ALARM_P, ALARM_Z, Share, binomial_tail, normal_tail


def test_wilsons_interval_is_that_of_the_tables():
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert Share(hits, count, 0.1).interval == pytest.approx((low, high), abs=5e-5)
    assert Share(20, 20, 0.1).interval[1] == pytest.approx(1)


def test_the_interval_holds_the_share_however_it_is_rounded():
    """Of 100 that were all recognised it ended 1e-16 below them, and the picture of a plan refused to draw that."""
    for count in range(1, 300):
        assert Share(count, count, 0.1).interval[1] == 1 and Share(0, count, 0.1).interval[0] == 0


def test_the_binomial_tail_is_the_sum_of_its_terms():
    exact = sum(math.comb(20, k) * 0.1**k * 0.9 ** (20 - k) for k in range(6, 21))
    assert binomial_tail(6, 20, 0.1) == pytest.approx(exact)
    assert binomial_tail(0, 20, 0.1) == 1 and binomial_tail(20, 20, 1.0) == 1


def test_the_two_bounds_for_an_alarm_are_one():
    assert normal_tail(ALARM_Z) == pytest.approx(ALARM_P, rel=0.05)


def test_a_share_is_an_alarm_only_where_chance_does_not_explain_it():
    assert not Share(3, 1000, 0.001).alarm
    assert Share(20, 1000, 0.001).alarm
