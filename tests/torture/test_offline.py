"""The whole device path where there is no network and the clock says 1970, as on a board without a battery."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from collafuse.core import intermediate

ROOT = Path(__file__).parents[2]
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

#define START 86400 /* the second of January 1970 */

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock == CLOCK_REALTIME ? CLOCK_MONOTONIC : clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec = START + now->tv_sec % 3600;
    return failed;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"""
LOOK = """
import socket, time
from datetime import datetime, timezone
assert datetime.now(timezone.utc).year == 1970 and time.gmtime().tm_year == 1970 and time.time() < 1e6
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError as error:
    print(error.errno)
"""
NETWORK_IS_UNREACHABLE = "101"


class Device:
    """Runs commands without a network in 1970."""

    def __init__(self, folder: Path) -> None:
        library = folder / "clock.so"
        (folder / "clock.c").write_text(CLOCK)
        compiled = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "clock.c"), "-ldl"]
        subprocess.run(compiled, check=True, capture_output=True)
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "LD_PRELOAD": str(library),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def python(self, *words: object) -> str:
        done = subprocess.run(
            ["unshare", "-n", sys.executable, *map(str, words)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def collafuse(self, *words: object) -> str:
        return self.python("-m", "cli", *words)


@pytest.fixture
def device(tmp_path) -> Device:
    unshared = shutil.which("unshare") and shutil.which("cc")
    if not unshared or subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a process without a network and with another clock needs unshare, root and a C compiler")
    return Device(tmp_path)


def test_a_device_needs_no_network_and_no_clock(device, tiny_bundle, tiny_intermediate, tmp_path, figure):
    assert device.python("-c", LOOK).strip() == NETWORK_IS_UNREACHABLE
    file = tmp_path / "intermediates.safetensors"
    file.write_bytes(intermediate.to_bytes(tiny_intermediate))
    made = json.loads(device.collafuse("finish", tiny_bundle, file, "-o", "pictures", "--json"))
    assert made["images"] == made["finished"] == len(tiny_intermediate)
    again = json.loads(device.collafuse("finish", tiny_bundle, file, "-o", "pictures", "--overwrite", "--json"))
    assert again["finished"] == len(tiny_intermediate)
    assert json.loads(device.collafuse("inspect", tiny_bundle, "--json"))["kind"] == "bundle"
    figure("without a network, in 1970: finish (first and later starts) and inspect work")


@pytest.mark.torture
def test_doctor_and_bench_need_neither(device, tiny_bundle, figure):
    said = json.loads(device.collafuse("doctor", tiny_bundle, "--json"))
    assert any("clock" in json.dumps(check).lower() for check in said["checks"])
    json.loads(device.collafuse("bench", tiny_bundle, "--json"))
    figure("without a network, in 1970: doctor (which says that the clock is wrong) and bench work")
