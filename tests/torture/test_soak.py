"""The service under a steady load for a long time: no error, and no more memory than after its warm-up.

Ten minutes in `make torture`; SOAK_SECONDS=3600 makes it an hour.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.asking import Answer, Asker
from collafuse.nodes.runfolder import REGISTRY
from collafuse.serving.registry import Registry
from tests.serving.conftest import train
from tests.serving.processes import Process

LOAD = 0.7
CALIBRATION_SECONDS = 3.0
CLIENTS = 16
DEVICES = 8
"""Each with a token of its own: one token may have 64 requests open, which are as many as come in a second."""
SOAK_SECONDS = int(os.environ.get("SOAK_SECONDS", "600"))
GROWTH = 0.02
LEAVES = 0.02
"""The share of clients that leave before their answer."""


def resident_bytes(process: int) -> int:
    """The memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def capacity(askers: list[Asker]) -> float:
    """Requests per second of clients that ask for one image after the other."""
    began, count = time.monotonic(), 0

    async def work(asker: Asker) -> None:
        nonlocal count
        while time.monotonic() - began < CALIBRATION_SECONDS:
            assert (await asker.images()).status == 200
            count += 1

    await asyncio.gather(*(work(askers[number % len(askers)]) for number in range(CLIENTS)))
    return count / (time.monotonic() - began)


async def soak(askers: list[Asker], seconds: float, process: int) -> tuple[Counter[int], float, list[int]]:
    """How often each status came, the longest wait, and the memory every second, under random arrivals."""
    chance, sizes, asked = random.Random(0), [], set()
    statuses, longest = Counter(), 0.0

    def heard(task: asyncio.Task[Answer]) -> None:
        nonlocal longest
        asked.discard(task)
        if not task.cancelled():
            statuses[task.result().status] += 1
            longest = max(longest, task.result().seconds)

    async with AsyncExitStack() as stack:
        for each in askers:
            await stack.enter_async_context(each)
        per_second = LOAD * await capacity(askers)
        began = due = time.monotonic()
        while due - began < seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(sizes) <= due - began:
                sizes.append(resident_bytes(process))
            asker = chance.choice(askers)
            task = asyncio.create_task(asker.images(labels=["x"]) if chance.random() < 0.5 else asker.images())
            asked.add(task)
            task.add_done_callback(heard)
            if chance.random() < LEAVES:
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.05), task.cancel)
            due += chance.expovariate(per_second)
        await asyncio.gather(*asked, return_exceptions=True)
    return statuses, longest, sizes


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is Linux's")
@pytest.mark.torture
def test_it_bears_a_steady_load_without_an_error_and_without_growing(tmp_path, figure):
    folder = train(tmp_path)
    registry = Registry(folder.path / REGISTRY)
    tokens = [registry.add_token("north", ["sample"])[0] for _ in range(DEVICES)]
    with Process(tmp_path, "--rate", 10_000_000) as process:
        askers = [Asker(process.url, token, "north") for token in tokens]
        statuses, longest, sizes = asyncio.run(soak(askers, SOAK_SECONDS, process.pid))
        assert process.end() == 0
    part = max(1, len(sizes) // 5)
    before, after = (statistics.median(sizes[one]) for one in (slice(part, 2 * part), slice(-part, None)))
    figure(
        f"soak of {SOAK_SECONDS} s at {LOAD:.0%} load: {statuses.total()} requests, answered {dict(statuses)}, the "
        f"slowest after {longest:.1f} s; memory {before / 2**20:.1f} MiB after warm-up, {after / 2**20:.1f} MiB at the "
        f"end ({after / before - 1:+.2%})"
    )
    assert set(statuses) == {200}, "on a machine that does other work, too, the load may be more than it can bear"
    assert SOAK_SECONDS < 60 or after < (1 + GROWTH) * before  # within a minute it has not warmed up
