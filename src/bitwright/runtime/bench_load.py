"""Which rounds of a benchmark count: those in which other programs left the machine alone.

A ratio of two runtimes taken in one round has met the same conditions for both, but not the same harm: a runtime whose
threads wait for each other may become ten times as slow when one core is taken away, and another half as fast. So a
round counts only if the cores were this benchmark's own, and a busy machine gets no figure instead of a wrong one.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import psutil

from bitwright.record import Shape
from bitwright.runtime.bench_summary import Block

RETRY_S = 20.0
_SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class LoadLimit:
    """When the machine counts as quiet, and how long to wait for that.

    cores: that other programs, and the host by withholding them ("steal"), may keep busy. rounds: quiet ones that a
    shape needs. retry_s: seconds that may be spent on more rounds and on waiting, for all shapes together.
    """

    cores: float = 0.15
    rounds: int = 3
    retry_s: float = field(default_factory=lambda: RETRY_S)


def quiet_rounds(blocks: Iterable[Block], limit: LoadLimit | None) -> dict[Shape, list[int]]:
    """The rounds of each shape in which every runtime ran on a quiet machine; all of them without a limit."""
    loads: dict[Shape, dict[int, float]] = {}
    for block in blocks:
        of_shape = loads.setdefault(block.shape, {})
        of_shape[block.round] = max(of_shape.get(block.round, 0.0), block.other_load_cores)
    most = float("inf") if limit is None else limit.cores
    return {shape: [r for r, load in of_shape.items() if load <= most] for shape, of_shape in loads.items()}


def short_of(blocks: Sequence[Block], shapes: Sequence[Shape], limit: LoadLimit) -> list[Shape]:
    """The shapes that have had too few quiet rounds."""
    found = quiet_rounds(blocks, limit)
    return [shape for shape in shapes if len(found.get(shape, ())) < limit.rounds]


def wait_until_quiet(
    limit: LoadLimit,
    deadline: float,
    *,
    busy_s: Callable[[], float],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until other programs keep at most `limit.cores` busy, or until the clock shows `deadline`.

    busy_s: CPU seconds that other programs have used up to now."""
    while (begun := clock()) < deadline:
        before = busy_s()
        sleep(_SAMPLE_S)
        if busy_s() - before <= limit.cores * (clock() - begun):
            return


def machine_cpu_s() -> float:
    """CPU seconds that this machine has spent on anything, all cores together: also those that the host withheld.
    Linux counts a guest's in user time too."""
    times = psutil.cpu_times()._asdict()
    return float(sum(times.values()) - sum(times.get(name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice")))


def own_cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of these processes. One that has ended is not counted: its time stands in the machine's, and makes
    the machine look busier than it is, never quieter."""
    total = 0.0
    for process in processes:
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return total
