"""Which cores this process may use. Needs the standard library only: our serving image has this file, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: its CPU affinity, limited by a container's CPU quota.

    Args:
        root: where `proc` and `sys` are.
    """
    # macOS binds no process to cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in cpu_quotas(root))]))


INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""What Linux calls the instructions that multiply 8-bit integers and add the products in 32 bits."""


def has_int8(root: Path = Path("/")) -> bool:
    """Whether this processor multiplies 8-bit integers at once. Others saturate sums, and are not faster in int8.

    Args:
        root: where `proc` is. A system without it is taken for one without these instructions.
    """
    return not INT8_FLAGS.isdisjoint(processor_words(root))


def processor_words(root: Path = Path("/")) -> set[str]:
    """What Linux says about the processor, word by word, its flags among them; nothing where there is no `proc`."""
    described = root / "proc" / "cpuinfo"
    return set(described.read_text().split()) if described.is_file() else set()


def cpu_quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control groups, in cores. A group above limits the groups in it.

    Source: kernel.org, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cgroup v1).
    """
    mounts = root / "sys" / "fs" / "cgroup"
    groups = root / "proc" / "self" / "cgroup"
    # In a container the path of the group may not be mounted: then the mount itself is the group.
    for line in groups.read_text().splitlines() if groups.is_file() else ["0::/"]:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if names == [""]:
            top, read = mounts, _read_version_2
        elif "cpu" in names:
            top, read = mounts / controllers, _read_version_1
            top = top if top.is_dir() else mounts / "cpu"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if (quota := read(folder)) is not None:
                yield quota
            if folder == top:
                break


def _read_version_2(group: Path) -> float | None:
    values = _numbers(group / "cpu.max")
    return values[0] / values[1] if len(values) == 2 else None  # "max 100000" is no quota


def _read_version_1(group: Path) -> float | None:
    quota, period = _numbers(group / "cpu.cfs_quota_us"), _numbers(group / "cpu.cfs_period_us")
    return quota[0] / period[0] if quota and period and quota[0] > 0 else None  # -1 is no quota


def _numbers(path: Path) -> list[int]:
    """The whole numbers in a file; none if it cannot be read."""
    try:
        return [int(word) for word in path.read_text().split() if word.lstrip("-").isdigit()]
    except OSError:
        return []
