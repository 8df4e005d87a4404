"""What a process may use: affinity, control groups of both versions, OMP_NUM_THREADS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlflow_phi3_onnx.runtime.machine import available_memory, available_threads

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 processors with 8 GiB free, on which nothing else limits a process."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    free = psutil.virtual_memory()._replace(available=8192 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


def machine(tmp_path: Path, cgroup: str, mounts: str, files: dict[str, Any]) -> Path:
    """Write a /proc/self and the cgroup folders that it tells of."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mounts.replace("$", str(tmp_path)))
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return proc


V2 = "24 1 0:22 / $/fs rw,nosuid - cgroup2 cgroup rw\n"
V1 = (
    "30 1 0:25 / $/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "31 1 0:26 / $/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("max 100000", 64),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("100001 100000", 2),
        ("250000 100000", 3),
        ("9900000 100000", 64),
        ("100000 0", 64),
        ("nonsense", 64),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: Path, quota: str, threads: int) -> None:
    proc = machine(tmp_path, "0::/app\n", V2, {"fs/app/cpu.max": quota})
    assert available_threads(proc) == threads


@pytest.mark.parametrize(("quota", "threads"), [(-1, 64), (50000, 1), (300000, 3), (300001, 4)])
def test_a_quota_of_version_1_is_rounded_up(tmp_path: Path, quota: int, threads: int) -> None:
    files = {"cpu/a/b/cpu.cfs_quota_us": quota, "cpu/a/b/cpu.cfs_period_us": 100000}
    proc = machine(tmp_path, "3:cpu,cpuacct:/a/b\n2:memory:/\n", V1, files)
    assert available_threads(proc) == threads


def test_a_group_above_limits_those_below_it(tmp_path: Path) -> None:
    files = {
        "fs/pod/cpu.max": "200000 100000",
        "fs/pod/app/cpu.max": "max 100000",
        "fs/pod/memory.max": 600 * MIB,
        "fs/pod/memory.current": 100 * MIB,
        "fs/pod/app/memory.max": "max",
        "fs/pod/app/memory.current": 50 * MIB,
    }
    proc = machine(tmp_path, "0::/pod/app\n", V2, files)
    assert available_threads(proc) == 2
    assert available_memory(proc) == 500 * MIB


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    mounts = "30 1 0:25 /docker/4f $/cpu ro - cgroup cgroup rw,cpu\n"
    files = {"cpu/cpu.cfs_quota_us": 150000, "cpu/cpu.cfs_period_us": 100000}
    (tmp_path / "inside").mkdir()
    proc = machine(tmp_path / "inside", "3:cpu:/docker/4f\n", mounts, files)
    assert available_threads(proc) == 2
    # Before version 2, a process could be told its group's path on the host.
    (tmp_path / "host").mkdir()
    proc = machine(tmp_path / "host", "3:cpu:/docker/other\n", mounts, files)
    assert available_threads(proc) == 2


def test_memory_is_what_the_group_leaves_and_unused_files_are_free(tmp_path: Path) -> None:
    files = {
        "memory/app/memory.limit_in_bytes": 600 * MIB,
        "memory/app/memory.usage_in_bytes": 400 * MIB,
        "memory/app/memory.stat": f"cache {99 * MIB}\ntotal_inactive_file {70 * MIB}",
    }
    proc = machine(tmp_path, "4:memory:/app\n", V1, files)
    assert available_memory(proc) == 270 * MIB


def test_no_limit_leaves_what_the_machine_has(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 400 * MIB,
    }
    assert available_memory(machine(tmp_path, "4:memory:/\n", V1, files)) == 8192 * MIB
    assert available_memory(tmp_path / "no such folder") == 8192 * MIB
    assert available_threads(tmp_path / "no such folder") == 64


def test_a_group_that_has_more_than_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"fs/memory.max": 100 * MIB, "fs/memory.current": 101 * MIB}
    assert available_memory(machine(tmp_path, "0::/\n", V2, files)) == 0


@pytest.mark.parametrize(
    ("value", "threads"),
    [("1", 1), ("3", 3), ("2,4", 2), ("99", 64), ("0", 64), ("x", 64), ("", 64)],
)
def test_omp_num_threads_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert available_threads(tmp_path) == threads


def _cgroup_v1(name: str) -> Path | None:
    """Make a group below this process's own, where the machine lets it."""
    for controller in ("cpu", "memory"):
        if not Path(f"/sys/fs/cgroup/{controller}/cgroup.procs").exists():
            return None
    try:
        for controller in ("cpu", "memory"):
            Path(f"/sys/fs/cgroup/{controller}/{name}").mkdir()
    except OSError:
        return None
    return Path("/sys/fs/cgroup")


def test_a_real_group_of_half_a_processor_and_600_mb() -> None:
    name = f"mlflow-phi3-onnx-{os.getpid()}"
    root = _cgroup_v1(name)
    if root is None:
        pytest.skip("control groups of version 1 cannot be made here")
    code = (
        "import os, sys; from pathlib import Path\n"
        "for group in sys.argv[1:]: Path(group, 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from mlflow_phi3_onnx.runtime.machine import available_memory, available_threads\n"
        "print(available_threads(), available_memory())"
    )
    groups = [root / controller / name for controller in ("cpu", "memory")]
    try:
        (groups[0] / "cpu.cfs_period_us").write_text("100000")
        (groups[0] / "cpu.cfs_quota_us").write_text("50000")
        (groups[1] / "memory.limit_in_bytes").write_text("600000000")
        run = [sys.executable, "-c", code, *map(str, groups)]
        told = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    finally:
        for group in groups:
            group.rmdir()
    threads, memory = map(int, told)
    assert threads == 1
    assert 300_000_000 < memory < 600_000_000
