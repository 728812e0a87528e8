"""What the workers of these tests do. They import this file, and nothing else of the tests."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bitwright.errors import InputError


def squares() -> Callable[[int], int]:
    return lambda number: number * number


def facts() -> Callable[[Any], dict[str, Any]]:
    """Of the process: its number, processors and threads."""
    found = {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"]}
    return lambda seconds: time.sleep(seconds) or found


def _squared_by_a_victim(marks: Path, deaths: int, number: int) -> int:
    mark = marks / f"{number}-{time.monotonic_ns()}"
    if number == 3 and len(list(marks.glob("3-*"))) < deaths:
        mark.touch()
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def victims(marks: Path, deaths: int) -> Callable[[int], int]:
    """Squares; but so often a worker dies of number 3. marks: a folder that counts."""
    return partial(_squared_by_a_victim, marks, deaths)


def _raised(what: str) -> None:
    raise {"input": InputError("line 3: no"), "full": OSError(28, "full", "a file"), "bug": ZeroDivisionError("x")}[
        what
    ]


def failing() -> Callable[[str], None]:
    return _raised


def unloadable() -> Callable[[int], int]:
    raise InputError("there is no such model")
