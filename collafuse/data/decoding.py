"""Many image files to pixels, in order, on every core. A file that cannot be read becomes a sentence.

Pillow's decoders leave the interpreter's lock while they work, so threads do for large pictures. Small ones cost more
Python than decoding, so many files are spread over processes: joblib's, which do not run the caller's script again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
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
    workers = _cores()
    backend = "loky" if len(files) >= PROCESSES_FROM and workers > 1 else "threading"
    # Pillow's remarks about metadata concern nobody; filters are the whole process's, so they are not set in threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel = Parallel(workers, backend=backend, return_as="generator", pre_dispatch=2 * workers, max_nbytes=None)
        work = decode_chunk if backend == "threading" else _decode_in_process
        yield from parallel(delayed(work)(root, chunk, transform) for chunk in chunks)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_in_process(root: Path, files: Sequence[str], transform: Transform) -> Decoded:
    warnings.simplefilter("ignore")
    return decode_chunk(root, files, transform)


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
