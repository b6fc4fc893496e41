"""Trying a provider on a bundle: whether it really runs it, and how fast."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collafuse.core import bundle as bundles
from collafuse.core.errors import CollaFuseError
from collafuse.core.knownanswer import known_answer_input

from .child import ChildError, run_child
from .denoiser import OnnxDenoiser
from .providers import ProviderError, default_batch_size, named
from .session import open_session

REPETITIONS = 5
SECONDS = 300.0
"""How long a trial may take; a slow board with a large bundle needs a minute."""
ENGINE_SECONDS = 3600.0
"""The same where an engine is built first."""

PASSING = (
    "out of memory", "outofmemory", "memory runs out", "bad_alloc", "bad allocation", "alloc_failed", "bfcarena",
    "failed to allocate", "could not be allocated", "no space left", "quota", "tmpdir",
)  # fmt: skip
"""In the words of onnxruntime, CUDA, the system and our own: no memory, or no room for files, at that moment."""


@dataclass(frozen=True)
class Trial:
    """What became of a provider. ``milliseconds``: one evaluation of one image, the median; None if it does not run.

    ``failure`` says why not, and is empty if it does. ``batch_size``: how many images were evaluated at once, which is
    as many as finishing evaluates on that provider. So compared is what an image of a job of many takes. For one
    alone a GPU takes nearly as long as for a batch; but such a job is mostly start-up on either.
    """

    provider: str
    milliseconds: float | None
    failure: str
    batch_size: int = 1

    @property
    def may_pass(self) -> bool:
        """Whether it failed for a want that may be over at the next start."""
        return any(words in self.failure.lower() for words in PASSING)

    def __str__(self) -> str:
        if self.milliseconds is None:
            return f"{self.provider} fails ({self.failure})"
        at_once = "one" if self.batch_size == 1 else str(self.batch_size)
        return f"{self.provider} takes {self.milliseconds:.2f} ms, {at_once} at a time"


def try_isolated(path: Path, provider: str, threads: int) -> Trial:
    """The outcome for one provider, found in a process of its own."""
    limit = ENGINE_SECONDS if named(provider).builds_engines else SECONDS
    try:
        answer = run_child("trial", (str(path.resolve()), provider, str(threads)), limit)
        return Trial(provider, answer["milliseconds"], answer["failure"], answer["batch_size"])
    except ChildError as error:
        return Trial(provider, None, str(error))


def try_here(path: Path, provider: str, threads: int) -> Trial:
    """The outcome for one provider, found in this process."""
    try:
        bundle = bundles.read(path)
        denoiser = open_session(bundle, provider, threads)
        batch_size = default_batch_size(denoiser.provider, bundle.info.image_shape)
        seconds = seconds_per_call(denoiser, bundle, batch_size, REPETITIONS)
        return Trial(provider, 1000 * seconds / batch_size, "", batch_size)
    except ProviderError as error:
        return Trial(provider, None, error.tried)
    except CollaFuseError as error:
        return Trial(provider, None, str(error))


def seconds_per_call(denoiser: OnnxDenoiser, bundle: bundles.Bundle, batch_size: int, repetitions: int) -> float:
    """Median time of one evaluation of ``batch_size`` images at sigma_max, after one that does not count."""
    info = bundle.info
    inputs = known_answer_input(info.image_shape, info.space, (info.sigma_max,) * batch_size)
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        denoiser(*inputs)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main(arguments: Sequence[str]) -> None:
    """PATH PROVIDER THREADS: print the outcome as JSON."""
    path, provider, threads = arguments
    print(json.dumps(dataclasses.asdict(try_here(Path(path), provider, int(threads)))))  # noqa: T201
