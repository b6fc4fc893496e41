"""What one token, and one request, may ask for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from ..core.errors import BusyError, UsageError
from .buckets import Buckets, Taken

FAILURES_PER_MINUTE = 60
"""Wrong tokens from one address before it is told to wait."""
REMEMBERED_ADDRESSES = 4096


class OverLimitError(BusyError):
    """One token asks for more than its share; others are served."""


@dataclass(frozen=True)
class Limits:
    """What one token, and one request, may ask for."""

    request_images: int = 256
    images_per_minute: int = 6000
    open_requests: int = 64
    deadline_seconds: float = 120.0
    """A request that is not finished by then ends with 503."""
    release_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.deadline_seconds < math.inf:  # NaN would pass for a time that never comes
            raise UsageError(f"deadline={self.deadline_seconds:g}; expected a number of seconds above 0, such as 120.")
        if self.request_images > self.images_per_minute:
            raise UsageError(
                f"a request may ask for {self.request_images} images and a token for {self.images_per_minute} a "
                "minute, so that the largest requests would always be refused; raise --rate or lower --max-images."
            )


class Bucket:
    """A token bucket: holds at most a minute's worth of units, and fills at that pace."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_second, self.size = per_minute / 60.0, per_minute
        self._level, self._filled = per_minute, now

    def take(self, units: float, now: float) -> int | None:
        """Take units, or return after how many whole seconds they will be there."""
        self._level = min(self.size, self._level + (now - self._filled) * self.per_second)
        self._filled = now
        if units <= self._level:
            self._level -= units
            return None
        return max(1, math.ceil((units - self._level) / self.per_second))


class Shares:
    """Holds each token to its share. For the thread of an event loop.

    Images a minute are counted in ``buckets``, which several processes may share; open requests in this one alone.
    """

    def __init__(self, limits: Limits, buckets: Buckets | None = None, clock: Callable[[], float] = time.time) -> None:
        self.limits, self._clock = limits, clock
        self._buckets = buckets or Buckets(None, limits.images_per_minute)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._open: Counter[str] = Counter()
        self._used_up: dict[str, float] = {}

    def check_size(self, count: int) -> None:
        """Raise UsageError for more images than one request may bring."""
        if count > self.limits.request_images:
            raise UsageError(
                f"{count} images in one request; at most {self.limits.request_images} are delivered at once. Ask for "
                "parts of the delivery with start and stop."
            )

    @property
    def times_alone(self) -> int:
        """How often images were counted in this process alone, because the shared file could not be used."""
        return self._buckets.times_alone

    def check_any(self, token: str) -> None:
        """Raise OverLimitError when a token may ask for nothing now, as far as is known without asking the buckets."""
        self._check_open(token)
        wait = self._used_up.get(token, 0.0) - self._clock()
        if 0 < wait <= 1 / self._buckets.per_second:  # one image takes no longer, unless the clock was set back
            raise self._over(math.ceil(wait))

    def _check_open(self, token: str) -> None:
        if self._open[token] >= self.limits.open_requests:
            raise OverLimitError(
                f"this token has {self._open[token]} requests open, at most {self.limits.open_requests} are allowed; "
                "wait for one of them.",
                1,
            )

    @contextmanager
    def request(self, token: str) -> Iterator[None]:
        """One open request of a token. Raises OverLimitError when it has too many."""
        self._check_open(token)
        self._open[token] += 1
        try:
            yield
        finally:
            self._open[token] -= 1
            if not self._open[token]:
                del self._open[token]

    async def take_images(self, token: str, count: int) -> None:
        """Count images against a token's minute. Raises OverLimitError, with the seconds to wait."""
        now = self._clock()
        taken = await self._counted(token, count, now)
        if not taken.granted:
            self._used_up[token] = now + (1 - taken.level) / self._buckets.per_second
            wait = max(1, math.ceil((count - taken.level) / self._buckets.per_second))
            raise self._over(wait)

    async def give_back_images(self, token: str, count: int) -> None:
        """Images that were counted and then refused for another reason."""
        await self._counted(token, -count, self._clock())

    def close(self) -> None:
        """End what it holds open."""
        self._thread.shutdown()
        self._buckets.close()

    async def _counted(self, token: str, count: int, now: float) -> Taken:
        # On a thread, because another process may be counting just now.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._buckets.take, token, count, now)

    def _over(self, wait: int) -> OverLimitError:
        return OverLimitError(
            f"this token may ask for {self.limits.images_per_minute} images a minute and has used them; "
            f"ask again in {wait} s.",
            wait,
        )


class Strangers:
    """Slows down whoever tries tokens: so many failures a minute per address. A good token is never affected."""

    def __init__(self, per_minute: int = FAILURES_PER_MINUTE) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def failed(self, address: str, now: float) -> int | None:
        """Count a failure; the seconds to wait once there were too many."""
        bucket = self._buckets.pop(address, None) or Bucket(self._per_minute, now)
        self._buckets[address] = bucket
        while len(self._buckets) > REMEMBERED_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take(1, now)
