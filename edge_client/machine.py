"""What this machine is: the names that a measurement or a cached verdict belongs to."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path

from .cgroups import memory_left_mb

FEATURES = (
    "sse4_2 avx avx2 fma avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_tile "  # x86
    "asimd asimdhp asimddp i8mm bf16 sve sve2"  # Arm
).split()
"""Processor features that decide how fast a denoiser runs; asimddp is Arm's dot product."""
MAX_TEXT = 120
CUDA_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
TENSORRT_VERSIONS = (11, 10, 9, 8)


def cpu_info() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo; empty where there is none."""
    entry: dict[str, str] = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if not line.strip() and entry:
            break
        name, _, value = line.partition(":")
        entry[name.strip()] = value.strip()
    return entry


def cpu_model() -> str:
    """The processor's name, or that of the board, or at least its architecture."""
    info = cpu_info()
    named = info.get("model name") or board() or info.get("Hardware") or platform.processor()
    return _short(named or platform.machine())


def cpu_features() -> list[str]:
    """Those of FEATURES that the processor has."""
    info = cpu_info()
    there = set((info.get("flags") or info.get("Features") or "").split())
    return [name for name in FEATURES if name in there]


def board() -> str:
    """What an Arm board calls itself, such as "Raspberry Pi 5 Model B"; empty elsewhere."""
    return _short(_text(Path("/proc/device-tree/model")).strip("\0"))


def gpu() -> str:
    """Name and compute capability of the first CUDA device; empty where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, 256, device):
            return ""
        parts = []
        for attribute in CUDA_CAPABILITY:
            value = ctypes.c_int()
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            parts.append(value.value)
    except (OSError, AttributeError):
        return ""
    return _short(f"{name.value.decode(errors='replace')} sm_{parts[0]}{parts[1]}")


def graphics() -> str:
    """What the system says of NVIDIA's driver and its GPUs, without loading either; empty where it says nothing."""
    driver = _text(Path("/proc/driver/nvidia/version")).splitlines()[:1]
    driver += _text(Path("/etc/nv_tegra_release")).splitlines()[:1]  # a Jetson's comes with its system
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for card in cards for line in _text(card).splitlines() if line.startswith("Model")]
    return "\n".join((*driver, *models))


def tensorrt_version() -> str:
    """The version of the TensorRT library that would be loaded; empty where there is none."""
    for major in TENSORRT_VERSIONS:
        try:
            return str(ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion())
        except (OSError, AttributeError):
            continue
    return ""


def identity() -> str:
    """A digest of processor, system, GPU and its driver: two machines with the same one measure alike."""
    processor = (cpu_model(), *cpu_features(), str(os.cpu_count()))
    parts = (platform.machine(), platform.system(), *processor, board(), graphics())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def memory_mb() -> tuple[float, float] | None:
    """Memory in all and what is available, in MB, to this process; None where the system does not say."""
    values = dict(line.split(":", 1) for line in _text(Path("/proc/meminfo")).splitlines() if ":" in line)
    try:
        total, free = (int(values[name].split()[0]) * 1024 / 1e6 for name in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return None
    limit = memory_left_mb(Path("/"))
    return (total, free) if limit is None else (min(total, limit[0]), max(0.0, min(free, limit[1])))


def peak_memory_mb() -> float | None:
    """The most memory that this process has held so far, in MB; None where the system does not say.

    Not getrusage: what it reports is inherited from the process that started this one.
    """
    held = _own_memory("VmHWM")
    return None if held is None else held / 1e6


def mapped_bytes() -> int:
    """Memory that this process has for itself, used or not, as a limit counts it; 0 where the system does not say."""
    return _own_memory("VmData") or 0


def _own_memory(name: str) -> int | None:
    """What the system says of this process's memory under this name, in bytes."""
    values = dict(line.split(":", 1) for line in _text(Path("/proc/self/status")).splitlines() if ":" in line)
    try:
        return int(values[name].split()[0]) * 1024
    except (KeyError, ValueError, IndexError):
        return None


def python_version() -> str:
    """Such as "3.10.13"."""
    return ".".join(map(str, sys.version_info[:3]))


def _short(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()[:MAX_TEXT]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
