"""What this process may use of the machine: processors and memory, within its container's limits.

A container's limits are those of its control groups (cgroups, versions 1 and 2), which neither the
number of processors nor the machine's free memory shows.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available_memory", "available_threads"]

_PROC = Path("/proc/self")
_UNLIMITED = 2**60
"""From here on, a limit in bytes is none: version 1 writes a number near 2**63 for it."""


def available_threads(proc: Path = _PROC) -> int:
    """Count the threads that can compute at once.

    It is the least of the processors that the process may run on, its control groups' quota of
    processor time, rounded up, and ``OMP_NUM_THREADS``, which Spark, Ray and others set for the
    processes that share a machine.

    Args:
        proc: The process's folder in ``/proc``.
    """
    if hasattr(os, "sched_getaffinity"):
        limits = [len(os.sched_getaffinity(0))]
    else:
        limits = [os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in _cpu_quotas(proc)]
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isascii() and wanted.isdigit() and int(wanted):
        limits.append(int(wanted))
    return max(1, min(limits))


def available_memory(proc: Path = _PROC) -> int:
    """Count the bytes of memory that can be had without swapping.

    It is the least of what is free on the machine and what the control groups leave. What a group
    holds of files that it has not used lately counts as free, as it does for the machine.

    Args:
        proc: The process's folder in ``/proc``.
    """
    return max(0, min([psutil.virtual_memory().available, *_memory_left(proc)]))


def _cpu_quotas(proc: Path) -> Iterator[float]:
    """List the processors' worth of time that each group allows."""
    for group in _groups(proc, "cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota = _read(group / "cpu.cfs_quota_us")
            period = _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _memory_left(proc: Path) -> Iterator[int]:
    """List the bytes that each group leaves."""
    for group in _groups(proc, "memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
            pairs = (line.split() for line in _read(group / "memory.stat").splitlines())
            statistics = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
            unused = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            yield int(limit) - int(used) + unused


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """List the folders of the process's control groups, up to the root of each mount.

    ``/proc/self/cgroup`` names a group in each hierarchy, and ``/proc/self/mountinfo`` where each
    is mounted. A container often sees its own group as the root of the mount.
    """
    paths: dict[str, str] = {}
    for line in _read(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    for line in _read(proc / "mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        root, point = mount.split()[3:5]
        filesystem, _, options = kind.split(" ", 2)
        if filesystem == "cgroup2" and "" in paths:
            path = paths[""]
        elif filesystem == "cgroup" and controller in options.split(",") and controller in paths:
            path = paths[controller]
        else:
            continue
        below = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        folder = Path(point, below)
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(point))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
