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
from .served import Served
from .serving_overload import overload
from .serving_slow import slow_clients

CLIENTS = 32
SLOTS = 16
IMAGES, IMAGES_ALONE = 128, 16
"""Over HTTP with the shared batch, and as a file; the single row makes fewer, because it takes longer."""
LONG_JOB = 128
REPETITIONS = 3
BATCHES = (16, 32)
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
        served = Served.make(run, Path(path))
        server, threads = served.server, torch.get_num_threads()
        shape = "x".join(map(str, server.model.denoiser.image_shape))
        print(f"Images of {shape}, {server.config.server.sampler.steps} steps, on {server.device.type}.")
        print(f"{os.cpu_count()} cores, {threads} of them for a step; load before: {os.getloadavg()[0]:.1f}.\n")
        print("| what | measured | wanted | reached |\n|---|---|---|---|", flush=True)
        for part in (throughput, overload_rows, slow_rows):
            for row in part(served):
                print(row, flush=True)
        print(f"\nLoad after: {os.getloadavg()[0]:.1f}.")


def throughput(served: Served) -> list[Row]:
    """The shared batch against a file, against one at a time, and the wait behind a long job."""
    rates: dict[str, list[float]] = {"shared": [], "alone": [], "same": [], "best": []}
    waits: list[float] = []
    with ExitStack() as stack:
        options = ("--deadline", 600, "--max-images", LONG_JOB)
        shared, _ = stack.enter_context(served.process("--slots", SLOTS, *options))
        alone, _ = stack.enter_context(served.process("--slots", 1, *options))
        for url, images in ((shared, SLOTS), (alone, 2)):
            asyncio.run(closed_load(served.asker(url), images))  # the first evaluations are slow
        for _ in range(REPETITIONS):
            files = [_offline(served, size) for size in BATCHES]
            rates["same"].append(files[0])
            rates["best"].append(max(files))
            rates["shared"].append(asyncio.run(closed_load(served.asker(shared), IMAGES)))
            rates["alone"].append(asyncio.run(closed_load(served.asker(alone), IMAGES_ALONE)))
            waits.append(asyncio.run(_wait_behind_a_long_job(served.asker(shared))))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    best, same, one = (rate["shared"] / rate[name] for name in ("best", "same", "alone"))
    many = 10.0 if served.server.device.type == "cuda" else 1.5
    wait = statistics.median(waits)
    sizes = ", ".join(map(str, BATCHES))
    return [
        Row(
            f"{CLIENTS} clients, one image each, {SLOTS} rows, against the best file (batches of {sizes})",
            f"{best:.2f}x ({rate['shared']:.1f} of {rate['best']:.1f} images/s)",
            ">= 0.9x",
            best >= 0.9,
        ),
        Row(
            f"the same against a file in batches of {SLOTS}",
            f"{same:.2f}x ({rate['same']:.1f} images/s)",
            ">= 0.9x",
            same >= 0.9,
        ),
        Row(
            "the same against one request at a time",
            f"{one:.2f}x ({rate['alone']:.1f} images/s)",
            f">= {many:g}x",
            one >= many,
        ),
        Row(f"one image, asked for while {LONG_JOB} are made", f"{wait:.2f}x their time", "<= 0.25x", wait <= 0.25),
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
    return [
        Row(
            f"healthy clients beside {found.slow} trickling heads and {found.slow} trickling bodies",
            f"{100 * share:.1f} % of {found.healthy_asked}",
            ">= 99 %",
            share >= 0.99,
        ),
        Row(
            "the last slow one closed after",
            f"{found.slowest:.1f} s" if not found.left else f"{found.left} were left open",
            "<= 15 s",
            not found.left and found.slowest <= 15,
        ),
    ]


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
