"""Worker processes of this machine, each on its share of the processors.

A worker is a program of its own (`process.py`), not a fork: nothing of a parent with threads is inherited, and no
script of the user is imported again. Tasks and results are pickles on a socket. When the parent is gone, the socket
says so, and the worker ends.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any, NamedTuple, cast

from bitwright.kernels.processors import default_threads, usable_processors
from bitwright.workers.tasks import Died, Outcome, Start

_LAST_LINES, _LAST_BYTES = 5, 4096  # of what a worker that died had printed


class _Process(NamedTuple):
    """A worker. log: what it printed."""

    process: subprocess.Popen[bytes]
    socket: Connection
    log: IO[bytes]


class Processes:
    """Worker processes of this machine: `Workers`. They begin to start, all together, when this is made."""

    def __init__(self, start: Start, count: int | None) -> None:
        """count: by default one for each processor that this process may use."""
        usable = usable_processors()
        self.count = usable if count is None else count
        self._shares = shares_of(sorted(os.sched_getaffinity(0)), self.count)
        self._threads = max(1, min(default_threads(), usable // self.count))
        self._start = pickle.dumps(start)
        self._running: list[_Process | None] = [None] * self.count
        self._busy: set[int] = set()
        try:
            for worker in range(self.count):
                self._open(worker)
        except BaseException:
            self.close()
            raise

    def give(self, worker: int, payload: Any) -> None:
        """As `Workers.give`."""
        running = self._running[worker] or self._open(worker)
        self._busy.add(worker)
        with suppress(OSError):  # it has died, and `wait` will say so
            running.socket.send_bytes(pickle.dumps(payload, pickle.HIGHEST_PROTOCOL))

    def wait(self) -> list[tuple[int, Outcome]]:
        """As `Workers.wait`."""
        sockets = {running.socket: i for i in self._busy if (running := self._running[i]) is not None}
        found: list[tuple[int, Outcome]] = []
        for socket in wait(list(sockets)):
            worker = sockets[cast(Connection, socket)]
            self._busy.discard(worker)
            try:
                found.append((worker, cast(Connection, socket).recv()))
            except (EOFError, OSError):
                found.append((worker, Died(self._end(worker))))
        return found

    def close(self) -> None:
        """As `Workers.close`."""
        for running in self._running:
            if running is not None:
                running.process.kill()
        for worker in range(self.count):
            self._end(worker)

    def _open(self, worker: int) -> _Process:
        ours, theirs = Pipe()
        log = tempfile.TemporaryFile()  # noqa: SIM115 (`_end` closes it)
        cores = ",".join(map(str, self._shares[worker]))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bitwright.workers.process", str(theirs.fileno()), cores],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(),
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C in the terminal is for the parent, which ends its workers
            )  # fmt: skip
        running = self._running[worker] = _Process(process, ours, log)
        with suppress(OSError):  # as in `give`
            ours.send_bytes(self._start)
        return running

    def _environment(self) -> dict[str, str]:
        """Ours, with the threads of one worker, and with our search path of modules."""
        own = {"OMP_NUM_THREADS": str(self._threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self._threads == 1:
            own["TOKENIZERS_PARALLELISM"] = "false"
        return os.environ | own

    def _end(self, worker: int) -> str:
        """Forget a worker that is gone, and say how it ended."""
        running = self._running[worker]
        if running is None:
            return ""
        self._running[worker] = None
        running.socket.close()
        code = running.process.wait()
        running.log.seek(max(0, running.log.seek(0, os.SEEK_END) - _LAST_BYTES))
        said = running.log.read().decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
        running.log.close()
        return _how(code) + "".join(f"\n    {line}" for line in said)


def shares_of(cores: Sequence[int], workers: int) -> list[list[int]]:
    """The cores of each worker: neighbours, and equally many but for one; where there are more workers than cores, one
    each.
    """
    if workers >= len(cores):
        return [[cores[i % len(cores)]] for i in range(workers)]
    ends = [i * len(cores) // workers for i in range(workers + 1)]
    return [list(cores[begin:end]) for begin, end in pairwise(ends)]


def _how(code: int) -> str:
    """How a process ended, from its exit code."""
    if code == -signal.SIGKILL:
        return (
            "the last one was killed (SIGKILL), as the system does when memory runs out; try fewer workers, which need "
            "less of it together"
        )
    if code < 0:
        return f"the last one was ended by {signal.Signals(-code).name}"
    return f"the last one ended with exit code {code}"
