"""Reading a folder of small JPEG files, the first time and from the cache, beside a bare Pillow loop on all cores."""

from __future__ import annotations

import multiprocessing
import os
import statistics
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
REPETITIONS = 3


def main(run: Path) -> None:
    """Print the table; ``run`` is not needed."""
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "images"), Path(folder, "cache")
        _make(root)
        files = sorted(map(str, root.glob("*/*.jpg")))
        rows: dict[str, list[float]] = {"bare Pillow loop": [], "first decode": [], "from the cache": []}
        settings: dict[str, Any] = {"dataset": "folder", "path": root, "image_size": SIDE, "channels": 3}
        load(DataSettings(**settings, cache=cache))
        for _ in range(REPETITIONS):
            rows["bare Pillow loop"].append(_seconds(lambda: bare(files)))
            rows["first decode"].append(_seconds(lambda: load(DataSettings(**settings))))
            rows["from the cache"].append(_seconds(lambda: load(DataSettings(**settings, cache=cache))))
    print(f"{FILES} JPEG files of {SIDE}x{SIDE} on {len(os.sched_getaffinity(0))} cores, medians of {REPETITIONS}\n")
    print("| what | seconds | ratio to the bare loop |")
    print("|---|---|---|")
    peer = statistics.median(rows["bare Pillow loop"])
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {statistics.median(seconds) / peer:.2f} |")


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
