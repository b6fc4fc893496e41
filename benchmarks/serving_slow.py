"""Clients that send a byte now and then and never finish, beside clients that behave.

The slow ones come in waves, each when the last one of the wave before was closed, until enough healthy requests were
made to tell 99 % from less.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from .served import Served

SLOW = 200
"""Connections whose head trickles in, and as many whose body does."""
HEALTHY = 16
"""As many as the batch has rows."""
HEALTHY_REQUESTS = 300
"""At least so many, for one image each, while slow connections are open."""
MOST_WAVES = 20
"""About three minutes; a machine that has not made so many requests by then is told that they were too few."""
TRICKLE_SECONDS = 0.5
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Slow:
    """How the healthy clients fared, and when the slow ones were closed (seconds after they came)."""

    waves: int
    healthy: int
    healthy_asked: int
    slowest: float
    left: int


def slow_clients(served: Served) -> Slow:
    """Measure on a service of its own."""
    with served.process() as (url, _):
        return asyncio.run(_measure(served, url))


async def _measure(served: Served, url: str) -> Slow:
    host, _, port = url.partition("://")[2].partition(":")
    head = "GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: "
    body = (
        f"POST /v1/intermediates HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    )
    ended = asyncio.Event()
    async with served.asker(url) as asker:
        await asker.images()
        statuses: list[int] = []

        async def healthy() -> None:
            while not ended.is_set():
                statuses.append((await asker.images()).status)

        asking = [asyncio.create_task(healthy()) for _ in range(HEALTHY)]
        times: list[float | None] = []
        waves = 0
        while waves < MOST_WAVES and len(statuses) < HEALTHY_REQUESTS:
            slow = [_trickle(host, int(port), start.encode()) for start in (head, body) for _ in range(SLOW)]
            times += await asyncio.gather(*slow)
            waves += 1
        ended.set()
        await asyncio.gather(*asking)
    closed = [seconds for seconds in times if seconds is not None]
    return Slow(waves, statuses.count(200), len(statuses), max(closed, default=0.0), len(times) - len(closed))


async def _trickle(host: str, port: int, start: bytes) -> float | None:
    """Seconds until the server closed this connection; None when it did not."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(start)
        while time.perf_counter() - began < PATIENCE_SECONDS:
            try:
                if not await asyncio.wait_for(reader.read(4096), TRICKLE_SECONDS):
                    return time.perf_counter() - began
            except asyncio.TimeoutError:
                writer.write(b"x")
        return None
    except OSError:
        return time.perf_counter() - began
    finally:
        writer.close()
