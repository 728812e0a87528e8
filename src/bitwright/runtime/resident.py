"""Measures the memory of this process, as Linux counts it."""

import sys
from pathlib import Path


def rss_mib() -> float:
    """The resident set now, in MiB. Linux only."""
    return _status("VmRSS")


def peak_rss_mib() -> float:
    """The largest resident set so far, in MiB.

    `ru_maxrss` would be wrong on Linux: it survives fork and exec, and so starts at the size of the process that
    started us. Elsewhere it is what there is, in bytes on macOS.
    """
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) / 1024


def available_bytes() -> int:
    """Memory that new work can have without swapping, as Linux estimates it; elsewhere all that the machine has."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
        return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        import os

        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
