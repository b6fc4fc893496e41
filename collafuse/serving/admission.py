"""How much work is accepted: the measured drain rate, and what one token may ask for."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..core.errors import BusyError, UsageError

FORGET_SECONDS = 20.0
"""The drain rate is that of about the last so many busy seconds."""
LONGEST_RETRY_SECONDS = 600
FAILURES_PER_MINUTE = 60
"""Wrong tokens from one address before it is told to wait."""
REMEMBERED_ADDRESSES = 4096


class DrainRate:
    """Images finished per second of work, measured over the last busy seconds."""

    def __init__(self) -> None:
        self._images = self._seconds = 0.0

    @property
    def per_second(self) -> float | None:
        """None before the first image is finished."""
        return self._images / self._seconds if self._images and self._seconds else None

    def record(self, images: int, seconds: float) -> None:
        """A step took this long and finished so many images."""
        keep = math.exp(-seconds / FORGET_SECONDS)
        self._images = keep * self._images + images
        self._seconds = keep * self._seconds + seconds

    def seconds_for(self, images: int, otherwise: int) -> int:
        """Whole seconds in which so many images are finished, at least 1; ``otherwise`` before any measurement."""
        if self.per_second is None:
            return otherwise
        return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(images / self.per_second)))


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

    def give_back(self, units: float) -> None:
        """Units that were taken and not used."""
        self._level = min(self.size, self._level + units)


class Shares:
    """Holds each token to its share. For one thread."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: Counter[str] = Counter()
        self._images: dict[str, Bucket] = {}

    def check_size(self, count: int) -> None:
        """Raise UsageError for more images than one request may bring."""
        if count > self.limits.request_images:
            raise UsageError(
                f"{count} images in one request; at most {self.limits.request_images} are delivered at once. Ask for "
                "parts of the delivery with start and stop."
            )

    @contextmanager
    def request(self, token: str) -> Iterator[None]:
        """One open request of a token. Raises OverLimitError when it has too many."""
        if self._open[token] >= self.limits.open_requests:
            raise OverLimitError(
                f"this token has {self._open[token]} requests open, at most {self.limits.open_requests} are allowed; "
                "wait for one of them.",
                1,
            )
        self._open[token] += 1
        try:
            yield
        finally:
            self._open[token] -= 1
            if not self._open[token]:
                del self._open[token]

    def take_images(self, token: str, count: int, now: float) -> None:
        """Count images against a token's minute. Raises OverLimitError, with the seconds to wait."""
        bucket = self._images.setdefault(token, Bucket(self.limits.images_per_minute, now))
        wait = bucket.take(count, now)
        if wait is not None:
            raise OverLimitError(
                f"this token may ask for {self.limits.images_per_minute} images a minute and has used them; "
                f"ask again in {wait} s.",
                wait,
            )

    def give_back_images(self, token: str, count: int) -> None:
        """Images that were counted and then refused for another reason."""
        self._images[token].give_back(count)


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
