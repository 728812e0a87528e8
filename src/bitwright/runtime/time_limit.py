"""How long a process that runs a model may take to answer, and its end if it takes longer."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A process that works is far faster, also on a machine that is busy with something else; one that hangs never answers.
_LEAST_SECONDS = 300.0  # to import the libraries from a slow disk
_BYTES_A_SECOND = 1e7  # of the weights, to read them
_BYTES_OF_WEIGHTS_TIMES_TOKENS_A_SECOND = 2e9  # to multiply them: 0.5 G multiplications a second in float32


def seconds_allowed(weight_bytes: int, tokens: int) -> float:
    """The time that a process has to start, to read a model and to run tokens through it.

    weight_bytes: of the model's files. tokens: of all texts together.
    """
    work = weight_bytes * tokens / _BYTES_OF_WEIGHTS_TIMES_TOKENS_A_SECOND
    return _LEAST_SECONDS + weight_bytes / _BYTES_A_SECOND + work


def weight_bytes(directory: Path) -> int:
    """The size of all files in a directory that may hold weights, or of one file."""
    files = directory.rglob("*") if directory.is_dir() else [directory]
    return sum(file.stat().st_size for file in files if file.suffix in (".safetensors", ".bin", ".gguf"))


def most_tokens(items: Sequence[Any]) -> int:
    """Tokens of texts, pairs of texts or windows of ids: no more than they have characters, and some special ones."""
    return sum(3 + (len(item) if isinstance(item, str) else sum(map(_length, item))) for item in items)


def _length(part: Any) -> int:
    return len(part) if isinstance(part, str) else 1


@contextmanager
def killed_after(process: "subprocess.Popen[Any]", seconds: float) -> Iterator[threading.Event]:
    """Kill a process and its group if the block takes longer. Gives an event that is set if that happened.

    process: one that leads its group (`start_new_session`).
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        kill_group(process)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def kill_group(process: "subprocess.Popen[Any]") -> None:
    """Kill a process that leads its group, with all that it started, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
