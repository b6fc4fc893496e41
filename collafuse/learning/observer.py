"""Who watches a training."""

from __future__ import annotations

from typing import Any, Protocol

from .denoiser import Denoiser


class Observer(Protocol):
    """Who watches a training: a progress bar, a metrics file, sample sheets."""

    def started(self, step: int, total: int) -> None:
        """Training begins at this step."""

    def note(self, text: str) -> None:
        """Something a person should read."""

    def logged(self, record: dict[str, Any]) -> None:
        """The metrics of the last ``log_every`` steps."""

    def sampled(self, step: int, denoiser: Denoiser) -> None:
        """Time for a sample sheet with the averaged weights."""


class Unwatched:
    """Watches a training and keeps it to itself: the ranks that do not lead have nothing to say."""

    def started(self, step: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def logged(self, record: dict[str, Any]) -> None:
        pass

    def sampled(self, step: int, denoiser: Denoiser) -> None:
        pass


UNWATCHED = Unwatched()
