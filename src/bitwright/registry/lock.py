"""One writer at a time: a lock that the system gives back when its owner dies."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bitwright.errors import InputError
from bitwright.registry.log import now, who

LOCK = "lock"
_PAUSE_S = 0.01


@contextmanager
def locked(root: Path, what: str, *, wait_s: float = 5.0) -> Iterator[None]:
    """Hold the registry's lock. what: is shown to those who wait for it.

    Raises:
        InputError: another process holds it for longer than `wait_s`; the message says which.
        OSError: as the file system says.
    """
    with (root / LOCK).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait_s
        while not taken(file):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{root}: the registry is locked by {_holder(file)}. Wait for it, then run the same command again"
                )
            time.sleep(_PAUSE_S)
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "by": who(), "what": what, "since": now()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def taken(file: TextIO) -> bool:
    """Take the lock of a file if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    try:
        said = json.loads(file.read())
        return f"process {said['process']} of {said['by']}, `{said['what']}`, since {said['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
