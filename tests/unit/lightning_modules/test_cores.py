"""Cores: what a container may use, by the CPU quota of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_modules.cores import cpu_quotas, has_int8, usable_cores
from lightning_modules.process import default_threads, limit_threads


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with this process's control groups and their files."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("50000 100000", 1), ("150000 100000", 1), ("9900000 100000", None)]
)
def test_a_quota_of_version_2_limits_the_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    root = machine(tmp_path, "0::/", {"sys/fs/cgroup/cpu.max": quota})
    assert usable_cores(root) == (usable_cores(tmp_path / "none") if cores is None else cores)


@pytest.mark.parametrize(
    ("groups", "files", "quotas"),
    [
        # Slurm and systemd limit a group below the mount, or one between the two.
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "300000 100000"}, [3.0]),
        ("0::/job/step", {"job/step/cpu.max": "100000 100000", "job/cpu.max": "300000 100000"}, [1.0, 3.0]),
        # In a container the path is that of the host, and the mount is the container's group.
        ("0::/docker/4711", {"cpu.max": "200000 100000"}, [2.0]),
        ("0::/../../x", {"cpu.max": "200000 100000"}, [2.0]),
        # Version 1, with the names that distributions give the mount.
        ("5:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "25000", "cpu,cpuacct/cpu.cfs_period_us": "10000"}, [2.5]),
        ("5:cpuacct,cpu:/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, [2.5]),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("4:memory:/x\n3:cpuset:/", {"memory/x/cpu.max": "100000 100000"}, []),
        ("0::/", {"cpu.max": "not a number"}, []),
    ],
)  # fmt: skip
def test_the_quotas_of_all_groups_of_a_process_are_read(
    tmp_path: Path, groups: str, files: dict[str, str], quotas: list[float]
) -> None:
    root = machine(tmp_path, groups, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert list(cpu_quotas(root)) == quotas


def test_cores_are_counted_where_no_process_is_bound_to_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert usable_cores(tmp_path) == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_decoding_and_training_take_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("lightning_modules.process.usable_cores", lambda: 3)
    limit_threads()
    assert (asked, default_threads()) == ([3], 3)


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx2 avx512f", False), ("avx2 avx_vnni", True), ("avx512_vnni", True), ("amx_int8", True)]
)
def test_a_processor_says_whether_it_multiplies_8_bits(tmp_path: Path, flags: str, has: bool) -> None:
    assert not has_int8(tmp_path), "another system"
    machine(tmp_path, "0::/", {"proc/cpuinfo": f"model name\t: CPU\nflags\t\t: {flags}"})
    assert has_int8(tmp_path) is has
