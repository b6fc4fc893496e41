"""How many threads to use, and whether they may wait for each other awake: physical cores that this process may run
on, within its share of processor time, and what other work leaves of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Set
from pathlib import Path

MAX_THREADS = 4
"""Networks this small gain nothing from more (and lose on a processor with slow cores beside fast ones)."""


SAMPLES = 3
SAMPLE_SECONDS = 0.002


def default_threads(root: Path = Path("/"), allowed: Set[int] | None = None) -> int:
    """Threads for one evaluation, from 1 to MAX_THREADS.

    Two hardware threads of one core share its arithmetic units, so a core counts once. ``root`` is where /sys and
    /proc are; ``allowed`` the processors this process may use, by default those the system says.
    """
    allowed = allowed_processors() if allowed is None else allowed
    threads = min(physical_cores(root, allowed), MAX_THREADS)
    quota = processor_quota(root)
    return max(1, threads if quota is None else min(threads, int(quota)))


def may_spin(threads: int, root: Path = Path("/"), processors: int | None = None) -> bool:
    """Whether so many threads may wait for each other awake, because nobody else needs their processors now.

    A call of a small network has some hundred operators, each shorter than it takes to wake a sleeping thread, so two
    threads that sleep in between are no faster than one. Where other work runs, threads that stay awake take its
    time and their own instead. ``processors`` is how many the machine has, by default what the system says.
    """
    running = min(_running_elsewhere(root, number) for number in range(SAMPLES))
    return (processors or os.cpu_count() or 1) - running >= threads


def _running_elsewhere(root: Path, number: int) -> int:
    """Threads that run or want to, without this one: 0 where the system does not say."""
    time.sleep(SAMPLE_SECONDS if number else 0)
    lines = _text(root / "proc/stat").splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("procs_running ")]
    return max(0, int(counts[0]) - 1) if counts and counts[0].isdecimal() else 0


def allowed_processors() -> Set[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(root: Path, allowed: Set[int]) -> int:
    """Different cores among these processors; where the system does not say, each processor is one."""
    cores = set()
    for processor in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        siblings = _text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list")
        cores.add(siblings or str(processor))
    return max(1, len(cores))


def processor_quota(root: Path) -> float | None:
    """Processors' worth of time that a container or service limits this process to; None without a limit."""
    limits = [limit for folder in _cgroups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _cgroups(root: Path) -> Iterator[Path]:
    """This process's control groups, and those around them: a limit holds for everything below it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        # Version 2 is one tree without names; in version 1 processor time has a tree of its own.
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = top / path.lstrip("/")
        # A container sees its own group as the top, and a path that is not there.
        yield from {folder, *(p for p in folder.parents if p.is_relative_to(top)), top}


def _limit(folder: Path) -> float | None:
    quota, period = [*_text(folder / "cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max" or -1: no limit
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
