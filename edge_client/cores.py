"""How many threads to use, and whether they may wait for each other awake: fast physical cores that this process may
run on, within its share of processor time, and what other work leaves of them."""

from __future__ import annotations

import os
import time
from collections.abc import Set
from pathlib import Path

from collafuse.core.errors import UsageError

from .cgroups import processor_quota, text

MAX_THREADS = 4
"""Networks this small gain nothing from more."""
MOST_ASKED = 256
"""The most that anybody may ask for: each takes memory, and with tens of thousands it hangs."""
SLOW = 2 / 3
"""A core with less than this share of the fastest one's capacity is slow. Work is dealt evenly among threads, so one on
such a core is waited for by all."""


SAMPLES = 3
SAMPLE_SECONDS = 0.002


def check_threads(threads: int | None) -> int:
    """So many threads as were asked for, or :func:`default_threads`. Raises UsageError beyond MOST_ASKED."""
    if threads is None:
        return default_threads()
    if not 1 <= threads <= MOST_ASKED:
        raise UsageError(f"{threads} threads; ask for 1 to {MOST_ASKED}, or leave it out for what suits this machine.")
    return threads


def default_threads(root: Path = Path("/"), allowed: Set[int] | None = None) -> int:
    """Threads for one evaluation, from 1 to MAX_THREADS.

    Two hardware threads of one core share its arithmetic units, so a core counts once. ``root`` is where /sys and
    /proc are; ``allowed`` the processors this process may use, by default those the system says.
    """
    allowed = allowed_processors() if allowed is None else allowed
    threads = min(physical_cores(root, _fast(root, allowed)), MAX_THREADS)
    quota = processor_quota(root)
    return max(1, threads if quota is None else min(threads, int(quota)))


def may_spin(
    threads: int, root: Path = Path("/"), allowed: Set[int] | None = None, processors: int | None = None
) -> bool:
    """Whether so many threads may wait for each other awake, because nobody else needs their processors now.

    A call of a small network has some hundred operators, each shorter than it takes to wake a sleeping thread, so two
    threads that sleep in between are no faster than one. Where other work runs, threads that stay awake take its
    time and their own instead; so do more threads than this process has processors, or a share of their time.
    ``root`` and ``allowed`` as in :func:`default_threads`; ``processors`` is how many the machine has, by default what
    the system says. What else runs is counted for the whole machine, where it takes the others first.
    """
    quota = processor_quota(root)
    usable = len(allowed_processors() if allowed is None else allowed)
    if threads > (usable if quota is None else min(usable, quota)):
        return False
    running = min(_running_elsewhere(root, number) for number in range(SAMPLES))
    return (processors or os.cpu_count() or 1) - running >= threads


def _running_elsewhere(root: Path, number: int) -> int:
    """Threads that run or want to, without this one: 0 where the system does not say."""
    time.sleep(SAMPLE_SECONDS if number else 0)
    lines = text(root / "proc/stat").splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("procs_running ")]
    return max(0, int(counts[0]) - 1) if counts and counts[0].isdecimal() else 0


def allowed_processors() -> Set[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _fast(root: Path, allowed: Set[int]) -> Set[int]:
    """Those of these processors that are not slow beside the fastest; all of them where the system does not say."""
    capacities = {n: text(root / f"sys/devices/system/cpu/cpu{n}/cpu_capacity") for n in allowed}
    if not all(capacity.isdecimal() for capacity in capacities.values()):
        return allowed
    fastest = max(map(int, capacities.values()), default=0)
    return {n for n, capacity in capacities.items() if int(capacity) >= SLOW * fastest}


def physical_cores(root: Path, allowed: Set[int]) -> int:
    """Different cores among these processors; where the system does not say, each processor is one."""
    cores = set()
    for processor in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        siblings = text(topology / "core_cpus_list") or text(topology / "thread_siblings_list")
        cores.add(siblings or str(processor))
    return max(1, len(cores))
