"""What one token may ask for, and what a stranger may try."""

from __future__ import annotations

import asyncio

import pytest

from collafuse.core.errors import BusyError, UsageError
from collafuse.serving.admission import Bucket, Limits, OverLimitError, Shares, Strangers


def test_a_bucket_fills_at_its_pace_and_no_further():
    bucket = Bucket(per_minute=60, now=0.0)
    assert bucket.take(60, now=0.0) is None
    assert bucket.take(3, now=1.0) == 2
    assert bucket.take(3, now=3.0) is None
    assert bucket.take(61, now=1000.0) == 1  # a minute's worth is the most that it holds


class Clock:
    """A clock that a test moves."""

    seconds = 1e9

    def __call__(self):
        return self.seconds


def test_a_token_has_so_many_images_a_minute_and_others_theirs():
    clock = Clock()
    shares = Shares(Limits(request_images=60, images_per_minute=60), clock=clock)

    async def ask():
        await shares.take_images("a", 60)
        with pytest.raises(OverLimitError, match="60 images a minute and has used them; ask again in 10 s") as refused:
            await shares.take_images("a", 10)
        assert isinstance(refused.value, BusyError)
        assert refused.value.retry_after == 10
        await shares.take_images("b", 60)
        clock.seconds += 10
        await shares.take_images("a", 10)
        await shares.give_back_images("a", 4)
        await shares.take_images("a", 4)

    asyncio.run(ask())
    shares.close()


def test_who_has_used_up_a_minute_is_refused_without_asking_until_the_next_image_is_there():
    clock = Clock()
    shares = Shares(Limits(request_images=60, images_per_minute=60), clock=clock)

    async def ask():
        await shares.take_images("a", 60)
        with pytest.raises(OverLimitError):
            await shares.take_images("a", 10)

    asyncio.run(ask())
    with pytest.raises(OverLimitError, match="has used them; ask again in 1 s"):
        shares.check_any("a")
    shares.check_any("b")
    clock.seconds += 1
    shares.check_any("a")
    clock.seconds -= 3600  # set back: nobody is kept out for an hour
    shares.check_any("a")
    shares.close()


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


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0.0])
def test_a_deadline_that_never_comes_is_refused(seconds):
    with pytest.raises(UsageError, match=r"deadline=(nan|inf|0); expected a number of seconds"):
        Limits(deadline_seconds=seconds)


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
