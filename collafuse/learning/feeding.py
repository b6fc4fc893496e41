"""Images on their way to the training loop: out of the device's memory, or read ahead out of a file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from ..core.rows import Rows

RowsOf = Callable[[int], Tensor]
"""The rows [B] of a step's batch, asked for ahead."""
READ_AHEAD = 2
"""Batches that are read, or wait, while one is learned from."""


class Feed(Protocol):
    """Gives each step its batch. Used with ``with``, so that nothing is read any more when a training ends."""

    def batch(self, step: int, rows: Tensor) -> Tensor:
        """The images [B, C, H, W] of a step, on the device, of the type in which they are kept; its rows lie there."""

    def __enter__(self) -> Feed: ...
    def __exit__(self, *_: object) -> None: ...


def feed(images: Tensor | Rows, rows_of: RowsOf, device: torch.device) -> Feed:
    """What feeds a training on these images; both kinds give the same batches, bit for bit."""
    if isinstance(images, Tensor):
        return FromMemory(images)
    return FromFile(images, rows_of, device)


class FromMemory:
    """Batches of images that lie on the device as a whole."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def batch(self, step: int, rows: Tensor) -> Tensor:
        return self._images[rows]

    def __enter__(self) -> FromMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FromFile:
    """Batches that are read while the last ones are learned from; on CUDA through pinned memory, so that the copy waits
    for nothing. A step that was not read ahead, as the first of a resumed training, is read when it is asked for."""

    def __init__(self, images: Rows, rows_of: RowsOf, device: torch.device) -> None:
        self._images, self._rows_of, self._device = images, rows_of, device
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Tensor]] = {}

    def batch(self, step: int, rows: Tensor) -> Tensor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="reading")
        for one in range(step, step + 1 + READ_AHEAD):
            if one not in self._ahead:
                self._ahead[one] = self._pool.submit(self._read, one)
        return self._ahead.pop(step).result().to(self._device, non_blocking=True)

    def _read(self, step: int) -> Tensor:
        images = torch.from_numpy(self._images[self._rows_of(step).numpy()])
        return images.pin_memory() if self._device.type == "cuda" else images

    def __enter__(self) -> FromFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._ahead = None, {}
