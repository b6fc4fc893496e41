"""edge_client.machine: what a measurement or a remembered verdict belongs to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_client import machine

PI = "processor\t: 0\nFeatures\t: fp asimd crc32 asimddp\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n"
PC = "processor\t: 0\nmodel name\t: A CPU\x1b[2J @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni\n"


@pytest.fixture
def files(monkeypatch):
    """What the system's files hold."""
    held: dict[str, str] = {}
    monkeypatch.setattr(machine, "_text", lambda path: held.get(str(path), ""))
    return held


def test_a_pc_and_a_board_are_named(files):
    files["/proc/cpuinfo"] = PC
    assert (machine.cpu_model(), machine.cpu_features()) == ("A CPU[2J @ 2 GHz", ["avx2", "avx512_vnni"])
    files.update({"/proc/cpuinfo": PI, "/proc/device-tree/model": "Raspberry Pi 5 Model B\0"})
    assert (machine.cpu_model(), machine.cpu_features()) == ("Raspberry Pi 5 Model B", ["asimd", "asimddp"])


def test_a_system_that_says_nothing_has_a_name_all_the_same(files):
    assert machine.cpu_model() and machine.cpu_features() == []
    assert (machine.memory_mb(), machine.peak_memory_mb(), machine.board()) == (None, None, "")
    assert machine.mapped_bytes() == 0


def test_machines_with_other_processors_or_another_driver_differ(files):
    files["/proc/cpuinfo"] = PC
    one = machine.identity()
    assert machine.identity() == one
    files["/proc/driver/nvidia/version"] = "NVRM version: 540.4.0\nGCC version: 11\n"
    assert machine.graphics() == "NVRM version: 540.4.0" and machine.identity() != one
    del files["/proc/driver/nvidia/version"]
    assert machine.identity() == one
    # A Jetson's GPU has no such driver; its own comes with the system, whose release this names.
    files["/etc/nv_tegra_release"] = "# R36 (release), REVISION: 4.0, GCID: 1\n# KERNEL_VARIANT: oot\n"
    assert machine.graphics() == "# R36 (release), REVISION: 4.0, GCID: 1" and machine.identity() != one
    del files["/etc/nv_tegra_release"]
    files["/proc/cpuinfo"] = PI
    assert machine.identity() != one


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, (4096.0, 1024.0)), ((512.0, 90.0), (512.0, 90.0)), ((9e9, 9e9), (4096.0, 1024.0))]
)
def test_memory_in_mb(files, monkeypatch, limit, expected):
    monkeypatch.setattr(machine, "memory_left_mb", lambda root: limit)
    files["/proc/meminfo"] = "MemTotal:  4000000 kB\nMemAvailable:  1000000 kB\n"
    files["/proc/self/status"] = "Name: python\nVmHWM:\t  50000 kB\nVmData:\t  7 kB\n"
    assert (machine.memory_mb(), machine.peak_memory_mb(), machine.mapped_bytes()) == (expected, 51.2, 7 << 10)


@pytest.mark.skipif(machine.peak_memory_mb() is None, reason="only Linux tells a process's peak")
def test_the_peak_is_that_of_the_process_alone():
    """Where one starts another, getrusage would report the larger of the two."""
    held = bytearray(200 << 20)
    code = "from edge_client.machine import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100 < len(held) / 1e6


def test_libraries_that_are_not_there_have_no_version(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(machine.ctypes, "CDLL", missing)
    assert (machine.gpu(), machine.tensorrt_version()) == ("", "")
