"""A child forked in a test: whether what is asked holds there, or whether it hangs."""

import os
import signal
from collections.abc import Callable


def in_child(holds: Callable[[], bool], seconds: float = 20.0) -> int:
    """Fork; the child ends with 0 if `holds()`, and is killed if that takes longer. Returns its process."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # what Python handles would wait for what hangs
            signal.setitimer(signal.ITIMER_REAL, seconds)
            code = 0 if holds() else 1
        finally:
            os._exit(code)
    return child


def ended_well(child: int) -> bool:
    """Wait for a child: whether what was asked held there."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
