"""Open load: requests come when they come, whether or not the earlier ones were answered.

First at 90 % of what the service can do, then at four times as much for a minute, then one at a time until it is as
fast as before. No request may take more than twice as long as alone, which is what bounds the wait of what is accepted.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from .asking import Answer, Asker
from .served import Served

SECONDS = 60.0
USUAL, OVER = 0.9, 4.0
STRETCH = 2
CALIBRATION_IMAGES = 320
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Overload:
    """What came of it; latencies in seconds."""

    capacity: float
    seconds: float
    accepted: int
    rejected: int
    odd: int
    """Answers that are neither 2xx nor 429 or 503 with Retry-After."""
    normal_p99: float
    accepted_p99: float
    rejected_p99: float
    normal_after: float


async def overload(served: Served, slots: int) -> Overload:
    """Measure on a service of its own with this batch."""
    bearable = STRETCH * slots
    with served.process("--slots", slots, "--stretch", STRETCH) as (url, _):
        async with served.asker(url) as asker:
            await _together(asker, slots, slots)  # the first evaluations are slow
            began = time.perf_counter()
            await _together(asker, CALIBRATION_IMAGES, bearable)
            capacity = CALIBRATION_IMAGES / (time.perf_counter() - began)
            usual = await _open_load(asker, USUAL * capacity)
            over = await _open_load(asker, OVER * capacity)
            normal_p99 = _p99([one for one in usual if one.status == 200])
            after = await _seconds_until_normal(asker, normal_p99)
    accepted = [one for one in over if 200 <= one.status < 300]
    rejected = [one for one in over if one.status in {429, 503} and one.retry_after]
    return Overload(
        capacity,
        SECONDS,
        len(accepted),
        len(rejected),
        len(over) - len(accepted) - len(rejected),
        normal_p99,
        _p99(accepted),
        _p99(rejected),
        after,
    )


async def _together(asker: Asker, images: int, clients: int) -> None:
    left = [1] * images

    async def work() -> None:
        while left:
            left.pop()
            await asker.images()

    await asyncio.gather(*(work() for _ in range(clients)))


async def _open_load(asker: Asker, per_second: float) -> list[Answer]:
    """Requests for one image at random moments, so many a second on average, for SECONDS."""
    moments, tasks = random.Random(0), []
    began = due = time.perf_counter()
    while due - began < SECONDS:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(asker.images()))
        due += moments.expovariate(per_second)
    return await asyncio.gather(*tasks)


async def _seconds_until_normal(asker: Asker, usual: float) -> float:
    began = time.perf_counter()
    while time.perf_counter() - began < PATIENCE_SECONDS:
        answer = await asker.images()
        if answer.status == 200 and answer.seconds <= usual:
            break
        await asyncio.sleep(0.1)
    return time.perf_counter() - began


def _p99(answers: list[Answer]) -> float:
    """The latency that 99 of 100 do not exceed; infinite where there are none."""
    seconds = sorted(one.seconds for one in answers)
    return seconds[-(-99 * len(seconds) // 100) - 1] if seconds else float("inf")
