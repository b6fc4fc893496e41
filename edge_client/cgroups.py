"""What a container or a service limits this process to, as Linux says it: control groups, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2^63 where memory is not limited."""


def processor_quota(root: Path) -> float | None:
    """Processors' worth of time that this process may use; None without a limit. ``root``: where /sys and /proc are."""
    limits = [limit for folder in _groups(root, "cpu") if (limit := _processors(folder)) is not None]
    return min(limits, default=None)


def memory_left_mb(root: Path) -> tuple[float, float] | None:
    """The tightest limit on this process's memory and what is left of it, in MB; None without a limit."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _memory(folder)) is not None]
    return min(limits, key=lambda limit: limit[1], default=None)


def text(path: Path) -> str:
    """What a file of the system says; empty where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control groups, and those around them: a limit holds for everything below it."""
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        # Version 2 is one tree without names; in version 1 each controller has a tree of its own.
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = top / path.lstrip("/")
        # A container sees its own group as the top, and a path that is not there.
        yield from {folder, *(p for p in folder.parents if p.is_relative_to(top)), top}


def _processors(folder: Path) -> float | None:
    quota, period = [*text(folder / "cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = text(folder / "cpu.cfs_quota_us"), text(folder / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max" or -1: no limit
    return int(quota) / int(period)


def _memory(folder: Path) -> tuple[float, float] | None:
    """Limit and what is left. Files that were read and can be read again count as used there, and are given back."""
    limit = text(folder / "memory.max") or text(folder / "memory.limit_in_bytes")
    used = text(folder / "memory.current") or text(folder / "memory.usage_in_bytes")
    if not limit.isdecimal() or not used.isdecimal() or int(limit) >= NO_LIMIT:
        return None
    counts = dict(line.split() for line in text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    cached = int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))
    return int(limit) / 1e6, (int(limit) - int(used) + cached) / 1e6
