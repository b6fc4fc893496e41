"""What a request asks for, before and after it was accepted."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError
from ..core.texts import EncodedText
from ..nodes.planned import Planned
from ..nodes.server import Server


@dataclass(frozen=True, eq=False)
class Order:
    """What a job is to make: count images along these levels, each with the noise of (seed, first + its place)."""

    client: str
    count: int
    planned: Planned
    sigmas: tuple[float, ...]
    sampler: str
    seed: int
    first: int = 0

    @classmethod
    def plan(
        cls,
        server: Server,
        client: str,
        count: int,
        *,
        labels: Sequence[str] | None = None,
        text: EncodedText | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        rows: range | None = None,
    ) -> Order:
        """What :meth:`Server.deliver` would make of ``count`` images, or these ``rows`` of it.

        Parts with one seed make the whole together. Raises RefusedError, MismatchError, ConfigError, UsageError.
        """
        rows = range(count) if rows is None else rows
        if not 0 <= rows.start < rows.stop <= count:
            raise UsageError(f"images {rows.start} to {rows.stop} of {count}; ask for at least one that is among them.")
        return cls(
            client=client,
            count=len(rows),
            planned=server.plan(client, count, labels, text, rows),
            sigmas=tuple(server.levels(client, sampler)),
            sampler=sampler or server.config.server.sampler.name,
            seed=secrets.randbits(64) if seed is None else seed,
            first=rows.start,
        )

    @property
    def steps(self) -> int:
        """How many steps an image takes; none where it is drawn at its level."""
        return len(self.sigmas) - 1

    @property
    def indices(self) -> range:
        """The images' numbers in the whole delivery, which key their noise."""
        return range(self.first, self.first + self.count)


@dataclass(eq=False)
class Job:
    """An accepted order. ``future`` ends with (x, last x0_hat), or with the reason why it does not."""

    order: Order
    deadline: float
    x: NDArray[np.float32]
    x0_hat: NDArray[np.float32]
    future: Future[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=Future)
    started: int = 0
    finished: int = 0

    @property
    def waiting(self) -> int:
        """Images that have no row yet."""
        return self.order.count - self.started

    @property
    def pending(self) -> int:
        """Images that are not finished."""
        return self.order.count - self.finished
