"""What one shared batch is worth: throughput over HTTP on loopback, and the wait behind a long job.

Two services of the same run, in processes of their own, are asked in turn by the same clients: one with a batch of
SLOTS rows, one with a single row, which serves one image at a time. Beside them, in this process, the same number
of images is made as a file, with the same batch and with larger ones: no network, no waiting.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from collafuse.learning.training import choose_device
from collafuse.nodes.runfolder import REGISTRY, RunFolder
from collafuse.nodes.server import Server
from collafuse.serving.registry import Registry

CLIENTS = 32
SLOTS = 16
IMAGES = 160
"""Over HTTP with the shared batch, and as a file; the single row makes fewer, because it takes longer."""
IMAGES_ALONE = 16
LONG_JOB = 128
REPETITIONS = 3
LARGER_BATCHES = (32, 64)
SECONDS = 300


def main(run: Path) -> None:
    """Print a table for one run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.copytree(run / "server", folder / "server")
        server = Server.load(RunFolder(folder).server, choose_device("auto"))
        client = next(iter(server.sites))
        token, _ = Registry(folder / "server" / REGISTRY).add_token(client, ["sample"])
        shared = stack.enter_context(_service(folder, SLOTS))
        alone = stack.enter_context(_service(folder, 1))
        rates: dict[str, list[float]] = {"file": [], "best": [], "shared": [], "alone": []}
        waits: list[float] = []
        for url, images in ((shared, SLOTS), (alone, 2)):
            _load(url, token, client, images)  # the first evaluations are slow
        for _ in range(REPETITIONS):
            offline = [_offline(server, client, size) for size in (SLOTS, *LARGER_BATCHES)]
            rates["file"].append(offline[0])
            rates["best"].append(max(offline))
            rates["shared"].append(_load(shared, token, client, IMAGES))
            rates["alone"].append(_load(alone, token, client, IMAGES_ALONE))
            waits.append(_wait_behind_a_long_job(shared, token, client))
    file, best, batch, one = (statistics.median(values) for values in rates.values())
    print(f"{CLIENTS} clients, one image each at a time; medians of {REPETITIONS}, on {server.device.type}.\n")
    print("| | images/s | against it |")
    print("|---|---|---|")
    print(f"| shared batch of {SLOTS} rows, over HTTP | {batch:.1f} | |")
    print(f"| one request at a time, over HTTP | {one:.1f} | {batch / one:.2f}x |")
    print(f"| a file, batches of {SLOTS} | {file:.1f} | {batch / file:.2f}x |")
    print(
        f"| a file, best of batches {SLOTS}, {', '.join(map(str, LARGER_BATCHES))} | {best:.1f} | {batch / best:.2f}x |"
    )
    share = statistics.median(waits)
    print(f"\nA request for one image that comes while {LONG_JOB} are made waits {share:.2f}x the time of that job.")


def _offline(server: Server, client: str, batch_size: int) -> float:
    started = time.perf_counter()
    server.deliver(client, IMAGES, seed=0, batch_size=batch_size)
    return IMAGES / (time.perf_counter() - started)


@contextmanager
def _service(folder: Path, slots: int) -> Iterator[str]:
    """A ``collafuse serve`` process; its URL."""
    options = ["--port", "0", "--slots", str(slots), "--accept-simulated", "--rate", "1000000", "--deadline", "600"]
    command = [sys.executable, "-m", "cli", "serve", str(folder), *options, "--max-images", str(LONG_JOB)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline() if process.stderr else ""
            found = re.search(r"Serving at (\S+):", line)
            if found is None:
                raise SystemExit(f"the service did not start: {line}")
            yield found.group(1)
        finally:
            process.terminate()
            process.communicate()


def _load(url: str, token: str, client: str, images: int) -> float:
    """Images per second of CLIENTS clients that ask for one image after the other."""

    async def work(http: httpx.AsyncClient, left: list[int]) -> None:
        while left:
            left.pop()
            await _ask(http, client, 1)

    async def everyone() -> float:
        async with _client(url, token) as http:
            left, started = [1] * images, time.perf_counter()
            await asyncio.gather(*(work(http, left) for _ in range(min(CLIENTS, images))))
            return images / (time.perf_counter() - started)

    return asyncio.run(everyone())


def _wait_behind_a_long_job(url: str, token: str, client: str) -> float:
    """The time of a one-image request that comes while a long job runs, as a share of that job's."""

    async def both() -> float:
        async with _client(url, token) as http:
            started = time.perf_counter()
            job = asyncio.create_task(_ask(http, client, LONG_JOB))
            await _ask(http, client, 1)  # comes back, so the job before it has begun
            began = time.perf_counter()
            await _ask(http, client, 1)
            waited = time.perf_counter() - began
            if job.done():
                raise SystemExit(f"a job of {LONG_JOB} images is too short to come while it runs; use a larger model.")
            await job
            return waited / (time.perf_counter() - started)

    return asyncio.run(both())


def _client(url: str, token: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=CLIENTS)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=SECONDS)


async def _ask(http: httpx.AsyncClient, client: str, count: int) -> None:
    reply = await http.post("/v1/intermediates", json={"client": client, "count": count})
    reply.raise_for_status()
