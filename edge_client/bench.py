"""What a bundle costs on this machine: time per image and evaluation, starts, memory, and what it was measured on."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from collafuse.core import intermediate as intermediates
from collafuse.core.bundle import BundleInfo
from collafuse.core.errors import CollaFuseError, UsageError
from collafuse.core.intermediate import Intermediate
from collafuse.core.knownanswer import known_answer_input
from collafuse.core.texts import EncodedText

from . import machine
from .child import environment
from .finisher import Finisher, Settings
from .providers import AUTO, candidates, default_batch_size, most_at_once, named
from .scratch import scratch_folder
from .trial import seconds_per_call
from .trust import keys_in_force

STARTS = 3
"""Each start is measured so many times."""
START_SECONDS = 3600.0
"""The longest that a start may take; an engine may be built in it."""
MAX_REPETITIONS = 10_000


@dataclass(frozen=True)
class Speed:
    """Medians at one batch size, in milliseconds: one image finished, and one network evaluation of one image."""

    batch_size: int
    per_image_ms: float
    per_evaluation_ms: float


@dataclass(frozen=True)
class Start:
    """A fresh process that finishes one image into a folder, from its start to its end, the median of STARTS.

    first_s: with an empty cache. second_s: with what the first one remembered. peak_memory_mb: of the second.
    """

    first_s: float
    second_s: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Bench:
    """What was measured, on what."""

    bundle: str
    bundle_bytes: int
    precision: str
    parameters: int
    image_shape: tuple[int, int, int]
    steps: int
    sampler: str
    guidance: float
    nfe: int
    provider: str
    threads: int
    speeds: tuple[Speed, ...]
    start: Start
    machine: dict[str, Any]

    def row(self) -> str:
        """The row for a Markdown table."""
        batch = self.speeds[0]
        cells = (
            self.machine["cpu"],
            " ".join(self.machine["features"]) or "-",
            f"{self.provider}, {self.threads} threads",
            f"{self.machine['onnxruntime']}, Python {self.machine['python']}",
            f"{self.bundle}, {self.precision}, {self.bundle_bytes / 1e6:.1f} MB",
            "x".join(map(str, self.image_shape)),
            str(self.nfe),
            *(
                ", ".join(f"{getattr(s, name):.2f} ({s.batch_size})" for s in self.speeds)
                if len(self.speeds) > 1
                else f"{getattr(batch, name):.2f}"
                for name in ("per_image_ms", "per_evaluation_ms")
            ),
            f"{self.start.first_s:.2f}",
            f"{self.start.second_s:.2f}",
            "-" if self.start.peak_memory_mb is None else f"{self.start.peak_memory_mb:.0f}",
        )
        return f"| {' | '.join(cells)} |"


COLUMNS = (
    "machine",
    "features",
    "runs on",
    "onnxruntime",
    "bundle",
    "image",
    "NFE",
    "ms per image",
    "ms per evaluation",
    "first start (s)",
    "second start (s)",
    "peak memory (MB)",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
"""The head of the Markdown table that :meth:`Bench.row` belongs to."""


def bench(
    path: Path,
    command: Sequence[str],
    *,
    provider: str,
    threads: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    batch_sizes: Sequence[int] = (),
    repetitions: int = 20,
    say: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Measure a bundle. ``command`` is what a user types for ``collafuse finish``, as words.

    batch_sizes: by default the one that a job takes. Raises UsageError for an impossible size, and what loading raises.
    """
    if not all(1 <= size <= 4096 for size in batch_sizes) or not 1 <= repetitions <= MAX_REPETITIONS:
        raise UsageError(
            f"batch sizes {list(batch_sizes)}, {repetitions} repetitions; expected sizes from 1 to 4096 and 1 to "
            f"{MAX_REPETITIONS} repetitions."
        )
    if provider != AUTO:
        _check_taken(batch_sizes, provider)  # before it builds an engine
    options = [*_option("--provider", provider), *_option("--threads", threads)]
    options += [*_option("--steps", steps), *_option("--sampler", sampler)]
    finisher = Finisher.load(
        path,
        provider=provider,
        threads=threads,
        steps=steps,
        sampler=sampler,
        trust=keys_in_force(None),  # which the processes ask as well
        say=say,
    )
    _check_taken(batch_sizes, finisher.provider)
    info, model = finisher.bundle.info, finisher.model
    say(f"Starting fresh processes{_engines(provider)} ...")
    start = measure_start([*command, str(path.resolve())], options, sample(info, 1))
    sizes = tuple(batch_sizes) or (default_batch_size(finisher.provider, info.image_shape),)
    speeds = []
    for size in sizes:
        say(f"Finishing {size} at a time ...")
        speeds.append(measure_speed(finisher, size, repetitions))
    return Bench(
        bundle=path.name,
        bundle_bytes=path.stat().st_size,
        precision=info.precision,
        parameters=finisher.bundle.summary.num_parameters,
        image_shape=info.image_shape,
        **_settings(finisher.settings),
        nfe=finisher.nfe,
        provider=finisher.provider,
        threads=model.threads,
        speeds=tuple(speeds),
        start=start,
        machine=describe_machine(),
    )


def _check_taken(batch_sizes: Sequence[int], provider: str) -> None:
    """Raise UsageError for more images at once than a provider takes: a job takes fewer then, a measurement says so."""
    for size in batch_sizes:
        if (taken := most_at_once(provider, size)) != size:
            raise UsageError(f"batch size {size}: {provider} takes at most {taken} images at once; measure with fewer.")


def _engines(provider: str) -> str:
    """What to say of starts that build an engine: ``auto`` tries all candidates, whatever it chooses in the end."""
    tried = candidates(onnxruntime.get_available_providers()) if provider == AUTO else [provider]
    if not machine.tensorrt_version() or not any(named(name).builds_engines for name in tried):
        return ""
    return f", {STARTS} of which build an engine; this takes minutes"


def _settings(settings: Settings) -> dict[str, Any]:
    return {"steps": settings.steps, "sampler": settings.sampler, "guidance": settings.guidance}


def _option(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (name, str(value))


def sample(info: BundleInfo, count: int) -> Intermediate:
    """Something to finish where a bundle takes over: the known answer's pattern, with the bundle's labels in turn and
    no caption."""
    x, _, conditions = known_answer_input(info.image_shape, info.space, (info.sigma_max,) * count)
    labels = conditions[:, info.space.label_columns].astype(np.uint8) if info.label_names else None
    one = Intermediate(x, info.sigma_max, labels, info.label_names, "bench", "euler", 0, 1.0)
    if info.text is not None:
        one = replace(one, text=EncodedText(info.text, np.zeros((count, info.text.width), dtype=np.float16)))
    return one


def measure_speed(finisher: Finisher, batch_size: int, repetitions: int) -> Speed:
    """Medians at one batch size, after one run that does not count."""
    batch, times = sample(finisher.bundle.info, batch_size), []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        finisher.finish_block(batch, 0, batch_size)
        times.append(time.perf_counter() - started)
    call = seconds_per_call(finisher.model, finisher.bundle, batch_size, repetitions)
    return Speed(batch_size, 1000 * statistics.median(times[1:]) / batch_size, 1000 * call / batch_size)


def measure_start(command: Sequence[str], options: Sequence[str], one: Intermediate) -> Start:
    """Fresh processes that finish one image. Raises CollaFuseError when one fails."""
    first: list[tuple[float, float | None]] = []
    second: list[tuple[float, float | None]] = []
    with scratch_folder("measuring a start") as folder:
        (folder / "one.safetensors").write_bytes(intermediates.to_bytes(one))
        for number in range(STARTS):
            for kind in (first, second):
                place = f"{number}-{kind is first}"
                words = [*command, str(folder / "one.safetensors"), "-o", str(folder / place), "--json", *options]
                kind.append(_start(words, folder / f"cache-{number}"))
    peaks = [peak for _, peak in second if peak is not None]
    return Start(
        first_s=statistics.median(seconds for seconds, _ in first),
        second_s=statistics.median(seconds for seconds, _ in second),
        peak_memory_mb=statistics.median(peaks) if peaks else None,
    )


def _start(words: Sequence[str], cache: Path) -> tuple[float, float | None]:
    """Seconds from start to end of one process with this cache folder, and its peak memory in MB."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
            cwd=cache.parent,  # not the user's folder, whose modules would come before ours
            env=environment(XDG_CACHE_HOME=str(cache)),
        )
    except subprocess.TimeoutExpired as error:
        raise CollaFuseError(f"finishing one image took more than {START_SECONDS:.0f} s; run it by hand.") from error
    seconds = time.perf_counter() - started
    if done.returncode:
        failed = CollaFuseError(f"finishing one image in a fresh process failed: {done.stderr.strip()[-500:]}")
        failed.exit_code = done.returncode
        raise failed
    return seconds, json.loads(done.stdout)["peak_memory_mb"]


def describe_machine() -> dict[str, Any]:
    """Processor, system and versions, for whoever compares measurements."""
    memory = machine.memory_mb()
    return {
        "cpu": machine.cpu_model(),
        "features": machine.cpu_features(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "board": machine.board() or None,
        "memory_mb": None if memory is None else round(memory[0]),
        "gpu": machine.gpu() or None,
        "python": machine.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
