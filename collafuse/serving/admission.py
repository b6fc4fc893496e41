"""How much work is accepted: the measured drain rate, and what one token may ask for."""

from __future__ import annotations

import math

FORGET_SECONDS = 20.0
"""The drain rate is that of about the last so many busy seconds."""
LONGEST_RETRY_SECONDS = 600


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
