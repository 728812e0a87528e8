"""How many processors this process may use: by its affinity mask and by its container's quota. No torch.

A container (docker --cpus, a Kubernetes limit, systemd's CPUQuota) leaves all processors in the mask, and stops the
process when it has used up its share of a period. Threads that wait for each other by spinning use it up at once.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUP_OF_PROCESS, _CGROUP_MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_processors(of_process: Path = _CGROUP_OF_PROCESS, mount: Path = _CGROUP_MOUNT) -> int:
    """The least of the affinity mask and the quotas of this process's control groups, rounded up; at least 1.

    A thread more than these makes nothing faster.

    Args:
        of_process, mount: where Linux tells of control groups; tests give others.
    """
    quotas = [quota for group in _groups(of_process, mount) if (quota := _quota(group)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def default_threads() -> int:
    """OMP_NUM_THREADS if that is set, as torch takes it, but no more than `usable_processors`; else these."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # more numbers are of nested regions
    usable = usable_processors()
    return min(int(wanted), usable) if wanted.isdecimal() and int(wanted) else usable


def _groups(of_process: Path, mount: Path) -> Iterator[Path]:
    """Folders of the groups that limit the processor time of this process: its own, and all around them.

    /proc/self/cgroup has lines "hierarchy:controllers:/path". In a container the path may be that of the host, of which
    only the container's own part is mounted, at the root; so the root is looked at even where the path is not there.
    """
    for line in _text(of_process).splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2, alone or beside version 1
            roots = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [mount / controllers, mount / "cpu"]
        else:
            continue
        names = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for root in roots:
            yield from (root.joinpath(*names[:depth]) for depth in range(len(names), -1, -1))


def _quota(group: Path) -> int | None:
    """Processors' worth of time that a group has, rounded up; None if it is not limited."""
    found = _text(group / "cpu.max").split()  # version 2: "quota period", or "max period"
    if not found:
        found = [_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]  # version 1: −1 for none
    if len(found) != 2 or not all(number.isdecimal() for number in found) or not int(found[1]):
        return None
    return -(-int(found[0]) // int(found[1]))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
