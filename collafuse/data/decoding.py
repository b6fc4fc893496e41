"""Many image files to pixels, in order, on every core. A file that cannot be read becomes a sentence.

Pillow's decoders leave the interpreter's lock while they work, so threads do for large pictures. Small ones cost more
Python than decoding, so many files are spread over processes. Nothing heavy is imported here, since each of them
imports it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from .images import Transform, read_image

CHUNK = 256
"""Files decoded at a time by one worker, and the step of the progress bar."""
PROCESSES_FROM = 4000
"""Files from which starting processes, about a second, pays."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """One chunk of files. pixels: uint8 [M, C, H, W] and digests: uint8 [M, 32] of those that could be read, in
    order; problems: for each other one its place in the chunk and the reason. count: of the files in the chunk."""

    pixels: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    problems: tuple[tuple[int, str], ...]
    count: int


def decode(root: Path, files: Sequence[str], transform: Transform) -> Iterator[Decoded]:
    """The files below a folder, chunk by chunk in their order; a few chunks are read ahead, so memory stays flat."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    workers, done = _cores(), 0
    if len(files) >= PROCESSES_FROM and workers > 1:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
        try:
            with ProcessPoolExecutor(workers, context, _begin) as pool:
                for decoded in _in_order(pool, root, chunks, transform, 2 * workers):
                    yield decoded
                    done += 1
            return
        except BrokenProcessPool:
            pass  # a script without `if __name__ == "__main__"`, or no memory for processes: threads do the rest
    # Pillow's remarks about metadata concern nobody; filters are the whole process's, so they are not set in threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        yield from _in_order(pool, root, chunks[done:], transform, 2 * workers)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """What a worker process does first."""
    warnings.simplefilter("ignore")
    gc.freeze()  # what was imported is not searched for garbage again and again


def _in_order(
    pool: Executor, root: Path, chunks: Sequence[Sequence[str]], transform: Transform, ahead: int
) -> Iterator[Decoded]:
    waiting: deque[Future[Decoded]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(decode_chunk, root, chunk, transform))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def decode_chunk(root: Path, files: Sequence[str], transform: Transform) -> Decoded:
    """These files below a folder, one after another."""
    pixels = np.empty((len(files), transform.channels, transform.side, transform.side), dtype=np.uint8)
    digests = np.empty((len(files), 32), dtype=np.uint8)
    kept, problems = 0, []
    for place, file in enumerate(files):
        try:
            pixels[kept], digest = read_image(f"{root}/{file}", transform.channels, transform.side, transform.fit)
        except DataError as error:
            problems.append((place, str(error)))
            continue
        digests[kept] = np.frombuffer(digest, dtype=np.uint8)
        kept += 1
    return Decoded(pixels[:kept], digests[:kept], tuple(problems), len(files))
