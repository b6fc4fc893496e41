"""The line of accepted work: how long it is, how fast it moves, and who may still join it.

How long a request waits is decided when it is let in, so the line is bounded by what each request is promised, not by a
number of images alone: a request is let in when those before it make it take at most ``stretch`` times as long as it
would take alone. Rows are dealt in turn, so of each request before it only as many images count as it brings itself;
one image beside a job of a thousand is let in, and a line of a thousand requests for one image is not.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ..core.errors import BusyError, UsageError

FORGET_SECONDS = 20.0
"""The drain rate is that of about the last so many busy seconds."""
LONGEST_RETRY_SECONDS = 600
FIRST_RETRY_SECONDS = 5
"""What a refused client is told before anything has been measured."""


class DrainRate:
    """Images per second that leave a full batch, measured over the last busy seconds, also while it is not full."""

    def __init__(self) -> None:
        self._rows = self._seconds = self._images = self._steps = 0.0

    @property
    def per_second(self) -> float | None:
        """None before the first image is finished."""
        if not (self._images and self._seconds):
            return None
        return self._rows / self._seconds * self._images / self._steps

    def record(self, rows: int, seconds: float, finished: Sequence[int]) -> None:
        """A step of so many rows, used or not, took this long; ``finished`` has the steps of each image that left."""
        keep = math.exp(-seconds / FORGET_SECONDS)
        self._rows = keep * self._rows + rows
        self._seconds = keep * self._seconds + seconds
        self._images = keep * self._images + len(finished)
        self._steps = keep * self._steps + sum(finished)

    def seconds_for(self, images: float) -> int:
        """Whole seconds in which so many images leave, at least 1; a guess before any measurement."""
        if self.per_second is None:
            return FIRST_RETRY_SECONDS
        return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(images / self.per_second)))


class Pending:
    """What requests still wait for, as who comes next sees it; counted once, so that a refusal takes microseconds.

    images: that each request waits for.
    """

    def __init__(self, images: Iterable[int] = ()) -> None:
        self._images = sorted(images)
        self._left = [*accumulate(reversed(self._images), initial=0)][::-1]  # from the n-th on

    def left(self, made: int = 0) -> int:
        """How many images are left when of each request so many are made."""
        first = bisect_right(self._images, made)
        return self._left[first] - made * (len(self._images) - first)

    def ahead(self, count: int, made: int = 0) -> int:
        """How many of those come before the last image of a request for ``count``."""
        return self.left(made) - self.left(made + count)

    def until(self, count: int, room: float) -> float:
        """How many images are made until at most ``room`` come before a request for ``count``; now there are more."""
        rounds = bisect_left(range(self._images[-1]), -room, key=lambda made: -self.ahead(count, made))
        made = max(0, rounds - 1)  # of each request; in the last round one request after the other
        return self.left() - self.left(made) + self.ahead(count, made) - room


@dataclass
class Line:
    """What is accepted and not finished. Reading it takes no lock, so a refusal waits for nobody.

    slots: rows of the batch. most_images: that may be in the line. stretch: see above. Raises UsageError.
    """

    slots: int
    most_images: int
    stretch: float
    pending: Pending = field(default_factory=Pending)

    def __post_init__(self) -> None:
        if not self.stretch >= 1:  # NaN would let everyone in
            raise UsageError(f"stretch={self.stretch:g}; expected a number of at least 1, such as 64.")
        self.rate = DrainRate()

    def check(self, count: int, seconds: float = math.inf) -> None:
        """Raise BusyError, with the seconds after which to ask again, unless a request may join.

        count: its images. seconds: in which it is to be done.
        """
        pending, share = self.pending, self.stretch * max(count, self.slots)
        images, ahead = pending.left(), pending.ahead(count)
        if not images:
            return
        if images + count > self.most_images:
            wait = self.rate.seconds_for(images + count - self.most_images)
            raise BusyError(
                f"the server has {images} images to make and accepts at most {self.most_images}; "
                f"ask again in {wait} s.",
                wait,
            )
        if ahead + count > share:
            wait = self.rate.seconds_for(pending.until(count, share - count))
            raise BusyError(
                f"with {ahead} images before it this would take more than {self.stretch:g} times as long as alone; "
                f"ask again in {wait} s.",
                wait,
            )
        rate = self.rate.per_second
        if rate is not None and (ahead + count) / rate > seconds:
            wait = self.rate.seconds_for(pending.until(count, max(0.0, seconds * rate - count)))
            raise BusyError(
                f"with {images} images to make before, {count} more would not be finished within {seconds:g} s; "
                f"ask again in {wait} s, or for fewer.",
                wait,
            )

    def check_any(self) -> None:
        """Raise BusyError when no request may join, not even for one image."""
        self.check(1)
