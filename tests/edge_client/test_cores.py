"""edge_client.cores: how many threads a device uses."""

from __future__ import annotations

import os

import pytest

from collafuse.core.errors import UsageError
from edge_client import Finisher
from edge_client.cgroups import memory_left_mb, processor_quota
from edge_client.cores import MAX_THREADS, MOST_ASKED, check_threads, default_threads, may_spin, physical_cores
from tests.bundles import halving_bundle

CPU = "sys/devices/system/cpu"


def system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def topology(siblings, name="core_cpus_list"):
    return {f"{CPU}/cpu{i}/topology/{name}": f"{text}\n" for i, text in enumerate(siblings)}


def test_two_hardware_threads_of_a_core_count_once(tmp_path):
    root = system(tmp_path, topology(["0,2", "1,3", "0,2", "1,3"]))
    assert physical_cores(root, {0, 1, 2, 3}) == 2
    assert physical_cores(root, {0, 2}) == 1
    assert physical_cores(root, {0, 3}) == 2


def test_older_kernels_name_the_siblings_otherwise(tmp_path):
    assert physical_cores(system(tmp_path, topology(["0-1", "0-1"], "thread_siblings_list")), {0, 1}) == 1


def test_without_a_topology_each_processor_is_a_core(tmp_path):
    assert physical_cores(tmp_path, {0, 1, 5}) == 3


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000", 1.5), ("max 100000", None), ("", None), ("1 0", None)]
)
def test_the_quota_of_a_container(tmp_path, text, expected):
    root = system(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})
    assert processor_quota(root) == expected


def test_the_tightest_quota_around_a_service_holds(tmp_path):
    files = {
        "proc/self/cgroup": "0::/system.slice/finish.service\n",
        "sys/fs/cgroup/system.slice/cpu.max": "100000 100000",
        "sys/fs/cgroup/system.slice/finish.service/cpu.max": "300000 100000",
    }
    assert processor_quota(system(tmp_path, files)) == 1.0


def test_a_quota_in_version_1_and_its_absence(tmp_path):
    files = {
        "proc/self/cgroup": "5:memory:/other\n4:cpu,cpuacct:/docker/1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    root = system(tmp_path, files)
    assert processor_quota(root) == 2.0
    (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1")
    assert processor_quota(root) is None


def test_what_is_left_of_a_containers_memory(tmp_path):
    """Files that can be read again are given back when memory is wanted."""
    files = {
        "proc/self/cgroup": "0::/system.slice/finish.service\n",
        "sys/fs/cgroup/system.slice/memory.max": "max",
        "sys/fs/cgroup/system.slice/memory.current": "1000",
        "sys/fs/cgroup/system.slice/finish.service/memory.max": "100000000",
        "sys/fs/cgroup/system.slice/finish.service/memory.current": "90000000",
        "sys/fs/cgroup/system.slice/finish.service/memory.stat": "anon 50000000\ninactive_file 30000000\n",
    }
    assert memory_left_mb(system(tmp_path, files)) == (100.0, 40.0)
    assert memory_left_mb(tmp_path / "nowhere") is None


def test_memory_in_version_1_and_its_absence(tmp_path):
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/other\n3:memory:/docker/1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000000",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "150000000",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 10000000\n",
    }
    root = system(tmp_path, files)
    assert memory_left_mb(root) == (200.0, 60.0)
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712")
    assert memory_left_mb(root) is None


def test_threads_stay_within_cores_quota_and_the_most_that_pays(tmp_path):
    root = system(tmp_path, topology([str(i) for i in range(16)]))
    assert default_threads(root, set(range(16))) == MAX_THREADS
    assert default_threads(root, {3}) == 1
    system(root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000"})
    assert default_threads(root, set(range(16))) == 2
    system(root, {"sys/fs/cgroup/cpu.max": "50000 100000"})
    assert default_threads(root, set(range(16))) == 1


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [
        ([485] * 4 + [1024] * 2, 2),  # four small cores beside two large ones, as on an RK3399
        ([530] * 4 + [1024] * 4, 4),  # an RK3588
        ([1024] * 4, 4),
        ([325] * 4 + [870] * 3 + [1024], 4),  # three sizes, of which the middle one is nearly the large one
        ([1024, 485, 485], 1),
    ],
)
def test_slow_cores_beside_fast_ones_do_not_count(tmp_path, capacities, expected):
    root = system(tmp_path, topology([str(i) for i in range(len(capacities))]))
    system(root, {f"{CPU}/cpu{i}/cpu_capacity": f"{value}\n" for i, value in enumerate(capacities)})
    assert default_threads(root, set(range(len(capacities)))) == expected
    assert default_threads(root, {0, 1}) == (2 if capacities[0] == capacities[1] else 1)


@pytest.mark.parametrize("threads", [-1, 0, MOST_ASKED + 1, 10**9])
def test_absurd_numbers_of_threads_are_refused_with_what_is_taken(threads, tmp_path):
    path = tmp_path / "halving.onnx"
    path.write_bytes(halving_bundle())
    for provider in ("cpu", "auto"):
        with pytest.raises(UsageError, match=f"^{threads} threads; ask for 1 to {MOST_ASKED}"):
            Finisher.load(path, provider=provider, threads=threads)


def test_what_is_asked_for_within_reason_is_what_is_used():
    assert [check_threads(threads) for threads in (1, MOST_ASKED, None)] == [1, MOST_ASKED, default_threads()]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
def test_this_process_uses_what_it_may():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert default_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= default_threads() <= min(len(allowed), MAX_THREADS)


@pytest.mark.parametrize(
    ("running", "threads", "expected"), [(1, 2, True), (2, 2, False), (2, 1, True), (3, 1, False), (1, 3, False)]
)
def test_threads_wait_awake_only_on_processors_that_nobody_else_needs(tmp_path, running, threads, expected):
    root = system(tmp_path, {"proc/stat": f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 0\n"})
    assert may_spin(threads, root, {0, 1, 2, 3}, processors=2) is expected


@pytest.mark.parametrize(
    ("allowed", "quota", "threads", "expected"),
    [({0}, "max", 2, False), ({0, 1}, "max", 2, True), ({0, 1}, "max", 3, False), ({0, 1, 2}, "150000", 2, False),
     ({0, 1, 2}, "200000", 2, True)],
)  # fmt: skip
def test_threads_that_share_what_this_process_may_use_do_not_wait_awake(tmp_path, allowed, quota, threads, expected):
    """A thread that waits awake on the processor of the one that it waits for doubles the processor time."""
    files = {
        "proc/stat": "procs_running 1\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
    }
    assert may_spin(threads, system(tmp_path, files), allowed, processors=8) is expected


def test_where_the_system_does_not_say_what_runs_threads_wait_awake(tmp_path):
    assert may_spin(2, tmp_path, {0, 1}, processors=2)
