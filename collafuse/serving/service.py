"""A service: what the HTTP application needs, put together from a run folder."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BusyError, RefusedError
from ..nodes.runfolder import LIMITS, REGISTRY, NodeFolder
from ..nodes.server import Server
from .admission import Limits, Shares, Strangers
from .buckets import Buckets
from .engine import Engine
from .lookup import Lookup
from .metrics import Metrics
from .receiving import Known, Receiver
from .registry import Registry

READY_SECONDS, READY_STEPS = 5.0, 4
"""A step of the model must end within this time, or that of so many like the last one; else it is not ready."""
READY_FOR_SECONDS = 2.0
"""How long an answer about readiness is repeated."""


@dataclass(eq=False)
class Service:
    """The parts of one service. Without an engine it receives releases only."""

    registry: Registry
    lookup: Lookup
    receiver: Receiver
    limits: Limits
    shares: Shares
    strangers: Strangers
    metrics: Metrics
    engine: Engine | None
    weights: Path

    @classmethod
    def open(cls, folder: NodeFolder, engine: Engine | None, limits: Limits, *, accept_simulated: bool) -> Service:
        """The service of a server's folder. Raises RefusedError for a simulated run that was not accepted."""
        server = engine.server if engine is not None else None
        if server is not None and not accept_simulated:
            refuse_simulated(server)
        registry = Registry(folder.path / REGISTRY)
        shape = server.model.denoiser.image_shape if server is not None else None
        cuts = {name: site.taught_from for name, site in server.sites.items()} if server is not None else {}
        receiver = Receiver(folder.releases, registry, Known(shape, cuts), accept_simulated=accept_simulated)
        shares = Shares(limits, Buckets(folder.path / LIMITS, limits.images_per_minute))
        return cls(
            registry,
            Lookup(registry),
            receiver,
            limits,
            shares,
            Strangers(),
            Metrics(engine, shares),
            engine,
            folder.weights,
        )

    def close(self) -> None:
        """End what it holds open. For the time after the last request."""
        self.lookup.close()
        self.shares.close()
        self.receiver.close()


def refuse_simulated(server: Server) -> None:
    """Raise RefusedError when the server learned from releases that a simulation made, or does not know."""
    simulated = sorted(name for name, site in server.sites.items() if site.simulated)
    if simulated:
        raise RefusedError(
            f"this server learned from simulated releases ({', '.join(simulated)}), made by a process that also held "
            "the images; it is not served by mistake. Pass --accept-simulated if that is what you want."
        )


class Readiness:
    """Whether the model answers: a real step of it, within a deadline, asked at most every few seconds."""

    def __init__(self, engine: Engine | None) -> None:
        self._engine = engine
        self._asking = asyncio.Lock()
        self._until, self._reason = 0.0, ""

    async def reason(self) -> str | None:
        """None when ready, otherwise why not."""
        async with self._asking:
            if time.monotonic() >= self._until:
                self._reason = await self._ask()
                self._until = time.monotonic() + READY_FOR_SECONDS
            return self._reason or None

    async def _ask(self) -> str:
        if self._engine is None:
            return ""
        beat = asyncio.wrap_future(self._engine.beat())
        # A beat may come just after a step has begun, and then waits for that one and its own.
        seconds = max(READY_SECONDS, READY_STEPS * self._engine.step_seconds)
        try:
            await asyncio.wait_for(beat, seconds)
        except asyncio.TimeoutError:
            return f"the model made no step within {seconds:.3g} s; look at the server's log."
        except BusyError as error:  # it has stopped
            return str(error)
        return ""
