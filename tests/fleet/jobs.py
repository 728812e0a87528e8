"""What the workers of these tests do in place of quantizing: they copy a result that is there already."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bitwright.fleet.work import Failure, Order


def copying(result: Path, marks: Path) -> Callable[[Order], Failure | None]:
    """The worker of the model `victim` is killed each time, as the system does when memory runs out; that of `slow`
    takes long. marks: a folder with a file for each model that was begun.
    """
    return partial(_copy, result, marks)


def _copy(result: Path, marks: Path, order: Order) -> Failure | None:
    name = order.entry.name
    (marks / f"{name}-{time.monotonic_ns()}").touch()
    if name == "victim":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "slow":
        time.sleep(60)
    record = (result / "record.json").read_text(encoding="utf-8")
    shutil.copytree(result, order.entry.out)
    (order.entry.out / "record.json").write_text(record, encoding="utf-8")
    return None
