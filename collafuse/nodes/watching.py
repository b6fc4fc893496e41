"""Who watches a node's training: its metrics file, its sample sheets, and whoever the caller adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.atomic import atomic_file
from ..core.pictures import Pixels
from ..learning.denoiser import Denoiser
from ..learning.observer import Observer
from .metrics import MetricsLog

SheetMaker = Callable[[Denoiser], Pixels]
"""Draws a sample sheet [1, h, w, 3] with the averaged weights."""


class NodeObserver:
    """Writes a node's metrics and sample sheets and passes everything on to another observer."""

    def __init__(self, folder: Path, other: Observer, trackers: Sequence[str], sheet: SheetMaker) -> None:
        self._samples = folder / "samples"
        self._log = MetricsLog(folder, trackers)
        self._other = other
        self._sheet = sheet

    def started(self, step: int, total: int) -> None:
        self._log.rewind(step)
        self._other.started(step, total)

    def note(self, text: str) -> None:
        self._other.note(text)

    def logged(self, record: dict[str, Any]) -> None:
        self._log.write(record)
        self._other.logged(record)

    def sampled(self, step: int, denoiser: Denoiser) -> None:
        with atomic_file(self._samples / f"step-{step:08d}.png", overwrite=True) as file:
            Image.fromarray(self._sheet(denoiser)[0]).save(file, format="PNG")
        self._other.sampled(step, denoiser)

    def close(self) -> None:
        """Close the trackers."""
        self._log.close()
