"""What one shared batch is worth over HTTP, and what overload and slow clients do to it, as one table.

    python -m benchmarks.serving [--run RUN]        # make bench-serve

Without a run an untrained server of the size of configs/cifar10-small.yaml stands in. All on loopback, on one machine:
the processes that serve and this one that asks share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from .asking import Asker
from .served import SMALL_CONFIG, Served
from .serving_overload import overload
from .serving_slow import HEALTHY_REQUESTS, SLOW, slow_clients

CLIENTS = 32
SLOTS = 16
"""The rows that a service has by default; one that is to serve so many clients at once has as many rows."""
IMAGES, IMAGES_ALONE = 128, 16
"""Over HTTP with the shared batch, and as a file; the single row makes fewer, because it takes longer."""
LONG_JOB = 256
REPETITIONS = 3
BATCHES = (SLOTS, CLIENTS)
"""Sizes that are tried for the file."""


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, what was wanted, and whether it was reached."""

    what: str
    measured: str
    wanted: str
    reached: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.measured} | {self.wanted} | {'yes' if self.reached else 'no'} |"


def main(run: Path | None) -> None:
    """Print the table for a run, or for an untrained server."""
    with tempfile.TemporaryDirectory() as path:
        served = Served.make(run, Path(path) / "usual")
        small = served if run is not None else Served.make(None, Path(path) / "small", SMALL_CONFIG)
        threads = torch.get_num_threads()
        print(f"Images of {_size(served)}, on {served.server.device.type}.")
        print(f"{os.cpu_count()} cores, {threads} of them for a step; load before: {os.getloadavg()[0]:.1f}.\n")
        print("| what | measured | wanted | reached |\n|---|---|---|---|", flush=True)
        for part, measured in ((throughput, served), (overload_rows, served), (slow_rows, small)):
            for row in part(measured):
                print(row, flush=True)
        print(f"\nLoad after: {os.getloadavg()[0]:.1f}.")


def throughput(served: Served) -> list[Row]:
    """The shared batch against a file, against one at a time, and the wait behind a long job."""
    over_http: dict[int, list[float]] = {rows: [] for rows in (CLIENTS, SLOTS, 1)}
    files: dict[int, list[float]] = {size: [] for size in BATCHES}
    waits: list[float] = []
    with ExitStack() as stack:
        options = ("--deadline", 600, "--max-images", LONG_JOB)
        urls = {rows: stack.enter_context(served.process("--slots", rows, *options))[0] for rows in over_http}
        for rows, url in urls.items():
            asyncio.run(closed_load(served.asker(url), rows + 1))  # the first evaluations are slow
        for _ in range(REPETITIONS):
            for size in BATCHES:
                files[size].append(_offline(served, size))
            for rows, url in urls.items():
                rate = asyncio.run(closed_load(served.asker(url), IMAGES if rows > 1 else IMAGES_ALONE))
                over_http[rows].append(rate)
            waits.append(asyncio.run(_wait_behind_a_long_job(served.asker(urls[CLIENTS]))))
    shared, usual, alone = map(statistics.median, over_http.values())
    file = {size: statistics.median(rates) for size, rates in files.items()}
    best = max(file.values())  # not the median of the best of each turn, which noise alone would raise
    many = 10.0 if served.server.device.type == "cuda" else 1.5
    wait = statistics.median(waits)
    sizes = ", ".join(map(str, BATCHES))
    return [
        Row(
            f"{CLIENTS} clients, one image each, {CLIENTS} rows, against the best file (batches of {sizes})",
            f"{shared / best:.2f}x ({shared:.1f} of {best:.1f} images/s)",
            ">= 0.9x",
            shared >= 0.9 * best,
        ),
        Row(
            f"the same with {SLOTS} rows, against a file in batches of {SLOTS}",
            f"{usual / file[SLOTS]:.2f}x ({usual:.1f} of {file[SLOTS]:.1f} images/s)",
            ">= 0.9x",
            usual >= 0.9 * file[SLOTS],
        ),
        *(
            Row(
                f"{rows} rows against one request at a time",
                f"{rate / alone:.2f}x ({alone:.1f} images/s)",
                f">= {many:g}x",
                rate >= many * alone,
            )
            for rows, rate in ((CLIENTS, shared), (SLOTS, usual))
        ),
        Row(
            f"one image, asked for while {LONG_JOB} are made, {CLIENTS} rows",
            f"{wait:.2f}x their time",
            "<= 0.25x",
            wait <= 0.25,
        ),
    ]


def overload_rows(served: Served) -> list[Row]:
    """Four times what it can do, against 90 % of it."""
    found = asyncio.run(overload(served, SLOTS))
    ratio, after = found.accepted_p99 / found.normal_p99, found.normal_after
    odd = "only 2xx, 429 and 503 with Retry-After" if not found.odd else f"{found.odd} other answers"
    return [
        Row(
            f"4 times the load it can bear ({found.capacity:.1f} images/s) for {found.seconds:g} s",
            f"{odd}: {found.accepted} made, {found.rejected} refused",
            "nothing else",
            not found.odd,
        ),
        Row("refused within (p99)", f"{1000 * found.rejected_p99:.0f} ms", "<= 100 ms", found.rejected_p99 <= 0.1),
        Row(
            "p99 of what was accepted, against 90 % load",
            f"{ratio:.2f}x ({found.accepted_p99:.2f} s, {found.normal_p99:.2f} s)",
            "<= 2x",
            ratio <= 2,
        ),
        Row("as fast as at 90 % load again after", f"{after:.1f} s", "<= 10 s", after <= 10),
    ]


def slow_rows(served: Served) -> list[Row]:
    """Connections that trickle, beside clients that do not."""
    found = slow_clients(served)
    share = found.healthy / max(1, found.healthy_asked)
    waves = "once" if found.waves == 1 else f"{found.waves} times"
    return [
        Row(
            f"requests of healthy clients (images of {_size(served)}) beside {SLOW} trickling heads and {SLOW} "
            f"trickling bodies, {waves}",
            f"{100 * share:.1f} % of {found.healthy_asked}",
            ">= 99 %",
            share >= 0.99 and found.healthy_asked >= HEALTHY_REQUESTS,
        ),
        Row(
            "the last slow one closed after",
            f"{found.slowest:.1f} s" if not found.left else f"{found.left} were left open",
            "<= 15 s",
            not found.left and found.slowest <= 15,
        ),
    ]


def _size(served: Served) -> str:
    shape = "x".join(map(str, served.server.model.denoiser.image_shape))
    return f"{shape}, {served.server.config.server.sampler.steps} steps"


def _offline(served: Served, batch_size: int) -> float:
    started = time.perf_counter()
    served.server.deliver(served.client, IMAGES, seed=0, batch_size=batch_size)
    return IMAGES / (time.perf_counter() - started)


async def closed_load(asker: Asker, images: int) -> float:
    """Images per second of CLIENTS clients that ask for one image after the other."""

    async def work(left: list[int]) -> None:
        while left:
            left.pop()
            answer = await asker.images()
            if answer.status != 200:
                raise SystemExit(f"a request was answered with {answer.status}: {answer.body[:200]!r}")

    async with asker:
        left, started = [1] * images, time.perf_counter()
        await asyncio.gather(*(work(left) for _ in range(min(CLIENTS, images))))
        return images / (time.perf_counter() - started)


async def _wait_behind_a_long_job(asker: Asker) -> float:
    """The time of a one-image request that comes while a long job runs, as a share of that job's."""
    async with asker:
        started = time.perf_counter()
        job = asyncio.create_task(asker.images(LONG_JOB))
        await asker.images()  # comes back, so the job before it has begun
        answer = await asker.images()
        if job.done():
            raise SystemExit(f"a job of {LONG_JOB} images is too short to come while it runs; use a larger model.")
        await job
        return answer.seconds / (time.perf_counter() - started)


def _command(arguments: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--run", type=Path, help="a run; by default an untrained server")
    run: Path | None = parser.parse_args(arguments).run
    if run is not None and not (run / "server").is_dir():
        parser.error(f"{run} is no run; make one with `collafuse train` or `collafuse demo`")
    return run


if __name__ == "__main__":
    main(_command(sys.argv[1:]))
