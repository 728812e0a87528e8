"""Processors: the affinity mask, and the quotas of control groups as containers and systemd lay them out."""

import os
from pathlib import Path

import pytest

from bitwright.kernels import processors
from bitwright.kernels.processors import default_threads, usable_processors

# /proc/self/cgroup, files under /sys/fs/cgroup, processors of 16 in the mask.
GROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    "no control groups": ("", {}, 16),
    "a container of version 2": ("0::/", {"cpu.max": "400000 100000"}, 4),
    "no limit": ("0::/", {"cpu.max": "max 100000"}, 16),
    "half a processor": ("0::/", {"cpu.max": "50000 100000"}, 1),
    "one and a half": ("0::/", {"cpu.max": "150000 100000"}, 2),
    "more than the mask": ("0::/", {"cpu.max": "3200000 100000"}, 16),
    "a group around it": ("0::/a.slice/b", {"a.slice/b/cpu.max": "max 100000", "a.slice/cpu.max": "300000 100000"}, 3),
    "the least of two": ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 2),
    "another's group": ("0::/a", {"a/cpu.max": "max 100000", "b/cpu.max": "100000 100000"}, 16),
    "a path of the host": ("0::/docker/0123", {"cpu.max": "200000 100000"}, 2),
    "a path above the root": ("0::/../../x", {"cpu.max": "200000 100000"}, 2),
    "no path": ("", {"cpu.max": "200000 100000"}, 2),
    "version 1": ("3:cpu:/a\n2:memory:/b", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "50000"}, 4),
    "version 1, two controllers": (
        "4:cpu,cpuacct:/a",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        3,
    ),
    "version 1, a path of the host": (
        "3:cpu:/kubepods/x",
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
        2,
    ),
    "version 1, no limit": ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    "version 2 beside version 1": ("3:cpu:/\n0::/a", {"unified/a/cpu.max": "500000 100000"}, 5),
    "something else in the file": ("0::/", {"cpu.max": "a lot"}, 16),
    "no period": ("0::/", {"cpu.max": "200000 0"}, 16),
}


@pytest.mark.parametrize("name", GROUPS)
def test_quotas(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_process, files, want = GROUPS[name]
    (tmp_path / "cgroup").write_text(of_process)
    for file, content in files.items():
        (tmp_path / "mount" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / file).write_text(f"{content}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_processors(tmp_path / "cgroup", tmp_path / "mount") == want


def test_this_machine() -> None:
    assert 1 <= usable_processors() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("wanted", "threads"), [(None, 4), ("", 4), ("0", 4), ("x", 4), ("1", 1), ("3", 3), ("9", 4), (" 2,8", 2)]
)
def test_threads_by_default(wanted: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "usable_processors", lambda: 4)
    if wanted is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert default_threads() == threads
