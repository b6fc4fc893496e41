"""How much is accepted: the measured rate, and each token's share of it."""

from __future__ import annotations

import pytest

from collafuse.core.errors import BusyError, UsageError
from collafuse.serving.admission import Bucket, DrainRate, Limits, OverLimitError, Shares, Strangers


def test_the_drain_rate_is_that_of_the_last_busy_seconds():
    rate = DrainRate()
    assert rate.per_second is None
    assert rate.seconds_for(10, otherwise=7) == 7
    for _ in range(100):
        rate.record(images=2, seconds=1.0)
    assert rate.per_second == pytest.approx(2.0)
    assert rate.seconds_for(31, otherwise=7) == 16
    for _ in range(200):
        rate.record(images=10, seconds=1.0)
    assert rate.per_second == pytest.approx(10.0, rel=0.01)
    assert rate.seconds_for(1, otherwise=7) == 1
    assert rate.seconds_for(10**9, otherwise=7) == 600


def test_a_bucket_fills_at_its_pace_and_no_further():
    bucket = Bucket(per_minute=60, now=0.0)
    assert bucket.take(60, now=0.0) is None
    assert bucket.take(3, now=1.0) == 2
    assert bucket.take(3, now=3.0) is None
    assert bucket.take(61, now=1000.0) == 1  # a minute's worth is the most that it holds


def test_a_token_has_so_many_images_a_minute_and_others_theirs():
    shares = Shares(Limits(request_images=60, images_per_minute=60))
    shares.take_images("a", 60, now=0.0)
    with pytest.raises(OverLimitError, match="60 images a minute and has used them; ask again in 10 s") as refused:
        shares.take_images("a", 10, now=0.0)
    assert isinstance(refused.value, BusyError)
    assert refused.value.retry_after == 10
    shares.take_images("b", 60, now=0.0)
    shares.take_images("a", 10, now=10.0)


def test_a_token_has_so_many_requests_open():
    shares = Shares(Limits(open_requests=2))
    with shares.request("a"), shares.request("a"), shares.request("b"):
        with pytest.raises(OverLimitError, match="2 requests open"), shares.request("a"):
            pass
    with shares.request("a"), shares.request("a"):
        pass


def test_one_request_brings_so_many_images():
    Shares(Limits(request_images=5)).check_size(5)
    with pytest.raises(UsageError, match="6 images in one request; at most 5"):
        Shares(Limits(request_images=5)).check_size(6)


def test_limits_that_would_refuse_every_large_request_are_refused():
    with pytest.raises(UsageError, match="raise --rate or lower --max-images"):
        Limits(request_images=61, images_per_minute=60)


def test_strangers_are_slowed_down_by_address():
    strangers = Strangers(per_minute=2)
    assert strangers.failed("a", now=0.0) is strangers.failed("a", now=0.0) is None
    assert strangers.failed("a", now=0.0) == 30
    assert strangers.failed("b", now=0.0) is None
    assert strangers.failed("a", now=60.0) is None


def test_addresses_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("collafuse.serving.admission.REMEMBERED_ADDRESSES", 3)
    strangers = Strangers(per_minute=1)
    for address in "abcde":
        strangers.failed(address, now=0.0)
    assert list(strangers._buckets) == ["c", "d", "e"]
