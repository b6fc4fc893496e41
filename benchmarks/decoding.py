"""Reading a folder of JPEG files, the first time and from the cache, beside a bare Pillow loop on all cores.

``python -m benchmarks.decoding IMAGES`` measures a folder of one's own, with a sub-folder per label.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from collafuse.config import DataSettings
from collafuse.data.datasets import load

FILES = 20_000
SIDE = 32
REPETITIONS = 5


def main(run: Path) -> None:
    """Print the table for files made here; ``run`` is not needed."""
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder))
        measure(Path(folder))


def measure(root: Path) -> None:
    """Print the table for the JPEG files below a folder, as images of SIDE pixels. The ways take turns."""
    files = sorted(map(str, root.glob("*/*.jpg")))
    rows: dict[str, list[float]] = {"bare Pillow loop": [], "first decode": [], "from the cache": []}
    settings: dict[str, Any] = {"dataset": "folder", "path": root, "image_size": SIDE, "channels": 3}
    with tempfile.TemporaryDirectory() as cache:
        load(DataSettings(**settings, cache=Path(cache)))
        for _ in range(REPETITIONS):
            rows["bare Pillow loop"].append(_seconds(lambda: bare(files)))
            rows["first decode"].append(_seconds(lambda: load(DataSettings(**settings))))
            rows["from the cache"].append(_seconds(lambda: load(DataSettings(**settings, cache=Path(cache)))))
    cores = len(os.sched_getaffinity(0))
    print(f"{len(files)} JPEG files as {SIDE}x{SIDE} on {cores} cores, medians of {REPETITIONS}\n")
    print("| what | seconds | ratio to the bare loop in the same round |")
    print("|---|---|---|")
    for name, seconds in rows.items():
        ratios = [one / peer for one, peer in zip(seconds, rows["bare Pillow loop"], strict=True)]
        print(f"| {name} | {statistics.median(seconds):.2f} | {statistics.median(ratios):.2f} |")


def _make(root: Path) -> None:
    """Smooth random colour pictures in ten folders."""
    coarse = np.random.default_rng(0).integers(0, 256, (FILES, 6, 6, 3), dtype=np.uint8)
    for row, pixels in enumerate(coarse):
        path = root / str(row % 10) / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)


def bare(files: Sequence[str]) -> int:
    """Every file opened, decoded and turned into an array, in as many processes as there are cores."""
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(bare_chunk, [files[i : i + 256] for i in range(0, len(files), 256)]))


def bare_chunk(files: Sequence[str]) -> int:
    """What a loop without any care does; the number of bytes."""
    total = 0
    for file in files:
        with Image.open(file) as image:
            total += np.asarray(image.convert("RGB")).nbytes
    return total


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


if __name__ == "__main__":  # processes that a measurement starts must not start it again
    measure(Path(sys.argv[1])) if len(sys.argv) > 1 else main(Path())
