"""Drives a benchmark worker: starts it, sends requests, and reports what happened if it does not answer."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bitwright.errors import TargetError

_LAST_LINES = 8


def worker_command(
    runtime: str,
    directory: Path,
    *,
    config_from: Path,
    threads: int,
    task: str | None = None,
    prepare: Path | None = None,
) -> list[str]:
    """The command of a worker (see `bench_worker`). `-P`: files in the working directory must not shadow libraries."""
    command = [sys.executable, "-P", "-m", "bitwright.runtime.bench_worker", runtime, str(directory)]
    command += ["--config-from", str(config_from), "--threads", str(threads)]
    command += [] if task is None else ["--task", task]
    return command if prepare is None else [*command, "--prepare", str(prepare)]


def worker_environment(threads: int) -> dict[str, str]:
    """Our environment with OpenMP's thread count, but without network and without OpenVINO's and NNCF's usage
    statistics.
    """
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CI": "true",
        "NNCF_CI": "1",
    }


class Worker:
    """A process that answers each line of JSON with one line of JSON. Leaving the `with` block kills it."""

    def __init__(self, runtime: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start `command`; its stderr goes to the file `log`."""
        self.runtime, self._log = runtime, log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment),
                encoding="utf-8",
            )
        self.process = psutil.Process(self._process.pid)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Queue each line of output, then an empty one for its end: a queue can be waited for with a time limit."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            TargetError: as `answer` does.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone; `answer` says how
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the next line.

        Raises:
            TargetError: the worker reported an error, died, said something else than JSON, or took too long. The first
                line of the message stands alone; the last lines of the worker's stderr follow.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise self._failure(f"gave no answer in {timeout_s:g} s") from None
        if not line:
            raise self._failure(f"ended unexpectedly with exit code {self._process.wait()}")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise self._failure(f"answered {line.strip()[:80]!r}, which is not a JSON object")
        if "error" in reply:
            raise self._failure(f"failed: {reply['error']}")
        return reply

    def _failure(self, what: str) -> TargetError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        tail = "".join(f"\n    {line}" for line in lines)
        return TargetError(
            f"benchmark worker of {self.runtime!r} {what}" + (f"\n  its last messages:{tail}" if tail else "")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it never read is dropped
            self._process.stdin.close()
