"""Who may join the line of accepted work, and how fast it is said to move."""

from __future__ import annotations

import pytest

from collafuse.core.errors import BusyError, UsageError
from collafuse.serving.line import DrainRate, Line, Pending


def test_the_drain_rate_is_that_of_the_last_busy_seconds():
    rate = DrainRate()
    assert rate.per_second is None
    assert rate.seconds_for(10) == 5  # a guess
    for _ in range(100):
        rate.record(rows=2, seconds=1.0, finished=[1, 1])
    assert rate.per_second == pytest.approx(2.0)
    assert rate.seconds_for(31) == 16
    for _ in range(200):
        rate.record(rows=10, seconds=1.0, finished=[1] * 10)
    assert rate.per_second == pytest.approx(10.0, rel=0.01)
    assert rate.seconds_for(1) == 1
    assert rate.seconds_for(10**9) == 600


def test_it_is_that_of_a_full_batch_though_few_have_asked():
    rate = DrainRate()
    for _ in range(4):
        rate.record(rows=16, seconds=0.5, finished=[])
    rate.record(rows=16, seconds=0.5, finished=[5])  # one image, after five steps of half a second
    assert rate.per_second == pytest.approx(16 / 2.5, rel=0.02)


def test_a_request_takes_so_many_times_as_long_as_alone_and_no_more():
    line = Line(slots=4, most_images=1000, stretch=2.0)
    line.pending = Pending([1] * 7)
    line.check(1)
    line.pending = Pending([1] * 8)
    with pytest.raises(BusyError, match="with 8 images before it this would take more than 2 times as long as alone"):
        line.check(1)
    with pytest.raises(BusyError):
        line.check_any()
    line.check(8)  # alone it takes as long as the eight before it


def test_a_long_job_keeps_no_small_request_out():
    line = Line(slots=4, most_images=1000, stretch=2.0, pending=Pending([900]))
    line.check(1)
    line.check_any()


def test_who_comes_to_an_empty_line_is_let_in():
    Line(slots=1, most_images=10, stretch=1.0).check(256, seconds=0.0)


def line_of(pending, **settings):
    """One that moves at four images a second."""
    line = Line(slots=4, pending=Pending(pending), **settings)
    for _ in range(10):
        line.rate.record(rows=4, seconds=1.0, finished=[1, 1, 1, 1])
    return line


def test_a_refusal_says_when_there_will_be_room():
    line = line_of((1,) * 100, most_images=100, stretch=50.0)
    with pytest.raises(BusyError, match="has 100 images to make and accepts at most 100; ask again in 5 s") as refused:
        line.check(20)
    assert refused.value.retry_after == 5
    cases = [
        ((1,) * 40, 1, 9),  # 33 of 40 must leave, four a second
        ((100,) * 8, 1, 199),  # no row is free before the first of eight long ones has left, amid its last round
        ((50,) * 4 + (9,) * 4, 1, 17),  # and here the first of the shorter ones
        ((50, 50), 40, 15),  # 40 of their images may come before it: until each of the two has 20 left
    ]
    for pending, count, seconds in cases:
        with pytest.raises(BusyError) as refused:
            line_of(pending, most_images=1000, stretch=2.0).check(count)
        assert refused.value.retry_after == seconds, pending


def test_what_cannot_be_done_in_time_is_told_when_it_can():
    line = line_of((100,), most_images=1000, stretch=1000.0)
    line.check(30, seconds=15.0)  # 30 of the others come before it
    with pytest.raises(BusyError, match="30 more would not be finished within 10 s; ask again in 23 s") as refused:
        line.check(30, seconds=10.0)
    assert refused.value.retry_after == 23  # when the other has 10 left


@pytest.mark.parametrize("stretch", [float("nan"), 0.5])
def test_a_stretch_that_nothing_compares_with_is_refused(stretch):
    with pytest.raises(UsageError, match=r"stretch=(nan|0.5); expected a number of at least 1"):
        Line(slots=4, most_images=1000, stretch=stretch)
