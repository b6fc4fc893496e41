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
from pathlib import Path

import pytest

from benchmarks.asking import Answer, Asker
from collafuse.nodes.runfolder import REGISTRY
from collafuse.serving.registry import Registry
from tests.serving.conftest import train
from tests.serving.processes import Process
from tests.torture.amounts import amount

LOAD = 0.7
CALIBRATION_SECONDS = 3.0
CLIENTS = 16
SOAK_SECONDS = int(os.environ.get("SOAK_SECONDS", "600"))
GROWTH = 0.02
LEAVES = 0.02
"""The share of clients that leave before their answer."""


def resident_bytes(process: int) -> int:
    """The memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def capacity(asker: Asker) -> float:
    """Requests per second of clients that ask for one image after the other."""
    began, count = time.monotonic(), 0

    async def work() -> None:
        nonlocal count
        while time.monotonic() - began < CALIBRATION_SECONDS:
            assert (await asker.images()).status == 200
            count += 1

    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return count / (time.monotonic() - began)


async def soak(asker: Asker, seconds: float, process: int) -> tuple[list[int], list[int]]:
    """The status of each answer, and the memory every second, under random arrivals."""
    chance, statuses, sizes, asked = random.Random(0), [], [], set()

    def heard(task: asyncio.Task[Answer]) -> None:
        asked.discard(task)
        if not task.cancelled():
            statuses.append(task.result().status)

    async with asker:
        per_second = LOAD * await capacity(asker)
        began = due = time.monotonic()
        while due - began < seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(sizes) <= due - began:
                sizes.append(resident_bytes(process))
            task = asyncio.create_task(asker.images(labels=["x"]) if chance.random() < 0.5 else asker.images())
            asked.add(task)
            task.add_done_callback(heard)
            if chance.random() < LEAVES:
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.05), task.cancel)
            due += chance.expovariate(per_second)
        await asyncio.gather(*asked, return_exceptions=True)
    return statuses, sizes


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is Linux's")
@amount(5, SOAK_SECONDS)
def test_it_bears_a_steady_load_without_an_error_and_without_growing(tmp_path, amount, figure):
    folder = train(tmp_path)
    token, _ = Registry(folder.path / REGISTRY).add_token("north", ["sample"])
    with Process(tmp_path, "--rate", 10_000_000) as process:
        asker = Asker(process.url, token, "north")
        statuses, sizes = asyncio.run(soak(asker, amount, process.pid))
        assert process.end() == 0
    part = max(1, len(sizes) // 5)
    before, after = (statistics.median(sizes[one]) for one in (slice(part, 2 * part), slice(-part, None)))
    figure(
        f"soak of {amount} s at {LOAD:.0%} load: {len(statuses)} requests, answered {dict(Counter(statuses))}; memory "
        f"{before / 2**20:.1f} MiB after warm-up, {after / 2**20:.1f} MiB at the end ({after / before - 1:+.2%})"
    )
    assert set(statuses) == {200}, "on a machine that does other work, too, the load may be more than it can bear"
    assert amount < 60 or after < (1 + GROWTH) * before  # within a minute it has not warmed up
